"""Catalog: every stream of this origin, by path and by incarnation."""

from collections.abc import Sequence

from origin.journal import Extent
from origin.stream import Stream
from shared import metrics
from shared.clock import Clock
from shared.protocol.errors import Gone, NotFound
from shared.protocol.expiry import NEVER


class Catalog:
    """What is decided to exist; `Stream.durable` tells what readers may see of it."""

    def __init__(self, clock: Clock, streams: dict[int, Stream], next_incarnation: int) -> None:
        """Take over what recovery found.

        Args:
            streams: by incarnation.
            next_incarnation: the number that the next stream gets; numbers are never used again.
        """
        self._clock = clock
        self.by_incarnation = streams
        self.by_path = {stream.state.path: stream for stream in streams.values()}
        self.next_incarnation = next_incarnation
        self.expiring = {inc: s for inc, s in streams.items() if s.state.expiry != NEVER}
        metrics.STREAMS.set(len(streams))

    def is_over(self, stream: Stream) -> bool:
        """Tell whether a stream's time is over, whatever else is decided about it."""
        if stream.state.expiry == NEVER:
            return False
        deadline = stream.deadline_ms()
        return deadline is not None and self._clock.now_ms() >= deadline

    def find(self, path: str) -> Stream:
        """Return the stream that a writer meets at a path.

        Raises:
            NotFound: there is none, or its time is over.
        """
        stream = self.by_path.get(path)
        if stream is None or (self.is_over(stream) and not stream.state.deleted):
            raise NotFound(path)
        return stream

    def add(self, stream: Stream) -> None:
        """Let a new stream exist."""
        self.by_path[stream.state.path] = stream
        self.by_incarnation[stream.state.incarnation] = stream

    def recent_extents(self, incarnation: int) -> Sequence[Extent]:
        """Return the durable extents that the index may not have yet, in order."""
        stream = self.by_incarnation.get(incarnation)
        return stream.extents if stream is not None else ()

    def touch(self, stream: Stream) -> bool:
        """Renew a sliding window; return whether there is one."""
        if stream.state.expiry.ttl_s is None:
            return False
        stream.touched_ms = self._clock.now_ms()
        return True


def soft_deleted(path: str) -> Gone:
    """Return the refusal of a stream that only its forks keep (PROTOCOL §4.2)."""
    return Gone(f"the stream at {path!r} is deleted, and kept for its forks")
