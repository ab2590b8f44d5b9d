"""Catalog: every stream of this origin, by path and by incarnation."""

from collections.abc import Iterator, Sequence
from heapq import heappop, heappush
from typing import Final

from origin.journal import Extent
from origin.stream import Stream
from shared import metrics
from shared.clock import Clock
from shared.protocol.errors import Gone, NotFound
from shared.protocol.expiry import NEVER

_LOOK_AGAIN_MS: Final = 1000


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
        self._due: list[
            tuple[int, int]
        ] = []  # heap of deadlines (ms), each no later than the real one
        for stream in streams.values():
            self.watch(stream)
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

    def watch(self, stream: Stream) -> None:
        """See to it that `due` comes by a stream that may end."""
        deadline, ttl_s = stream.deadline_ms(), stream.state.expiry.ttl_s
        if deadline is not None:
            # A window is looked at before it is over: somebody may wait on it, and so renew it.
            look = deadline if ttl_s is None else self._clock.now_ms() + ttl_s * 1000 // 3
            heappush(self._due, (min(deadline, look), stream.state.incarnation))

    def due(self) -> Iterator[Stream]:
        """Yield the streams whose time is over, or that somebody waits on while it passes."""
        now_ms = self._clock.now_ms()
        while self._due and self._due[0][0] <= now_ms:
            _, incarnation = heappop(self._due)
            stream = self.by_incarnation.get(incarnation)
            if stream is None or stream.state.deleted:
                continue
            if self.is_over(stream):
                # There may be no room to delete it: it is looked at again.
                heappush(self._due, (now_ms + _LOOK_AGAIN_MS, incarnation))
                yield stream
                continue
            self.watch(stream)  # first: whoever takes it may not come back for more
            if len(stream.waiters):
                yield stream

    def touch(self, stream: Stream) -> bool:
        """Renew a sliding window; return whether there is one."""
        if stream.state.expiry.ttl_s is None:
            return False
        stream.touched_ms = self._clock.now_ms()
        return True


def soft_deleted(path: str) -> Gone:
    """Return the refusal of a stream that only its forks keep (PROTOCOL §4.2)."""
    return Gone(f"the stream at {path!r} is deleted, and kept for its forks")
