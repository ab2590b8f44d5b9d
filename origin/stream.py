"""Stream: one live stream in the origin's memory."""

from origin.journal import Extent, Stored
from shared.protocol.producer import ProducerState
from shared.protocol.stream import StreamState
from shared.waiters import Waiters


class Stream:
    """What is decided about a stream, and what of it is durable.

    Writers are answered from `state` once it is durable; readers see `durable` only.
    """

    __slots__ = (
        "dirty",
        "dirty_producers",
        "durable",
        "durable_forks",
        "extents",
        "forks",
        "gone",
        "producers",
        "state",
        "touched_ms",
        "waiters",
    )

    def __init__(self, state: StreamState, touched_ms: int, forks: int = 0) -> None:
        self.state = state
        self.durable: StreamState | None = None  # None until its creation is on disk
        self.producers: dict[str, ProducerState] = {}
        self.touched_ms = touched_ms  # last read or write: a sliding window counts from it
        self.forks = self.durable_forks = forks  # streams that inherit from this one
        self.dirty = False  # the index has yet to learn of it
        self.extents: list[Extent] = []  # durable, but not yet in the index
        self.dirty_producers: dict[str, ProducerState] = {}  # durable, but not yet in the index
        self.waiters = Waiters()
        self.gone = False  # durably deleted

    @classmethod
    def of(cls, stored: Stored) -> "Stream":
        """Return a stream as the index holds it."""
        stream = cls(stored.state, stored.touched_ms, stored.forks)
        stream.durable = stored.state
        stream.producers = dict(stored.producers)
        return stream

    @property
    def cold(self) -> bool:
        """Whether the index holds all of it, and nobody here waits on it."""
        return (
            self.durable is self.state
            and not self.dirty
            and self.forks == self.durable_forks
            and not len(self.waiters)
        )

    def deadline_ms(self) -> int | None:
        """Return when the stream expires, if it does."""
        return self.state.expiry.deadline_ms(self.touched_ms)
