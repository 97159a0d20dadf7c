/*
 * Filters of the imsg API 52 that accept everything and hand each message on as it is.
 * cc -O2 -o echo_filter echo_filter.c imsg.c
 *
 * echo_filter lines   as the null filter of the C API: a message is taken apart into lines and
 *                     put together again, and leaves when the loop says that its sink takes some
 * echo_filter pieces  the least that can be done: what has come is written at once
 */
#include "imsg.h"

#include <sys/epoll.h>
#include <sys/socket.h>
#include <err.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { EVENTS = 256, BUCKETS = 256, MAX_LINE = 2048 };
enum { QUERY_FIXED = 20, RESPONSE_FIXED = 20 };	/* octets of a payload without arguments */

/* A message under way: what has come and is no whole line, and what is to leave. */
struct way {
	int source, sink, ended;	/* the descriptors, or -1; the source's end was seen */
	uint32_t from_source, to_sink;	/* the events that are waited for */
	size_t in_len;
	char *out;
	size_t out_at, out_len, out_room;
	uint32_t written;
	char in[CHUNK];
};

struct session {
	uint64_t id, eom;		/* EOM's query id, while that waits for an answer */
	int asked;			/* it does */
	struct way *way;
	struct session *next;
};

static struct channel control;
static struct session *buckets[BUCKETS];
static int poller, by_lines;

/* Sessions. */

static struct session **
place_of(uint64_t id)
{
	struct session **place = &buckets[(id ^ id >> 16) % BUCKETS];

	while (*place != NULL && (*place)->id != id)
		place = &(*place)->next;
	return place;
}

static void
forget_way(struct session *s)
{
	if (s->way == NULL)
		return;
	if (s->way->source >= 0)
		close(s->way->source);
	if (s->way->sink >= 0)
		close(s->way->sink);
	free(s->way->out);
	free(s->way);
	s->way = NULL;
}

static void
take_event(uint64_t id, uint32_t event)
{
	struct session **place = place_of(id), *s = *place;

	if (event == EVENT_CONNECT && s == NULL) {
		*place = grown(NULL, sizeof *s);
		**place = (struct session){ .id = id };
	} else if (s == NULL)
		errx(1, "an event of no session");
	else if (event == TX_ROLLBACK)
		forget_way(s);
	else if (event == EVENT_DISCONNECT) {
		forget_way(s);
		*place = s->next;
		free(s);
	}
}

/* Answers. */

static void
accept_query(uint64_t id, uint32_t query, uint32_t datalen)
{
	unsigned char payload[RESPONSE_FIXED + 4];
	size_t at = put_u64(payload, id);

	at += put_u32(payload + at, query);
	if (query == ON_EOM)
		at += put_u32(payload + at, datalen);
	at += put_u32(payload + at, OK);
	at += put_u32(payload + at, 0);
	put_frame(&control, RESPONSE, payload, at, -1);
}

/* EOM is answered when the message has left. */
static void
answer_eom(struct session *s)
{
	if (!s->asked || s->way == NULL || s->way->sink >= 0)
		return;
	s->asked = 0;
	accept_query(s->eom, ON_EOM, s->way->written);
	forget_way(s);
}

/* The message's way. The poller has the session's address, with the lowest bit for the sink. */

static void
watch(int fd, uint32_t *had, uint32_t events, uint64_t data)
{
	struct epoll_event event = { events, { .u64 = data } };
	int operation = *had == 0 ? EPOLL_CTL_ADD : events == 0 ? EPOLL_CTL_DEL : EPOLL_CTL_MOD;

	if (*had == events)
		return;
	*had = events;
	if (epoll_ctl(poller, operation, fd, &event) < 0)
		err(1, "epoll_ctl");
}

/* Read while little waits to leave; ask for the sink while something does. */
static void
wait_for_more(struct session *s)
{
	struct way *w = s->way;

	if (w->source >= 0)
		watch(w->source, &w->from_source, w->out_len - w->out_at < CHUNK ? EPOLLIN : 0,
		    (uintptr_t)s);
	if (w->sink >= 0)
		watch(w->sink, &w->to_sink, w->out_at < w->out_len ? EPOLLOUT : 0,
		    (uintptr_t)s | 1);
}

static void
close_watched(int *fd, uint32_t *had)
{
	watch(*fd, had, 0, 0);
	close(*fd);
	*fd = -1;
}

static void
put_out(struct way *w, const char *data, size_t len)
{
	if (w->out_len + len > w->out_room) {
		w->out_room = 2 * (w->out_len + len);
		w->out = grown(w->out, w->out_room);
	}
	memcpy(w->out + w->out_len, data, len);
	w->out_len += len;
}

/* Write what the sink takes, and close it behind the last of it. */
static void
write_out(struct session *s)
{
	struct way *w = s->way;

	if (w->out_at < w->out_len) {
		ssize_t n = write(w->sink, w->out + w->out_at, w->out_len - w->out_at);
		if (n < 0 && errno != EAGAIN)
			err(1, "a sink");
		w->out_at += n < 0 ? 0 : n;
		w->written += n < 0 ? 0 : n;
	}
	if (w->out_at < w->out_len)
		return;
	w->out_at = w->out_len = 0;
	if (w->ended)
		close_watched(&w->sink, &w->to_sink);
}

static void
pass_lines(struct way *w)
{
	char *line = w->in, *end;
	size_t left = w->in_len;

	while ((end = memchr(line, '\n', left)) != NULL) {
		*end = '\0';	/* what a filter's own code is given */
		if (end - line >= MAX_LINE)
			errx(1, "a line of %td octets", end - line);
		put_out(w, line, strlen(line));
		put_out(w, "\n", 1);
		left -= end + 1 - line;
		line = end + 1;
	}
	if (left >= MAX_LINE || (left > 0 && w->ended))
		errx(1, "a line without an end");
	memmove(w->in, line, left);
	w->in_len = left;
}

static void
read_source(struct session *s)
{
	struct way *w = s->way;
	ssize_t n = read(w->source, w->in + w->in_len, sizeof w->in - w->in_len);

	if (n < 0 && errno == EAGAIN)
		return;
	if (n < 0)
		err(1, "a message");
	w->in_len += n;
	w->ended = n == 0;
	if (by_lines)
		pass_lines(w);
	else {
		put_out(w, w->in, w->in_len);
		w->in_len = 0;
	}
	if (w->ended)
		close_watched(&w->source, &w->from_source);
	if (!by_lines || w->out_at == w->out_len)
		write_out(s);
}

static void
take_pipe(struct session *s, int sink)
{
	unsigned char payload[8];
	int ends[2];

	if (s == NULL || s->way != NULL || sink < 0)
		errx(1, "a PIPE that cannot be");
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) < 0)
		err(1, "socketpair");
	s->way = grown(NULL, sizeof *s->way);
	memset(s->way, 0, offsetof(struct way, in));
	s->way->source = ends[0];
	s->way->sink = sink;
	wait_for_more(s);
	put_frame(&control, PIPE, payload, put_u64(payload, s->id), ends[1]);
}

static void
serve_way(struct session *s, int writable)
{
	if (s->way == NULL)
		return;		/* the other of its events has ended it */
	if (writable && s->way->sink >= 0)
		write_out(s);
	else if (!writable && s->way->source >= 0)
		read_source(s);
	wait_for_more(s);
	answer_eom(s);
}

/* What smtpd says, and the loop. */

static void
take_query(const struct frame *frame)
{
	struct session *s = *place_of(u64_at(frame->payload));
	uint64_t id = u64_at(frame->payload + 8);
	uint32_t query = u32_at(frame->payload + 16);

	if (s == NULL)
		errx(1, "a query of no session");
	if (query != ON_EOM) {
		accept_query(id, query, 0);
		return;
	}
	s->eom = id;
	s->asked = 1;
	answer_eom(s);
}

static void
take_registration(void)
{
	unsigned char payload[8];
	size_t len = put_u32(payload, 0xffffffff);

	put_frame(&control, REGISTER, payload, len + put_u32(payload + len, 0), -1);
}

static void
take_frame(const struct frame *frame)
{
	static const size_t least[] = { 4, 12, QUERY_FIXED, 8 };

	if (frame->type > PIPE || frame->len < least[frame->type])
		errx(1, "a frame of the type %u with %zu octets", frame->type, frame->len);
	switch (frame->type) {
	case REGISTER: take_registration(); break;
	case EVENT: take_event(u64_at(frame->payload), u32_at(frame->payload + 8)); break;
	case QUERY: take_query(frame); break;
	case PIPE: take_pipe(*place_of(u64_at(frame->payload)), frame->fd); break;
	}
}

static void
read_control(void)
{
	struct frame frame;
	int found, open = read_frames(&control);

	while ((found = next_frame(&control, &frame)) > 0)
		take_frame(&frame);
	if (found < 0 || open < 0)
		errx(1, "smtpd's socket");
	if (open == 0)
		exit(0);
}

static void
send_answers(void)
{
	static uint32_t had;
	int sent = flush_frames(&control);

	if (sent < 0)
		err(1, "smtpd's socket");
	watch(control.fd, &had, EPOLLIN | (sent ? 0 : EPOLLOUT), 0);
}

int
main(int argc, char **argv)
{
	struct epoll_event events[EVENTS];

	by_lines = argc == 2 && !strcmp(argv[1], "lines");
	if (!by_lines && (argc != 2 || strcmp(argv[1], "pieces"))) {
		fprintf(stderr, "usage: echo_filter lines|pieces\n");
		return 2;
	}
	signal(SIGPIPE, SIG_IGN);
	poller = epoll_create1(EPOLL_CLOEXEC);
	for (;;) {
		send_answers();
		int count = epoll_wait(poller, events, EVENTS, -1), spoken = 0;
		for (int i = 0; i < count; i++) {
			uint64_t data = events[i].data.u64;
			if (data != 0)
				serve_way((struct session *)(uintptr_t)(data & ~(uint64_t)1), data & 1);
			else
				spoken = events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR);
		}
		if (spoken)	/* last: it may end sessions that other events are about */
			read_control();
	}
}
