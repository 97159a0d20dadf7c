"""Numbers and packets of the milter protocol, written out without the codec."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import TypeVar

from mailgate_milter.wire import Connect

T = TypeVar("T")

# -- Sendmail 8.17.1, include/libmilter/mfdef.h -----------------------------------------------------


def _named(names: str, values: Iterable[T]) -> dict[str, T]:
    return dict(zip(names.split(), values, strict=False))


_BITS = [1 << bit for bit in range(32)]

SMFIC = _named(
    "OPTNEG MACRO CONNECT HELO MAIL RCPT DATA HEADER EOH BODY EOM ABORT UNKNOWN QUIT QUIT_NC",
    "ODCHMRTLNBEAUQK",
)
SMFIR = _named(
    "OPTNEG CONTINUE ACCEPT REJECT TEMPFAIL DISCARD REPLYCODE SKIP PROGRESS CONN_FAIL SHUTDOWN "
    "ADDHEADER INSHEADER CHGHEADER REPLBODY ADDRCPT ADDRCPT_PAR DELRCPT CHGFROM QUARANTINE",
    "Ocartdyspf4himb+2-eq",
)
SMFIF = _named(
    "ADDHDRS CHGBODY ADDRCPT DELRCPT CHGHDRS QUARANTINE CHGFROM ADDRCPT_PAR SETSYMLIST", _BITS
)
SMFIP = _named(
    "NOCONNECT NOHELO NOMAIL NORCPT NOBODY NOHDRS NOEOH NR_HDR NOUNKNOWN NODATA SKIP RCPT_REJ "
    "NR_CONN NR_HELO NR_MAIL NR_RCPT NR_DATA NR_UNKN NR_EOH NR_BODY HDR_LEADSPC",
    _BITS,
) | {"MDS_256K": 0x10000000, "MDS_1M": 0x20000000}
SMFIM = {"CONNECT": 0, "HELO": 1, "MAIL": 2, "RCPT": 3, "DATA": 4, "EOM": 5, "EOH": 6}

# -- packets ----------------------------------------------------------------------------------------


def frame(code: str, data: bytes) -> bytes:
    """Return a packet, made without the codec."""
    return struct.pack(">I", len(data) + 1) + code.encode("latin-1") + data


SAMPLES = [
    ("O", bytes.fromhex("00000006000001ff001fffff")),
    ("D", b"Cj\0mta.example.org\0{daemon_name}\0MTA\0"),
    ("C", b"mx.example\x004\x13\x88192.0.2.1\0"),
    ("H", b"client.example\0"),
    ("M", b"<ann@client.example>\0SIZE=300\0"),
    ("R", b"<bob@example.org>\0"),
    ("T", b""),
    ("L", b"Subject\0folded\n over\0"),
    ("N", b""),
    ("B", b"\0" * 255),
    ("E", b""),
    ("A", b""),
    ("U", b"XFROB\0"),
    ("K", b""),
    ("Q", b""),
]


CLIENTS = [
    (b"mx.example\x004\x13\x88192.0.2.1\0", Connect(b"mx.example", "4", 5000, b"192.0.2.1")),
    (
        b"[2001:db8::5]\x006\x03\xe72001:db8::5\0",
        Connect(b"[2001:db8::5]", "6", 999, b"2001:db8::5"),
    ),
    (b"localhost\x004\0\x00127.0.0.1\0", Connect(b"localhost", "4", 0, b"127.0.0.1")),
    (b"localhost\0L\0\0/run/x\0", Connect(b"localhost", "L", 0, b"/run/x")),
    (b"localhost\0L\0\0\0", Connect(b"localhost", "L", 0, b"")),
    (b"unknown\0U", Connect(b"unknown", "U", 0, b"")),
    (b"\0U", Connect(b"", "U", 0, b"")),
]
