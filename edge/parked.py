"""Parked: readers that wait for news, held as bare descriptors and answered in slices.

Readers who wait at one place for the same bytes are a group: one reply is made for all of them, and
written to one after the other, some hundreds in a turn of the loop.
"""

import asyncio
import os
import random
from collections import OrderedDict, deque
from collections.abc import Sequence
from itertools import repeat
from typing import Final, Protocol

from edge.outbox import Outbox
from edge.seats import Party, Seats
from edge.source import EdgeSource
from edge.tail import Tail
from edge.tails import Tails
from shared import metrics, wire
from shared.clock import Clock
from shared.plain import Plain
from shared.protocol import reply, sse
from shared.protocol.caching import CachePolicy
from shared.protocol.chunk import Chunk
from shared.protocol.cursor import next_cursor
from shared.protocol.errors import ProtocolError, Unavailable
from shared.protocol.offset import SENTINELS
from shared.protocol.reply import Reply
from shared.protocol.request import Live
from shared.web import failure

# Writes in one turn of the loop: 2 ms or so, after which requests and wakes have theirs.
_SLICE: Final = 400
# Payloads on their way at once. Each is bytes of its own, and clients choose how many groups there
# are: a cursor that nobody else has makes one.
_PASSES_MAX: Final = 16


class Desk(Protocol):
    """Where descriptors come from, and go to when they have their bytes."""

    def answered(self, fds: Sequence[int], *, keep_alive: bool) -> None:
        """Their replies are with the kernel."""
        ...

    def unsent(self, fd: int, payload: bytes, sent: int, *, keep_alive: bool | None) -> None:
        """Only some of a payload is with the kernel; None: the reply goes on after it."""
        ...

    def close(self, fd: int, reason: str | None = None) -> None:
        """The connection is broken, or too slow."""
        ...


_Key = tuple[str, Live | None, str | None, str | None, str | None, bool]


class Group(Party):
    """Readers who wait at one place of a stream, and get the same bytes next."""

    __slots__ = ("chunk", "crowd", "fetching", "heard_s", "key", "passing", "plain")

    def __init__(
        self, crowd: "_Crowd", key: _Key, plain: Plain, chunk: Chunk, heard_s: float
    ) -> None:
        super().__init__()
        self.crowd = crowd
        self.key = key
        self.plain = plain  # of the first of them: what may differ makes no difference
        self.chunk = chunk  # what they have; they wait for what follows it
        self.heard_s = heard_s  # when they last got anything
        self.passing = False  # a pass goes over them
        self.fetching: asyncio.Task[None] | None = None

    @property
    def streams(self) -> bool:
        """Whether their replies go on after this one."""
        return self.plain.asked.live is Live.SSE

    @property
    def over(self) -> bool:
        """Whether it takes no more readers: it has news, or is no more."""
        return self.crowd.groups.get(self.key) is not self or self.crowd.tail.failed is not None


class _Crowd:
    """All groups of one stream, and the tail that they wait for."""

    __slots__ = ("_parked", "groups", "passing", "path", "tail")

    def __init__(self, parked: "Parked", path: str, tail: Tail) -> None:
        self._parked = parked
        self.path = path
        self.tail = tail
        self.groups: dict[_Key, Group] = {}  # but those that a pass goes over
        self.passing = 0  # event streams that come back after their pass

    def on_news(self) -> None:
        self._parked.stir(self)


class Pass:
    """One payload on its way to the members of a group."""

    __slots__ = (
        "answered",
        "began_s",
        "done",
        "ends",
        "first",
        "group",
        "keep_alive",
        "payload",
        "status",
    )

    def __init__(
        self, group: Group, payload: bytes, *, ends: bool, keep_alive: bool, status: int
    ) -> None:
        self.group = group
        self.payload = payload
        self.ends = ends  # the reply ends with it
        self.keep_alive = keep_alive
        self.status = status
        self.done = 0
        self.answered = 0
        # Nobody is always the last: a pass begins anywhere, and goes round.
        self.first = random.randrange(len(group.fds))
        self.began_s = asyncio.get_running_loop().time()


class Parked:
    """The live readers of an edge."""

    def __init__(
        self,
        seats: Seats,
        outbox: Outbox,
        desk: Desk,
        tails: Tails,
        source: EdgeSource,
        policy: CachePolicy,
        clock: Clock,
    ) -> None:
        self._seats = seats
        self._outbox = outbox
        self._desk = desk
        self._tails = tails
        self._source = source
        self._policy = policy
        self._clock = clock
        self._crowds: dict[str, _Crowd] = {}
        # Sets that keep order. A `dict` would leave gaps at its front, for each look to step over.
        self._stirred: OrderedDict[_Crowd, None] = OrderedDict()
        # Event streams but those that a pass goes over, by when they last heard anything, nearly:
        # to look at all that wait, most of them in vain, stopped an edge every few seconds.
        self._quiet: OrderedDict[Group, None] = OrderedDict()
        self._looking: list[Group] = []  # of those that were stirred first
        self._passes: deque[Pass] = deque()
        self._last: Group | None = None  # that somebody joined
        self._turn: asyncio.Handle | None = None
        self.polls = 0
        self.streams = 0
        self.draining = False  # connections are not kept for another request

    @property
    def busy(self) -> bool:
        """Whether readers are being written to."""
        return bool(self._passes)

    def park(self, fd: int, plain: Plain, chunk: Chunk) -> None:
        """Let a reader wait for what follows a chunk; the state of its seat is the caller's."""
        group = self._last
        # A crowd comes back with the same words to the same place, and these are the same objects.
        if group is None or group.plain is not plain or group.chunk is not chunk or group.over:
            group = self._last = self._group(plain, chunk)
        self._seats.join(fd, group)
        if group.streams:
            self.streams += 1
        else:
            self.polls += 1
        if group.count == 1:
            # The tail may have moved since the chunk was read.
            self.stir(group.crowd)

    def _group(self, plain: Plain, chunk: Chunk) -> Group:
        """Return the group of whoever asks so at that place, found or new."""
        crowd = self._crowds.get(plain.path)
        if crowd is None or crowd.tail.failed is not None:
            crowd = _Crowd(self, plain.path, self._tails.hold(plain.path))
            crowd.tail.listener = crowd
            self._crowds[plain.path] = crowd
        key = self._key(plain, chunk)
        group = crowd.groups.get(key)
        if group is None:
            group = Group(crowd, key, plain, chunk, self._clock.monotonic_s())
            self._put_in(group)
        return group

    def leave(self, fd: int) -> None:
        """Forget a reader who has left."""
        group = self._seats.leave(fd)
        assert isinstance(group, Group)
        self._count_out(group)
        if not group.count and not group.passing:
            self._dissolve(group)
        elif not group.passing:
            self._seats.tidy(group)

    def take_back(self, fd: int) -> tuple[Plain, Chunk] | None:
        """Let a reader go whose time is over; return what it asked for and what it has.

        None: it is being written to just now, and stays.
        """
        group = self._seats.party[fd]
        assert isinstance(group, Group)
        if group.passing and not group.streams:
            return None
        self.leave(fd)
        return group.plain, group.chunk

    async def send_heartbeats(self, quiet_s: float) -> None:
        """Tell event streams that heard nothing for so long that they still stand."""
        begun = 0
        while self._quiet:
            group = next(iter(self._quiet))
            if self._clock.monotonic_s() - group.heard_s < quiet_s:
                return
            self._begin(group, wire.encode_frame(sse.HEARTBEAT), ends=False)
            begun += 1
            if begun % _SLICE == 0:
                await asyncio.sleep(0)

    def close(self) -> None:
        """Write no more."""
        if self._turn is not None:
            self._turn.cancel()
        for crowd in self._crowds.values():
            for group in crowd.groups.values():
                if group.fetching is not None:
                    group.fetching.cancel()

    # --- news ------------------------------------------------------------------------------------

    def stir(self, crowd: _Crowd) -> None:
        """Look, in the next turn, for what the groups of a stream wait for.

        Not at once: wakes that come together become one reply, and whoever brings them is not
        interrupted by readers that break off.
        """
        self._stirred[crowd] = None
        self._schedule()

    def _schedule(self) -> None:
        if self._turn is None:
            self._turn = asyncio.get_running_loop().call_soon(self._take_turn)

    def _take_turn(self) -> None:
        self._turn = None
        budget = _SLICE
        while budget > 0:
            if len(self._passes) < _PASSES_MAX and (group := self._next_to_look()) is not None:
                self._look(group)
                budget -= 1
            elif self._passes:
                budget -= self._write(budget)
            else:
                return
        self._schedule()

    def _next_to_look(self) -> Group | None:
        while True:
            while self._looking:
                group = self._looking.pop()
                if group.crowd.groups.get(group.key) is group:  # else it has news, or is no more
                    return group
            if not self._stirred:
                return None
            crowd, _ = self._stirred.popitem(last=False)
            self._looking.extend(crowd.groups.values())

    def _look(self, group: Group) -> None:
        """Give a group what follows its place, if it is known."""
        if group.fetching is not None:
            return  # which finds it
        tail = group.crowd.tail
        if tail.failed is not None:
            self._end(group, tail.failed)
            return
        found = tail.after(group.chunk.next)
        if found is None:
            group.fetching = asyncio.create_task(self._fetch(group))
        elif not found.empty or found.closed:
            self._deliver(group, found)

    async def _fetch(self, group: Group) -> None:
        """Find what follows a place that is not known here; the upstream is asked by one for
        all."""
        found: Chunk | Exception
        try:
            found = await self._source.next(group.crowd.path, group.chunk)
        except Exception as error:
            found = error
        group.fetching = None
        if not group.count or group.passing:
            return  # they have left; or a heartbeat is on its way, and the end of it looks again
        if isinstance(found, Exception):
            self._end(group, found)
        else:
            self._deliver(group, found)

    def _deliver(self, group: Group, chunk: Chunk) -> Pass:
        asked, now_ms = group.plain.asked, self._clock.now_ms()
        group.chunk = chunk
        if not group.streams:
            outcome = reply.read(group.crowd.path, asked, chunk, self._policy, now_ms)
            return self._begin_last(group, outcome, now_ms)
        events = sse.encode_events(chunk, next_cursor(now_ms, asked.cursor))
        end = wire.STREAM_END if chunk.closed else b""
        return self._begin(group, wire.encode_frame(events) + end, ends=chunk.closed)

    def _end(self, group: Group, error: Exception) -> None:
        """There is nothing to wait for any more: long-polls are told why, event streams end."""
        if group.streams:
            if not isinstance(error, ProtocolError | Unavailable):
                failure(error)  # which logs it
            self._begin(group, wire.STREAM_END, ends=True)
            return
        if isinstance(error, ProtocolError):
            outcome = reply.lost(group.crowd.path, group.plain.asked, error, self._policy)
        else:
            outcome = failure(error)
        self._begin_last(group, outcome, self._clock.now_ms())

    # --- passes ----------------------------------------------------------------------------------

    def _begin_last(self, group: Group, outcome: Reply, now_ms: int) -> Pass:
        keep_alive = group.plain.keep_alive and not self.draining
        payload = wire.encode_reply(outcome, now_ms, keep_alive=keep_alive)
        return self._begin(group, payload, ends=True, keep_alive=keep_alive, status=outcome.status)

    def _begin(
        self,
        group: Group,
        payload: bytes,
        *,
        ends: bool,
        keep_alive: bool = False,
        status: int = 200,
    ) -> Pass:
        self._take_out(group)  # whoever comes during the pass gets something else
        group.passing = True
        group.crowd.passing += 1
        group.heard_s = self._clock.monotonic_s()
        work = Pass(group, payload, ends=ends, keep_alive=keep_alive, status=status)
        self._passes.append(work)
        self._schedule()
        return work

    def _write(self, budget: int) -> int:
        """Write to the next members of the first pass; return how many places it went on."""
        work = self._passes.popleft()
        group, payload, size = work.group, work.payload, len(work.payload)
        began = work.done
        fds = self._next_of(work, budget)
        if group.streams and len(self._outbox):
            fds = self._put_behind(work, fds)
        each = _write_each(fds, payload)
        short: list[tuple[int, int]] = []
        if each.count(size) != len(fds):
            for fd, sent in zip(fds, each, strict=True):
                if sent < 0:
                    self._desk.close(fd)
                elif sent < size:
                    short.append((fd, sent))
            fds = [fd for fd, sent in zip(fds, each, strict=True) if sent == size]
        if work.ends:
            self._release(work, fds)
            self._release(work, [fd for fd, _ in short])
            self._desk.answered(fds, keep_alive=work.keep_alive)
        for fd, sent in short:
            keep_alive = work.keep_alive if work.ends else None
            self._desk.unsent(fd, payload, sent, keep_alive=keep_alive)
        if work.done < len(group.fds):
            self._passes.append(work)
        else:
            self._finish(work)
        return work.done - began + 1

    def _next_of(self, work: Pass, budget: int) -> Sequence[int]:
        """Return who is at the next places of a pass, and has not left."""
        group, count = work.group, len(work.group.fds)
        # Whoever has its last bytes is counted no more: then all that are left are at these places.
        all_here = group.count == (count - work.done if work.ends else count)
        began, work.done = work.done, min(count, work.done + budget)
        first, end = work.first + began, work.first + work.done
        if all_here and end <= count:
            return group.fds[first:end]
        if all_here and first >= count:
            return group.fds[first - count : end - count]
        party, place = self._seats.party, self._seats.place
        found = []
        for number in range(first, end):
            at = number if number < count else number - count
            fd = group.fds[at]
            # Else it has left, and the descriptor may be another reader's by now.
            if party[fd] is group and place[fd] == at:
                found.append(fd)
        return found

    def _release(self, work: Pass, fds: Sequence[int]) -> None:
        """Let members go who have their last bytes, or will have."""
        self._seats.part(work.group, fds)
        self._count_out(work.group, len(fds))
        work.answered += len(fds)

    def _put_behind(self, work: Pass, fds: Sequence[int]) -> list[int]:
        """Put a payload behind what readers have still to get; return those who have it all."""
        free = [fd for fd in fds if fd not in self._outbox]
        for fd in fds if len(free) < len(fds) else ():
            if fd in self._outbox:
                self._add(work, fd)
        return free

    def _add(self, work: Pass, fd: int) -> None:
        """Put a payload behind what a reader has still to get, unless it is too slow for that."""
        if self._outbox.is_full(fd):
            self._desk.close(fd, "backlog")
            return
        if work.ends:
            self._seats.leave(fd)
            self._count_out(work.group)
        keep_alive = False if work.ends else None
        self._desk.unsent(fd, work.payload, 0, keep_alive=keep_alive)

    def _finish(self, work: Pass) -> None:
        group = work.group
        group.passing = False
        group.crowd.passing -= 1
        metrics.FANOUT_SECONDS.observe(asyncio.get_running_loop().time() - work.began_s)
        if work.ends:
            if not group.streams:
                metrics.count_requests("GET", work.status, work.answered)
            self._part(group.crowd)
        elif not group.count:
            self._dissolve(group)
        else:
            self._merge(group)
            self.stir(group.crowd)  # for what came during the pass

    def _merge(self, group: Group) -> None:
        """Put a group back, with whoever has come to the same place meanwhile."""
        group.key = key = self._key(group.plain, group.chunk)
        other = group.crowd.groups.get(key)
        if other is None:
            self._put_in(group)
            self._seats.tidy(group)
            return
        small, large = sorted((group, other), key=lambda one: one.count)
        for fd in self._seats.members(small):
            self._seats.leave(fd)
            self._seats.join(fd, large)
        if large is group:
            self._take_out(other)
            self._put_in(group)
        if small.fetching is not None:
            small.fetching.cancel()

    def _dissolve(self, group: Group) -> None:
        if group.fetching is not None:
            group.fetching.cancel()
        self._take_out(group)
        self._part(group.crowd)

    def _put_in(self, group: Group) -> None:
        group.crowd.groups[group.key] = group
        if group.streams:
            self._quiet[group] = None

    def _take_out(self, group: Group) -> None:
        if group.crowd.groups.get(group.key) is group:
            del group.crowd.groups[group.key]
            self._quiet.pop(group, None)
        if self._last is group:
            self._last = None

    def _part(self, crowd: _Crowd) -> None:
        """Let go of a stream that nobody waits on."""
        if not crowd.groups and not crowd.passing and crowd.tail.listener is crowd:
            crowd.tail.listener = None
            self._tails.let_go(crowd.tail)
            if self._crowds.get(crowd.path) is crowd:
                del self._crowds[crowd.path]

    def _count_out(self, group: Group, count: int = 1) -> None:
        if group.streams:
            self.streams -= count
        else:
            self.polls -= count

    def _key(self, plain: Plain, chunk: Chunk) -> _Key:
        """Return what makes the next bytes of a reader: where it is, and what it asked for."""
        asked, now_ms = plain.asked, self._clock.now_ms()
        # A cursor that the clock has passed is as good as none, for ever.
        passed = next_cursor(now_ms, asked.cursor) == next_cursor(now_ms, None)
        cursor = None if passed else asked.cursor
        if asked.live is Live.SSE:
            return chunk.next, asked.live, cursor, None, None, False
        named = asked.offset if asked.offset in SENTINELS else None  # it bounds a cache's patience
        return chunk.next, None, cursor, named, asked.if_none_match, plain.keep_alive


def _write_each(fds: Sequence[int], payload: bytes) -> list[int]:
    """Write the same to each descriptor; return how many bytes each took, -1 for one that is
    broken.

    A loop in the interpreter would cost half of what the kernel does; `map` and `extend` are one in
    C, and `extend` keeps what it has when a write fails.
    """
    sent: list[int] = []
    writes = map(os.write, fds, repeat(payload))
    while len(sent) < len(fds):
        try:
            sent.extend(writes)
        except BlockingIOError:
            sent.append(0)
        except OSError:
            sent.append(-1)
    return sent
