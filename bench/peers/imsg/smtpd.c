/*
 * smtpd's side of the sessions: each query waits for the answer to the one before.
 *
 * Events, queries and the message's way are those of a recorded smtpd of 2017. A message passes
 * through the filter if it has registered for that, and else through smtpd's own socketpair only.
 * What is wrong ends the program, with the exit status 1.
 */
#include "smtpd.h"

#include "imsg.h"

#include <sys/epoll.h>
#include <sys/socket.h>
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { EVENTS = 256 };
enum { ADDRESS_PART = 256, MAX_QUERY = 1024 };	/* octets */
enum { NONE = -1 };				/* no query is open */
enum { CONTROL, SINK, SOURCE };			/* what an event of the poller is about */

struct session {
	uint64_t id, open_id;		/* its own, its open query's */
	int open, piping;		/* the open query; whether the answer to PIPE has to come */
	int sink, source;		/* where the message comes back, where it goes; or -1 */
	int watched;			/* the source is full, and the poller watches it */
	int answered;			/* EOM */
	int left;			/* messages */
	size_t written, returned, matched, skipped;
	uint32_t told;			/* the filter's octets */
	double began;
};

static struct load load;
static struct channel control;
static struct session *all;
static struct times *times;
static char *message;
static size_t received_len, message_len;	/* of the Received field, and with it */
static int poller, live;
static uint32_t hooks;
static uint64_t serial;
static double deadline;

double
clock_at(clockid_t clock)
{
	struct timespec t;

	if (clock_gettime(clock, &t) < 0)
		err(1, "clock_gettime");
	return t.tv_sec + t.tv_nsec / 1e9;
}

static double
now(void)
{
	return clock_at(CLOCK_MONOTONIC);
}

static int
index_of(const struct session *s)
{
	return s - all;
}

static void
watch(int fd, int operation, uint32_t events, int about, int number)
{
	struct epoll_event event = { events, { .u64 = (uint64_t)number << 2 | about } };

	if (epoll_ctl(poller, operation, fd, &event) < 0)
		err(1, "epoll_ctl");
}

/* What smtpd says. */

static void
tell(const struct session *s, uint32_t event)
{
	unsigned char payload[12];

	put_u32(payload + put_u64(payload, s->id), event);
	put_frame(&control, EVENT, payload, sizeof payload, -1);
}

static void
ask(struct session *s, int query, const void *arguments, size_t len)
{
	unsigned char payload[MAX_QUERY];
	size_t at = put_u64(payload, s->id);

	s->open = query;
	s->open_id = ++serial << 16 | index_of(s);
	at += put_u64(payload + at, s->open_id);
	at += put_u32(payload + at, query);
	memcpy(payload + at, arguments, len);
	put_frame(&control, QUERY, payload, at + len, -1);
}

static size_t
put_address(unsigned char *to, const char *host, int port)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(port) };
	size_t size = sizeof address;	/* a size_t goes before it */

	inet_pton(AF_INET, host, &address.sin_addr);
	memcpy(to, &size, sizeof size);
	memcpy(to + sizeof size, &address, sizeof address);
	return sizeof size + sizeof address;
}

static void
ask_connect(struct session *s)
{
	static const char name[] = "client.example.org";
	unsigned char arguments[MAX_QUERY / 2];
	size_t len = put_address(arguments, "192.0.2.1", 25);

	len += put_address(arguments + len, "192.0.2.7", 4321);
	memcpy(arguments + len, name, sizeof name);
	ask(s, ON_CONNECT, arguments, len + sizeof name);
}

static void
ask_address(struct session *s, int query, const char *user, const char *domain)
{
	char arguments[2 * ADDRESS_PART] = { 0 };

	strcpy(arguments, user);
	strcpy(arguments + ADDRESS_PART, domain);
	ask(s, query, arguments, sizeof arguments);
}

/* Sessions and messages. */

static void
begin_message(struct session *s)
{
	s->left--;
	s->written = s->returned = s->matched = s->skipped = 0;
	s->answered = 0;
	s->began = now();
	tell(s, TX_BEGIN);
	ask_address(s, ON_MAIL, "alice", "example.org");
}

static void
open_session(struct session *s)
{
	*s = (struct session){ .id = ++serial << 16 | index_of(s), .sink = -1, .source = -1,
	    .left = load.messages };
	tell(s, EVENT_CONNECT);
	ask_connect(s);
}

static void
keep_time(double seconds)
{
	if (times->count == times->room) {
		times->room = 2 * times->room + 4096;
		times->seconds = grown(times->seconds, times->room * sizeof seconds);
	}
	times->seconds[times->count++] = seconds;
}

/* A message ends when EOM was answered and the sink has ended. */
static void
end_if_complete(struct session *s)
{
	if (!s->answered || s->sink >= 0)
		return;
	if (s->told != s->returned)
		errx(1, "%zu octets came back, the filter says %u", s->returned, s->told);
	if (s->returned != message_len + load.gain || s->matched != message_len)
		errx(1, "of a message of %zu octets, %zu of %zu that came back are as they were",
		    message_len, s->matched, s->returned);
	keep_time(now() - s->began);
	tell(s, TX_COMMIT);
	if (now() < deadline && s->left > 0) {
		begin_message(s);
		return;
	}
	tell(s, EVENT_DISCONNECT);
	if (now() < deadline)
		open_session(s);
	else
		live--;
}

/* A message's way: from us into the source, from the sink to us. */

/* Compare what comes back with the message; what does not fit is taken for what was added. */
static void
compare(struct session *s, const char *data, size_t len)
{
	while (len > 0) {
		size_t here = message_len - s->matched < len ? message_len - s->matched : len;
		size_t same = 0;
		if (memcmp(data, message + s->matched, here) == 0)
			same = here;
		while (same < here && data[same] == message[s->matched + same])
			same++;
		s->matched += same;
		data += same;
		len -= same;
		size_t added = load.gain - s->skipped < len ? load.gain - s->skipped : len;
		if (len > 0 && added == 0)
			return;		/* the count will tell */
		s->skipped += added;
		data += added;
		len -= added;
	}
}

static void
drain(struct session *s)
{
	static char data[CHUNK];

	if (s->sink < 0)
		return;
	ssize_t n = read(s->sink, data, sizeof data);
	if (n < 0 && errno == EAGAIN)
		return;
	if (n < 0)
		err(1, "a sink");
	s->returned += n;
	compare(s, data, n);
	if (n == 0) {
		watch(s->sink, EPOLL_CTL_DEL, 0, SINK, index_of(s));
		close(s->sink);
		s->sink = -1;
		end_if_complete(s);
	}
}

/* Write what the source takes: the Received field first, as smtpd has it before the message. */
static void
pour(struct session *s)
{
	while (s->source >= 0 && s->written < message_len) {
		size_t end = s->written < received_len ? received_len : message_len;
		size_t len = end - s->written < CHUNK ? end - s->written : CHUNK;
		ssize_t n = write(s->source, message + s->written, len);
		if (n < 0 && errno != EAGAIN)
			err(1, "a message after %zu octets", s->written);
		if (n < 0) {
			if (!s->watched)
				watch(s->source, EPOLL_CTL_ADD, EPOLLOUT, SOURCE, index_of(s));
			s->watched = 1;
			return;
		}
		s->written += n;
	}
	if (s->source < 0)
		return;
	if (s->watched)	/* the filter may have it open, too: closing alone would leave the watch */
		watch(s->source, EPOLL_CTL_DEL, 0, SOURCE, index_of(s));
	close(s->source);
	s->source = -1;
	s->watched = 0;

	unsigned char datalen[4];
	ask(s, ON_EOM, datalen, put_u32(datalen, message_len));
}

static void
feed(struct session *s, int source)
{
	fcntl(source, F_SETFL, O_NONBLOCK);
	s->source = source;
	pour(s);
}

static void
build_pipe(struct session *s)
{
	unsigned char payload[8];
	int ends[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) < 0)
		err(1, "socketpair");
	s->sink = ends[0];
	watch(s->sink, EPOLL_CTL_ADD, EPOLLIN, SINK, index_of(s));
	if (!(hooks & HOOK_DATALINE)) {
		feed(s, ends[1]);
		return;
	}
	s->piping = 1;
	put_frame(&control, PIPE, payload, put_u64(payload, s->id), ends[1]);
}

/* What the filter says. */

static struct session *
session_of(const struct frame *frame)
{
	uint64_t number = frame->len < 8 ? MOST_SESSIONS : u64_at(frame->payload) & 0xffff;

	return number < (uint64_t)load.sessions ? &all[number] : NULL;
}

static void
go_on(struct session *s, int answered)
{
	switch (answered) {
	case ON_CONNECT: ask(s, ON_HELO, "client.example.org", sizeof "client.example.org"); break;
	case ON_HELO: begin_message(s); break;
	case ON_MAIL: ask_address(s, ON_RCPT, "bob", "example.net"); break;
	case ON_RCPT: ask(s, ON_DATA, "", 0); break;
	case ON_DATA: build_pipe(s); break;
	case ON_EOM: s->answered = 1; end_if_complete(s); break;
	}
}

static void
take_response(struct session *s, const struct frame *frame)
{
	const unsigned char *at = frame->payload;
	size_t at_status = s != NULL && s->open == ON_EOM ? 16 : 12;

	if (s == NULL || s->open == NONE || u64_at(at) != s->open_id)
		errx(1, "an answer to nothing");
	if (frame->len < at_status + 8 || u32_at(at + 8) != (uint32_t)s->open)
		errx(1, "%zu octets that do not answer query %d", frame->len, s->open);
	if (u32_at(at + at_status) != OK || frame->len != at_status + 8)
		errx(1, "query %d: status %u, %u %.*s", s->open, u32_at(at + at_status),
		    u32_at(at + at_status + 4), (int)(frame->len - at_status - 8),
		    (const char *)at + at_status + 8);
	if (s->open == ON_EOM)
		s->told = u32_at(at + 12);
	int answered = s->open;
	s->open = NONE;
	go_on(s, answered);
}

static void
take_pipe(struct session *s, const struct frame *frame)
{
	if (s == NULL || frame->len != 8 || u64_at(frame->payload) != s->id || !s->piping)
		errx(1, "an answer to no PIPE");
	if (frame->fd < 0)
		errx(1, "a PIPE without a descriptor");
	s->piping = 0;
	feed(s, frame->fd);
}

static void
read_answers(void)
{
	struct frame frame;
	int found, open = read_frames(&control);

	while ((found = next_frame(&control, &frame)) > 0)
		switch (frame.type) {
		case RESPONSE: take_response(session_of(&frame), &frame); break;
		case PIPE: take_pipe(session_of(&frame), &frame); break;
		default: errx(1, "a frame of the type %u", frame.type);
		}
	if (found < 0)
		errx(1, "a frame of a wrong length");
	if (open < 0)
		err(1, "the filter's socket");
	if (open == 0)
		errx(1, "the filter has ended");
}

static void
send_frames(void)
{
	int sent = flush_frames(&control);

	if (sent < 0)
		err(1, "the filter's socket");
	if (control.want_write == sent) {
		control.want_write = !sent;
		watch(control.fd, EPOLL_CTL_MOD, EPOLLIN | (sent ? 0 : EPOLLOUT), CONTROL, 0);
	}
}

static void
serve_events(void)
{
	struct epoll_event events[EVENTS];
	int count = epoll_wait(poller, events, EVENTS, STALL_MS);

	if (count == 0)
		errx(1, "stuck: nothing has happened for %d s", STALL_MS / 1000);
	for (int i = 0; i < count; i++) {
		struct session *s = &all[events[i].data.u64 >> 2];
		switch (events[i].data.u64 & 3) {
		case SINK: drain(s); break;
		case SOURCE: pour(s); break;
		default:
			if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
				read_answers();
		}
	}
	send_frames();
}

/* Have so many sessions at a time, until the time is up and they have ended. */
void
run_sessions(int sessions, double seconds, struct times *kept)
{
	times = kept;
	times->count = 0;
	deadline = now() + seconds;
	live = sessions;
	for (int i = 0; i < sessions; i++)
		open_session(&all[i]);
	send_frames();
	while (live > 0 || control.want_write)
		serve_events();
}

/* The filter's beginning and end. */

pid_t
start_filter(char **argv)
{
	int ends[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) < 0)
		err(2, "socketpair");
	pid_t pid = fork();
	if (pid < 0)
		err(2, "fork");
	if (pid == 0) {
		dup2(ends[1], STDIN_FILENO);
		dup2(STDERR_FILENO, STDOUT_FILENO);
		execvp(argv[0], argv);
		err(2, "%s", argv[0]);
	}
	close(ends[1]);
	control.fd = ends[0];
	return pid;
}

void
await_registration(void)
{
	unsigned char payload[16];
	struct frame frame;
	struct epoll_event event;
	int found;

	poller = epoll_create1(EPOLL_CLOEXEC);
	watch(control.fd, EPOLL_CTL_ADD, EPOLLIN, CONTROL, 0);
	memcpy(payload + put_u32(payload, VERSION), "load", sizeof "load");
	put_frame(&control, REGISTER, payload, 4 + sizeof "load", -1);
	send_frames();
	while ((found = next_frame(&control, &frame)) == 0) {
		if (epoll_wait(poller, &event, 1, STALL_MS) == 0)
			errx(1, "the filter does not register");
		if (read_frames(&control) <= 0)
			errx(1, "the filter ended before it had registered");
	}
	if (found < 0 || frame.type != REGISTER || frame.len != 8)
		errx(1, "no REGISTER");
	hooks = u32_at(frame.payload);
}

/* Close the socket: the filter has nothing more to say, and has to leave. */
void
await_end(void)
{
	struct epoll_event event;

	shutdown(control.fd, SHUT_WR);
	if (epoll_wait(poller, &event, 1, STALL_MS) == 0)
		errx(1, "the filter does not end");
	if (read_frames(&control) != 0 || control.in_len > 0 || control.received_len > 0)
		errx(1, "the filter says something after the last session");
}

static void
make_message(void)
{
	static const char received[] =
	    "Received: from client.example.org (client.example.org [192.0.2.7])\n"
	    "\tby mx.example.net (OpenSMTPD) with ESMTP id 6cfdd059\n"
	    "\tfor <bob@example.net>;\n"
	    "\tMon, 1 Jan 2024 00:00:00 +0000 (UTC)\n";
	static const char head[] =
	    "From: Alice Example <alice@example.org>\n"
	    "To: Bob Example <bob@example.net>\n"
	    "Subject: the minutes of last Tuesday\n"
	    "Date: Mon, 1 Jan 2024 00:00:00 +0000\n"
	    "Message-Id: <20240101.1@example.org>\n"
	    "MIME-Version: 1.0\n"
	    "Content-Type: text/plain; charset=utf-8\n"
	    "Content-Transfer-Encoding: 8bit\n"
	    "\n";
	static const char line[] =
	    "The minutes of last Tuesday are in the table below, one line a department.\n";
	size_t at = received_len = strlen(received);

	message_len = received_len + load.size;
	message = grown(NULL, message_len + sizeof received + sizeof head + sizeof line);
	memcpy(message, received, received_len);
	memcpy(message + at, head, strlen(head));
	for (at += strlen(head); at < message_len; at += strlen(line))
		memcpy(message + at, line, strlen(line));
	message[message_len - 1] = '\n';
}

void
prepare(const struct load *wanted)
{
	load = *wanted;
	all = grown(NULL, load.sessions * sizeof *all);
	make_message();
}
