/*
 * What an MTA sends to a milter, and when it waits: once for each way to negotiate.
 *
 * The order is that of Postfix 3.7: a macro packet before each event, and the macros of some
 * events also where the filter declines the event; ABORT after each message, ABORT and QUIT at
 * the end of a connection. A filter's lists of macros replace the usual ones, stage by stage; an
 * empty list does not.
 */
#include "script.h"

#include <arpa/inet.h>
#include <err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { VERSION = 6, ACTIONS = 0x1ff, PROTOCOL = 0x1fffff };	/* as Postfix and Sendmail offer */
enum { MAX_CHUNK = 65535, LINE = 64, MAX_MACROS = 512 };
enum { AT_CONNECT, AT_HELO, AT_MAIL, AT_RCPT, AT_DATA, AT_EOM, AT_EOH };	/* SMFIM */

/* A command, and the bits (SMFIP) by which a filter declines the event or its reply. */
struct event {
	char command;
	int stage;
	uint32_t declined, unanswered;
	int always_macros;	/* they are sent although the event is declined */
};

static const struct event
    on_connect = { 'C', AT_CONNECT, 0x1, 0x1000, 1 },
    on_helo = { 'H', AT_HELO, 0x2, 0x2000, 1 },
    on_mail = { 'M', AT_MAIL, 0x4, 0x4000, 1 },
    on_rcpt = { 'R', AT_RCPT, 0x8, 0x8000, 1 },
    on_data = { 'T', AT_DATA, 0x200, 0x10000, 1 },
    on_header = { 'L', AT_EOH, 0x20, 0x80, 0 },
    on_eoh = { 'N', AT_EOH, 0x40, 0x40000, 0 },
    on_body = { 'B', AT_EOM, 0x10, 0x80000, 0 },
    on_eom = { 'E', AT_EOM, 0, 0, 1 };

static const struct {
	const char *name, *value;
} known_macros[] = {
	{ "j", "mta.example.org" },
	{ "v", "Postfix 3.7.11" },
	{ "_", "mail.example.org [192.0.2.77]" },
	{ "i", "4A4FEA26A19A" },
	{ "{daemon_name}", "mta.example.org" },
	{ "{daemon_addr}", "127.0.0.1" },
	{ "{daemon_port}", "25" },
	{ "{client_addr}", "192.0.2.77" },
	{ "{client_port}", "43210" },
	{ "{client_name}", "mail.example.org" },
	{ "{client_ptr}", "mail.example.org" },
	{ "{client_connections}", "1" },
	{ "{mail_addr}", "alice@example.com" },
	{ "{mail_host}", "[127.0.0.1]:2525" },
	{ "{mail_mailer}", "smtp" },
	{ "{rcpt_addr}", "bob@example.net" },
	{ "{rcpt_host}", "[127.0.0.1]:2525" },
	{ "{rcpt_mailer}", "smtp" },
};

static const char *const usual_macros[STAGES] = {
	"j {daemon_name} {daemon_addr} v _",
	"",
	"{mail_addr} {mail_host} {mail_mailer}",
	"i {rcpt_addr} {rcpt_host} {rcpt_mailer}",
	"i",
	"i",
	"i",
};

/* Name and value; the octet '|' stands for NUL, as in all texts below. */
static const char *const header_fields[] = {
	"From|Alice <alice@example.com>|",
	"To|bob@example.net|",
	"Subject|Minutes of the meeting of last Tuesday|",
	"Date|Mon, 01 Jan 2024 00:00:00 +0000|",
	"Message-ID|<20240101000000.12345@example.com>|",
	"MIME-Version|1.0|",
	"Content-Type|text/plain; charset=utf-8|",
	"Content-Transfer-Encoding|8bit|",
	"Received|from a.example.com (a.example.com [192.0.2.1])\n\tby b.example.com (Postfix)"
	    " with ESMTPS id 123\n\tfor <bob@example.net>; Mon, 01 Jan 2024 00:00:00 +0000|",
	"DKIM-Signature|v=1; a=rsa-sha256; c=relaxed/relaxed; d=example.com; s=sel;\n"
	    "\th=from:to:subject:date; bh=47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=;\n"
	    "\tb=dzdVyOfAKCdLXdJOc9G2q8LoXSlEniSbav+yuU4zGeeruD00lszZVoG4ZHRNiYzR|",
};

/* Packets. */

void *
grown(void *old, size_t size)
{
	void *block = realloc(old, size);

	if (block == NULL)
		err(2, "realloc");
	return block;
}

static void
add(struct bytes *to, const void *data, size_t len)
{
	if (len == 0)
		return;		/* data may be NULL */
	to->data = grown(to->data, to->len + len);
	memcpy(to->data + to->len, data, len);
	to->len += len;
}

static void
add_packet(struct bytes *to, char command, const void *data, size_t len)
{
	uint32_t size = htonl(len + 1);

	add(to, &size, sizeof size);
	add(to, &command, 1);
	add(to, data, len);
}

static void
add_text(struct bytes *to, char command, const char *text)
{
	size_t begin = to->len + 5;

	add_packet(to, command, text, strlen(text));
	for (size_t i = begin; i < to->len; i++)
		if (to->data[i] == '|')
			to->data[i] = '\0';
}

static const char *
macro_value(const char *name, size_t len)
{
	for (size_t i = 0; i < sizeof known_macros / sizeof known_macros[0]; i++) {
		const char *known = known_macros[i].name;
		if (strlen(known) == len && !memcmp(known, name, len))
			return known_macros[i].value;
	}
	return NULL;
}

/* The macros of a list that have a value; a packet without any goes out too, as from Postfix. */
static void
add_macros(struct bytes *to, char command, const char *names)
{
	char text[MAX_MACROS] = { command };
	size_t used = 1;

	while (*(names += strspn(names, " ")) != '\0') {
		size_t len = strcspn(names, " ");
		const char *value = macro_value(names, len);
		if (value != NULL)
			used += snprintf(text + used, sizeof text - used, "%.*s|%s|",
			    (int)len, names, value);
		if (used >= sizeof text)
			errx(2, "the filter asks for too many macros");
		names += len;
	}
	add_text(to, 'D', text);
}

/* Scripts: what is sent under a plan. */

static struct bytes *
last_burst(struct script *script)
{
	size_t size = (script->count + 1) * sizeof *script->bursts;

	if (script->count == 0 || script->bursts[script->count - 1].waits) {
		script->bursts = grown(script->bursts, size);
		script->bursts[script->count++] = (struct burst){ 0 };
	}
	return &script->bursts[script->count - 1].packets;
}

static void
add_event(struct script *script, const struct plan *plan, const struct event *event,
    const void *data, size_t len)
{
	int declined = (plan->protocol & event->declined) != 0;

	if (!declined || event->always_macros)
		add_macros(last_burst(script), event->command, plan->macros[event->stage]);
	if (declined)
		return;
	add_packet(last_burst(script), event->command, data, len);
	if (!(plan->protocol & event->unanswered))
		script->bursts[script->count - 1].waits = event->command;
}

static void
add_text_event(struct script *script, const struct plan *plan, const struct event *event,
    const char *text)
{
	struct bytes packet = { 0 };

	add_text(&packet, event->command, text);
	add_event(script, plan, event, packet.data + 5, packet.len - 5);
	free(packet.data);
}

static void
add_connect(struct script *script, const struct plan *plan)
{
	char data[] = "mail.example.org\0004\xa8\xca" "192.0.2.77";	/* port 43210 */

	add_event(script, plan, &on_connect, data, sizeof data);
}

static void
add_body(struct script *script, const struct plan *plan, int lines)
{
	static const char line[LINE + 1] =
	    "The minutes of last Tuesday are in the table below this line.\r\n";
	size_t size = (size_t)lines * LINE;
	char *body = grown(NULL, size + 1);

	for (int i = 0; i < lines; i++)
		memcpy(body + i * LINE, line, LINE);
	for (size_t at = 0; at < size; at += MAX_CHUNK)
		add_event(script, plan, &on_body, body + at,
		    size - at < MAX_CHUNK ? size - at : MAX_CHUNK);
	free(body);
}

static void
add_message(struct script *script, const struct plan *plan, int body_lines)
{
	add_text_event(script, plan, &on_mail, "<alice@example.com>|SIZE=4096|BODY=8BITMIME|");
	add_text_event(script, plan, &on_rcpt, "<bob@example.net>|");
	add_event(script, plan, &on_data, NULL, 0);
	for (size_t i = 0; i < sizeof header_fields / sizeof header_fields[0]; i++)
		add_text_event(script, plan, &on_header, header_fields[i]);
	add_event(script, plan, &on_eoh, NULL, 0);
	add_body(script, plan, body_lines);
	add_event(script, plan, &on_eom, NULL, 0);
}

/* Negotiation. */

struct bytes
offer(void)
{
	uint32_t numbers[] = { htonl(VERSION), htonl(ACTIONS), htonl(PROTOCOL) };
	struct bytes packets = { 0 };

	add_packet(&packets, 'O', numbers, sizeof numbers);
	return packets;
}

struct bytes
goodbye(void)
{
	struct bytes packets = { 0 };

	add_packet(&packets, 'A', NULL, 0);
	add_packet(&packets, 'A', NULL, 0);
	add_packet(&packets, 'Q', NULL, 0);
	return packets;
}

uint32_t
number(const unsigned char *data)
{
	uint32_t n;

	memcpy(&n, data, sizeof n);
	return ntohl(n);
}

/* Take the lists of macros behind the numbers: a stage, its names, NUL. */
static int
take_macros(struct plan *plan)
{
	size_t at = 12;

	for (int stage = 0; stage < STAGES; stage++)
		plan->macros[stage] = usual_macros[stage];
	while (at < plan->answer.len) {
		size_t left = plan->answer.len - at;
		if (left < 5 || memchr(plan->answer.data + at + 4, '\0', left - 4) == NULL)
			return 0;
		uint32_t stage = number(plan->answer.data + at);
		if (stage >= STAGES)
			return 0;
		const char *names = (const char *)plan->answer.data + at + 4;
		if (*names != '\0')
			plan->macros[stage] = names;
		at += 4 + strlen(names) + 1;
	}
	return 1;
}

static struct plan *plans;

/* The plan for an answer; NULL where a filter may not answer so. */
const struct plan *
agreed(const unsigned char *data, size_t len, int body_lines)
{
	for (struct plan *plan = plans; plan != NULL; plan = plan->older)
		if (plan->answer.len == len && !memcmp(plan->answer.data, data, len))
			return plan;
	if (len < 12 || number(data) < 2 || number(data) > VERSION ||
	    number(data + 4) & ~ACTIONS || number(data + 8) & ~PROTOCOL)
		return NULL;
	struct plan *plan = grown(NULL, sizeof *plan);
	*plan = (struct plan){ .actions = number(data + 4), .protocol = number(data + 8) };
	add(&plan->answer, data, len);
	if (!take_macros(plan)) {
		free(plan->answer.data);
		free(plan);
		return NULL;
	}
	add_connect(&plan->idle, plan);
	add_connect(&plan->first, plan);
	add_text_event(&plan->first, plan, &on_helo, "mail.example.org|");
	add_message(&plan->first, plan, body_lines);
	add_packet(last_burst(&plan->next), 'A', NULL, 0);
	add_message(&plan->next, plan, body_lines);
	plan->older = plans;
	return plans = plan;
}
