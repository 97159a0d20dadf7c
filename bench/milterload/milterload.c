/*
 * Plays an MTA to a milter, on many connections at once, and checks every reply.
 * cc -O2 -o milterload milterload.c script.c
 *
 * What a filter negotiates is honoured: the events that it declines, the replies that it does
 * not give, the macros that it asks for, and SKIP. Packets up to the next reply that has to come
 * go out in one write. Of a reply are checked its framing, that it was due, that it lets the
 * message go on, and that an edit was negotiated and comes at the end of a message.
 *
 * When the time is up, messages under way may end, within five seconds more. One JSON line tells
 * how it went; the exit status is 1 where a reply was wrong or missing, 2 where nothing could be
 * tried.
 */
#include "script.h"

#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { IN_SIZE = 1 << 17, ERRORS_SHOWN = 5, DRAIN_SECONDS = 5, EVENTS = 256 };

struct conn {
	int fd, want_write;
	const struct plan *plan;
	const struct script *script;
	int burst, message, marked;
	char waiting;		/* the command whose reply has to come, or 0 */
	char skip;		/* the command that is to be skipped, or 0 */
	const unsigned char *out;
	size_t out_len, in_len;
	double began;
	unsigned char in[IN_SIZE];
};

static struct {
	int connections, per_connection, body_lines, idle;
	double seconds;
	const char *mark;
	size_t mark_name;	/* the length of its name */
} opt = { .connections = 1, .per_connection = 1, .body_lines = 64, .seconds = 1 };

static struct sockaddr_storage address;
static socklen_t address_len;
static struct bytes opening, ending;
static int poller, live;
static long errors, started, done, latencies;
static double *latency, deadline;

static double
now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void
complain(const char *what, int code)
{
	if (errors++ < ERRORS_SHOWN)
		warnx("%s (0x%02x '%c')", what, code & 0xff, code > 31 && code < 127 ? code : '?');
}

/* Connections. */

static void
watch(struct conn *c, int operation, int want_write)
{
	struct epoll_event e = { EPOLLIN | (want_write ? EPOLLOUT : 0), { .ptr = c } };

	c->want_write = want_write;
	epoll_ctl(poller, operation, c->fd, &e);
}

static void
send_pending(struct conn *c)
{
	while (c->out_len > 0) {
		ssize_t n = send(c->fd, c->out, c->out_len, MSG_NOSIGNAL);
		if (n < 0)
			break;	/* a full socket; of a broken one, reading will tell */
		c->out += n;
		c->out_len -= n;
	}
	if ((c->out_len > 0) != c->want_write)
		watch(c, EPOLL_CTL_MOD, c->out_len > 0);
}

static void
open_connection(struct conn *c)
{
	int yes = 1;

	c->fd = socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&address, address_len) < 0)
		err(2, "connect");
	fcntl(c->fd, F_SETFL, O_NONBLOCK);
	if (address.ss_family == AF_INET)
		setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
	c->plan = NULL;
	c->burst = c->message = c->skip = 0;
	c->in_len = 0;
	c->waiting = 'O';
	c->out = opening.data;
	c->out_len = opening.len;
	live++;
	watch(c, EPOLL_CTL_ADD, 0);
	send_pending(c);
}

static void
close_connection(struct conn *c)
{
	close(c->fd);
	c->in_len = 0;
	live--;
}

static void
begin_message(struct conn *c)
{
	started++;
	c->began = now();
	c->burst = c->skip = c->marked = 0;
	if (c->message == 0)
		open_connection(c);
	else
		c->script = &c->plan->next;
}

/* Send bursts up to the one that has to be answered. */
static void
advance(struct conn *c)
{
	while (c->waiting == 0 && c->out_len == 0 && c->burst < c->script->count) {
		const struct burst *burst = &c->script->bursts[c->burst++];
		if (c->skip != 0 && c->skip == burst->waits)
			continue;
		c->skip = 0;
		c->waiting = burst->waits;
		c->out = burst->packets.data;
		c->out_len = burst->packets.len;
		send_pending(c);
	}
}

static void
end_message(struct conn *c)
{
	if (done == latencies) {
		latencies = latencies ? latencies * 2 : 4096;
		latency = grown(latency, latencies * sizeof *latency);
	}
	latency[done++] = now() - c->began;
	if (opt.mark != NULL && !c->marked)
		complain("the message did not gain the header field", 'E');
	c->message = (c->message + 1) % opt.per_connection;
	int go_on = now() < deadline;
	if (c->message == 0 || !go_on) {
		send(c->fd, ending.data, ending.len, MSG_NOSIGNAL);
		close_connection(c);
	}
	if (go_on)
		begin_message(c);
}

/* Replies. */

/* Is this edit the field of -x?  With HDR_LEADSPC, the blank before a value is sent. */
static int
is_mark(unsigned char code, const char *data, size_t len)
{
	size_t index = code == 'i' ? 4 : 0;

	if (opt.mark == NULL || (code != 'h' && code != 'i') || len < index + opt.mark_name + 2)
		return 0;
	data += index;
	if (data[len - index - 1] != '\0' || strncmp(data, opt.mark, opt.mark_name) ||
	    data[opt.mark_name] != '\0')
		return 0;
	data += opt.mark_name + 1;
	return !strcmp(data + strspn(data, " "), opt.mark + opt.mark_name + 2);
}

static void
take_edit(struct conn *c, unsigned char code, const unsigned char *data, size_t len)
{
	static const char codes[] = "himb+-2eq";
	static const uint32_t needs[] = { 0x1, 0x1, 0x10, 0x2, 0x4, 0x8, 0x80, 0x40, 0x20 };
	const char *known = code ? strchr(codes, code) : NULL;

	if (known == NULL || c->waiting != 'E')
		complain("a reply that is not allowed here", code);
	else if (!(c->plan->actions & needs[known - codes]))
		complain("an edit that was not negotiated", code);
	c->marked |= is_mark(code, (const char *)data, len);
}

static void
take_offer(struct conn *c, unsigned char code, const unsigned char *data, size_t len)
{
	c->plan = code == 'O' ? agreed(data, len, opt.body_lines) : NULL;
	if (c->plan == NULL) {
		complain("a wrong answer to the negotiation", code);
		close_connection(c);
		return;
	}
	c->waiting = 0;
	c->script = opt.idle ? &c->plan->idle : &c->plan->first;
}

static void
take_verdict(struct conn *c, unsigned char code)
{
	char at = c->waiting;

	c->waiting = 0;
	if (code != 'c' && code != (at == 'E' ? 'a' : 's'))
		complain("a verdict that is not to go on", code);
	if (at == 'E')
		end_message(c);
	else if (code == 's')
		c->skip = at;
}

static void
take_reply(struct conn *c, unsigned char code, const unsigned char *data, size_t len)
{
	if (c->waiting == 0)
		complain("a reply to nothing", code);
	else if (c->waiting == 'O')
		take_offer(c, code, data, len);
	else if (code == 'p')
		return;		/* still at work */
	else if (code != 0 && strchr("csartdy", code) != NULL)
		take_verdict(c, code);
	else
		take_edit(c, code, data, len);
}

static void
read_replies(struct conn *c)
{
	ssize_t n = read(c->fd, c->in + c->in_len, IN_SIZE - c->in_len);
	size_t at = 0, had, len;

	if (n < 0 && errno == EAGAIN)
		return;
	had = c->in_len += n > 0 ? n : 0;
	while (c->in_len >= at + 5) {
		len = number(c->in + at);
		if (len == 0 || len > IN_SIZE - 4) {
			complain("a reply of a wrong length", c->in[at + 4]);
			n = 0;
		}
		if (n <= 0 || c->in_len < at + 4 + len)
			break;
		take_reply(c, c->in[at + 4], c->in + at + 5, len - 1);
		at += 4 + len;
	}
	if (c->in_len < at) {	/* the connection has ended, and perhaps another began */
		if (at < had)
			complain("a reply after the last one", c->in[at + 4]);
		return;
	}
	if (n <= 0) {
		complain("the filter's connection broke", c->waiting);
		close_connection(c);
		return;
	}
	memmove(c->in, c->in + at, c->in_len - at);
	c->in_len -= at;
	advance(c);
}

/* The command line, and the loop. */

static void
parse_address(const char *text)
{
	struct sockaddr_un *un = (struct sockaddr_un *)&address;
	struct sockaddr_in *in = (struct sockaddr_in *)&address;
	const char *colon = strrchr(text, ':');
	char host[INET_ADDRSTRLEN] = "";

	if (!strncmp(text, "unix:", 5)) {
		un->sun_family = AF_UNIX;
		if (strlen(text + 5) >= sizeof un->sun_path)
			errx(2, "%s: too long a path", text);
		strcpy(un->sun_path, text + 5);
		address_len = sizeof *un;
		return;
	}
	if (colon != NULL && colon - text < INET_ADDRSTRLEN)
		memcpy(host, text, colon - text);
	in->sin_family = AF_INET;
	if (inet_pton(AF_INET, host, &in->sin_addr) != 1)
		errx(2, "%s: neither unix:PATH nor IPV4:PORT", text);
	in->sin_port = htons(atoi(colon + 1));
	address_len = sizeof *in;
}

static void
parse_options(int argc, char **argv)
{
	int option;

	while ((option = getopt(argc, argv, "c:n:l:t:x:i")) != -1)
		switch (option) {
		case 'c': opt.connections = atoi(optarg); break;
		case 'l': opt.body_lines = atoi(optarg); break;
		case 'n': opt.per_connection = atoi(optarg); break;
		case 't': opt.seconds = atof(optarg); break;
		case 'x': opt.mark = optarg; break;
		case 'i': opt.idle = 1; break;
		default: optind = argc;
		}
	if (opt.mark != NULL) {
		opt.mark_name = strcspn(opt.mark, ":");
		if (strncmp(opt.mark + opt.mark_name, ": ", 2))
			errx(2, "-x wants 'NAME: VALUE'");
	}
	if (optind + 1 == argc && opt.connections > 0 && opt.per_connection > 0 &&
	    opt.body_lines >= 0)
		return;
	fprintf(stderr,
	    "usage: milterload [-i] [-c connections] [-n messages of a connection] [-t seconds]\n"
	    "    [-l lines of a body, 64 octets each] [-x 'NAME: VALUE' each message must gain]\n"
	    "    unix:PATH|IPV4:PORT\n"
	    "-i: connect only, say so, and wait for the end of standard input\n");
	exit(2);
}

static void
allow_many_files(void)
{
	struct rlimit limit;

	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
}

static void
serve_events(int timeout_ms)
{
	struct epoll_event events[EVENTS];
	int n = epoll_wait(poller, events, EVENTS, timeout_ms);

	for (int i = 0; i < n; i++) {
		struct conn *c = events[i].data.ptr;
		if (events[i].events & EPOLLOUT) {
			send_pending(c);
			advance(c);
		}
		if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
			read_replies(c);
	}
}

static int
all_idle(const struct conn *all)
{
	for (int i = 0; i < opt.connections; i++)
		if (all[i].plan == NULL || all[i].waiting || all[i].out_len > 0)
			return 0;
	return 1;
}

/* Have all connections idle, say so, and keep them until stdin ends. */
static void
hold(const struct conn *all)
{
	while (!errors && now() < deadline + DRAIN_SECONDS && !all_idle(all))
		serve_events(100);
	if (errors || !all_idle(all))
		errx(1, "not all connections came as far as CONNECT");
	printf("%d connections idle\n", opt.connections);
	fflush(stdout);
	while (getchar() != EOF)
		continue;
}

static int
ascending(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static void
report(double seconds)
{
	qsort(latency, done, sizeof *latency, ascending);
	printf("{\"messages\": %ld, \"seconds\": %.3f, \"msgs_per_s\": %.1f, \"p50_ms\": %.4f, "
	    "\"p99_ms\": %.4f, \"errors\": %ld, \"unfinished\": %ld}\n",
	    done, seconds, done / seconds, done ? latency[done / 2] * 1e3 : 0,
	    done ? latency[done * 99 / 100] * 1e3 : 0, errors, started - done);
}

int
main(int argc, char **argv)
{
	parse_options(argc, argv);
	parse_address(argv[optind]);
	opening = offer();
	ending = goodbye();
	allow_many_files();
	poller = epoll_create1(EPOLL_CLOEXEC);
	struct conn *all = grown(NULL, opt.connections * sizeof *all);
	double began = now();
	deadline = began + opt.seconds;
	for (int i = 0; i < opt.connections; i++) {
		all[i].message = 0;
		begin_message(&all[i]);
	}
	if (opt.idle) {
		hold(all);
		return 0;
	}
	while (live > 0 && now() < deadline + DRAIN_SECONDS)
		serve_events(100);
	report(now() - began);
	return errors > 0 || done < started;
}
