/*
 * Plays smtpd to a filter of the imsg API 52, in many sessions at once, and checks every answer.
 * cc -O2 -o imsgload imsgload.c smtpd.c imsg.c
 *
 * The filter is started as smtpd starts it, with one end of a socketpair as its standard input.
 * Checked are the framing of each answer, that it was due and lets the message go on, and that
 * the message comes back as long as the filter says, and unchanged but for the octets of -g,
 * inserted in one place. Some messages go through before the clock starts.
 *
 * When the time is up, sessions under way end with their message. One JSON line tells how it
 * went: processor times of the filter and of this program while the clock ran, and the filter's
 * peak of memory. The exit status is 1 where an answer was wrong or missing, 2 where nothing
 * could be tried.
 */
#include "smtpd.h"

#include <sys/resource.h>
#include <sys/wait.h>
#include <err.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { MOST_WARM = 20, LEAST_SIZE = 1024 };

static struct load load = { .sessions = 1, .messages = 1, .size = 4096 };
static double duration = 1;
static pid_t filter;

static void
end_filter(void)
{
	if (filter > 0)
		kill(filter, SIGKILL);
}

/* Wait until it has ended; return its peak of memory, in KiB. */
static long
peak_of_ended(void)
{
	struct rusage usage;
	int status;

	if (wait4(filter, &status, 0, &usage) < 0)
		err(1, "wait4");
	filter = 0;
	if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
		errx(1, "the filter's end has the wait status %#x", status);
	return usage.ru_maxrss;
}

static int
ascending(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static void
measure(void)
{
	struct times times = { 0 };
	clockid_t clock;

	if (clock_getcpuclockid(filter, &clock) != 0)
		errx(1, "the filter has no clock");
	run_sessions(load.sessions < MOST_WARM ? load.sessions : MOST_WARM, 0, &times);
	double began = clock_at(CLOCK_MONOTONIC);
	double used = clock_at(clock), own = clock_at(CLOCK_PROCESS_CPUTIME_ID);
	run_sessions(load.sessions, duration, &times);
	double seconds = clock_at(CLOCK_MONOTONIC) - began;
	used = clock_at(clock) - used;
	own = clock_at(CLOCK_PROCESS_CPUTIME_ID) - own;
	await_end();

	qsort(times.seconds, times.count, sizeof *times.seconds, ascending);
	printf("{\"messages\": %zu, \"seconds\": %.4f, \"msgs_per_s\": %.1f, \"p50_ms\": %.4f, "
	    "\"p99_ms\": %.4f, \"filter_cpu_s\": %.4f, \"own_cpu_s\": %.4f, \"peak_kib\": %ld}\n",
	    times.count, seconds, times.count / seconds, times.seconds[times.count / 2] * 1e3,
	    times.seconds[times.count * 99 / 100] * 1e3, used, own, peak_of_ended());
	free(times.seconds);
}

static char **
parse_options(int argc, char **argv)
{
	int option;

	while ((option = getopt(argc, argv, "+c:n:s:g:t:")) != -1)
		switch (option) {
		case 'c': load.sessions = atoi(optarg); break;
		case 'n': load.messages = atoi(optarg); break;
		case 's': load.size = strtoul(optarg, NULL, 10); break;
		case 'g': load.gain = atoi(optarg); break;
		case 't': duration = atof(optarg); break;
		default: optind = argc;
		}
	if (optind < argc && load.sessions > 0 && load.sessions < MOST_SESSIONS &&
	    load.messages > 0 && load.size >= LEAST_SIZE && load.gain >= 0)
		return argv + optind;
	fprintf(stderr,
	    "usage: imsgload [-c sessions at a time] [-n messages of a session] [-t seconds]\n"
	    "    [-s octets of a message, at least %d] [-g octets that the filter adds to it]\n"
	    "    filter [argument ...]\n", LEAST_SIZE);
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

int
main(int argc, char **argv)
{
	char **command = parse_options(argc, argv);

	filter = start_filter(command);	/* first: its peak is not below our size now */
	atexit(end_filter);
	allow_many_files();
	signal(SIGPIPE, SIG_IGN);
	prepare(&load);
	await_registration();
	measure();
	return 0;
}
