"""The command line.  Each command is a module, imported when it is called."""

from __future__ import annotations

import fcntl
import importlib
import os
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import click

if TYPE_CHECKING:
    from mailgate.logs import Syslog

COMMANDS = {
    "run": "Serve policies behind a mail server.",
    "check": "Load everything, print the plan, serve nothing.",
    "test": "Send a message through policies and print the trace.",
    "new": "Make a policy, its test and a mailgate.toml.",
    "snippet": "Print what to add to the configuration of a mail server.",
    "protocols": "List the installed protocols and what they can do.",
}
"""Name -> what --help says of it, so that --help imports no command."""

EX_PEER = 1
EX_SOFTWARE = 70  # sysexits(3)
EX_CONFIG = 78


class _Commands(click.Group):
    """A group whose commands are imported late: most of the start-up time is theirs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"mailgate.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            from mailgate.errors import suggestion

            ctx.fail(f"no such command {args[0]!r}{suggestion(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)


@dataclass
class Start:
    """How the program was started.

    ``foreground``: it was told that somebody sees stderr.  ``here``: a configuration in the
    current folder counts.  ``syslog`` is where the line of an
    error goes besides stderr.
    """

    program: str = "mailgate"
    verbose: bool = False
    foreground: bool = False
    here: bool = True
    syslog: Syslog | None = None

    def say(self, line: str) -> None:
        """Print the one line of an error."""
        click.echo(line, err=True)
        if self.syslog is not None:
            self.syslog.say(line)


@click.command(
    cls=_Commands,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "auto_envvar_prefix": "MAILGATE",
        "max_content_width": 79,
    },
)
@click.option("-v", "--verbose", is_flag=True, help="Show tracebacks of errors.")
@click.version_option(
    package_name="mailgate", message="mailgate %(version)s", help="Show the version."
)
@click.pass_context
def group(ctx: click.Context, verbose: bool) -> None:
    """Write a mail policy once, run it behind any MTA.

    Start with: mailgate new mypolicy
    """
    ctx.obj.verbose = verbose


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 no, or the peer's fault, 2 usage, 70, 78."""
    enter(group, arguments, Start())


def enter(
    command: click.Command, arguments: list[str] | None, start: Start, **settings: Any
) -> NoReturn:
    """Run a command and exit as `main` does; ``settings`` are those of click's context."""
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # it is closed, and stays so: adapters look at it
            setattr(sys, stream, _nowhere())
    try:
        sys.exit(
            command.main(arguments, start.program, obj=start, standalone_mode=False, **settings)
        )
    except click.exceptions.Abort:
        sys.exit(1)
    except click.UsageError as error:
        name = error.ctx.command_path if error.ctx is not None else start.program
        if type(error).__name__ == "NoArgsIsHelpError":  # click 8.2; before, it prints the help
            click.echo(error.format_message(), err=True)
            sys.exit(error.exit_code)
        text = " ".join(error.format_message().split())
        start.say(f"{name}: {text} ({name} --help says more)")
        sys.exit(error.exit_code)
    except click.ClickException as error:
        start.say(f"{start.program}: {error.format_message()}")
        sys.exit(error.exit_code)
    except Exception as error:
        if start.verbose:
            import traceback

            traceback.print_exc()
        line, status = _told(error, start.program)
        start.say(line)
        leave(status)


def _nowhere() -> TextIO:
    """Return a stream that leads nowhere, and is none of the standard ones."""
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        return open(fcntl.fcntl(null, fcntl.F_DUPFD_CLOEXEC, 3), "w", encoding="utf-8")
    finally:
        os.close(null)


def leave(status: int) -> NoReturn:
    """Exit, also where a policy has left a thread that the interpreter would wait for."""
    own = threading.main_thread()
    if any(thread is not own and not thread.daemon for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _told(error: Exception, program: str) -> tuple[str, int]:
    """Return the one line of an error, and its exit status."""
    from mailgate.errors import ConfigError, PeerError

    text = " ".join(str(error).split())
    if isinstance(error, ConfigError):
        return text, EX_CONFIG
    if isinstance(error, PeerError):
        return text, EX_PEER
    kind = type(error).__name__
    return f"{program}: internal error: {kind}: {text} (-v says more)", EX_SOFTWARE
