"""What `mailgate snippet -p smtp` prints, in the configuration of real servers around the proxy."""

from __future__ import annotations

import json
import re
import smtplib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop import debian, dovecot
from tests.interop.client import Client, Reply, send
from tests.interop.conftest import Proxy, folder_in
from tests.interop.dovecot import Dovecot
from tests.interop.exim import Exim
from tests.interop.gate import Table, Value
from tests.interop.installation import Installation
from tests.interop.mail import PLAIN, delivered, letter
from tests.interop.pairs import stamped
from tests.interop.postfix import Postfix
from tests.interop.processes import eventually, free_port, listening_at
from tests.interop.relay import untraced
from tests.interop.smtpd import OpenSMTPD
from tests.interop.swaks import LOGIN_REFUSED, SENT, Swaks

LETTER = letter(b"hello\r\n")
ALICE, BOB, CAROL = "alice@example.org", "bob@example.test", "carol@example.test"
REFUSED = Reply(554, "5.7.0 not here, 100% sure")


def printed(
    mailgate: Installation, scratch: Path, mta: str, listen: str, *words: str, **table: Value
) -> list[str]:
    """Return the lines for a server of a mailgate with this table."""
    file = folder_in(scratch, "snippet.") / "mailgate.toml"
    keys = {"listen": listen, **table}.items()
    file.write_text("".join(["[smtp]\n", *(f"{key} = {json.dumps(v)}\n" for key, v in keys)]))
    argv = (str(mailgate.program), "snippet", mta, "-p", "smtp", "-c", str(file), *words)
    return debian.run(*argv).splitlines()


# -- Postfix -------------------------------------------------------------------------------------


class Printed(Postfix):
    """A Postfix whose smtpds are what was printed."""

    def __init__(self, tree: Path, work: Path, lines: list[str]) -> None:
        # Postfix would write to its postmaster that the filter was not there.
        settings = {"smtpd_authorized_xclient_hosts": "127.0.0.1", "notify_classes": ""}
        super().__init__(tree, work, sasl=None, **settings)
        self._lines = lines

    def _smtpds(self) -> Iterator[str]:
        """Return the lines of master.cf for what listens, the first at a port of its own."""
        for line in self._lines:
            yield line.replace("smtp inet", f"127.0.0.1:{self.port} inet", line[:1] != "#")


@pytest.mark.parametrize("where", ["port", "socket below the queue"])
def test_an_smtpd_before_mailgate_and_one_behind(
    scratch: Path, postfix_package: Path, mailgate: Installation, proxy: Proxy, where: str
) -> None:
    work = folder_in(scratch, "postfix.")
    queue, back = work / "queue", f"smtp://127.0.0.1:{free_port()}"
    listen = f"unix:{queue}/mailgate/smtp.sock"
    if where == "port":
        listen = f"127.0.0.1:{free_port()}"
    table: Table = {"trusted": ["127.0.0.1", "unix"]}
    words = ("--queue-directory", str(queue))
    lines = printed(mailgate, scratch, "postfix", listen, *words, upstream=back, **table)
    with Printed(postfix_package, work, lines) as server:
        (queue / "mailgate").mkdir()
        assert send(server.port, LETTER).code == 451
        proxy(back, "verdicts", "stamp", listen=listen, **table)
        assert send(server.port, LETTER, sender="reject.mail@example.org").plain == REFUSED
        with Client(server.port) as client:
            client.ehlo()
            client.command("XCLIENT NAME=far.example.org ADDR=192.0.2.7")
            client.ehlo("far.example.org")
            assert client.deliver(PLAIN, to=[BOB, CAROL]).code == 250
        [message] = server.arrived(1)
        assert untraced(message.content) == stamped(PLAIN)
        told = r"postfix/mailgate/smtpd\S+ \w+: .*orig_client=far\.example\.org\[192\.0\.2\.7\]"
        assert eventually(lambda: re.search(told, server.log()) is not None, 5), server.log()
        warnings = re.findall(r"warning: .*(?:unused|unknown|overriding).*", server.log())
        assert warnings == []


class Delivering(Postfix):
    """A Postfix that delivers mail for example.test as the lines of main.cf say."""

    def __init__(self, tree: Path, work: Path, lines: list[str]) -> None:
        settings = dict(line.split(" = ") for line in lines if not line.startswith("#"))
        super().__init__(tree, work, sasl=None, virtual_mailbox_domains="example.test", **settings)

    def _smtpds(self) -> Iterator[str]:
        """Return the lines of master.cf for what listens, and for what speaks LMTP."""
        yield from super()._smtpds()
        yield "lmtp unix - - n - - lmtp"


# -- Exim ----------------------------------------------------------------------------------------


class InFront(Exim):
    """An Exim with lines that were printed in place of its own."""

    def __init__(self, program: Path, work: Path, lines: list[str]) -> None:
        super().__init__(program, work)
        self._lines = lines

    def _configuration(self) -> str:
        """Return exim.conf: an option that is set twice is an error."""
        names = {line.partition(" = ")[0] for line in self._lines if line[0] != "#"}
        own = super()._configuration().splitlines()
        dropped = {*names, "daemon_smtp_ports"}
        kept = [line for line in own if line.partition(" = ")[0] not in dropped]
        return "\n".join([*self._lines, *kept, ""])

    @classmethod
    def at(cls, port: int, program: Path, work: Path, lines: list[str]) -> InFront:
        """Make one that listens at a port."""
        server = cls(program, work, lines)
        server.port = port
        return server


@pytest.mark.parametrize(("build", "identity"), [("heavy", "proxy-v1"), ("light", "none")])
def test_exim_behind_mailgate(
    request: pytest.FixtureRequest,
    scratch: Path,
    mailgate: Installation,
    proxy: Proxy,
    build: str,
    identity: str,
) -> None:
    program: Path = request.getfixturevalue(f"{build}_exim")
    port = free_port()
    back = f"smtp://127.0.0.1:{port}"
    listen = f"127.0.0.1:{free_port()}"
    table: Table = {"identity": identity, "relay_domains": ["example.test"]}
    lines = printed(mailgate, scratch, "exim", listen, upstream=back, **table)
    with InFront.at(port, program, folder_in(scratch, "exim."), lines) as server:
        gate = proxy(back, "stamp", listen=listen, **table)
        assert send(gate.port, LETTER, to=ALICE) == (550, "5.7.1 Relay access denied")
        with Client(gate.port) as client:
            client.ehlo()
            port = client.address[1]
            for _ in range(12):  # beyond 10 Exim would leave them in its queue
                assert client.deliver(PLAIN).code == 250
        messages = server.sink.wait(12, 30)
        gate.stop()  # it may keep a connection to Exim
        assert {untraced(m.content) for m in messages} == {stamped(PLAIN)}
        assert len(messages) == 12
        if identity == "proxy-v1":
            assert f"([127.0.0.1]:{port})".encode() in messages[0].content


# -- Dovecot -------------------------------------------------------------------------------------


class Told(Dovecot):
    """A Dovecot with lines that were printed behind its own."""

    def __init__(self, trees: dovecot.Trees, work: Path, lines: list[str], *more: Path) -> None:
        super().__init__(trees, work)
        self._lines = lines
        self._more = more

    def listens(self) -> bool:
        """Tell whether something listens everywhere, without connecting to it."""
        return super().listens() and all(map(listening_at, self._more))

    def _prepare(self) -> None:
        """Fill the work folder."""
        super()._prepare()
        with open(self._work / "dovecot.conf", "a") as file:
            file.write("\n".join([*self._lines, ""]))


def test_dovecot_behind_mailgate_behind_postfix(
    scratch: Path,
    postfix_package: Path,
    dovecot_packages: dovecot.Trees,
    mailgate: Installation,
    proxy: Proxy,
) -> None:
    """What is told to Postfix and to Dovecot is of the same mailgate."""
    work = folder_in(scratch, "dovecot.")
    back = work / "lmtp-mailgate"
    listen = f"lmtp:127.0.0.1:{free_port()}"
    table: Table = {"trusted": ["127.0.0.1"]}
    url = f"lmtp+unix:{back}"
    behind = printed(mailgate, scratch, "dovecot", listen, upstream=url, **table)
    before = printed(mailgate, scratch, "postfix", listen, upstream=url, **table)
    with (
        Told(dovecot_packages, work, behind, back) as store,
        Delivering(postfix_package, folder_in(scratch, "postfix."), before) as server,
    ):
        gate = proxy(url, "facts", listen=listen, **table)
        with Client(server.port) as client:
            client.ehlo("far.example.org")
            assert client.deliver(LETTER, to=[BOB, CAROL]).code == 250
            port = client.address[1]
        messages = store.delivered(2)
        assert {m.recipient for m in messages} == {BOB, CAROL}
        gate.stop()  # it may keep a connection to Dovecot
        for message in messages:
            assert message.content.endswith(delivered(LETTER).partition(b"\n\n")[2])
            assert b"X-Fact-Client: 127.0.0.1\n" in message.content
            assert b"X-Fact-Port: %d\n" % port in message.content
            assert b"X-Fact-Helo: far.example.org\n" in message.content


@pytest.mark.parametrize("identity", ["auto", "xclient", "proxy-v1"])
def test_dovecot_at_a_port(
    scratch: Path,
    dovecot_packages: dovecot.Trees,
    mailgate: Installation,
    proxy: Proxy,
    identity: str,
) -> None:
    listen = f"lmtp:127.0.0.1:{free_port()}"
    table: Table = {"identity": identity, "trusted": ["127.0.0.1"]}
    work = folder_in(scratch, "dovecot.")
    port = free_port()
    url = f"lmtp://127.0.0.1:{port}"
    lines = printed(mailgate, scratch, "dovecot", listen, upstream=url, **table)
    lines = [line.replace("inet_listener lmtp ", "inet_listener mailgate ") for line in lines]
    with Told(dovecot_packages, work, lines) as store:
        gate = proxy(url, "stamp", listen=listen, **table)
        with Client(gate.port) as client:
            client.lhlo()
            client.command("XFORWARD NAME=far.example.org ADDR=192.0.2.7 HELO=far.example.org")
            assert client.deliver(PLAIN).code == 250
        with smtplib.LMTP("127.0.0.1", gate.port) as again:
            assert again.sendmail(ALICE, CAROL, LETTER) == {}
        assert {m.recipient for m in store.delivered(2)} == {BOB, CAROL}
        gate.stop()  # it may keep a connection to Dovecot
        named = any(b"192.0.2.7" in file.read_bytes() for file in store.mail.glob("*/new/*"))
        assert named is (identity != "auto")


@pytest.mark.parametrize(("password", "status"), [("secret", SENT), ("wrong", LOGIN_REFUSED)])
def test_dovecot_checks_logins(
    scratch: Path,
    dovecot_packages: dovecot.Trees,
    mailgate: Installation,
    light: Exim,
    proxy: Proxy,
    swaks: Swaks,
    password: str,
    status: int,
) -> None:
    work = folder_in(scratch, "dovecot.")
    socket = work / "auth-mailgate"
    table: Table = {"auth": f"dovecot:{socket}"}
    listen = f"127.0.0.1:{free_port()}"
    lines = printed(mailgate, scratch, "dovecot", listen, upstream=light.url, **table)
    with Told(dovecot_packages, work, lines, socket):
        gate = proxy(light.url, "stamp", listen=listen, auth_without_tls=True, **table)
        login = ("--auth", "PLAIN", "--auth-user", "ann", "--auth-password", password)
        talk = swaks.send(gate.port, PLAIN, *login)
        assert talk.status == status, talk.transcript
        gate.stop()  # it keeps a connection to Dovecot
        light.arrived(1 if status == SENT else 0)


# -- OpenSMTPD -----------------------------------------------------------------------------------


class Behind(OpenSMTPD):
    """An smtpd that takes mail behind a proxy, as docs/adapters/smtp.md has it."""

    def _configuration(self) -> str:
        """Return smtpd.conf: mail from anywhere for one domain alone."""
        lines = super()._configuration().replace("mx.test", "mx.test proxy-v2")
        return lines.replace("from any for any", 'from any for domain "example.test"')


def test_opensmtpd_knows_the_client(scratch: Path, opensmtpd: Path, proxy: Proxy) -> None:
    with Behind(opensmtpd, folder_in(scratch, "smtpd.")) as server:
        back = f"smtp://127.0.0.1:{server.port}"
        gate = proxy(back, "stamp", identity="proxy-v2", trusted=["127.0.0.1"])
        with Client(gate.port) as client:
            client.ehlo()
            client.command("XCLIENT ADDR=192.0.2.7 DESTADDR=192.0.2.1 DESTPORT=25")
            client.ehlo("far.example.org")
            assert client.deliver(LETTER, to="bob@elsewhere.example").code == 550
            client.command("RSET")
            assert client.deliver(LETTER).code == 250
        [message] = server.delivered(1)
        assert message.content == delivered(stamped(LETTER))
        assert "address=192.0.2.7" in server.log()
