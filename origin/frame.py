"""Codec of one commit's records (pure).

A frame is a head, a table of records in the order in which they were decided, and their payloads.
The payloads are grouped by stream, so that what one commit adds to a stream is one contiguous
extent:

    magic(4) crc32(4) lsn(8) table_bytes(4) | table: JSON | payloads

The checksum covers what follows it up to the payloads; those have checksums in the table, which
extents take over: no byte is summed twice. In frames of an earlier version, "HWF1", it covered all
that follows, and the table had none. What must not be separated (data, producer state, Stream-Seq
and closure of one append) is one record.
"""

import dataclasses
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import orjson

from shared.protocol.expiry import NEVER, Expiry
from shared.protocol.producer import ProducerKey
from shared.protocol.retention import Retention
from shared.protocol.stream import Ancestor, ForkPoint, StreamState

_MAGIC: Final = b"HWF2"
_MAGIC_1: Final = b"HWF1"
_HEAD: Final = struct.Struct(">4sIQI")
_CRC_FROM: Final = 8  # the checksum covers everything after itself
_WITH_DATA: Final = ("a", "c")
# A read fetches and verifies whole extents: a chunk costs at most one of them more than it returns.
_EXTENT_BYTES_MAX: Final = 256 * 1024
HEAD_BYTES: Final = _HEAD.size
# From here on a frame is written in pieces, to a file of its own (origin/large.py says why here).
LARGE_BYTES: Final = 256 * 1024


class CorruptLog(Exception):
    """Stored bytes are not what was written; it names file and record, and stops the process."""


@dataclass(frozen=True, slots=True)
class Created:
    """A stream came to be, with its first data."""

    state: StreamState  # with that data, and closed if it was created so
    payload: bytes


# Not frozen, as is nothing of which each append makes one: a frozen one costs four times as much.
@dataclass(slots=True)
class Appended:
    """One accepted append, close, or both."""

    incarnation: int
    payload: bytes
    close: bool
    producer: ProducerKey | None
    stream_seq: str | None


@dataclass(frozen=True, slots=True)
class Deleted:
    """A stream is gone: for good, or softly while it has forks."""

    incarnation: int
    soft: bool
    payload: ClassVar[bytes] = b""


@dataclass(frozen=True, slots=True)
class Trimmed:
    """What came before a position is not kept any more."""

    incarnation: int
    low: int
    payload: ClassVar[bytes] = b""


Record = Created | Appended | Deleted | Trimmed


@dataclass(slots=True)
class Placement:
    """Where one frame holds some of what it adds to one stream; all of it, if it is not much."""

    incarnation: int
    at: int  # byte position in the frame
    sizes: tuple[int, ...]  # one per append
    crc: int


@dataclass(slots=True)
class Encoded:
    """A frame as it is to be written."""

    pieces: Sequence[bytes]  # one after another; a single one, unless it is large
    payloads: Sequence[bytes]  # of its placements, in their order
    placements: Sequence[Placement]

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(map(len, self.pieces))


@dataclass(frozen=True, slots=True)
class Frame:
    """A decoded frame."""

    lsn: int
    at_ms: int
    records: Sequence[Record]
    placements: Sequence[Placement]


def encode_frame(lsn: int, at_ms: int, records: Iterable[Record]) -> Encoded:
    """Return the bytes of one commit, and where they hold what.

    Args:
        at_ms: when it was made, Unix milliseconds; sliding windows resume from it.
    """
    rows: list[Any] = []
    payloads: dict[int, list[bytes]] = {}
    for record in records:
        payload = record.payload
        # By attribute: to take them apart by `case Appended(incarnation, ...)` is twice as slow.
        match record:
            case Appended():
                incarnation, key = record.incarnation, record.producer
                producer = None if key is None else (key.producer_id, key.epoch, key.seq)
                rows.append(
                    ("a", incarnation, len(payload), record.close, producer, record.stream_seq)
                )
            case Created():
                incarnation = record.state.incarnation
                rows.append(("c", record.state, len(payload)))
            case Deleted():
                incarnation = record.incarnation
                rows.append(("d", incarnation, record.soft))
            case Trimmed():
                incarnation = record.incarnation
                rows.append(("t", incarnation, record.low))
        if payload:
            payloads.setdefault(incarnation, []).append(payload)
    groups: list[tuple[int, tuple[int, ...]]] = []  # of which stream, and sizes
    parts: list[bytes] = []
    crcs: list[int] = []
    for incarnation, pieces in payloads.items():
        first = 0
        for sizes in _groups([len(piece) for piece in pieces]):
            data = b"".join(pieces[first : first + len(sizes)])
            groups.append((incarnation, sizes))
            parts.append(data)
            crcs.append(zlib.crc32(data))
            first += len(sizes)
    table = orjson.dumps((at_ms, rows, crcs))
    crc = zlib.crc32(_HEAD.pack(_MAGIC, 0, lsn, len(table))[_CRC_FROM:] + table)
    head = _HEAD.pack(_MAGIC, crc, lsn, len(table)) + table
    at = len(head)
    placements = []
    for (incarnation, sizes), data, data_crc in zip(groups, parts, crcs, strict=True):
        placements.append(Placement(incarnation, at, sizes, data_crc))
        at += len(data)
    whole = [head, *parts]
    return Encoded(whole if is_large(at) else [b"".join(whole)], parts, placements)


def is_large(frame_bytes: int) -> bool:
    """Tell whether a frame of so many bytes is one for a file of its own."""
    return frame_bytes >= LARGE_BYTES


def decode_frame(frame: bytes, where: str) -> Frame:
    """Return the records of one commit, in the order in which they were decided.

    Args:
        where: file and record, for the error.

    Raises:
        CorruptLog: the checksum or a length is wrong. Nothing is skipped and nothing is guessed.
    """
    if len(frame) < _HEAD.size:
        raise CorruptLog(f"{where}: {len(frame)} bytes are too few for a frame")
    magic, crc, lsn, table_bytes = _HEAD.unpack_from(frame)
    if magic not in (_MAGIC, _MAGIC_1):
        raise CorruptLog(f"{where}: begins with {magic!r}, expected {_MAGIC!r}")
    table_end = _HEAD.size + table_bytes
    covered = memoryview(frame)[_CRC_FROM : table_end if magic == _MAGIC else None]
    if (found := zlib.crc32(covered)) != crc:
        raise CorruptLog(f"{where}: checksum {found:08x}, expected {crc:08x}")
    try:
        return _decode(frame, lsn, table_end, where, summed=magic == _MAGIC)
    except (LookupError, TypeError, ValueError) as error:
        # The checksum is right: another version wrote it, or this one with a fault.
        raise CorruptLog(f"{where}: {type(error).__name__} in its table: {error}") from error


def _decode(frame: bytes, lsn: int, table_end: int, where: str, *, summed: bool) -> Frame:
    at_ms, rows, *crcs = orjson.loads(frame[_HEAD.size : table_end])
    placements = _place(frame, table_end, rows, where)
    for placement, crc in zip(placements, crcs[0], strict=True) if summed else ():
        if placement.crc != crc:
            raise CorruptLog(
                f"{where}: byte {placement.at}: checksum {placement.crc:08x}, expected {crc:08x}"
            )
    cursors: dict[int, int] = {}
    for placement in placements:
        cursors.setdefault(placement.incarnation, placement.at)
    records: list[Record] = []

    def take(incarnation: int, size: int) -> bytes:
        if not size:
            return b""
        at = cursors[incarnation]
        cursors[incarnation] = at + size
        return frame[at : at + size]

    for row in rows:
        match row:
            case ["a", incarnation, size, close, key, stream_seq]:
                producer = None if key is None else ProducerKey(*key)
                payload = take(incarnation, size)
                records.append(Appended(incarnation, payload, close, producer, stream_seq))
            case ["c", document, size]:
                state = decode_state(document)
                records.append(Created(state, take(state.incarnation, size)))
            case ["d", incarnation, soft]:
                records.append(Deleted(incarnation, soft))
            case ["t", incarnation, low]:
                records.append(Trimmed(incarnation, low))
            case _:
                raise CorruptLog(f"{where}: unknown record {row!r:.80}")
    return Frame(lsn, at_ms, records, placements)


def _groups(sizes: Sequence[int]) -> Sequence[tuple[int, ...]]:
    """Cut what one commit adds to one stream into extents, each with a checksum of its own."""
    if sum(sizes) <= _EXTENT_BYTES_MAX:  # as nearly always
        return (tuple(sizes),)
    groups = []
    group: list[int] = []
    total = 0
    for size in sizes:
        if group and total + size > _EXTENT_BYTES_MAX:
            groups.append(tuple(group))
            group, total = [], 0
        group.append(size)
        total += size
    groups.append(tuple(group))
    return groups


def _place(frame: bytes, at: int, rows: list[Any], where: str) -> list[Placement]:
    sizes: dict[int, list[int]] = {}
    for row in rows:
        if row[0] in _WITH_DATA and row[2]:
            incarnation = row[1] if row[0] == "a" else row[1]["incarnation"]
            sizes.setdefault(incarnation, []).append(row[2])
    placements = []
    for incarnation, lengths in sizes.items():
        for group in _groups(lengths):
            end = at + sum(group)
            crc = zlib.crc32(memoryview(frame)[at:end])
            placements.append(Placement(incarnation, at, group, crc))
            at = end
    if at != len(frame):
        raise CorruptLog(f"{where}: payloads end at byte {at} of {len(frame)}")
    return placements


def encode_state(state: StreamState) -> dict[str, Any]:
    """Return a state as a document for orjson: all that is not as in any plain new stream."""
    document = {}
    for name, usual in _USUAL:
        value = getattr(state, name)
        if value != usual:
            document[name] = value
    return document


def decode_state(document: Mapping[str, Any]) -> StreamState:
    """Return the state that orjson has read back."""
    known = dict(document)
    if (expiry := known.get("expiry")) is not None:
        known["expiry"] = Expiry(**expiry)
    else:
        known["expiry"] = NEVER
    if (retention := known.get("retention")) is not None:
        known["retention"] = Retention(**retention)
    if (fork := known.get("fork")) is not None:
        known["fork"] = ForkPoint(**fork)
    if lineage := known.get("lineage"):
        known["lineage"] = tuple(Ancestor(**ancestor) for ancestor in lineage)
    elif lineage is not None:
        known["lineage"] = ()
    if (closed_by := known.get("closed_by")) is not None:
        known["closed_by"] = ProducerKey(**closed_by)
    return StreamState(**known)


_ALWAYS: Final = object()  # equals nothing
_USUAL: Final = tuple(
    (
        field.name,
        NEVER
        if field.name == "expiry"
        else _ALWAYS
        if field.default is dataclasses.MISSING
        else field.default,
    )
    for field in dataclasses.fields(StreamState)
)
