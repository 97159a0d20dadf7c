/*
 * The table's filters on libmilter: libmilter_filter full|lean null|real SOCKET
 * cc -O2 -o libmilter_filter libmilter_filter.c -lmilter -lpthread    (Debian: libmilter-dev)
 *
 * "full" has a callback for every event, as most filters have; "lean" only those for what it
 * answers, so that libmilter negotiates the others away. "real" adds a header field that holds
 * the length of the body; "null" adds nothing, and as "full" it answers every event.
 */
#include <sys/types.h>
#include <libmilter/mfapi.h>
#include <err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define UNUSED __attribute__((unused))

struct mail {
	size_t headers, body;
};

static struct mail *
mail_of(SMFICTX *ctx)
{
	struct mail *mail = smfi_getpriv(ctx);

	if (mail == NULL) {
		if ((mail = calloc(1, sizeof *mail)) == NULL)
			err(1, "calloc");
		smfi_setpriv(ctx, mail);
	}
	return mail;
}

static sfsistat
forget(SMFICTX *ctx)
{
	free(smfi_getpriv(ctx));
	smfi_setpriv(ctx, NULL);
	return SMFIS_CONTINUE;
}

static sfsistat
on_connect(SMFICTX *ctx UNUSED, char *host UNUSED, _SOCK_ADDR *address UNUSED)
{
	return SMFIS_CONTINUE;
}

static sfsistat
on_text(SMFICTX *ctx UNUSED, char *text UNUSED)
{
	return SMFIS_CONTINUE;
}

static sfsistat
on_command(SMFICTX *ctx UNUSED, const char *command UNUSED)
{
	return SMFIS_CONTINUE;
}

static sfsistat
on_address(SMFICTX *ctx UNUSED, char **arguments UNUSED)
{
	return SMFIS_CONTINUE;
}

static sfsistat
on_header(SMFICTX *ctx UNUSED, char *name UNUSED, char *value UNUSED)
{
	return SMFIS_CONTINUE;
}

static sfsistat
count_header(SMFICTX *ctx, char *name, char *value)
{
	mail_of(ctx)->headers += strlen(name) + strlen(value) + 4;	/* ": " and CRLF */
	return SMFIS_CONTINUE;
}

static sfsistat
on_body(SMFICTX *ctx UNUSED, unsigned char *piece UNUSED, size_t len UNUSED)
{
	return SMFIS_CONTINUE;
}

static sfsistat
count_body(SMFICTX *ctx, unsigned char *piece UNUSED, size_t len)
{
	mail_of(ctx)->body += len;
	return SMFIS_CONTINUE;
}

static sfsistat
on_nothing(SMFICTX *ctx UNUSED)
{
	return SMFIS_CONTINUE;
}

static sfsistat
add_length(SMFICTX *ctx)
{
	char length[32];

	snprintf(length, sizeof length, "%zu", mail_of(ctx)->body);
	smfi_addheader(ctx, "X-Length", length);
	return forget(ctx);
}

int
main(int argc, char **argv)
{
	if (argc != 4)
		errx(1, "usage: libmilter_filter full|lean null|real SOCKET");
	int full = !strcmp(argv[1], "full"), real = !strcmp(argv[2], "real");
	struct smfiDesc filter = {
		.xxfi_name = "bench",
		.xxfi_version = SMFI_VERSION,
		.xxfi_flags = real ? SMFIF_ADDHDRS : SMFIF_NONE,
		.xxfi_envrcpt = on_address,
		.xxfi_body = real ? count_body : full ? on_body : NULL,
		.xxfi_eom = real ? add_length : on_nothing,
		.xxfi_abort = forget,
		.xxfi_close = forget,
	};
	if (full) {
		filter.xxfi_connect = on_connect;
		filter.xxfi_helo = on_text;
		filter.xxfi_envfrom = on_address;
		filter.xxfi_data = on_nothing;
		filter.xxfi_unknown = on_command;
		filter.xxfi_header = real ? count_header : on_header;
		filter.xxfi_eoh = on_nothing;
	}
	if (smfi_register(filter) != MI_SUCCESS || smfi_setbacklog(1024) != MI_SUCCESS ||
	    smfi_setconn(argv[3]) != MI_SUCCESS || smfi_opensocket(0) != MI_SUCCESS)
		errx(1, "%s: cannot listen", argv[3]);
	return smfi_main() != MI_SUCCESS;
}
