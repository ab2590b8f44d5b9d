"""Stream: one live stream in the origin's memory."""

from origin.journal import Extent
from shared.protocol.producer import ProducerState
from shared.protocol.stream import StreamState
from shared.waiters import Waiters


class Stream:
    """What is decided about a stream, and what of it is durable.

    Writers are answered from `state` once it is durable; readers see `durable` only.
    """

    __slots__ = (
        "dirty_producers",
        "durable",
        "extents",
        "forks",
        "gone",
        "producers",
        "state",
        "touched_ms",
        "waiters",
    )

    def __init__(self, state: StreamState, touched_ms: int) -> None:
        self.state = state
        self.durable: StreamState | None = None  # None until its creation is on disk
        self.producers: dict[str, ProducerState] = {}
        self.touched_ms = touched_ms  # last read or write: a sliding window counts from it
        self.forks = 0  # streams that inherit from this one
        self.extents: list[Extent] = []  # durable, but not yet in the index
        self.dirty_producers: dict[str, ProducerState] = {}  # durable, but not yet in the index
        self.waiters = Waiters()
        self.gone = False  # durably deleted

    def deadline_ms(self) -> int | None:
        """Return when the stream expires, if it does."""
        return self.state.expiry.deadline_ms(self.touched_ms)
