"""The obvious filter loop: every event registered, text, one line in, one line out."""

from __future__ import annotations

import sys

REPORTS = """link-connect link-disconnect link-greeting link-identify link-tls link-auth tx-reset
tx-begin tx-mail tx-rcpt tx-envelope tx-data tx-commit tx-rollback protocol-client
protocol-server filter-report filter-response timeout"""
PHASES = """connect helo ehlo starttls auth mail-from rcpt-to data data-line rset quit noop
commit"""

for line in sys.stdin:
    if line == "config|ready\n":
        break
for event in REPORTS.split():
    print(f"register|report|smtp-in|{event}")
for phase in PHASES.split():
    print(f"register|filter|smtp-in|{phase}")
print("register|ready", flush=True)
for line in sys.stdin:
    fields = line.rstrip("\n").split("|", 7)
    if fields[0] != "filter":
        continue
    phase, session, token, value = fields[4:8]
    if phase == "data-line":
        print(f"filter-dataline|{session}|{token}|{value}", flush=True)
    else:
        print(f"filter-result|{session}|{token}|proceed", flush=True)
