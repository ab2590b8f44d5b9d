"""Frames read back as they were written, and damaged ones never as anything else."""

import struct
import zlib

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from origin.frame import (
    Appended,
    CorruptLog,
    Created,
    Deleted,
    Record,
    Trimmed,
    decode_frame,
    decode_state,
    encode_frame,
    encode_state,
)
from shared.protocol.expiry import NEVER, Expiry
from shared.protocol.producer import ProducerKey
from shared.protocol.retention import Retention
from shared.protocol.stream import Ancestor, ForkPoint, StreamState

WHERE = "journal.db: frame 7"
COUNTS = st.integers(0, 2**53 - 1)
TEXTS = st.text(max_size=12)
KEYS = st.builds(ProducerKey, TEXTS, COUNTS, COUNTS)
EXPIRIES = (
    st.just(NEVER)
    | st.builds(Expiry, ttl_s=COUNTS)
    | st.builds(Expiry, st.none(), TEXTS, st.integers(-(2**53), 2**53))
)
STATES = st.builds(
    StreamState,
    path=TEXTS,
    incarnation=st.integers(1, 4),
    content_type=TEXTS,
    expiry=EXPIRIES,
    created_ms=COUNTS,
    fork=st.none() | st.builds(ForkPoint, TEXTS, COUNTS, COUNTS, st.none() | TEXTS, COUNTS),
    lineage=st.lists(st.builds(Ancestor, COUNTS, COUNTS), max_size=3).map(tuple),
    tail=COUNTS,
    closed=st.booleans(),
    closed_by=st.none() | KEYS,
    last_seq=st.none() | TEXTS,
    deleted=st.booleans(),
    retention=st.builds(Retention, st.none() | COUNTS, st.none() | COUNTS),
    low=COUNTS,
)
# Few incarnations, so that their payloads interleave.
PAYLOADS = st.binary(max_size=20)
RECORDS: st.SearchStrategy[Record] = st.one_of(
    st.builds(Created, STATES, PAYLOADS),
    st.builds(Trimmed, st.integers(1, 4), COUNTS),
    st.builds(
        Appended,
        st.integers(1, 4),
        PAYLOADS,
        st.booleans(),
        st.none() | KEYS,
        st.none() | TEXTS,
    ),
    st.builds(Deleted, st.integers(1, 4), st.booleans()),
)

STATE = StreamState(
    "a/é",
    3,
    "text/plain",
    Expiry(60),
    created_ms=1_800_000_000_000,
    fork=ForkPoint("src", 1, 4, None, 0),
    lineage=(Ancestor(1, 4),),
    tail=6,
    closed=True,
    closed_by=ProducerKey("p", 1, 2),
    last_seq="é",
)
SAMPLE: list[Record] = [
    Created(STATE, b"hi"),
    Appended(1, b"one", close=False, producer=ProducerKey("p", 0, 5), stream_seq="b"),
    Appended(2, b"two", close=False, producer=None, stream_seq=None),
    Appended(1, b"three", close=True, producer=None, stream_seq=None),
    Appended(2, b"", close=True, producer=ProducerKey("q", 1, 0), stream_seq=None),
    Deleted(2, soft=True),
    Deleted(4, soft=False),
]
FRAME, PLACEMENTS = encode_frame(7, 1_800_000_000_123, SAMPLE)


@settings(deadline=None, max_examples=150)
@given(COUNTS, COUNTS, st.lists(RECORDS, max_size=8))
def test_frame_reads_back_as_it_was_written(lsn: int, at_ms: int, records: list[Record]) -> None:
    frame, placements = encode_frame(lsn, at_ms, records)
    found = decode_frame(frame, WHERE)
    assert (found.lsn, found.at_ms) == (lsn, at_ms)
    assert list(found.records) == records
    assert list(found.placements) == placements


@settings(deadline=None, max_examples=150)
@given(st.lists(RECORDS, max_size=8))
def test_what_a_commit_adds_to_a_stream_is_one_stretch_of_the_frame(records: list[Record]) -> None:
    frame, placements = encode_frame(1, 0, records)
    added: dict[int, list[bytes]] = {}
    for record in records:
        if not isinstance(record, Deleted | Trimmed) and record.payload:
            own = record.state.incarnation if isinstance(record, Created) else record.incarnation
            added.setdefault(own, []).append(record.payload)
    assert {placement.incarnation for placement in placements} == set(added)
    for placement in placements:
        pieces = added[placement.incarnation]
        assert placement.sizes == tuple(map(len, pieces))
        stretch = frame[placement.at : placement.at + sum(placement.sizes)]
        assert stretch == b"".join(pieces)
        assert placement.crc == zlib.crc32(stretch)


@settings(deadline=None, max_examples=100)
@given(STATES)
def test_state_reads_back_from_json(state: StreamState) -> None:
    assert decode_state(orjson.loads(orjson.dumps(state))) == state
    assert decode_state(orjson.loads(orjson.dumps(encode_state(state)))) == state


def test_state_of_before_there_was_retention_reads_back() -> None:
    state = StreamState("s", 1, "text/plain", NEVER, 5)
    document = orjson.loads(orjson.dumps(state))
    del document["retention"], document["low"]
    assert decode_state(document) == state


def test_every_flipped_byte_is_found() -> None:
    for at in range(len(FRAME)):
        for flip in (0x01, 0x20, 0x80, 0xFF):
            damaged = bytearray(FRAME)
            damaged[at] ^= flip
            with pytest.raises(CorruptLog, match=WHERE):
                decode_frame(bytes(damaged), WHERE)


def test_every_flipped_bit_is_found() -> None:
    for bit in range(len(FRAME) * 8):
        damaged = bytearray(FRAME)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptLog):
            decode_frame(bytes(damaged), WHERE)


def test_every_truncation_is_found() -> None:
    for size in range(len(FRAME)):
        with pytest.raises(CorruptLog, match=WHERE):
            decode_frame(FRAME[:size], WHERE)


@pytest.mark.parametrize(
    "damaged",
    [
        pytest.param(FRAME + b"\x00", id="one-byte-more"),
        pytest.param(FRAME + FRAME, id="twice"),
        pytest.param(b"\x00" * len(FRAME), id="zeros"),
        pytest.param(b"\xff" * len(FRAME), id="ones"),
        pytest.param(FRAME[1:], id="first-byte-lost"),
        pytest.param(FRAME[:40] + FRAME[41:], id="byte-lost"),
        pytest.param(FRAME[:-4] + FRAME[-2:] + FRAME[-4:-2], id="bytes-swapped"),
        pytest.param(FRAME[: len(FRAME) // 2] + bytes(len(FRAME) - len(FRAME) // 2), id="torn"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_damage_is_found(damaged: bytes) -> None:
    with pytest.raises(CorruptLog, match=WHERE):
        decode_frame(damaged, WHERE)


def sealed(table: bytes, payloads: bytes = b"", table_bytes: int | None = None) -> bytes:
    """Return a frame with a right checksum around anything."""
    rest = struct.pack(">QI", 7, len(table) if table_bytes is None else table_bytes)
    rest += table + payloads
    return b"HWF1" + struct.pack(">I", zlib.crc32(rest)) + rest


def test_sealed_makes_frames() -> None:
    frame, _ = encode_frame(7, 5, [Deleted(2, soft=True)])
    assert sealed(b'[5,[["d",2,true]]]') == frame


APPEND = b'[5,[["a",1,3,false,null,null]]]'


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(sealed(APPEND, b"on"), id="payload-short"),
        pytest.param(sealed(APPEND, b"one!"), id="payload-long"),
        pytest.param(sealed(APPEND), id="payload-missing"),
        pytest.param(sealed(APPEND, b"one", table_bytes=10**9), id="table-longer-than-the-frame"),
        pytest.param(sealed(APPEND, b"one", table_bytes=5), id="table-cut"),
        pytest.param(sealed(APPEND, b"one", table_bytes=0), id="no-table"),
        pytest.param(sealed(b"{"), id="table-is-no-json"),
        pytest.param(sealed(b"{}"), id="table-is-no-array"),
        pytest.param(sealed(b"[5]"), id="table-without-records"),
        pytest.param(sealed(b'[5,[["x",1,0]]]'), id="unknown-record"),
        pytest.param(sealed(b'[5,[["x"]]]'), id="unknown-short-record"),
        pytest.param(sealed(b"[5,[[]]]"), id="empty-record"),
        pytest.param(sealed(b'[5,[["a",1]]]'), id="short-append"),
        pytest.param(sealed(b'[5,[["c",{"incarnation":1},0]]]'), id="state-without-fields"),
        pytest.param(sealed(b'[5,[["a",1,-3,false,null,null]]]'), id="negative-size"),
    ],
)
def test_frame_that_no_version_of_ours_wrote_is_refused_by_name(frame: bytes) -> None:
    with pytest.raises(CorruptLog, match=WHERE):
        decode_frame(frame, WHERE)
