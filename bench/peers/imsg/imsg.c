/*
 * imsg frames with descriptors, on a stream socket that does not block.
 *
 * As imsg has it, frames that wait leave in one sendmsg(2), up to and with the first that a
 * descriptor belongs to; so a descriptor comes with its frame or before it.
 */
#include "imsg.h"

#include <sys/socket.h>
#include <err.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { HEADER = 16, MAX_FRAME = 16384, HAS_FD = 1, MOST_FDS = 8 };

union rights {
	struct cmsghdr align;
	char room[CMSG_SPACE(MOST_FDS * sizeof(int))];
};

void *
grown(void *old, size_t size)
{
	void *block = realloc(old, size);

	if (block == NULL)
		err(2, "realloc");
	return block;
}

uint32_t
u32_at(const unsigned char *data)
{
	uint32_t value;

	memcpy(&value, data, sizeof value);
	return value;
}

uint64_t
u64_at(const unsigned char *data)
{
	uint64_t value;

	memcpy(&value, data, sizeof value);
	return value;
}

size_t
put_u32(unsigned char *to, uint32_t value)
{
	memcpy(to, &value, sizeof value);
	return sizeof value;
}

size_t
put_u64(unsigned char *to, uint64_t value)
{
	memcpy(to, &value, sizeof value);
	return sizeof value;
}

/* Out. */

static void
add_passing(struct channel *c, int fd)
{
	if (c->passing_len == c->passing_room) {
		c->passing_room = 2 * c->passing_room + 16;
		c->passing = grown(c->passing, c->passing_room * sizeof *c->passing);
	}
	c->passing[c->passing_len++] = (struct passing){ c->out_len, fd };
}

/* Queue a frame; its descriptor is closed when it has been passed. */
void
put_frame(struct channel *c, uint32_t type, const void *payload, size_t len, int fd)
{
	static pid_t pid;
	uint16_t size = HEADER + len, flags = fd < 0 ? 0 : HAS_FD;
	unsigned char header[HEADER] = { 0 };

	if (c->out_len + size > c->out_room) {
		c->out_room = 2 * c->out_room + MAX_FRAME;
		c->out = grown(c->out, c->out_room);
	}
	put_u32(header, type);
	memcpy(header + 4, &size, sizeof size);
	memcpy(header + 6, &flags, sizeof flags);
	if (pid == 0)
		pid = getpid();
	put_u32(header + 12, pid);
	memcpy(c->out + c->out_len, header, HEADER);
	memcpy(c->out + c->out_len + HEADER, payload, len);
	c->out_len += size;
	if (fd >= 0)
		add_passing(c, fd);
}

/* Send once, with a descriptor if it is not -1. */
static ssize_t
send_some(struct channel *c, size_t end, int fd)
{
	struct iovec data = { c->out + c->out_at, end - c->out_at };
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1 };
	union rights rights;

	if (fd >= 0) {
		message.msg_control = &rights;
		message.msg_controllen = CMSG_SPACE(sizeof fd);
		struct cmsghdr *control = CMSG_FIRSTHDR(&message);
		control->cmsg_level = SOL_SOCKET;
		control->cmsg_type = SCM_RIGHTS;
		control->cmsg_len = CMSG_LEN(sizeof fd);
		memcpy(CMSG_DATA(control), &fd, sizeof fd);
	}
	return sendmsg(c->fd, &message, MSG_NOSIGNAL);
}

/* Send what the peer takes: 1 when that was all, 0 when it was not, -1 at an error. */
int
flush_frames(struct channel *c)
{
	while (c->out_at < c->out_len) {
		struct passing *passing =
		    c->passing_at < c->passing_len ? &c->passing[c->passing_at] : NULL;
		size_t end = passing ? passing->end : c->out_len;
		ssize_t n = send_some(c, end, passing ? passing->fd : -1);
		if (n < 0)
			return errno == EAGAIN ? 0 : -1;
		c->out_at += n;
		if (passing && passing->fd >= 0) {
			close(passing->fd);
			passing->fd = -1;
		}
		if (passing && c->out_at == end)
			c->passing_at++;
	}
	c->out_at = c->out_len = c->passing_at = c->passing_len = 0;
	return 1;
}

/* In. */

static void
keep_descriptors(struct channel *c, struct msghdr *message)
{
	struct cmsghdr *control = CMSG_FIRSTHDR(message);

	if (control == NULL || control->cmsg_type != SCM_RIGHTS)
		return;
	size_t count = (control->cmsg_len - CMSG_LEN(0)) / sizeof(int);
	if (c->received_len + count > c->received_room) {
		c->received_room = 2 * c->received_room + MOST_FDS;
		c->received = grown(c->received, c->received_room * sizeof(int));
	}
	memcpy(c->received + c->received_len, CMSG_DATA(control), count * sizeof(int));
	c->received_len += count;
}

/* Read once: 1, 0 at the end of file, -1 at an error; without anything there, 1. */
int
read_frames(struct channel *c)
{
	memmove(c->in, c->in + c->in_at, c->in_len - c->in_at);
	c->in_len -= c->in_at;
	c->in_at = 0;

	union rights rights;
	struct iovec data = { c->in + c->in_len, READ_SIZE - c->in_len };
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1,
	    .msg_control = &rights, .msg_controllen = sizeof rights };
	ssize_t n = recvmsg(c->fd, &message, MSG_CMSG_CLOEXEC);
	if (n < 0)
		return errno == EAGAIN ? 1 : -1;
	keep_descriptors(c, &message);
	c->in_len += n;
	return n > 0;
}

static int
first_descriptor(struct channel *c)
{
	if (c->received_len == 0)
		return -1;
	int fd = c->received[0];
	memmove(c->received, c->received + 1, --c->received_len * sizeof fd);
	return fd;
}

/* Take the next whole frame: 1, 0 if it is not there, -1 if it cannot be one. */
int
next_frame(struct channel *c, struct frame *frame)
{
	const unsigned char *at = c->in + c->in_at;
	uint16_t size, flags;

	if (c->in_len - c->in_at < HEADER)
		return 0;
	memcpy(&size, at + 4, sizeof size);
	memcpy(&flags, at + 6, sizeof flags);
	if (size < HEADER || size > MAX_FRAME)
		return -1;
	if (c->in_len - c->in_at < size)
		return 0;
	c->in_at += size;
	*frame = (struct frame){ u32_at(at), at + HEADER, size - HEADER,
	    flags & HAS_FD ? first_descriptor(c) : -1 };
	return 1;
}
