/* smtpd's side of the sessions with a filter: see smtpd.c. */
#ifndef SMTPD_H
#define SMTPD_H

#include <sys/types.h>
#include <time.h>

enum { MOST_SESSIONS = 1 << 16 };
enum { STALL_MS = 60000 };	/* without any answer, until a filter counts as stuck */

struct load {
	int sessions, messages;		/* at a time; of a session */
	int gain;			/* octets that the filter adds to a message */
	size_t size;			/* octets of a message */
};

/* The messages that went through, how long each took, in seconds, and the room for that. */
struct times {
	double *seconds;
	size_t count, room;
};

double clock_at(clockid_t clock);
void prepare(const struct load *load);
pid_t start_filter(char **argv);
void await_registration(void);
void await_end(void);
void run_sessions(int sessions, double seconds, struct times *times);

#endif
