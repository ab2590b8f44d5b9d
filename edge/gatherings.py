"""Gatherings: readers who asked for the same chunk before the read of it began."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

from edge.seats import Party, Seats
from edge.source import EdgeSource
from shared import metrics
from shared.clock import Clock
from shared.plain import Plain
from shared.protocol.chunk import Chunk
from shared.protocol.errors import Unavailable
from shared.protocol.reply import Reply
from shared.web import failure

# Reads for readers at once: enough that an upstream has always more to do. A task for each stream
# whose reader comes, where 20,000 come together, would leave 5 KB of holes for each.
_READS_AT_ONCE: Final = 128
_PATIENCE_S: Final = 30.0  # what has waited longer for its turn is refused: who asked has left
_SLICE: Final = 256  # readers that are answered in one turn of the loop

_Key = tuple[str, str, bool]  # path, offset, whether they want to wait there


class Desk(Protocol):
    """Where readers come from, and go to when their chunk is found."""

    def found(self, fd: int, plain: Plain, found: Chunk | Reply) -> None:
        """There is a chunk for a reader, or a refusal."""
        ...


class _Gathering(Party):
    """Who asked for one chunk."""

    __slots__ = ("asked", "key", "since_s")

    def __init__(self, key: _Key, since_s: float) -> None:
        super().__init__()
        self.key = key
        self.since_s = since_s
        self.asked: list[Plain] = []  # of the member at the same place


class Gatherings:
    """Reads of the upstream for readers, one for all who asked before it began."""

    def __init__(
        self,
        source: EdgeSource,
        seats: Seats,
        desk: Desk,
        clock: Clock,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._source = source
        self._seats = seats
        self._desk = desk
        self._clock = clock
        self._spawn = spawn
        self._waiting: dict[_Key, _Gathering] = {}  # not begun yet
        self._backlog: deque[_Gathering] = deque()  # of them, in order, all that may begin
        self._reading: set[_Key] = set()  # keys of those that have begun

    def __len__(self) -> int:
        return len(self._waiting)

    def join(self, fd: int, plain: Plain, offset: str) -> None:
        """Let a reader have a chunk by a read that begins after this."""
        key = (plain.path, offset, plain.asked.live is not None)
        gathering = self._waiting.get(key)
        if gathering is None:
            gathering = self._waiting[key] = _Gathering(key, self._clock.monotonic_s())
            if key not in self._reading:  # else it begins when that ends
                self._backlog.append(gathering)
                self._begin()
        if gathering.asked or key in self._reading:
            metrics.COALESCED.inc()
        self._seats.join(fd, gathering)
        gathering.asked.append(plain)

    def close(self) -> None:
        """Begin no more."""
        self._backlog.clear()
        self._waiting.clear()

    def _begin(self) -> None:
        while self._backlog and len(self._reading) < _READS_AT_ONCE:
            gathering = self._backlog.popleft()
            self._reading.add(gathering.key)
            self._spawn(self._read(gathering))

    async def _read(self, gathering: _Gathering) -> None:
        # Whoever comes from now on may know of more than this read finds.
        del self._waiting[gathering.key]
        path, offset, live = gathering.key
        found: Chunk | Reply | None = None
        try:
            if self._clock.monotonic_s() - gathering.since_s > _PATIENCE_S:
                raise Unavailable("too many reads of the upstream are under way")
            if gathering.count:
                read = self._source.join if live else self._source.read
                found = await read(path, offset)
        except Exception as error:
            found = failure(error)
        finally:
            self._reading.discard(gathering.key)
            following = self._waiting.get(gathering.key)
            if following is not None:
                self._backlog.append(following)
            self._begin()
        for given, (place, fd) in enumerate(self._seats.places(gathering), 1):
            assert found is not None
            self._seats.leave(fd)
            self._desk.found(fd, gathering.asked[place], found)
            if given % _SLICE == 0:
                await asyncio.sleep(0)
