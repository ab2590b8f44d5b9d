"""Replies: made of what was found, and sent as far as the kernel takes them."""

import asyncio
from collections.abc import Sequence
from typing import Final, Protocol

from edge import seats
from edge.deadlines import Deadlines
from edge.outbox import Outbox
from edge.parked import Parked
from edge.seats import NEVER, Seats
from shared import metrics, wire
from shared.clock import Clock
from shared.plain import Plain
from shared.protocol import reply, sse
from shared.protocol.caching import CachePolicy
from shared.protocol.chunk import Chunk
from shared.protocol.cursor import next_cursor
from shared.protocol.reply import Reply
from shared.protocol.request import Live
from shared.reading import LiveTimes

# A small body leaves in one piece with its head: one copy is cheaper than a second buffer.
_COPY_BYTES: Final = 16 * 1024


class Desk(Protocol):
    """Where connections come from, and go to when they have their replies."""

    def answered(self, fds: Sequence[int], *, keep_alive: bool) -> None:
        """Their replies are with the kernel."""
        ...

    def listen_to(self, fd: int) -> None:
        """What a connection waits for has changed."""
        ...

    def close(self, fd: int, reason: str | None = None) -> None:
        """The connection is broken, or its reader too slow."""
        ...

    def break_off(self, fd: int, error: Exception) -> None:
        """We failed it."""
        ...


class Replies:
    """The replies of all connections: at once, in steps, or once there is something to say."""

    def __init__(
        self,
        seats_: Seats,
        outbox: Outbox,
        parked: Parked,
        deadlines: Deadlines,
        desk: Desk,
        policy: CachePolicy,
        times: LiveTimes,
        clock: Clock,
    ) -> None:
        self._seats = seats_
        self._outbox = outbox
        self._parked = parked
        self._deadlines = deadlines
        self._desk = desk
        self._policy = policy
        self._times = times
        self._clock = clock
        # Event streams that are not at the tail yet, and where they go on.
        self.catching_up: dict[int, tuple[Plain, str]] = {}

    def give(self, fd: int, plain: Plain, chunk: Chunk) -> None:
        """Answer a reader, or let it wait behind what it has."""
        asked = plain.asked
        if asked.live is Live.SSE:
            self._step(fd, plain, chunk)
        elif asked.live is Live.LONG_POLL and chunk.empty and not chunk.closed:
            self._seats.state[fd] = seats.PARKED
            self._seats.wait_until(
                fd, self._deadlines.due(self._clock.monotonic_s(), self._times.long_poll_s)
            )
            self._parked.park(fd, plain, chunk)
        else:
            outcome = reply.read(plain.path, asked, chunk, self._policy, self._clock.now_ms())
            self.reply(fd, outcome, keep_alive=plain.keep_alive)

    def reply(self, fd: int, outcome: Reply, *, keep_alive: bool) -> None:
        """Send a whole reply."""
        metrics.count_requests("GET", outcome.status)
        now_ms = self._clock.now_ms()
        keep_alive = keep_alive and not self._deadlines.draining
        if len(outcome.body) <= _COPY_BYTES:
            parts: tuple[bytes, ...] = (wire.encode_reply(outcome, now_ms, keep_alive=keep_alive),)
        else:
            parts = (wire.encode_head(outcome, now_ms, keep_alive=keep_alive), outcome.body)
        self._finish(fd, parts, keep_alive=keep_alive)

    def _finish(self, fd: int, parts: tuple[bytes, ...], *, keep_alive: bool) -> None:
        """Send the last parts of a reply."""
        self._seats.state[fd] = seats.SENDING if keep_alive else seats.LEAVING
        self._seats.wait_until(fd, NEVER)  # the outbox looks after those who do not read
        try:
            if self._outbox.send(fd, parts, self._clock.monotonic_s()):
                self._desk.answered((fd,), keep_alive=keep_alive)
            else:
                self._await_room(fd)
        except OSError:
            self._desk.close(fd)

    def unsent(self, fd: int, payload: bytes, sent: int, *, keep_alive: bool | None) -> None:
        """Keep what the kernel did not take of what a live reader got."""
        if fd in self._outbox:
            self._outbox.add(fd, (payload,))
        else:
            self._outbox.keep(fd, (payload,), sent, self._clock.monotonic_s())
        if keep_alive is not None:
            self._seats.state[fd] = seats.SENDING if keep_alive else seats.LEAVING
            self._seats.wait_until(fd, NEVER)
        self._await_room(fd)

    def _await_room(self, fd: int) -> None:
        """Wait until the kernel takes more of what a reader has to get, if that may be held."""
        if self._outbox.is_overfull:
            self._desk.close(fd, "memory")
        else:
            self._desk.listen_to(fd)

    def leave(self, fd: int) -> None:
        """Forget a connection."""
        self._outbox.drop(fd)
        self.catching_up.pop(fd, None)

    # --- from the upstream -----------------------------------------------------------------------

    def found(self, fd: int, plain: Plain, found: Chunk | Reply) -> None:
        """Answer a reader for whom the upstream was asked."""
        try:
            if isinstance(found, Chunk):
                self.give(fd, plain, found)
            elif fd in self.catching_up:
                self.end_stream(fd)
            else:
                self.reply(fd, found, keep_alive=plain.keep_alive)
        except Exception as error:
            self._desk.break_off(fd, error)

    def passed_back(self, fd: int, replies: bytes, *, last: bool, keep_alive: bool) -> None:
        """Send what the upstream replied to appends."""
        try:
            if last:
                self._finish(fd, (replies,), keep_alive=keep_alive)
            elif not self._outbox.send(fd, (replies,), self._clock.monotonic_s()):
                self._await_room(fd)
        except OSError:
            self._desk.close(fd)
        except Exception as error:
            self._desk.break_off(fd, error)

    # --- live ------------------------------------------------------------------------------------

    def _step(self, fd: int, plain: Plain, chunk: Chunk) -> None:
        """Send one step of an event stream; it goes on when its reader has it."""
        now_s, now_ms = self._clock.monotonic_s(), self._clock.now_ms()
        events = sse.encode_events(chunk, next_cursor(now_ms, plain.asked.cursor))
        step = wire.encode_frame(events)
        if self.catching_up.pop(fd, None) is None:
            metrics.count_requests("GET", 200)
            head = wire.encode_stream_head(
                reply.event_stream(plain.path, chunk, self._policy), now_ms
            )
            step = head + step
            self._seats.wait_until(fd, self._deadlines.due(now_s, self._times.sse_s))
        if chunk.closed:
            self._finish(fd, (step + wire.STREAM_END,), keep_alive=False)
            return
        try:
            sent = self._outbox.send(fd, (step,), now_s)
        except OSError:
            self._desk.close(fd)
            return
        if chunk.at_tail or chunk.empty:  # a careless upstream may not say so
            self._seats.state[fd] = seats.PARKED
            self._parked.park(fd, plain, chunk)
        else:
            self._seats.state[fd] = seats.CATCHING_UP
            self.catching_up[fd] = (plain, chunk.next)
        if not sent:
            self._await_room(fd)
        elif self._seats.state[fd] == seats.CATCHING_UP:
            self._desk.listen_to(fd)

    def end_stream(self, fd: int) -> None:
        """End an event stream; its reader resumes elsewhere."""
        self.catching_up.pop(fd, None)
        self._finish(fd, (wire.STREAM_END,), keep_alive=False)

    def time_out(self, fd: int, plain: Plain, chunk: Chunk) -> None:
        """Tell a live reader who has waited its time that there was nothing behind a chunk."""
        if plain.asked.live is Live.SSE:
            self.end_stream(fd)
            return
        outcome = reply.read(plain.path, plain.asked, chunk, self._policy, self._clock.now_ms())
        self.reply(fd, outcome, keep_alive=plain.keep_alive)

    async def send_heartbeats_for_ever(self) -> None:
        """Let no event stream be silent for long."""
        while True:
            await asyncio.sleep(self._times.heartbeat_s / 4)
            await self._parked.send_heartbeats(self._times.heartbeat_s)
