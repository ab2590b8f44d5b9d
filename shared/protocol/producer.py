"""Idempotent producers: epochs and sequence numbers (PROTOCOL §5.2.1)."""

from dataclasses import dataclass

from shared.protocol.errors import EpochStart, SequenceGap, StaleEpoch


@dataclass(frozen=True, slots=True)
class ProducerKey:
    """Which batch of which life of which producer a request is."""

    producer_id: str
    epoch: int
    seq: int


@dataclass(frozen=True, slots=True)
class ProducerState:
    """The newest life of one producer on one stream, and its last batch."""

    epoch: int
    last_seq: int


@dataclass(frozen=True, slots=True)
class New:
    """The batch is new; `state` is the producer's state once it is appended."""

    state: ProducerState


@dataclass(frozen=True, slots=True)
class Duplicate:
    """The batch was appended before; `state` is the producer's state as it stays."""

    state: ProducerState


def admit(state: ProducerState | None, epoch: int, seq: int) -> New | Duplicate:
    """Decide whether a producer's batch is new (PROTOCOL §5.2.1).

    Raises:
        StaleEpoch: a newer epoch has written.
        EpochStart: a newer epoch that does not begin with 0.
        SequenceGap: a batch in between is missing.
    """
    if state is None:
        if seq != 0:
            raise SequenceGap(expected=0, received=seq)
        return New(ProducerState(epoch, last_seq=0))
    if epoch < state.epoch:
        raise StaleEpoch(current=state.epoch, received=epoch)
    if epoch > state.epoch:
        if seq != 0:
            raise EpochStart(received=seq)
        return New(ProducerState(epoch, last_seq=0))
    if seq <= state.last_seq:
        return Duplicate(state)
    if seq > state.last_seq + 1:
        raise SequenceGap(expected=state.last_seq + 1, received=seq)
    return New(ProducerState(epoch, last_seq=seq))
