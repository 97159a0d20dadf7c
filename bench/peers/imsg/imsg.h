/* What smtpd and a filter of the API 52 say to each other, and the socket for it: see imsg.c. */
#ifndef IMSG_H
#define IMSG_H

#include <stddef.h>
#include <stdint.h>

enum { REGISTER, EVENT, QUERY, PIPE, RESPONSE };	/* types of frames */
enum { EVENT_CONNECT, EVENT_RESET, EVENT_DISCONNECT, TX_BEGIN, TX_COMMIT, TX_ROLLBACK };
enum { ON_CONNECT, ON_HELO, ON_MAIL, ON_RCPT, ON_DATA, ON_EOM };	/* queries */
enum { OK, FAIL, CLOSE };				/* answers */
enum { VERSION = 52, HOOK_DATALINE = 0x400 };
enum { READ_SIZE = 65535, CHUNK = 65536 };		/* of the socket, of a message's pipe */

struct frame {
	uint32_t type;
	const unsigned char *payload;	/* good until the next read */
	size_t len;
	int fd;				/* -1: none came with it */
};

/* Frames to send, in one block; where a descriptor leaves, and with the frames up to where. */
struct passing {
	size_t end;
	int fd;
};

struct channel {
	int fd, want_write;
	unsigned char in[READ_SIZE];
	size_t in_at, in_len;
	int *received;			/* descriptors, in the order of their frames */
	size_t received_len, received_room;
	unsigned char *out;
	size_t out_at, out_len, out_room;
	struct passing *passing;
	size_t passing_at, passing_len, passing_room;
};

void *grown(void *old, size_t size);
void put_frame(struct channel *c, uint32_t type, const void *payload, size_t len, int fd);
int flush_frames(struct channel *c);
int read_frames(struct channel *c);
int next_frame(struct channel *c, struct frame *frame);
uint32_t u32_at(const unsigned char *data);
uint64_t u64_at(const unsigned char *data);
size_t put_u32(unsigned char *to, uint32_t value);
size_t put_u64(unsigned char *to, uint64_t value);

#endif
