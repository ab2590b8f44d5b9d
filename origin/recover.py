"""Recovery: journal in, streams out."""

import logging
from dataclasses import dataclass, replace

from origin.frame import Appended, CorruptLog, Created, Deleted, Frame, decode_frame
from origin.journal import Extent, Journal
from origin.stream import Stream
from shared.protocol.producer import ProducerState

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Recovered:
    """What the process takes over, as of frame `lsn`."""

    streams: dict[int, Stream]  # by incarnation
    changed: set[int]  # incarnations of those that the index holds otherwise, or not at all
    deleted: list[int]  # incarnations that the index still holds
    lsn: int
    next_incarnation: int


def recover(journal: Journal, name: str) -> Recovered:
    """Load the index, and replay the frames that it has not seen.

    Args:
        name: of the journal, for errors.

    Raises:
        CorruptLog: names the file and the record; nothing is skipped.
    """
    applied, next_incarnation = journal.applied()
    found = Recovered({}, set(), [], applied, next_incarnation)
    for stored in journal.stored():
        stream = Stream(stored.state, stored.touched_ms)
        stream.durable = stored.state
        stream.producers = dict(stored.producers)
        found.streams[stored.state.incarnation] = stream
    for lsn, body in journal.frames(applied):
        where = f"{name}: frame {lsn}"
        frame = decode_frame(body, where)
        if frame.lsn != lsn:
            raise CorruptLog(f"{where}: says that it is frame {frame.lsn}")
        _replay(found, frame, where)
        found.lsn = lsn
    found.changed.intersection_update(found.streams)
    for stream in found.streams.values():
        point = stream.state.fork
        if point is not None:
            if point.source not in found.streams:
                raise CorruptLog(f"{name}: stream {stream.state.path!r} lacks its fork source")
            found.streams[point.source].forks += 1
    _log.info(
        "recovered: streams=%d replayed=%d lsn=%d",
        len(found.streams),
        found.lsn - applied,
        found.lsn,
    )
    return found


def _replay(found: Recovered, frame: Frame, where: str) -> None:
    tails: dict[int, int] = {}
    for record in frame.records:
        match record:
            case Created(state, payload):
                stream = Stream(state, frame.at_ms)
                found.streams[state.incarnation] = stream
                found.next_incarnation = max(found.next_incarnation, state.incarnation + 1)
                tails.setdefault(state.incarnation, state.tail - len(payload))
            case Appended(incarnation):
                stream = _known(found, incarnation, where)
                tails.setdefault(incarnation, stream.state.tail)
                _replay_append(stream, record)
                stream.touched_ms = max(stream.touched_ms, frame.at_ms)
            case Deleted(incarnation, soft):
                stream = _known(found, incarnation, where)
                stream.state = replace(stream.state, deleted=True)
                if not soft:
                    del found.streams[incarnation]
                    found.deleted.append(incarnation)
        stream.durable = stream.state
        found.changed.add(stream.state.incarnation)
    for placement in frame.placements:
        owner = found.streams.get(placement.incarnation)
        if owner is not None:
            start = tails[placement.incarnation]
            tails[placement.incarnation] = start + sum(placement.sizes)
            owner.extents.append(
                Extent(start, frame.lsn, placement.at, placement.sizes, placement.crc)
            )


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


def _known(found: Recovered, incarnation: int, where: str) -> Stream:
    stream = found.streams.get(incarnation)
    if stream is None:
        raise CorruptLog(f"{where}: names stream {incarnation}, which does not exist")
    return stream
