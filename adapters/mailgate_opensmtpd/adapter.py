"""The filter process of OpenSMTPD."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

from mailgate import stdio
from mailgate.adapter import Snippet
from mailgate.chain import Interest
from mailgate.engine import Engine
from mailgate_opensmtpd.filter import Filter
from mailgate_opensmtpd.pipe import Pipe
from mailgate_opensmtpd.registration import CAPABILITIES, phases, reports
from mailgate_opensmtpd.stream import LongLines

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FilterOptions:
    """The ``[opensmtpd]`` table.

    ``long_lines``: a message line that smtpd cannot take back from a filter (over 1,997 octets
    before OpenSMTPD 7.4, over 65,485 later) refuses the message (``"reject"``) or is cut
    (``"cut"``), which is what smtpd does to it with any other filter.
    """

    long_lines: LongLines = "reject"


@final
class OpenSMTPDAdapter:
    """Speaks smtpd-filters(7) on the standard streams."""

    name = "opensmtpd"
    summary = "OpenSMTPD 6.6 and later, smtpd-filters(7) on stdin and stdout"
    on_stdin = True
    capabilities = CAPABILITIES
    remedies: ClassVar[Mapping[str, str]] = {}
    Options = FilterOptions
    snippets: ClassVar[Mapping[str, Snippet]] = {}

    def __init__(self, options: FilterOptions | None = None) -> None:
        self._options = options or FilterOptions()
        self._input = self._output = -1
        self._interest: Interest | None = None

    def claim(self) -> None:
        """Take the standard streams: a stray line on stdout would end smtpd."""
        self._input, self._output = stdio.take(0, 1)
        if os.isatty(self._input):
            log.warning(
                "waiting for smtpd on a terminal (Ctrl-D ends it): smtpd starts this command"
            )

    def descriptors(self) -> Mapping[int, str]:
        """Return nothing: smtpd has one pair of pipes."""
        return {}

    def release(self) -> None:
        """Keep what there is: the process ends."""

    def confine(self) -> None:
        """Do nothing: smtpd says who we are."""

    async def serve(self, engine: Engine) -> None:
        """Filter until smtpd closes the pipe.  ConfigError for an smtpd that is too old or new."""
        self._interest = engine.interest
        pipe = Pipe(self._input, self._output)
        try:
            await Filter(
                engine, self._options.long_lines, pipe.read, pipe.write, pipe.drained
            ).run()
        finally:
            pipe.close()

    def accepts(self, interest: Interest) -> str | None:
        """Return why other policies cannot be served without a restart, or None."""
        if self._interest is None:
            return None
        missing = set(phases(interest)) - set(phases(self._interest))
        missing |= set(reports(interest)) - set(reports(self._interest))
        if not missing:
            return None
        names = ", ".join(sorted(missing))
        return f"{names} not registered when smtpd started: restart smtpd"

    def refresh(self) -> None:
        """Do nothing: the options name no file."""

    async def drain(self) -> None:
        """Do nothing: the end is end of file, and smtpd would end with us before it."""
        log.warning("told to end, and going on: smtpd would end with its filter; stop smtpd")
