"""The table's filters on purepythonmilter: purepythonmilter_filter.py null|real|every PORT.

It listens on TCP only.  The replies of hooks that return None by annotation are negotiated
away.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import purepythonmilter as ppm  # type: ignore[import-not-found]
from purepythonmilter.api.models import (  # type: ignore[import-not-found]
    connection_id_context,
)

lengths: dict[Any, int] = {}


async def go_on(command: Any) -> ppm.VerdictOrContinue:
    """Answer any event."""
    return ppm.Continue()


async def ignore(command: Any) -> None:
    """Look at an event without an answer."""


async def count(command: Any) -> None:
    """Add up the octets of the body."""
    connection = connection_id_context.get()
    lengths[connection] = lengths.get(connection, 0) + len(command.data_raw)


async def stamp(command: Any) -> ppm.Continue:
    """Say how long the body is."""
    length = lengths.pop(connection_id_context.get(), 0)
    field = ppm.AppendHeader(headername="X-Length", headertext=str(length))
    return ppm.Continue(manipulations=[field])


HOOKS: dict[str, dict[str, Any]] = {
    "null": {"hook_on_rcpt_to": go_on, "hook_on_end_of_message": go_on},
    "real": {
        "hook_on_rcpt_to": go_on,
        "hook_on_header": ignore,
        "hook_on_body_chunk": count,
        "hook_on_end_of_message": stamp,
        "can_add_headers": True,
    },
    "every": {
        "hook_on_connect": go_on,
        "hook_on_helo": go_on,
        "hook_on_mail_from": go_on,
        "hook_on_rcpt_to": go_on,
        "hook_on_data": go_on,
        "hook_on_header": go_on,
        "hook_on_end_of_headers": go_on,
        "hook_on_body_chunk": go_on,
        "hook_on_end_of_message": go_on,
    },
}

if __name__ == "__main__":
    work, port = sys.argv[1:]
    logging.disable()  # it warns of every message but a connection's first
    filter_ = ppm.PurePythonMilter(name="bench", **HOOKS[work])
    filter_.run_server(host="127.0.0.1", port=int(port))
