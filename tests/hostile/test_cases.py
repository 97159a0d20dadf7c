"""The data files are whole and expand as their README says."""

from __future__ import annotations

import collections

import pytest

from tests.hostile.cases import (
    FILES,
    VERDICTS,
    Act,
    Case,
    Feed,
    Send,
    Sync,
    TooBig,
    Wait,
    expand,
    fits,
    load,
    script,
    steps,
    value,
)


def case_of(*parts: dict[str, object]) -> Case:
    return Case("X-001", "", "", "", "opensmtpd", "ok", {}, {"hello": [{"text": "hello "}]}, parts)


def test_every_case_is_known_by_an_id_of_its_own() -> None:
    ids = collections.Counter(case.id for case in load())

    assert ids.total() == 133 + 35 + 85 + 49 + 89 + 122 + 56 + 59
    assert set(ids.values()) == {1}


@pytest.mark.parametrize("name", FILES)
def test_every_case_has_an_input_and_a_known_verdict(name: str) -> None:
    for case in load(name):
        inputs = (
            *(case.parts, case.script, case.call),
            *(case.policy_source, case.address, case.headers),
        )
        assert sum(bool(one) for one in inputs) == 1, case.id
        assert case.verdict in VERDICTS, case.id


WITH_BYTES = load("smtp-in", "opensmtpd", "opensmtpd52", "milter", "mime")


@pytest.mark.parametrize("case", WITH_BYTES, ids=str)
def test_the_first_bytes_of_every_case_expand(case: Case) -> None:
    made = steps(case)
    assert any(
        isinstance(step, (Wait, Act)) or (isinstance(step, Send) and step.data) for step in made
    )


def test_parts_expand_in_order() -> None:
    case = case_of(
        {"use": "hello"},
        {"hex": "ff00"},
        {"repeat": 3, "of": [{"text": "ab"}]},
        {"count": 3, "start": 8, "format": "%d;"},
        {"template": 2, "format": "%02x-%d%%\n"},
    )

    assert expand(case) == b"hello \xff\0ababab8;9;10;00-0%\n01-1%\n"


def test_packets_have_a_length_and_a_command() -> None:
    case = case_of(
        {"milter": "H", "body": [{"text": "x"}, {"hex": "00"}]},
        {"milter_hex": "ff", "body": []},
        {"template": 2, "milter": "R", "format": "<u%d>\0"},
    )

    assert expand(case) == (b"\0\0\0\3Hx\0\0\0\0\1\xff\0\0\0\6R<u0>\0\0\0\0\6R<u1>\0")


def test_frames_have_a_header_and_may_have_descriptors() -> None:
    case = case_of(
        {"imsg": 0, "body": [{"text": "x"}]},
        {"imsg": 3, "body": [], "fd": "pipe", "fds": 2},
        {"imsg": 3, "body": [], "flags": 1},
        {"imsg": 1, "body": [], "len": 15},
        {"template": 2, "imsg": 1, "format_le64_then": "05000000"},
    )

    assert list(steps(case)) == [
        Send(bytes.fromhex("00000000 1100 0000 00000000 00000000 78")),
        Send(bytes.fromhex("03000000 1000 0100 00000000 00000000"), ("pipe", "pipe")),
        Send(bytes.fromhex("03000000 1000 0100 00000000 00000000")),
        Send(bytes.fromhex("01000000 0f00 0000 00000000 00000000")),
        Send(
            bytes.fromhex("01000000 1c00 0000 00000000 00000000 0000000000000000 05000000")
            + bytes.fromhex("01000000 1c00 0000 00000000 00000000 0100000000000000 05000000")
        ),
    ]


def test_a_data_pipe_is_fed_and_closed() -> None:
    open_end: dict[str, object] = {"data_pipe": [{"text": "ab"}], "keep_open": True}
    closed: dict[str, object] = {"data_pipe": [{"repeat": 4, "of": [{"text": "c"}]}]}

    assert list(steps(case_of(open_end, closed), piece=3)) == [
        *(Feed(b"ab"), Feed(b"ccc"), Feed(b"c"), Feed(b"")),
    ]


def test_acts_and_chunks_are_steps_of_their_own() -> None:
    case = case_of(
        {"chunk": 2, "of": [{"text": "abc"}]},
        {"sync": True},
        {"wait_ms": 50},
        {"no_read": True},
        {"half_close": True},
        {"close": True},
        {"reset": True},
    )

    assert list(steps(case)) == [
        Send(b"ab"),
        Send(b"c"),
        Sync(),
        Wait(0.05),
        Act("no_read"),
        Act("half_close"),
        Act("close"),
        Act("reset"),
    ]


def test_a_script_says_what_comes_after_what() -> None:
    case = next(case for case in load("smtp-upstream") if case.id == "UP-014")

    assert script(case) == [
        ("connect", [Send(b"220 up ESMTP\r\n")]),
        ("EHLO", [Send(b"250-up\r\n250 SI"), Act("close")]),
    ]


def test_a_repeated_part_comes_in_pieces() -> None:
    case = case_of({"repeat": 5, "of": [{"text": "abc"}]})

    assert list(steps(case, piece=6)) == [Send(b"abcabc"), Send(b"abcabc"), Send(b"abc")]


def test_expanding_stops_at_its_limit() -> None:
    case = case_of({"repeat": 10**12, "of": [{"text": "x"}]})

    assert not fits(case, 1000)
    with pytest.raises(TooBig, match="X-001"):
        expand(case, limit=1000)


def test_unknown_parts_are_errors() -> None:
    with pytest.raises(ValueError, match="unknown part"):
        list(steps(case_of({"teleport": 1})))


def test_described_values_become_python_values() -> None:
    described = {"add": ["X", {"concat": [{"repeat": 3, "of": "x"}, "@"]}, {"bytes": "ff00"}, 5]}

    assert value(described) == {"add": ["X", "xxx@", b"\xff\0", 5]}


def test_addresses_are_the_bytes_on_the_wire() -> None:
    found = {case.id: case.address for case in load("eai")}

    assert found["EAI-002"] == "a@é.example".encode()
    assert found["EAI-055"] == b"\xe9@example.org"
