"""A mail server that relays what it takes: what Postfix, Sendmail and Exim share.

Each runs on a port of its own, and delivers to a `Sink` of its own.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from pathlib import Path
from typing import NamedTuple

from tests.interop.processes import eventually, free_port, listening
from tests.interop.server import Server
from tests.interop.sink import Sink, Taken

HOST = "mta.example.org"

# The field that the relay itself puts on top; a milter may put its own above that one.
_RECEIVED = re.compile(
    rb"(?m)^Received: (?:[^\r\n]|\r\n[ \t])*?\bby mta\.example\.org \("
    rb"(?:[^\r\n]|\r\n[ \t])*\r\n"
)


class Queued(NamedTuple):
    """A message in the queue of a relay.

    ``held`` is true of one that waits for an administrator: on hold, or quarantined.
    """

    id: str
    held: bool


class Relay(Server):
    """A running mail server in front of a sink."""

    def __init__(self, work: Path) -> None:
        super().__init__(work)
        self.port = free_port()
        self.sink = Sink()

    @property
    def url(self) -> str:
        """The address as an upstream of mailgate."""
        return f"smtp://127.0.0.1:{self.port}"

    @abstractmethod
    def queue(self) -> list[Queued]:
        """Return the messages that are in the queue."""

    def start(self) -> None:
        """Start the sink and the server, and wait until that listens."""
        self.sink.start()
        super().start()

    def stop(self) -> list[int]:
        """End the server; return the processes that outlived it and had to be killed."""
        left = super().stop()
        self.sink.stop()
        return left

    def listens(self) -> bool:
        """Tell whether it listens, without connecting to it."""
        return listening(self.port)

    def arrived(self, count: int, timeout: float = 15) -> list[Taken]:
        """Wait until the sink has this many messages; return them without the relay's trace.

        More than the count are an error, as far as they have come.
        """
        taken = self.sink.wait(count, timeout)
        assert len(taken) == count, f"{len(taken)} messages, not {count}:\n{self.log()[-4000:]}"
        return [m._replace(content=untraced(m.content)) for m in taken]

    def forget(self) -> None:
        """Forget the messages that have arrived so far."""
        self.sink.forget()

    def idle(self, timeout: float = 15) -> bool:
        """Wait until the queue holds nothing but held messages; return whether it came to."""
        return eventually(lambda: all(message.held for message in self.queue()), timeout)


def untraced(content: bytes) -> bytes:
    """Return a message without the first field that a relay has put into it."""
    rest, fields = _RECEIVED.subn(b"", content, count=1)
    assert fields == 1, content[:600]
    return rest
