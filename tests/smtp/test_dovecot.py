"""Logins by Dovecot: a peer that plays its authentication socket as Dovecot 2.3.19 speaks."""

from __future__ import annotations

import asyncio
import logging
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate_smtp import dovecot_socket
from mailgate_smtp.dovecot import Dovecot
from mailgate_smtp.dovecot_socket import MAX_LINE, Connection
from mailgate_smtp.sasl import Challenge
from mailgate_smtp.wire import CommandError
from tests.smtp.cutting import SIZES, bytewise, cut, mixed

HELLO = (  # recorded
    b"VERSION\t1\t2\nMECH\tPLAIN\tplaintext\nMECH\tLOGIN\tplaintext\nSPID\t6670\nCUID\t1\n"
    b"COOKIE\t711f0def74f7031ae11d7d9d2a15c592\nDONE\n"
)
PLAIN = b64encode(b"\0alice\0secret")
USERNAME, PASSWORD = b"VXNlcm5hbWU6", b"UGFzc3dvcmQ6"

Answer = Callable[[list[bytes]], bytes | None]
"""What the peer says to the words of a command, None where it hangs up."""


class Peer:
    """The other end of the socket; ``received`` has its lines, ``connections`` how many came."""

    def __init__(self, answer: Answer, hello: bytes = HELLO) -> None:
        self.received: list[bytes] = []
        self.connections = 0
        self._answer = answer
        self._hello = hello
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def commands(self) -> list[bytes]:
        """What was received but the handshakes."""
        return [line for line in self.received if not line.startswith((b"VERSION", b"CPID"))]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.append(task)
        self.connections += 1
        writer.write(self._hello)
        try:
            while line := await reader.readline():
                self.received.append(line.removesuffix(b"\n"))
                said = self._answer(line.removesuffix(b"\n").split(b"\t"))
                if said is None:
                    break
                writer.write(said)
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def ended(self) -> None:
        await asyncio.gather(*self._tasks)


@asynccontextmanager
async def listening(path: Path, peer: Peer) -> AsyncIterator[Dovecot]:
    """Give a client of a peer, and end both."""
    server = await asyncio.start_unix_server(peer.serve, path)
    dovecot = Dovecot(str(path))
    try:
        yield dovecot
    finally:
        dovecot.close()
        await peer.ended()
        server.close()
        await server.wait_closed()


class Client:
    """Answers challenges with these lines, and keeps what it was asked."""

    def __init__(self, *lines: bytes) -> None:
        self.lines = list(lines)
        self.asked: list[bytes] = []

    async def __call__(self, prompt: bytes) -> bytes:
        self.asked.append(prompt)
        return self.lines.pop(0)


def log_in(
    dovecot: Dovecot,
    mechanism: str = "PLAIN",
    initial: bytes | None = PLAIN,
    challenge: Challenge | None = None,
    *,
    secured: bool = True,
    client: str = "192.0.2.7",
) -> Awaitable[str]:
    return dovecot.authenticate(
        mechanism,
        initial,
        challenge or Client(),
        secured=secured,
        client=client,
        client_port=4711,
        server="2001:db8::25",
        server_port=587,
    )


async def refusal(attempt: Awaitable[str]) -> str:
    """Return the code and the enhanced code of a refusal."""
    with pytest.raises(CommandError) as caught:
        await attempt
    reply = caught.value.reply
    return f"{reply.code} {reply.lines[0].split()[0].decode()}"


def saying(*lines: bytes) -> Answer:
    """Answer AUTH and CONT with these lines, one after the other; ``%d`` is the request."""
    left = list(lines)

    def answer(words: list[bytes]) -> bytes | None:
        if words[0] not in (b"AUTH", b"CONT"):
            return b""
        return left.pop(0).replace(b"%d", words[1]) + b"\n"

    return answer


OK = b"OK\t%d\tuser=alice"


def run(path: Path, peer: Peer, attempt: Callable[[Dovecot], Awaitable[str]]) -> str:
    """Return what an attempt gives with this peer."""

    async def whole() -> str:
        async with listening(path, peer) as dovecot:
            return await attempt(dovecot)

    return asyncio.run(whole())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "auth"


# -- logins --------------------------------------------------------------------------------------


def test_a_right_password_gives_the_user(path: Path) -> None:
    peer = Peer(saying(OK))
    assert run(path, peer, log_in) == "alice"
    version, cpid, auth = peer.received
    assert version == b"VERSION\t1\t2"
    assert 0 < int(cpid.removeprefix(b"CPID\t")) < 2**31
    words = auth.split(b"\t")
    assert words[:3] == [b"AUTH", b"1", b"PLAIN"]
    assert words[-1] == b"resp=" + PLAIN  # "this must be the last parameter"
    assert set(words[3:-1]) == {
        *(b"service=smtp", b"nologin", b"secured"),
        *(b"rip=192.0.2.7", b"rport=4711", b"lip=2001:db8::25", b"lport=587"),
    }


def test_what_is_not_known_is_not_told(path: Path) -> None:
    peer = Peer(saying(OK))
    run(path, peer, lambda dovecot: log_in(dovecot, secured=False, client="a\tsecured"))
    words = peer.commands[0].split(b"\t")
    assert b"secured" not in words
    assert not any(word.startswith((b"rip", b"rport")) for word in words)


def test_the_zone_of_an_address_stays_here(path: Path) -> None:
    peer = Peer(saying(OK))
    run(path, peer, lambda dovecot: log_in(dovecot, client="fe80::1%eth0"))
    assert b"rip=fe80::1" in peer.commands[0].split(b"\t")


def test_challenges_go_to_the_client_and_back(path: Path) -> None:
    peer = Peer(saying(b"CONT\t%d\t" + USERNAME, b"CONT\t%d\t" + PASSWORD, OK))
    client = Client(b"YWxpY2U=", b"c2VjcmV0")
    assert run(path, peer, lambda dovecot: log_in(dovecot, "login", None, client)) == "alice"
    assert client.asked == [USERNAME, PASSWORD]
    assert peer.commands[1:] == [b"CONT\t1\tYWxpY2U=", b"CONT\t1\tc2VjcmV0"]


@pytest.mark.parametrize("cont", [b"CONT\t%d\t", b"CONT\t%d"])
def test_a_challenge_may_be_empty(path: Path, cont: bytes) -> None:
    client = Client(PLAIN)
    peer = Peer(saying(cont, OK))
    assert run(path, peer, lambda dovecot: log_in(dovecot, "PLAIN", None, client)) == "alice"
    assert client.asked == [b""]


def test_an_empty_initial_response_is_told_from_none(path: Path) -> None:
    """src/auth/auth-request-handler.c: 'Empty initial response is a "=" base64 string'."""
    peer = Peer(saying(OK, OK))

    async def whole() -> None:
        async with listening(path, peer) as dovecot:
            await log_in(dovecot, "PLAIN", b"=")
            await log_in(dovecot, "PLAIN", None)

    asyncio.run(whole())
    assert peer.commands[0].endswith(b"\tresp==")
    assert b"resp=" not in peer.commands[1]


def test_a_user_may_have_what_divides_words(path: Path) -> None:
    r"""The protocol's tab-escaping: \001 and 0, 1, t, r or n."""
    peer = Peer(saying(b"OK\t%d\tx=1\tuser=a\x01tb\x011c\x01nd\x01re\x010f\x01g\xc3\xbc\tuser=x"))
    assert run(path, peer, log_in) == "a\tb\x01c\nd\re\0fg\u00fc"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"FAIL\t%d\tuser=alice", "535 5.7.8"),
        (b"FAIL\t%d", "535 5.7.8"),
        (b"FAIL\t%d\tuser=alice\tauthz", "535 5.7.8"),
        (b"FAIL\t%d\tuser=temp\tuser_disabled", "535 5.7.8"),
        (b"FAIL\t%d\tuser=alice\ttemp", "454 4.7.0"),
        (b"FAIL\t%d\tcode=temp_fail\treason=no database", "454 4.7.0"),
    ],
)
def test_a_refusal_is_permanent_unless_dovecot_has_trouble(
    path: Path, answer: bytes, said: str
) -> None:
    assert run(path, Peer(saying(answer)), lambda dovecot: refusal(log_in(dovecot))) == said


def test_a_client_may_cancel(path: Path) -> None:
    peer = Peer(saying(b"CONT\t%d\t" + USERNAME))
    attempt = run(path, peer, lambda d: refusal(log_in(d, "LOGIN", None, Client(b"*"))))
    assert attempt == "501 5.7.0"
    assert peer.commands[1:] == [b"CANCEL\t1"]


HOSTILE = [
    *(b"!", b"eA", b"eA==\tsecured", b"eA==\nOK\t1\tuser=root", b"eA==\r", b"\0", b"\xff"),
    b"MAIL FROM:<evil@example.org>",
]


@pytest.mark.parametrize("octets", HOSTILE)
def test_only_base64_gets_to_dovecot(path: Path, octets: bytes) -> None:
    peer = Peer(saying(b"CONT\t%d\t" + USERNAME, OK))

    async def whole() -> None:
        async with listening(path, peer) as dovecot:
            assert await refusal(log_in(dovecot, "PLAIN", octets)) == "501 5.5.2"
            assert peer.received == []
            client = Client(octets)
            assert await refusal(log_in(dovecot, "LOGIN", None, client)) == "501 5.5.2"
            assert await log_in(dovecot) == "alice"

    asyncio.run(whole())
    assert [line.split(b"\t")[:2] for line in peer.commands] == [
        [b"AUTH", b"1"],
        [b"CANCEL", b"1"],
        [b"AUTH", b"2"],
    ]


def test_a_response_that_dovecot_would_hang_up_for_is_refused(path: Path) -> None:
    """It takes lines of 16384 octets, and the connection is everybody's."""
    peer = Peer(saying(OK))
    initial = b64encode(bytes(12_288))
    assert run(path, peer, lambda d: refusal(log_in(d, "PLAIN", initial))) == "500 5.5.6"
    assert peer.commands == []


def test_a_client_that_is_lost_ends_its_login_only(path: Path) -> None:
    async def lost(_: bytes) -> bytes:
        raise ConnectionResetError

    peer = Peer(saying(b"CONT\t%d\t" + USERNAME, OK))

    async def whole() -> None:
        async with listening(path, peer) as dovecot:
            with pytest.raises(ConnectionResetError):
                await log_in(dovecot, "LOGIN", None, lost)
            assert await log_in(dovecot) == "alice"

    asyncio.run(whole())
    assert peer.commands[1] == b"CANCEL\t1"
    assert peer.connections == 1


def test_no_log_has_a_password(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    run(path, Peer(saying(b"FAIL\t%d")), lambda dovecot: refusal(log_in(dovecot)))
    run(path, Peer(saying(b"OK\tx")), lambda dovecot: refusal(log_in(dovecot)))
    run(path, Peer(saying(OK)), lambda d: refusal(log_in(d, "PLAIN", PLAIN + b"!")))
    for secret in ("secret", PLAIN.decode()):
        assert secret not in caplog.text


# -- mechanisms ----------------------------------------------------------------------------------


def offered(path: Path, hello: bytes) -> tuple[str, ...]:
    async def whole() -> tuple[str, ...]:
        async with listening(path, Peer(saying(), hello)) as dovecot:
            return await dovecot.mechanisms()

    return asyncio.run(whole())


def test_the_mechanisms_are_dovecot_s(path: Path) -> None:
    assert offered(path, HELLO) == ("PLAIN", "LOGIN")


def test_what_is_not_for_clients_is_not_offered(path: Path) -> None:
    """ANONYMOUS would make an open relay; APOP is private, says the protocol."""
    hello = (
        b"VERSION\t1\t3\nMECH\tANONYMOUS\tanonymous\nMECH\tAPOP\tprivate\tdictionary\n"
        b"MECH\tSCRAM-SHA-256\tmutual-auth\nMECH\tA B\nMECH\nMECH\tx\r\nFUTURE\tx\nDONE\n"
    )
    assert offered(path, hello) == ("SCRAM-SHA-256",)


@pytest.mark.parametrize("mechanism", ["NOPE", "", "PLAIN\tsecured", "PLAIN\n", "APOP"])
def test_dovecot_is_not_asked_for_another_mechanism(path: Path, mechanism: str) -> None:
    """It hangs up on a client that names one it does not have."""
    peer = Peer(saying(OK))
    assert run(path, peer, lambda d: refusal(log_in(d, mechanism))) == "504 5.5.4"
    assert peer.commands == []


# -- the connection ------------------------------------------------------------------------------


def test_one_connection_is_kept(path: Path) -> None:
    peer = Peer(saying(OK, b"FAIL\t%d", OK))

    async def whole() -> None:
        async with listening(path, peer) as dovecot:
            assert await dovecot.mechanisms()
            assert await log_in(dovecot) == "alice"
            assert await refusal(log_in(dovecot)) == "535 5.7.8"
            assert await log_in(dovecot) == "alice"

    asyncio.run(whole())
    assert peer.connections == 1
    assert [line.split(b"\t")[1] for line in peer.commands] == [b"1", b"2", b"3"]


def test_many_at_once_share_one_connection(path: Path) -> None:
    """The peer answers all of them together, the last one first."""
    users = [f"user{n}" for n in range(20)]
    waiting: list[bytes] = []

    def answer(words: list[bytes]) -> bytes:
        if words[0] != b"AUTH":
            return b""
        user = waiting_user[words[-1]]
        waiting.append(b"OK\t%b\tuser=%b\n" % (words[1], user.encode()))
        return b"".join(reversed(waiting)) if len(waiting) == len(users) else b""

    responses = [b64encode(f"\0{user}\0x".encode()) for user in users]
    waiting_user = {b"resp=" + r: user for r, user in zip(responses, users, strict=True)}
    peer = Peer(answer)

    async def whole() -> list[str]:
        async with listening(path, peer) as dovecot:
            return await asyncio.gather(*(log_in(dovecot, "PLAIN", r) for r in responses))

    assert asyncio.run(whole()) == users
    assert peer.connections == 1


def test_a_lost_connection_is_opened_again(path: Path) -> None:
    answers: list[bytes | None] = [None, b"OK\t1\tuser=alice\n"]
    peer = Peer(lambda words: answers.pop(0) if words[0] == b"AUTH" else b"")

    async def whole() -> None:
        async with listening(path, peer) as dovecot:
            assert await refusal(log_in(dovecot)) == "454 4.7.0"
            assert await log_in(dovecot) == "alice"

    asyncio.run(whole())
    assert peer.connections == 2


def test_a_dovecot_that_ends_after_its_answer_has_answered(path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HELLO)
        while not (await reader.readline()).startswith(b"AUTH"):
            pass
        writer.write(b"OK\t1\tuser=alice\n")
        writer.close()

    async def whole() -> str:
        async with await asyncio.start_unix_server(serve, path):
            return await log_in(Dovecot(str(path)))

    assert asyncio.run(whole()) == "alice"


def test_a_dovecot_that_ends_while_the_client_thinks_fails_the_login(path: Path) -> None:
    async def whole() -> str:
        def answer(words: list[bytes]) -> bytes | None:
            return {b"AUTH": b"CONT\t1\t\n", b"CPID": b""}.get(words[0], b"")

        peer = Peer(answer)
        async with listening(path, peer) as dovecot:

            async def think(_: bytes) -> bytes:
                dovecot.close()
                await peer.ended()
                return PLAIN

            return await refusal(log_in(dovecot, "PLAIN", None, think))

    assert asyncio.run(whole()) == "454 4.7.0"


def test_an_answer_while_the_client_thinks_is_not_lost(path: Path) -> None:
    """Dovecot gives up a client that takes too long, and says so."""
    peer = Peer(saying(b"CONT\t%d\t", b"FAIL\t1\nOK\t%d\tuser=bob", OK))

    async def whole() -> str:
        async with listening(path, peer) as dovecot:

            async def think(_: bytes) -> bytes:
                assert await log_in(dovecot) == "bob"  # its answer comes behind the other
                return PLAIN

            return await refusal(log_in(dovecot, "PLAIN", None, think))

    assert asyncio.run(whole()) == "535 5.7.8"


# -- trouble -------------------------------------------------------------------------------------


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    "hello",
    [
        *(b"VERSION\t2\t0\nDONE\n", b"DONE\n", b"MECH\tPLAIN\nDONE\n", b"VERSION\nDONE\n"),
        b"VERSION\t1\t2\nMECH\t" + b"A" * MAX_LINE + b"\nDONE\n",
        b"VERSION\t1\t2\n" + b"A" * (MAX_LINE + 1),
        b"220 mx.example ESMTP\r\nVERSION\tone\t2\n",
    ],
)
def test_a_peer_that_is_no_dovecot_is_temporary_trouble(
    path: Path, hello: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    peer = Peer(saying(OK), hello)
    assert run(path, peer, lambda dovecot: refusal(log_in(dovecot))) == "454 4.7.0"
    assert len(warnings(caplog)) == 1
    assert str(path) in warnings(caplog)[0]


@pytest.mark.parametrize(
    "answer",
    [
        *(b"OK", b"OK\tone\tuser=alice", b"OK\t%d", b"OK\t%d\tuser=", b"OK\t%d0000000000"),
        *(b"CONT\t%d\t!!", b"CONT\t%d\ta b", b"CONT\t%d\tVXNlcm5hbWU6\r"),
        b"CONT\t%d\t\nCONT\t%d\t",
        b"A" * (MAX_LINE + 1),
    ],
)
def test_an_answer_that_makes_no_sense_is_temporary_trouble(
    path: Path, answer: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    peer = Peer(saying(answer))
    attempt = run(path, peer, lambda d: refusal(log_in(d, challenge=Client(PLAIN))))
    assert attempt == "454 4.7.0"
    assert len(warnings(caplog)) == 1


def test_a_peer_that_hangs_up_is_temporary_trouble(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for answers in ([None], [b"", None]):  # in the handshake, and at AUTH
        left = [*answers, None]

        def answer(_: list[bytes], left: list[bytes | None] = left) -> bytes | None:
            return left.pop(0)

        path.unlink(missing_ok=True)
        peer = Peer(answer)
        assert run(path, peer, lambda dovecot: refusal(log_in(dovecot))) == "454 4.7.0"
    assert len(warnings(caplog)) == 2


def test_a_socket_that_is_not_there_is_temporary_trouble(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def whole() -> None:
        dovecot = Dovecot(str(path))
        assert await refusal(log_in(dovecot)) == "454 4.7.0"
        with pytest.raises(CommandError) as caught:
            await dovecot.mechanisms()
        assert caught.value.reply.code == 454
        dovecot.close()

    asyncio.run(whole())
    assert warnings(caplog) == [f"no logins by Dovecot at {path}: No such file or directory"] * 2


@pytest.mark.parametrize("hello", [HELLO, b""])
def test_a_silent_dovecot_is_given_up(
    path: Path,
    hello: bytes,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(dovecot_socket, "TIMEOUT", 0.05)
    peer = Peer(lambda _: b"", hello)
    assert run(path, peer, lambda dovecot: refusal(log_in(dovecot))) == "454 4.7.0"
    assert len(warnings(caplog)) == 1


def test_a_late_answer_belongs_to_nobody(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It must not log in the next client."""
    monkeypatch.setattr(dovecot_socket, "TIMEOUT", 0.05)
    answers = [b"", b"OK\t1\tuser=alice\nFAIL\t2\tuser=mallory\n"]
    peer = Peer(lambda words: answers.pop(0) if words[0] == b"AUTH" else b"")

    async def whole() -> None:
        async with listening(path, peer) as dovecot:
            assert await refusal(log_in(dovecot)) == "454 4.7.0"
            assert await refusal(log_in(dovecot)) == "535 5.7.8"

    asyncio.run(whole())
    assert peer.connections == 1
    assert peer.commands[1] == b"CANCEL\t1"


def outcome(pieces: Sequence[bytes]) -> tuple[str, tuple[str, ...], bool]:
    """Return what becomes of a connection that receives these pieces."""

    async def whole() -> tuple[str, tuple[str, ...], bool]:
        connection = Connection()
        request = connection.begin()
        for piece in pieces:
            if not connection.failure:
                connection.data_received(piece)
        connection.forget(request)
        return connection.failure, connection.mechanisms, connection.ready.done()

    return asyncio.run(whole())


WORDS = mixed(
    *(b"VERSION\t1", b"MECH\tPLAIN", b"DONE", b"OK\t1", b"CONT\t1", b"FAIL\t2", b"\n", b"\t"),
    *(b"\tuser=x", b"\0", b"\xff", b"1" * 5000, b"MECH", b"VERSION\t2", HELLO),
)


@given(WORDS | st.binary(max_size=80).map(lambda octets: HELLO + octets), SIZES)
def test_any_octets_are_answers_or_end_the_connection(octets: bytes, sizes: list[int]) -> None:
    whole = outcome([octets])
    assert outcome(cut(octets, sizes)) == whole
    if len(octets) < 500:
        assert outcome(bytewise(octets)) == whole
