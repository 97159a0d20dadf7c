"""The proxy of python-slimta: slimta_proxy.py PORT UPSTREAM_PORT."""

from __future__ import annotations

import sys

from slimta.edge.smtp import SmtpEdge  # type: ignore[import-not-found]
from slimta.queue.proxy import ProxyQueue  # type: ignore[import-not-found]
from slimta.relay.smtp.static import StaticSmtpRelay  # type: ignore[import-not-found]

_SIZE = 100 * 1024 * 1024  # octets a message may have, as behind Haraka

if __name__ == "__main__":
    port, upstream = map(int, sys.argv[1:])
    relay = StaticSmtpRelay("127.0.0.1", upstream, pool_size=200, idle_timeout=30)
    edge = SmtpEdge(("127.0.0.1", port), ProxyQueue(relay), max_size=_SIZE)
    edge.start()
    edge.get()
