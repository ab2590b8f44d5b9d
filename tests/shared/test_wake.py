"""The codec of wakes: what goes in comes out, and nothing else is taken for a wake."""

import zlib
from dataclasses import replace

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.protocol.names import INTEGER_MAX
from shared.protocol.offset import Offset
from shared.wake import (
    PAYLOAD_BYTES_MAX,
    ForeignWake,
    Wake,
    channel_of,
    decode_wake,
    encode_wake,
)

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
GOOD = Wake(3, Offset(3, 10).token(), Offset(3, 14).token(), payload=b"a\nb\x00")
# The same, as an origin sent it that knew of no traces.
OLD = (
    b'HW1 a2d03a3c [3,"0000000000000003_0000000000000010","0000000000000003_0000000000000014",'
    b"false,false,true]\na\nb\x00"
)


@st.composite
def wakes(draw: st.DrawFn) -> Wake:
    incarnation = draw(st.integers(1, INTEGER_MAX))
    before = draw(st.integers(0, 10**15))
    payload = draw(st.none() | st.binary(max_size=PAYLOAD_BYTES_MAX))
    moved = len(payload) if payload is not None else draw(st.integers(0, 10**14))
    return Wake(
        incarnation,
        Offset(incarnation, before).token(),
        Offset(incarnation, before + moved).token(),
        closed=draw(st.booleans()),
        deleted=draw(st.booleans()),
        payload=payload,
        trace=draw(st.none() | st.just(TRACE)),
    )


def sealed(rest: bytes) -> bytes:
    """Return a message of the right version and checksum, whatever it says."""
    return b"HW1 %08x " % zlib.crc32(rest) + rest


def said(*head: object, payload: bytes = b"") -> bytes:
    return sealed(orjson.dumps(head) + b"\n" + payload)


def at(position: int) -> str:
    return Offset(3, position).token()


@given(wakes())
def test_decoded_is_what_was_encoded(wake: Wake) -> None:
    assert decode_wake(encode_wake(wake)) == wake


def test_payload_may_hold_what_separates_parts() -> None:
    assert decode_wake(encode_wake(GOOD)).payload == b"a\nb\x00"


def test_wake_without_a_trace_is_what_it_was_before_there_were_traces() -> None:
    assert decode_wake(OLD) == GOOD
    assert encode_wake(GOOD) == OLD


def test_trace_comes_along() -> None:
    assert decode_wake(encode_wake(replace(GOOD, trace=TRACE))) == replace(GOOD, trace=TRACE)


def test_no_payload_and_an_empty_one_are_two_things() -> None:
    none = Wake(3, at(10), at(10), closed=True)
    empty = Wake(3, at(10), at(10), closed=True, payload=b"")
    assert decode_wake(encode_wake(none)).payload is None
    assert decode_wake(encode_wake(empty)).payload == b""


@given(st.integers(0, len(encode_wake(GOOD)) - 1), st.integers(1, 255))
def test_one_changed_byte_makes_it_foreign(index: int, change: int) -> None:
    message = bytearray(encode_wake(GOOD))
    message[index] ^= change
    with pytest.raises(ForeignWake):
        decode_wake(bytes(message))


@pytest.mark.parametrize("size", range(len(encode_wake(GOOD))))
def test_truncated_message_is_foreign(size: int) -> None:
    with pytest.raises(ForeignWake):
        decode_wake(encode_wake(GOOD)[:size])


def test_message_with_more_behind_it_is_foreign() -> None:
    with pytest.raises(ForeignWake):
        decode_wake(encode_wake(GOOD) + b"\n")


@given(st.binary(max_size=64))
def test_any_other_bytes_are_foreign(message: bytes) -> None:
    with pytest.raises(ForeignWake):
        decode_wake(message)


@given(st.binary(max_size=64))
def test_any_other_bytes_are_foreign_even_with_a_checksum(rest: bytes) -> None:
    with pytest.raises(ForeignWake):
        decode_wake(sealed(rest))


def test_sealed_makes_wakes() -> None:
    """Else the table below would prove nothing."""
    assert decode_wake(said(3, at(10), at(12), False, False, True, payload=b"ab")) == Wake(
        3, at(10), at(12), payload=b"ab"
    )


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"HW1 ",
        b"HW1 00000000 ",
        b'{"stream":"/a","offset":"0000000000000003_0000000000000010"}',
        sealed(b'{"stream":"/a"}\n'),
        sealed(b"[]\n"),
        sealed(b"null\n"),
        sealed(b"\n"),
        sealed(b"not json\n"),
        said(3, at(10), at(12), False, False),
        said(3, at(10), at(12), False, False, False, False),
        said(3, at(10), at(12), False, False, False, None),
        said(3, at(10), at(12), False, False, False, ""),
        said(3, at(10), at(12), False, False, False, TRACE.upper()),
        said(3, at(10), at(12), False, False, False, TRACE + "0"),
        said(3, at(10), at(12), False, False, False, TRACE, TRACE),
        said(3, 10, 12, False, False, False),
        said(3, None, at(12), False, False, False),
        said(3, "-1", at(12), False, False, False),
        said(3, at(10), "now", False, False, False),
        said(3, at(10), at(12) + "0", False, False, False),
        said(3, at(12), at(10), False, False, False),
        said(3, at(12), at(10), False, False, True),
        said(3, at(10), at(12), False, False, True, payload=b"a"),
        said(3, at(10), at(12), False, False, True, payload=b"abc"),
        said(3, at(10), at(12), False, False, True),
        said(3, at(10), at(10), False, False, True, payload=b"a"),
        encode_wake(GOOD).replace(b"HW1 ", b"HW2 "),
        encode_wake(GOOD).replace(b"HW1 ", b"HW10 "),
        encode_wake(GOOD).lower(),
        b" " + encode_wake(GOOD),
    ],
    ids=[
        "empty",
        "version alone",
        "checksum of nothing",
        "foreign json",
        "object",
        "empty array",
        "null",
        "empty head",
        "no json",
        "too few fields",
        "too many fields",
        "no trace",
        "empty trace",
        "malformed trace",
        "long trace",
        "two traces",
        "positions as numbers",
        "no token",
        "sentinel before",
        "sentinel after",
        "long token",
        "backwards",
        "backwards with payload",
        "payload too short",
        "payload too long",
        "payload missing",
        "payload without a move",
        "newer version",
        "version of two digits",
        "other case",
        "space before",
    ],
)
def test_foreign_message_is_refused(message: bytes) -> None:
    with pytest.raises(ForeignWake):
        decode_wake(message)


def test_each_stream_has_a_channel_of_its_own() -> None:
    assert channel_of("/a/b") == "headwater:wake:/a/b"
    assert channel_of("/a") != channel_of("/a/")
