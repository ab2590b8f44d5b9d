"""Recovery: journal in, streams out."""

import logging
from dataclasses import dataclass, field, replace
from typing import Final

from origin.frame import Appended, CorruptLog, Created, Deleted, Frame, Trimmed, decode_frame
from origin.journal import Batch, DiskFull, Extent, Journal
from origin.stream import Stream
from origin.usage import Usage, on_append, on_create, on_delete, on_trim, service_of
from shared.protocol.producer import ProducerState
from shared.protocol.retention import KEEP_ALL

_log = logging.getLogger(__name__)


# What is replayed before the index learns of it. A start after a stop replays next to nothing, and
# one after a kill a second or two; one that lost its index replays everything there ever was.
_AT_ONCE: Final = 10_000  # streams


@dataclass(slots=True)
class Recovered:
    """What the process takes over, as of frame `lsn`: all that the index does not hold yet."""

    lsn: int
    next_incarnation: int
    streams: dict[int, Stream] = field(default_factory=dict)  # by incarnation
    deleted: set[int] = field(default_factory=set)  # incarnations that the index still holds
    forks: dict[int, int] = field(default_factory=dict)  # numbers of forks that changed
    usage: dict[str, Usage] = field(default_factory=dict)  # what counts change by
    frames: list[tuple[int, int]] = field(default_factory=list)  # lsn, bytes of payload
    looks: dict[int, int] = field(default_factory=dict)  # when there may be something to trim


def recover(journal: Journal, name: str) -> Recovered:
    """Replay the frames that the index has not seen; nothing else is loaded.

    Args:
        name: of the journal, for errors.

    Raises:
        CorruptLog: names the file and the record; nothing is skipped.
    """
    applied, next_incarnation = journal.applied()
    replay = _Replay(journal, name, Recovered(applied, next_incarnation))
    for lsn, body in journal.frames(applied):
        where = f"{name}: frame {lsn}"
        frame = decode_frame(body, where)
        if frame.lsn != lsn:
            raise CorruptLog(f"{where}: says that it is frame {frame.lsn}")
        replay.take(frame, where)
        if len(replay.found.streams) > _AT_ONCE:
            replay.apply()
    found = replay.found
    _log.info("recovered: replayed=%d lsn=%d", found.lsn - applied, found.lsn)
    return found


class _Replay:
    """Does to streams what frames say was done to them."""

    def __init__(self, journal: Journal, name: str, found: Recovered) -> None:
        self._journal = journal
        self._name = name
        self.found = found

    def take(self, frame: Frame, where: str) -> None:
        """Replay one frame."""
        found = self.found
        tails: dict[int, int] = {}
        for record in frame.records:
            match record:
                case Created(state, payload):
                    stream = self._create(record, frame.at_ms)
                    tails.setdefault(state.incarnation, state.tail - len(payload))
                case Appended(incarnation):
                    stream = self._known(incarnation, where)
                    tails.setdefault(incarnation, stream.state.tail)
                    _replay_append(stream, record)
                    stream.touched_ms = max(stream.touched_ms, frame.at_ms)
                    self._count(stream, on_append(len(record.payload)))
                case Trimmed(incarnation, low):
                    stream = self._known(incarnation, where)
                    before = stream.state.kept
                    stream.state = replace(stream.state, low=low)
                    self._count(stream, on_trim(before - stream.state.kept))
                case Deleted(incarnation, soft):
                    stream = self._known(incarnation, where)
                    stream.state = replace(stream.state, deleted=True)
                    if not soft:
                        self._drop(stream)
            stream.durable = stream.state
            if stream.state.retention != KEEP_ALL and not stream.state.deleted:
                found.looks[stream.state.incarnation] = 0  # it finds out what there is to do
        payload_bytes = 0
        for placement in frame.placements:
            payload_bytes += sum(placement.sizes)
            owner = found.streams.get(placement.incarnation)
            if owner is not None:
                start = tails[placement.incarnation]
                tails[placement.incarnation] = start + sum(placement.sizes)
                owner.extents.append(
                    Extent(
                        start,
                        frame.lsn,
                        placement.at,
                        placement.sizes,
                        placement.crc,
                        frame.at_ms,
                    )
                )
        found.frames.append((frame.lsn, payload_bytes))
        found.lsn = frame.lsn

    def apply(self) -> None:
        """Let the index learn what was replayed so far, and forget it."""
        found = self.found
        batch = Batch(found.lsn, found.next_incarnation)
        batch.deleted, batch.forks, batch.usage = [*found.deleted], found.forks, found.usage
        batch.frames = found.frames
        for incarnation, stream in found.streams.items():
            assert stream.durable is not None
            batch.streams.append((stream.durable, stream.touched_ms))
            batch.extents += ((incarnation, extent) for extent in stream.extents)
            batch.producers += ((incarnation, *entry) for entry in stream.dirty_producers.items())
            if stream.durable.low and not stream.durable_forks:
                batch.trims[incarnation] = stream.durable.low
        batch.looks.update(found.looks)
        try:
            self._journal.apply(batch)
        except DiskFull:
            return  # it stays in memory, and all of it goes with the next one
        self.found = Recovered(found.lsn, found.next_incarnation)

    def _create(self, record: Created, at_ms: int) -> Stream:
        found, state, point = self.found, record.state, record.state.fork
        if point is not None:
            source = self._stream(point.source)
            if source is None:
                raise CorruptLog(f"{self._name}: stream {state.path!r} lacks its fork source")
            self._count_fork(source, 1)
        stream = found.streams[state.incarnation] = Stream(state, at_ms)
        found.next_incarnation = max(found.next_incarnation, state.incarnation + 1)
        self._count(stream, on_create(len(record.payload)))
        return stream

    def _drop(self, stream: Stream) -> None:
        found, state = self.found, stream.state
        del found.streams[state.incarnation]
        found.looks.pop(state.incarnation, None)
        found.forks.pop(state.incarnation, None)
        found.deleted.add(state.incarnation)
        self._count(stream, on_delete(state.kept))
        source = None if state.fork is None else self._stream(state.fork.source)
        if source is not None:
            self._count_fork(source, -1)

    def _count(self, stream: Stream, counted: Usage) -> None:
        self.found.usage.setdefault(service_of(stream.state.path), Usage()).add(counted)

    def _count_fork(self, source: Stream, by: int) -> None:
        source.forks += by
        source.durable_forks += by
        self.found.forks[source.state.incarnation] = source.forks

    def _known(self, incarnation: int, where: str) -> Stream:
        stream = self._stream(incarnation)
        if stream is None:
            raise CorruptLog(f"{where}: names stream {incarnation}, which does not exist")
        return stream

    def _stream(self, incarnation: int) -> Stream | None:
        """Return a stream as of the record before."""
        found = self.found
        stream = found.streams.get(incarnation)
        if stream is None and incarnation not in found.deleted:
            stored = self._journal.load(incarnation)
            if stored is not None:
                stream = found.streams[incarnation] = Stream.of(stored)
        return stream


def _replay_append(stream: Stream, record: Appended) -> None:
    state, key = stream.state, record.producer
    stream.state = state.grown(
        len(record.payload),
        closed=record.close,
        closed_by=key if record.close else None,
        last_seq=state.last_seq if record.stream_seq is None else record.stream_seq,
    )
    if key is not None:
        producer = ProducerState(key.epoch, key.seq)
        stream.producers[key.producer_id] = stream.dirty_producers[key.producer_id] = producer
