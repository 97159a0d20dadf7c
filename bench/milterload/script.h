/* What an MTA sends to a milter, and when it waits: see script.c. */
#ifndef SCRIPT_H
#define SCRIPT_H

#include <stddef.h>
#include <stdint.h>

enum { STAGES = 7 };	/* at which macros are sent (SMFIM) */

struct bytes {
	unsigned char *data;
	size_t len;
};

/* Packets in a row, and the command whose reply has to come before the next burst; 0: none. */
struct burst {
	struct bytes packets;
	char waits;
};

struct script {
	struct burst *bursts;
	int count;
};

/* What was negotiated, and what is sent then. */
struct plan {
	struct bytes answer;
	uint32_t actions, protocol;	/* SMFIF and SMFIP bits */
	const char *macros[STAGES];
	struct script first, next;	/* a connection's first message, and each later one */
	struct script idle;		/* a connection without a message */
	struct plan *older;
};

void *grown(void *old, size_t size);
uint32_t number(const unsigned char *data);
struct bytes offer(void);
struct bytes goodbye(void);
const struct plan *agreed(const unsigned char *answer, size_t len, int body_lines);

#endif
