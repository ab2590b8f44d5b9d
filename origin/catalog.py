"""Catalog: every stream of this origin, by path and by incarnation; those in use are in memory.

A look-up finds a stream here or loads it from the index at once, without an await, so a decision
still looks at state and submits in one go. Streams that were not used for long make room, as
long as they are cold: durable, indexed, and waited on by nobody; and never before the turn of the
loop is over that found them. What is in memory is never older than the index.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from heapq import heappop, heappush
from typing import Final

from origin.journal import Deadline, Extent, Journal, Stored
from origin.stream import Stream
from shared import metrics
from shared.clock import Clock
from shared.protocol.errors import Gone, NotFound
from shared.protocol.expiry import NEVER

_LOOK_AGAIN_MS: Final = 1000
# About 2 KB each: 100 MB, a quarter of what an origin with a million streams may take.
HOT_STREAMS: Final = 50_000
# Streams that are passed over in search of cold ones, for each that came; each takes 0.2 µs.
_LOOKS: Final = 4
# Deadlines that one look into the index returns: no more than are dealt with in one turn.
_SWEEP: Final = 8
_FROM_START: Final[Deadline] = (-(2**62), 0)


class Catalog:
    """What is decided to exist; `Stream.durable` tells what readers may see of it."""

    def __init__(
        self,
        clock: Clock,
        journal: Journal,
        streams: dict[int, Stream],
        deleted: Iterable[int],
        next_incarnation: int,
        hot_streams: int = HOT_STREAMS,
    ) -> None:
        """Take over what recovery found.

        Args:
            streams: by incarnation: those that the index does not hold as they are.
            deleted: incarnations that the index still holds.
            next_incarnation: the number that the next stream gets; numbers are never used again.
            hot_streams: how many cold ones to keep in memory. Those in use come on top: what the
                index has yet to learn, and what is waited on.
        """
        self._clock = clock
        self._journal = journal
        self._hot_streams = hot_streams
        # In memory, those used last at the end.
        self.by_incarnation = OrderedDict(streams)
        self.by_path = {stream.state.path: stream for stream in streams.values()}
        self._leaving = set(deleted)  # decided to go; the index may still hold them
        self.next_incarnation = next_incarnation
        self._due: list[Deadline] = []  # heap of those in memory, each no later than the real one
        self._swept = _FROM_START  # the deadline of the index that was looked at last
        self._arrived = 0  # since room was made last
        for stream in streams.values():
            self.watch(stream)

    def is_over(self, stream: Stream) -> bool:
        """Tell whether a stream's time is over, whatever else is decided about it."""
        if stream.state.expiry == NEVER:
            return False
        deadline = stream.deadline_ms()
        return deadline is not None and self._clock.now_ms() >= deadline

    def at(self, path: str) -> Stream | None:
        """Return the stream that is decided to be at a path."""
        stream = self.hot(path)
        return self._load(self._journal.find(path)) if stream is None else stream

    def hot(self, path: str) -> Stream | None:
        """Return the stream that is decided to be at a path, if it is in memory."""
        stream = self.by_path.get(path)
        if stream is not None:
            self.by_incarnation.move_to_end(stream.state.incarnation)
        return stream

    def of(self, incarnation: int) -> Stream | None:
        """Return a stream by its number, while it is decided to exist or not durably gone."""
        stream = self.by_incarnation.get(incarnation)
        if stream is None:
            return self._load(self._journal.load(incarnation))
        self.by_incarnation.move_to_end(incarnation)
        return stream

    def find(self, path: str) -> Stream:
        """Return the stream that a writer meets at a path.

        Raises:
            NotFound: there is none, or its time is over.
        """
        stream = self.at(path)
        if stream is None or (self.is_over(stream) and not stream.state.deleted):
            raise NotFound(path)
        return stream

    def add(self, stream: Stream) -> None:
        """Let a new stream exist."""
        self.by_path[stream.state.path] = stream
        self.by_incarnation[stream.state.incarnation] = stream
        self._arrive()

    def withdraw(self, stream: Stream) -> None:
        """Take back `add`."""
        del self.by_path[stream.state.path]
        del self.by_incarnation[stream.state.incarnation]

    def vacate(self, stream: Stream) -> None:
        """Give a stream's path free: it is decided to go."""
        del self.by_path[stream.state.path]
        self._leaving.add(stream.state.incarnation)

    def restore(self, stream: Stream) -> None:
        """Take back `vacate`."""
        self.by_path[stream.state.path] = stream
        self._leaving.discard(stream.state.incarnation)

    def drop(self, stream: Stream) -> None:
        """Let go of a stream that is durably gone."""
        self.by_incarnation.pop(stream.state.incarnation, None)

    def unlisted(self, incarnations: Iterable[int]) -> None:
        """Note which of those that are gone the index does not hold any more."""
        self._leaving.difference_update(incarnations)

    def page(self, prefix: str, after: str, limit: int) -> tuple[list[Stream], str | None]:
        """Return durable streams in the order of their paths, and where to go on, if anywhere.

        There may be fewer than limit of them though more follow.
        """
        stored = self._journal.page(prefix, after, limit)
        until = stored[-1].state.path if len(stored) == limit else None
        listed = (s for s in stored if s.state.incarnation not in self._leaving)
        found = {s.state.path: Stream.of(s) for s in listed}
        for stream in self.by_incarnation.values():
            if stream.dirty and not stream.gone:
                path = stream.state.path
                if path.startswith(prefix) and path > after and (until is None or path <= until):
                    found[path] = stream
        return [
            found[path]
            for path in sorted(found)
            if (durable := found[path].durable) is not None
            and not durable.deleted
            and not self.is_over(found[path])
        ], until

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
            if len(self._due) > 2 * len(self.by_incarnation) + 1000:
                # Whoever left memory left his entry behind, and may have come back since.
                there = (end for end in sorted(self._due) if end[1] in self.by_incarnation)
                earliest: dict[int, Deadline] = {}
                for end in there:
                    earliest.setdefault(end[1], end)
                self._due = list(earliest.values())  # sorted, so a heap

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
        yield from self._due_on_disk(now_ms)

    def touch(self, stream: Stream) -> bool:
        """Renew a sliding window; return whether there is one."""
        if stream.state.expiry.ttl_s is None:
            return False
        stream.touched_ms = self._clock.now_ms()
        return True

    def _due_on_disk(self, now_ms: int) -> Iterator[Stream]:
        """Yield what is over of the streams that are not in memory, a stretch of them at a time."""
        ends = self._journal.due(now_ms, self._swept, _SWEEP)
        for end in ends:
            self._swept = end
            # What is in memory is newer, and has its place in the heap.
            if end[1] not in self.by_incarnation and (stream := self.of(end[1])) is not None:
                yield stream
        if len(ends) < _SWEEP:
            self._swept = _FROM_START

    def _load(self, stored: Stored | None) -> Stream | None:
        """Take a stream of the index into memory, unless it is decided to go."""
        if stored is None or stored.state.incarnation in self._leaving:
            return None
        stream = Stream.of(stored)
        self.by_path[stored.state.path] = self.by_incarnation[stored.state.incarnation] = stream
        self.watch(stream)
        metrics.LOADED.inc()
        self._arrive()
        return stream

    def _arrive(self) -> None:
        self._arrived += 1
        if self._arrived == 1:
            # Not at once: whoever looked it up has it in his hands, and others that he looked up.
            asyncio.get_running_loop().call_soon(self.make_room)

    def make_room(self, left: int = 0) -> None:
        """Let cold streams go that were not used for long, if there are too many in memory.

        Args:
            left: how many may have turned cold.
        """
        looks = (self._arrived + left) * _LOOKS
        self._arrived = 0
        for _ in range(looks):
            if len(self.by_incarnation) <= self._hot_streams:
                return
            incarnation, stream = next(iter(self.by_incarnation.items()))
            if stream.cold:
                del self.by_incarnation[incarnation]
                if self.by_path.get(stream.state.path) is stream:
                    del self.by_path[stream.state.path]
            else:
                self.by_incarnation.move_to_end(incarnation)


def soft_deleted(path: str) -> Gone:
    """Return the refusal of a stream that only its forks keep (PROTOCOL §4.2)."""
    return Gone(f"the stream at {path!r} is deleted, and kept for its forks")
