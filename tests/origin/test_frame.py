"""Frames read back as they were written, and damaged ones never as anything else."""

import struct
import zlib

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from origin.frame import (
    LARGE_BYTES,
    Appended,
    CorruptLog,
    Created,
    Deleted,
    Encoded,
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


def whole(encoded: Encoded) -> bytes:
    return b"".join(encoded.pieces)


FRAME = whole(encode_frame(7, 1_800_000_000_123, SAMPLE))


@settings(deadline=None, max_examples=150)
@given(COUNTS, COUNTS, st.lists(RECORDS, max_size=8))
def test_frame_reads_back_as_it_was_written(lsn: int, at_ms: int, records: list[Record]) -> None:
    encoded = encode_frame(lsn, at_ms, records)
    found = decode_frame(whole(encoded), WHERE)
    assert (found.lsn, found.at_ms) == (lsn, at_ms)
    assert list(found.records) == records
    assert list(found.placements) == encoded.placements


@settings(deadline=None, max_examples=150)
@given(st.lists(RECORDS, max_size=8))
def test_what_a_commit_adds_to_a_stream_is_one_stretch_of_the_frame(records: list[Record]) -> None:
    encoded = encode_frame(1, 0, records)
    frame, placements = whole(encoded), encoded.placements
    added: dict[int, list[bytes]] = {}
    for record in records:
        if not isinstance(record, Deleted | Trimmed) and record.payload:
            own = record.state.incarnation if isinstance(record, Created) else record.incarnation
            added.setdefault(own, []).append(record.payload)
    assert {placement.incarnation for placement in placements} == set(added)
    for placement, payload in zip(placements, encoded.payloads, strict=True):
        pieces = added[placement.incarnation]
        assert placement.sizes == tuple(map(len, pieces))
        stretch = frame[placement.at : placement.at + sum(placement.sizes)]
        assert stretch == payload == b"".join(pieces)
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
    """Return a frame with a right checksum of head and table around anything."""
    rest = struct.pack(">QI", 7, len(table) if table_bytes is None else table_bytes) + table
    summed = rest if table_bytes is None else (rest + payloads)[: 12 + table_bytes]
    return b"HWF2" + struct.pack(">I", zlib.crc32(summed)) + rest + payloads


def test_sealed_makes_frames() -> None:
    frame = encode_frame(7, 5, [Appended(1, b"one", False, None, None), Deleted(2, soft=True)])
    table = b'[5,[["a",1,3,false,null,null],["d",2,true]],[%d]]' % zlib.crc32(b"one")
    assert sealed(table, b"one") == whole(frame)


ONE = zlib.crc32(b"one")
APPEND = b'[5,[["a",1,3,false,null,null]],[%d]]' % ONE


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(sealed(APPEND, b"on"), id="payload-short"),
        pytest.param(sealed(APPEND, b"one!"), id="payload-long"),
        pytest.param(sealed(APPEND), id="payload-missing"),
        pytest.param(sealed(APPEND, b"one", table_bytes=10**9), id="table-longer-than-the-frame"),
        pytest.param(sealed(APPEND, b"one", table_bytes=5), id="table-cut"),
        pytest.param(sealed(APPEND, b"one", table_bytes=0), id="no-table"),
        pytest.param(sealed(APPEND, b"onE"), id="payload-of-another-checksum"),
        pytest.param(sealed(APPEND.replace(b"%d" % ONE, b""), b"one"), id="checksum-missing"),
        pytest.param(sealed(APPEND.replace(b"%d" % ONE, b"%d,0" % ONE), b"one"), id="one-too-many"),
        pytest.param(sealed(APPEND.replace(b",[%d]" % ONE, b""), b"one"), id="no-checksums"),
        pytest.param(sealed(b"{"), id="table-is-no-json"),
        pytest.param(sealed(b"{}"), id="table-is-no-array"),
        pytest.param(sealed(b"[5]"), id="table-without-records"),
        pytest.param(sealed(b'[5,[["x",1,0]],[]]'), id="unknown-record"),
        pytest.param(sealed(b'[5,[["x"]],[]]'), id="unknown-short-record"),
        pytest.param(sealed(b"[5,[[]],[]]"), id="empty-record"),
        pytest.param(sealed(b'[5,[["a",1]],[]]'), id="short-append"),
        pytest.param(sealed(b'[5,[["c",{"incarnation":1},0]],[]]'), id="state-without-fields"),
        pytest.param(sealed(b'[5,[["a",1,-3,false,null,null]],[0]]'), id="negative-size"),
    ],
)
def test_frame_that_no_version_of_ours_wrote_is_refused_by_name(frame: bytes) -> None:
    with pytest.raises(CorruptLog, match=WHERE):
        decode_frame(frame, WHERE)


# --- frames of the earlier version ----------------------------------------------------------------


def first_version(table: bytes, payloads: bytes) -> bytes:
    """Return a frame as it was written before tables had checksums: one covers all of it."""
    rest = struct.pack(">QI", 7, len(table)) + table + payloads
    return b"HWF1" + struct.pack(">I", zlib.crc32(rest)) + rest


EARLIER = first_version(
    b'[5,[["a",1,3,false,["p",0,5],"b"],["a",2,3,true,null,null],["d",3,true],["t",2,1]]]',
    b"one" + b"two",
)


def test_frame_of_the_earlier_version_is_still_read() -> None:
    found = decode_frame(EARLIER, WHERE)
    assert (found.lsn, found.at_ms) == (7, 5)
    assert list(found.records) == [
        Appended(1, b"one", False, ProducerKey("p", 0, 5), "b"),
        Appended(2, b"two", True, None, None),
        Deleted(3, soft=True),
        Trimmed(2, 1),
    ]
    first, second = found.placements
    assert EARLIER[first.at :] == b"onetwo"
    assert (first.sizes, first.crc, second.at) == ((3,), zlib.crc32(b"one"), first.at + 3)


def test_every_flipped_bit_of_the_earlier_version_is_found() -> None:
    for bit in range(len(EARLIER) * 8):
        damaged = bytearray(EARLIER)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptLog, match=WHERE):
            decode_frame(bytes(damaged), WHERE)


# --- large ones -----------------------------------------------------------------------------------


def appends(*sizes: int) -> list[Record]:
    return [
        Appended(n % 3 + 1, bytes([n % 256]) * size, False, None, None)
        for n, size in enumerate(sizes)
    ]


def test_frame_is_one_piece_until_it_is_large() -> None:
    """Large are all of its bytes, head and table included."""
    head_bytes = encode_frame(7, 5, appends(100_000)).size - 100_000
    below = encode_frame(7, 5, appends(LARGE_BYTES - head_bytes - 1))
    assert (len(below.pieces), below.size) == (1, LARGE_BYTES - 1)
    large = encode_frame(7, 5, appends(LARGE_BYTES - head_bytes))
    assert (len(large.pieces), large.size) == (2, LARGE_BYTES)


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param((400_000,), id="one append"),
        pytest.param((200_000, 200_000, 200_000), id="three streams"),
        pytest.param((100_000,) * 12, id="several extents of each stream"),
        pytest.param((100,) * 5000, id="many small ones"),
        pytest.param((0,) * 12_000, id="a long table and nothing else"),
    ],
)
def test_pieces_of_a_large_frame_are_the_frame(sizes: tuple[int, ...]) -> None:
    records = appends(*sizes)
    encoded = encode_frame(7, 5, records)
    assert list(encoded.pieces[1:]) == list(encoded.payloads)
    assert encoded.size == len(whole(encoded)) >= LARGE_BYTES
    found = decode_frame(whole(encoded), WHERE)
    assert list(found.records) == records
    assert list(found.placements) == encoded.placements


def test_flipped_bit_of_a_large_payload_is_found_and_named_by_its_extent() -> None:
    encoded = encode_frame(7, 5, appends(200_000, 200_000))
    frame = whole(encoded)
    for placement in encoded.placements:
        for at in (placement.at, placement.at + 100_000, placement.at + 199_999):
            damaged = bytearray(frame)
            damaged[at] ^= 0x10
            with pytest.raises(CorruptLog, match=rf"{WHERE}: byte {placement.at}: checksum .{{8}}"):
                decode_frame(bytes(damaged), WHERE)
