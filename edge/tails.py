"""Tails: follows the end of every stream that somebody waits on, by wakes or without."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from functools import partial
from itertools import islice
from typing import Final

from edge.coalesce import Coalescer
from edge.recent import Recent
from edge.tail import Tail
from edge.upstream import Refused, Upstream
from edge.windows import Windows, renewal_s
from shared import metrics
from shared.bus import Subscriber
from shared.clock import Clock
from shared.protocol.chunk import Chunk
from shared.protocol.cursor import next_cursor
from shared.protocol.errors import Unavailable
from shared.tasks import background
from shared.wake import Wake

_log = logging.getLogger(__name__)

# How long a stream is followed after its last reader left: long-polls leave and come back. Where a
# crowd left 100,000 streams at once, so many are let go in one sweep, which takes 5 ms.
_LINGER_S: Final = 5.0
_LET_GO_AT_ONCE: Final = 1024
# A wake may be lost on a healthy bus. A tail that nothing was heard of for as long as a long-poll
# takes is looked at, so a lost wake costs a reader one round, never the data. But not more than so
# many in one sweep: each costs an edge, its shield and the origin 1 ms together, and 100,000 quiet
# streams would keep a core busy. A bus that drops wakes says so; this is for what nobody foresaw.
_CONFIRM_S: Final = 20.0
_CONFIRMS_AT_ONCE: Final = 2
# Tails that one sweep considers: 50 us at most of what other work is there.
_CONSIDERED_AT_ONCE: Final = 512
# Reads that failed are tried again by the next sweep, so many at once: while the upstream is gone,
# there is better to do than to find that out.
_RETRIES_AT_ONCE: Final = 256
_SWEEP_S: Final = 0.25
# Reads that repair after a gap, a reconnect or doubt, at once: a crowd of streams never stampedes.
_REPAIRS_AT_ONCE: Final = 32
# How long a shield's own wake may be late before it is asked in the plain way.
_LATE_S: Final = 2.0
# Without wakes: how long the upstream may hold a wait, and how often it is asked where waits run
# out.
_POLL_WAIT_S: Final = 300.0
_POLL_EVERY_S: Final = 1.0
_RETRY_S: Final = 0.5


class Tails:
    """The known tails, and what keeps them true."""

    def __init__(
        self,
        upstream: Upstream,
        reads: Coalescer[tuple[str, str], Chunk],
        bus: Subscriber | None,
        clock: Clock,
    ) -> None:
        self._upstream = upstream
        self._reads = reads
        self._bus = bus
        self._clock = clock
        self._tails: dict[str, Tail] = {}
        self._recent = Recent()
        self._idle_since_s: OrderedDict[str, float] = OrderedDict()  # who has no reader any more
        self._subscribing: dict[str, asyncio.Task[bool]] = {}
        self._polls: dict[str, asyncio.Task[None]] = {}
        self._joins: Coalescer[tuple[str, str], Chunk] = Coalescer()
        self._due: asyncio.Queue[Tail] = asyncio.Queue()
        self._queued: set[Tail] = set()
        self._repaired: dict[Tail, bool] = {}  # under repair; whether it is to be looked at again
        self._failed: dict[Tail, None] = {}  # could not be looked at; a set that keeps order
        self._windows = Windows()
        self._rota: list[Tail] = []  # whose turn to be considered comes
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        """Connect the bus and begin to follow."""
        if self._bus is not None:
            await self._bus.start(self._on_wake, self._on_doubt)
        repairers = (self._repair_for_ever() for _ in range(_REPAIRS_AT_ONCE))
        await self._stack.enter_async_context(background(self._sweep_for_ever(), *repairers))

    async def close(self) -> None:
        """Stop following."""
        await self._stack.aclose()
        tasks = [*self._polls.values(), *self._subscribing.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._joins.close()
        if self._bus is not None:
            await self._bus.close()

    @contextmanager
    def using(self, path: str) -> Iterator[Tail]:
        """Hold on to the tail of a stream, found or new."""
        tail = self.hold(path)
        try:
            yield tail
        finally:
            self.let_go(tail)

    def hold(self, path: str) -> Tail:
        """Hold on to the tail of a stream, found or new; `let_go` must follow."""
        tail = self._tails.get(path)
        if tail is None or tail.failed is not None:
            tail = self._tails[path] = Tail(path, self._recent)
            metrics.TAILS.set(len(self._tails))
        tail.users += 1
        self._idle_since_s.pop(path, None)
        return tail

    def let_go(self, tail: Tail) -> None:
        """Follow a tail a little longer, unless others hold on to it."""
        tail.users -= 1
        if tail.users == 0 and self._tails.get(tail.path) is tail:
            self._idle_since_s[tail.path] = self._clock.monotonic_s()

    def after(self, path: str, offset: str) -> Chunk | None:
        """Return what follows an offset, if all there is is known, as far as anyone here can
        tell."""
        tail = self._tails.get(path)
        return tail.after(offset) if tail is not None and self._trusted(tail) else None

    async def follow(self, tail: Tail) -> None:
        """See to it that news of a stream arrives; returns before the first read of it may
        begin."""
        if tail.covered or tail.path in self._polls:
            return
        if self._bus is not None:
            joining = self._subscribing.get(tail.path)
            if joining is None:
                joining = asyncio.create_task(self._bus.subscribe(tail.path))
                self._subscribing[tail.path] = joining
                joining.add_done_callback(lambda _: self._subscribing.pop(tail.path, None))
            tail.covered = await asyncio.shield(joining) and self._bus.up
        self._cover(tail)

    async def read(self, tail: Tail, offset: str) -> Chunk:
        """Read the upstream, sharing reads that start from now on; the tail learns from it."""
        asked_s = self._clock.monotonic_s()
        chunk = await self._reads.get(
            (tail.path, offset), lambda: self._upstream.read(tail.path, offset)
        )
        self._learn(tail, offset, chunk, asked_s)
        return chunk

    async def join(self, tail: Tail, offset: str) -> Chunk:
        """Read the upstream for someone who goes on to hear news: what a wake has made known while
        the read waited its turn is not asked for again."""
        if not tail.covered:
            return await self.read(tail, offset)
        return await self._joins.get((tail.path, offset), lambda: self._join(tail, offset))

    async def _join(self, tail: Tail, offset: str) -> Chunk:
        if tail.told is not None and tail.told.offset == offset:
            # A reader who got this elsewhere, quicker than we: what repairs the tail finds it too.
            with suppress(TimeoutError):
                async with asyncio.timeout(_LATE_S):
                    while tail.behind and tail.failed is None:
                        await tail.news()
        known = self.after(tail.path, offset)
        return await self.read(tail, offset) if known is None else known

    def _trusted(self, tail: Tail) -> bool:
        if not tail.covered or tail.state is None or tail.failed is not None or tail.short:
            return False
        if tail.ttl_s is None:
            return True
        return self._clock.monotonic_s() - tail.heard_s < renewal_s(tail.ttl_s)

    # --- news ------------------------------------------------------------------------------------

    def _on_wake(self, path: str, wake: Wake) -> None:
        tail = self._tails.get(path)
        if tail is None:
            metrics.WAKES_RECEIVED.labels("unwanted").inc()
            return
        before = tail.state
        tail.heard_s = self._clock.monotonic_s()
        if tail.on_wake(wake):
            metrics.WAKES_RECEIVED.labels("gap").inc()
            if tail not in self._repaired:  # whose end looks whether it is still behind
                self._look(tail)
        else:
            metrics.WAKES_RECEIVED.labels("old" if tail.state == before else "taken").inc()

    def _on_doubt(self) -> None:
        """Wakes may have been lost: every stream that somebody waits on is looked at, once."""
        up = self._bus is not None and self._bus.up
        for tail in self._tails.values():
            # What is being asked for is not had yet: its own answer will tell.
            tail.covered = up and tail.path not in self._subscribing
            self._cover(tail)
            if tail.users:
                self._look(tail)

    def _cover(self, tail: Tail) -> None:
        """Poll a stream exactly while wakes do not arrive."""
        if tail.covered:
            self._stop_polling(tail.path)
        elif tail.path not in self._polls:
            poll = self._polls[tail.path] = asyncio.create_task(self._poll(tail))
            poll.add_done_callback(partial(self._poll_ended, tail.path))

    def _poll_ended(self, path: str, poll: asyncio.Task[None]) -> None:
        if self._polls.get(path) is poll:
            del self._polls[path]

    def _stop_polling(self, path: str) -> None:
        # Gone at once: whether somebody polls is asked again before the task has ended.
        poll = self._polls.pop(path, None)
        if poll is not None:
            poll.cancel()

    def _learn(self, tail: Tail, offset: str, chunk: Chunk, asked_s: float) -> None:
        tail.heard_s = max(tail.heard_s, asked_s)
        if tail.on_read(offset, chunk):
            self._look(tail)
        if tail.ttl_s is not None and self._tails.get(tail.path) is tail:
            self._windows.add(tail)

    # --- looking ---------------------------------------------------------------------------------

    def _look(self, tail: Tail) -> None:
        if tail in self._repaired:
            self._repaired[tail] = True  # what is being read may be older than the reason to look
        elif tail not in self._queued and tail.state is not None:
            self._queued.add(tail)
            self._due.put_nowait(tail)

    async def _repair_for_ever(self) -> None:
        while True:
            tail = await self._due.get()
            self._queued.discard(tail)
            if tail.failed is not None:
                continue
            self._repaired[tail] = False
            told = tail.told
            try:
                await self._repair(tail)
            except Refused as error:
                self._end(tail, error)
            except Unavailable:
                self._failed[tail] = None  # readers wait on; the sweep looks again
            else:
                if tail.told == told:
                    tail.told = None  # the upstream was asked since, and its word stands
                if tail.behind:
                    self._repaired[tail] = True
            finally:
                again = self._repaired.pop(tail)
            if again and tail.failed is None:
                self._look(tail)

    async def _repair(self, tail: Tail) -> None:
        """Find out what there is behind the tail that is known."""
        assert tail.state is not None
        if tail.behind:
            # It should be there. Asked like this, a shield answers all its edges from one read of
            # its own, and waits where its own wake is late; a plain read it would have to pass on.
            offset = tail.state.offset
            asked_s = self._clock.monotonic_s()
            try:
                async with asyncio.timeout(_LATE_S):
                    chunk = await self._upstream.wait(tail.path, offset, None, _LATE_S)
            except TimeoutError:
                pass
            else:
                self._learn(tail, offset, chunk, asked_s)
                return
        await self.read(tail, tail.state.offset)

    async def _poll(self, tail: Tail) -> None:
        """Follow a stream without wakes: a long-poll held open, or one read a second if too many
        are."""
        cursor: str | None = None
        while tail.failed is None:
            if tail.state is None or not tail.users:
                await asyncio.sleep(_SWEEP_S)
                continue
            offset = tail.state.offset
            try:
                if tail.state.closed or self._upstream.waits.locked():
                    await self.read(tail, offset)
                    await asyncio.sleep(_POLL_EVERY_S)
                    continue
                cursor = next_cursor(self._clock.now_ms(), cursor)
                chunk = await self._upstream.wait(tail.path, offset, cursor, _POLL_WAIT_S)
                tail.heard_s = self._clock.monotonic_s()
                tail.on_read(offset, chunk)
            except Refused as error:
                self._end(tail, error)
            except Unavailable:
                await asyncio.sleep(_RETRY_S)

    def _end(self, tail: Tail, error: Exception) -> None:
        tail.fail(error)
        if self._tails.get(tail.path) is tail:
            self._forget(tail)

    def _forget(self, tail: Tail) -> None:
        del self._tails[tail.path]
        self._idle_since_s.pop(tail.path, None)
        self._windows.discard(tail)
        self._failed.pop(tail, None)
        self._stop_polling(tail.path)
        if self._bus is not None:
            self._bus.unsubscribe(tail.path)
        metrics.TAILS.set(len(self._tails))

    async def _sweep_for_ever(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            now_s = self._clock.monotonic_s()
            for _ in range(_LET_GO_AT_ONCE):
                path, since_s = next(iter(self._idle_since_s.items()), ("", now_s))
                if now_s - since_s <= _LINGER_S:
                    break
                self._forget(self._tails[path])
            for tail in list(islice(self._failed, _RETRIES_AT_ONCE)):
                del self._failed[tail]
                self._look(tail)
            for tail in self._windows.due(now_s):
                self._look(tail)
            for tail in islice(self._unconfirmed(now_s), _CONFIRMS_AT_ONCE):
                self._look(tail)

    def _unconfirmed(self, now_s: float) -> Iterator[Tail]:
        """Yield tails that nothing was heard of for too long, in turn."""
        if not self._rota:
            self._rota = list(self._tails.values())
        for _ in range(min(_CONSIDERED_AT_ONCE, len(self._rota))):
            tail = self._rota.pop()
            if tail.users and tail.covered and now_s - tail.heard_s > _CONFIRM_S:
                yield tail
