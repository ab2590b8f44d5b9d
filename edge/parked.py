"""Parked: readers that wait for news, held as bare descriptors, and what they are given then.

Readers who wait at one place for the same bytes are a group: one reply is made for all of them, and
passes over them.
"""

import asyncio
from collections import OrderedDict
from typing import Final

from edge.groups import Crowd, Group, Groups
from edge.outbox import Outbox
from edge.passes import Desk, Pass, Passes
from edge.seats import Party, Seats
from edge.source import EdgeSource
from edge.tails import Tails
from shared import metrics, wire
from shared.clock import Clock
from shared.plain import Plain
from shared.protocol import reply, sse
from shared.protocol.caching import CachePolicy
from shared.protocol.chunk import Chunk
from shared.protocol.cursor import next_cursor
from shared.protocol.errors import ProtocolError
from shared.protocol.reply import Reply
from shared.web import failure

# Writes in one turn of the loop: 2 ms or so, after which requests and wakes have theirs.
_SLICE: Final = 400
_HEARTBEAT: Final = wire.encode_frame(sse.HEARTBEAT)


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
        self._source = source
        self._policy = policy
        self._clock = clock
        self._groups = Groups(seats, tails, clock, self)
        self._passes = Passes(seats, outbox, desk, self)
        # A set that keeps order: a `dict` would leave gaps at its front to step over.
        self._stirred: OrderedDict[Crowd, None] = OrderedDict()
        self._looking: list[Group] = []  # of those that were stirred first
        self._last: Group | None = None  # that somebody joined; it may be over
        self._turn: asyncio.Handle | None = None
        self.polls = 0
        self.streams = 0
        self.draining = False  # connections are not kept for another request
        self._told = [0, 0]  # what was counted last of polls and streams

    @property
    def busy(self) -> bool:
        """Whether readers are being written to."""
        return bool(self._passes.under_way)

    def park(self, fd: int, plain: Plain, chunk: Chunk) -> None:
        """Let a reader wait for what follows a chunk; the state of its seat is the caller's."""
        group = self._last
        # A crowd comes back with the same words to the same place, and these are the same objects.
        if group is None or group.plain is not plain or group.chunk is not chunk or group.over:
            group = self._last = self._groups.at(plain, chunk)
        self._seats.join(fd, group)
        if group.streams:
            self.streams += 1
        else:
            self.polls += 1
        if group.count == 1:
            # The tail may have moved since the chunk was read.
            self.stir(group.crowd)

    def leave(self, fd: int) -> None:
        """Forget a reader who has left."""
        group = self._seats.leave(fd)
        assert isinstance(group, Group)
        self.released(group, 1)
        if not group.count:
            self._last = None
        self._groups.left(group)

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
        while (group := self._groups.quietest) is not None:
            if self._clock.monotonic_s() - group.heard_s < quiet_s:
                return
            self._begin(group, _HEARTBEAT, ends=False)
            begun += 1
            if begun % _SLICE == 0:
                await asyncio.sleep(0)

    def tell(self) -> None:
        """Tell metrics how many wait; to be called now and then, as to do so for each would cost
        as much as to let it wait."""
        waiting = [self.polls, self.streams]
        for mode, now, before in zip(("long-poll", "sse"), waiting, self._told, strict=True):
            metrics.LIVE_READERS.labels(mode).inc(now - before)
        self._told = waiting

    def close(self) -> None:
        """Write no more."""
        if self._turn is not None:
            self._turn.cancel()
        for group in self._groups:
            if group.fetching is not None:
                group.fetching.cancel()

    # --- news ------------------------------------------------------------------------------------

    def stir(self, crowd: Crowd) -> None:
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
            if not self._passes.full and (group := self._next_to_look()) is not None:
                self._look(group)
                budget -= 1
            elif self._passes.under_way:
                budget -= self._passes.write(budget)
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
            self.deliver(group, found)

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
            self.deliver(group, found)

    def deliver(self, group: Group, chunk: Chunk) -> Pass:
        """Begin to give a group what follows its place."""
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
            if not isinstance(error, ProtocolError):
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
        self._groups.lend(group)
        self._last = None  # its chunk is not kept for nobody
        # A long-poll waits only once it has all that it was sent before.
        work = Pass(
            group,
            payload,
            behind=group.streams,
            ends=ends,
            keep_alive=keep_alive,
            status=status,
        )
        self._passes.begin(work)
        self._schedule()
        return work

    def released(self, party: Party, count: int) -> None:
        """Count no longer those who have their last bytes."""
        assert isinstance(party, Group)
        if party.streams:
            self.streams -= count
        else:
            self.polls -= count

    def finished(self, work: Pass) -> None:
        """Put a group back after a pass, if anybody of it still waits."""
        group = work.party
        assert isinstance(group, Group)
        if work.ends and not group.streams:
            metrics.count_requests("GET", work.status, work.answered)
        if self._groups.put_back(group, ended=work.ends):
            self.stir(group.crowd)  # for what came during the pass
