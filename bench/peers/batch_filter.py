"""The least that Python can do: the naive filter's answers, one write for each read."""

from __future__ import annotations

import os

REPORTS = b"""link-connect link-disconnect link-greeting link-identify link-tls link-auth tx-reset
tx-begin tx-mail tx-rcpt tx-envelope tx-data tx-commit tx-rollback protocol-client
protocol-server filter-report filter-response timeout""".split()
PHASES = b"""connect helo ehlo starttls auth mail-from rcpt-to data data-line rset quit noop
commit""".split()

rest = b""
while b"config|ready\n" not in rest:
    rest += os.read(0, 65536)
rest = rest.partition(b"config|ready\n")[2]
hooks = [b"register|report|smtp-in|" + event for event in REPORTS]
hooks += [b"register|filter|smtp-in|" + phase for phase in PHASES]
os.write(1, b"\n".join((*hooks, b"register|ready", b"")))
while piece := os.read(0, 1 << 18):
    *lines, rest = (rest + piece).split(b"\n")
    answers = []
    for line in lines:
        if line.startswith(b"filter"):
            _, _, _, _, phase, session, token, value = line.split(b"|", 7)
            if phase == b"data-line":
                answers.append(b"filter-dataline|%b|%b|%b\n" % (session, token, value))
            else:
                answers.append(b"filter-result|%b|%b|proceed\n" % (session, token))
    data = memoryview(b"".join(answers))
    while data:
        data = data[os.write(1, data) :]
