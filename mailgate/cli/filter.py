"""``filter-mailgate``: the start as OpenSMTPD before 6.0.3 does it, in its libexec folder."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mailgate import logs, stdio
from mailgate.cli import Start, enter, group, run

PROGRAM = "filter-mailgate"
EX_USAGE = 2  # as click has it


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``mailgate run --protocol opensmtpd52`` with the arguments of smtpd.conf, and exit.

    smtpd adds -v where it traces, and -d where it runs in the foreground.  Elsewhere stderr is
    /dev/null, and what is said goes to the system's log.
    """
    stdio.occupy()
    arguments = list(sys.argv[1:] if argv is None else argv)
    foreground = _takes(arguments, "-d")
    verbose = _takes(arguments, "-v")
    # What lies in the current folder is not for root to run.
    start = Start(PROGRAM, verbose=verbose, foreground=foreground, here=False)
    if not foreground and logs.stderr_is_lost():
        start.syslog = logs.syslog(PROGRAM)
    settings = {**group.context_settings, "auto_envvar_prefix": "MAILGATE_RUN"}
    if any(word == "--protocol" or word.startswith(("-p", "--protocol=")) for word in arguments):
        start.say(f"{PROGRAM}: smtpd speaks opensmtpd52 here: leave -p out")
        sys.exit(EX_USAGE)
    enter(run.command, ["--protocol", "opensmtpd52", *arguments], start, **settings)


def _takes(arguments: list[str], flag: str) -> bool:
    """Take a flag off the end of the arguments; tell whether it was there."""
    if arguments[-1:] != [flag]:
        return False
    del arguments[-1]
    return True
