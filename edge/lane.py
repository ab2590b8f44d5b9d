"""The lane: answers plain reads itself, passes small appends on, and hands everything else to
aiohttp.

A connection is a descriptor in one epoll and a seat in a few arrays: it holds no task, future,
timer, parser or transport, so a waiting reader costs some 30 bytes beside the kernel's socket. An
`asyncio.Protocol` with slots in its place costs 1.3 KB, an awaiting aiohttp handler over 10 KB.
"""

import asyncio
import logging
import os
import random
import select
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from edge import seats
from edge.doors import Doors
from edge.gatherings import Gatherings
from edge.groups import Group
from edge.lines import Lines
from edge.outbox import Outbox
from edge.parked import Parked
from edge.passes import Desk
from edge.seats import NEVER, Seats
from edge.source import EdgeSource
from edge.tails import Tails
from edge.writes import BODY_BYTES_MAX, Writes
from shared import metrics, wire
from shared.clock import Clock
from shared.plain import HEAD_BYTES_MAX, Plain, is_partial, parse_plain
from shared.protocol import reply, sse
from shared.protocol.caching import CachePolicy
from shared.protocol.chunk import Chunk
from shared.protocol.cursor import next_cursor
from shared.protocol.errors import Unavailable
from shared.protocol.reply import Reply
from shared.protocol.request import Live
from shared.reading import LiveTimes
from shared.tasks import background
from shared.web import Listener, failure

_log = logging.getLogger(__name__)

_READ_BYTES: Final = HEAD_BYTES_MAX + 1  # one more than any plain head: what fills it is not plain
# Events in one turn of the loop: 5 ms of requests at most. While many readers are written to, less,
# so that those who were served do not keep the others waiting.
_EVENTS: Final = 256
_EVENTS_WHEN_BUSY: Final = 32
# How late a deadline may be kept. 56 edges that idle on one machine wake up for it.
_SWEEP_S: Final = 0.25
_SWEEP_WRITES: Final = 256  # in one turn
# A small body leaves in one piece with its head: one copy is cheaper than a second buffer.
_COPY_BYTES: Final = 16 * 1024
_LINGER_S: Final = 1.0  # how long a peer may take to close after us (RFC 9112 §9.6)
# Appends whose body is not whole, of 72 KiB at most: 36 MiB. More go to aiohttp, which refuses
# those that it cannot hold.
_UPLOADS_MAX: Final = 512
_RETRY_S: Final = (1, 10)  # those who are turned away come back over this long

# Makes what holds waiting readers.
Parking = Callable[[Seats, Outbox, Desk, Tails, EdgeSource, CachePolicy, Clock], Parked]


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a lane allows."""

    connections: int  # those that were handed to aiohttp included
    header_timeout_s: float  # from accept, or the first byte of a head, to its end
    keepalive_timeout_s: float  # between two requests
    body_bytes_max: int  # of an append


class Lane:
    """The connections of an edge."""

    def __init__(
        self,
        source: EdgeSource,
        tails: Tails,
        lines: Lines,
        listener: Listener,
        prefix: str,
        policy: CachePolicy,
        times: LiveTimes,
        bounds: Bounds,
        clock: Clock,
        parking: Parking = Parked,
    ) -> None:
        """
        Args:
            listener: gets every connection whose request the lane does not answer.
        """
        self._source = source
        self._listener = listener
        self._prefix = prefix
        self._policy = policy
        self._times = times
        self._bounds = bounds
        self._clock = clock
        self._epoll = select.epoll()
        self._seats = Seats()
        self._outbox = Outbox()
        self._parked = parking(self._seats, self._outbox, self, tails, source, policy, clock)
        self._doors = Doors(self._epoll, self._seats, clock, self._is_full, bounds.header_timeout_s)
        self._gatherings = Gatherings(source, self._seats, self, clock, self._spawn)
        self._lines = lines
        self._writes = Writes(lines, self, prefix, clock, bounds.body_bytes_max)
        self._uploading: set[int] = set()  # those of whose append some of the body is missing
        self._received: dict[int, bytes] = {}  # what has come of a next request
        self._catching_up: dict[int, tuple[Plain, str]] = {}  # and from which offset on
        self._tasks: set[asyncio.Task[None]] = set()
        self._leave_by_s = NEVER  # once draining: nobody waits any longer
        self._idle = asyncio.Event()

    # --- life ------------------------------------------------------------------------------------

    @property
    def connections(self) -> int:
        """How many are open, those of aiohttp included."""
        return self._seats.taken + self._listener.connections

    def _is_full(self) -> bool:
        return self.connections >= self._bounds.connections

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve what listens, until the block ends; then close every connection."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._epoll.fileno(), self._turn)
        try:
            async with background(self._sweep_for_ever(), self._send_heartbeats_for_ever()):
                yield
        finally:
            loop.remove_reader(self._epoll.fileno())
            self._parked.close()
            self._gatherings.close()
            self._lines.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for fd, state in enumerate(self._seats.state):
                if state != seats.FREE:
                    self.close(fd)
            self._doors.close()
            self._epoll.close()

    def listen(self, sock: socket.socket) -> None:
        """Take connections from a socket that is bound and listens; it is closed at the end."""
        self._doors.listen(sock)

    def release(self, window_s: float) -> None:
        """Let everyone who waits go within a window, spread out, so that they do not all return at
        once."""
        now_s = self._clock.monotonic_s()
        self._leave_by_s = now_s + window_s
        self._parked.draining = self._writes.draining = True
        for fd, state in enumerate(self._seats.state):
            if state in (seats.PARKED, seats.CATCHING_UP):
                self._seats.wait_until(fd, self._due(now_s, self._seats.due_s[fd] - now_s))

    async def drain(self, window_s: float) -> None:
        """Return once nobody waits any more, at most after window_s."""
        self._idle.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(window_s):
                await self._idle.wait()
                if self._doors.shut():
                    self._idle.clear()
                    await self._idle.wait()

    def _hang_up(self) -> None:
        """Let go of those who are between two requests: none of theirs would be answered."""
        for fd, state in enumerate(self._seats.state):
            if state == seats.HEAD:
                self._say_goodbye(fd)

    def _due(self, now_s: float, wait_s: float) -> float:
        """Return when a wait that begins now ends."""
        if self._leave_by_s != NEVER:
            wait_s = min(wait_s, random.uniform(0, max(0.0, self._leave_by_s - now_s)))
        return now_s + wait_s

    # --- events ----------------------------------------------------------------------------------

    def _turn(self) -> None:
        events = _EVENTS_WHEN_BUSY if self._parked.busy else _EVENTS
        for fd, event in self._epoll.poll(0, events):
            if fd in self._doors:
                self._doors.accept(fd)
                continue
            try:
                if event & select.EPOLLOUT:
                    self._writable(fd)
                if event & ~select.EPOLLOUT and self._seats.state[fd] != seats.FREE:
                    self._readable(fd)
            except Exception as error:
                self._break_off(fd, error)

    def _break_off(self, fd: int, error: Exception) -> None:
        """Close a connection that we failed: nobody else is to suffer for it."""
        _log.error("unexpected error", exc_info=error)
        if self._seats.state[fd] != seats.FREE:
            self.close(fd)

    def _readable(self, fd: int) -> None:
        try:
            data = os.read(fd, BODY_BYTES_MAX if fd in self._uploading else _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self.close(fd)
            return
        state = self._seats.state[fd]
        if not data:
            if state in (seats.SENDING, seats.LEAVING):
                # It has sent its last, but may read on; if it does not, a write will tell.
                self._seats.state[fd] = seats.DEAF
                self._listen_to(fd)
            else:
                self.close(fd)
            return
        match state:
            case seats.HEAD:
                self._receive(fd, data)
            case seats.PARTIAL:
                self._receive(fd, self._received.pop(fd) + data)
            case seats.WRITING:
                self._receive(fd, self._received.pop(fd, b"") + data)
            case seats.TURNED_AWAY:
                error = Unavailable("this edge has all the connections that it may have")
                error.retry_after_s = random.randint(*_RETRY_S)
                self._reply(fd, failure(error), keep_alive=False)
            case seats.LEAVING | seats.LINGERING:
                pass  # there is no next request
            case _:
                # The next request comes before this one is answered: it waits here, and what is
                # more waits in the kernel.
                self._received[fd] = self._received.get(fd, b"") + data
                if len(self._received[fd]) > HEAD_BYTES_MAX:
                    self._listen_to(fd)

    def _writable(self, fd: int) -> None:
        try:
            if not self._outbox.flush(fd, self._clock.monotonic_s()):
                return
        except OSError:
            self.close(fd)
            return
        state = self._seats.state[fd]
        if state == seats.CATCHING_UP:
            self._ask(fd, *self._catching_up[fd])
        elif state in (seats.SENDING, seats.LEAVING, seats.DEAF):
            self._sent(fd)
        elif state == seats.WRITING and fd in self._received:
            self._receive(fd, self._received.pop(fd))
        if self._seats.state[fd] != seats.FREE:
            self._listen_to(fd)

    def _listen_to(self, fd: int) -> None:
        """Ask for the events that a connection needs now."""
        state = self._seats.state[fd]
        rest = fd in self._outbox or state == seats.CATCHING_UP
        more = (
            state != seats.DEAF
            and (len(self._received.get(fd, b"")) <= HEAD_BYTES_MAX or state == seats.PARTIAL)
            # Whoever does not take replies to appends may not ask for more of them.
            and not (rest and state == seats.WRITING)
        )
        self._epoll.modify(fd, select.EPOLLIN * more | select.EPOLLOUT * rest)

    # --- requests --------------------------------------------------------------------------------

    def _receive(self, fd: int, received: bytes) -> None:
        """Take the bytes of next requests."""
        writes = self._seats.state[fd] == seats.WRITING or received.startswith(b"POST ")
        if writes and self._receive_appends(fd, received):
            return
        plain = parse_plain(received, self._prefix)
        if isinstance(plain, Plain):
            self._ask(fd, plain, plain.asked.offset)
        elif plain is not None:
            self._reply(fd, reply.refused(plain.error), keep_alive=plain.keep_alive)
        elif is_partial(received):
            self._await_rest(fd, received)
        elif self._writes.is_begun(received) and len(self._uploading) < _UPLOADS_MAX:
            self._uploading.add(fd)
            self._await_rest(fd, received)
        else:
            self._hand_over(fd, received)

    def _receive_appends(self, fd: int, received: bytes) -> bool:
        """Pass on the appends that have come whole; return whether any are under way, for which
        what follows them waits."""
        self._uploading.discard(fd)
        if fd not in self._outbox:
            received = self._writes.take(fd, received)
        if fd not in self._writes:
            return False  # nothing was taken
        if self._seats.state[fd] != seats.WRITING:
            self._seats.state[fd] = seats.WRITING
            self._seats.wait_until(fd, NEVER)  # lines look after those who do not answer
        if received:
            self._received[fd] = received
            if len(received) > HEAD_BYTES_MAX:
                self._listen_to(fd)  # what is more waits in the kernel
        return True

    def _await_rest(self, fd: int, received: bytes) -> None:
        """Keep what has come of a request until there is more."""
        self._received[fd] = received
        if self._seats.state[fd] == seats.HEAD:
            self._seats.state[fd] = seats.PARTIAL
            self._seats.wait_until(fd, self._clock.monotonic_s() + self._bounds.header_timeout_s)

    def take_back(self, sock: socket.socket, plain: Plain) -> None:
        """Answer a read that came by aiohttp, and whatever follows on its connection."""
        fd = sock.detach()
        self._seats.take(fd, seats.ASKED, NEVER)
        self._epoll.register(fd, select.EPOLLIN)
        self._ask(fd, plain, plain.asked.offset)

    def _hand_over(self, fd: int, received: bytes) -> None:
        """Let aiohttp have a connection, with every byte that came."""
        self._epoll.unregister(fd)
        self._seats.free(fd)
        self._uploading.discard(fd)
        taking = self._listener.take(socket.socket(fileno=fd), received)
        self._spawn(taking)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("unexpected error", exc_info=error)

    def _ask(self, fd: int, plain: Plain, offset: str) -> None:
        """Find a chunk for a reader, now or by a read that others share."""
        found = self._source.found(plain.path, offset, live=plain.asked.live is not None)
        if found is not None:
            self._give(fd, plain, found)
            return
        self._seats.state[fd] = seats.ASKED
        if fd not in self._catching_up:
            self._seats.wait_until(fd, NEVER)  # every read of the upstream ends in time
        self._gatherings.join(fd, plain, offset)

    def found(self, fd: int, plain: Plain, found: Chunk | Reply) -> None:
        """Answer a reader for whom the upstream was asked."""
        try:
            if isinstance(found, Chunk):
                self._give(fd, plain, found)
            elif fd in self._catching_up:
                self._end_stream(fd)
            else:
                self._reply(fd, found, keep_alive=plain.keep_alive)
        except Exception as error:
            self._break_off(fd, error)

    # --- replies ---------------------------------------------------------------------------------

    def _give(self, fd: int, plain: Plain, chunk: Chunk) -> None:
        """Answer a reader, or let it wait behind what it has."""
        asked = plain.asked
        if asked.live is Live.SSE:
            self._stream(fd, plain, chunk)
        elif asked.live is Live.LONG_POLL and chunk.empty and not chunk.closed:
            self._seats.state[fd] = seats.PARKED
            self._seats.wait_until(
                fd, self._due(self._clock.monotonic_s(), self._times.long_poll_s)
            )
            self._parked.park(fd, plain, chunk)
        else:
            outcome = reply.read(plain.path, asked, chunk, self._policy, self._clock.now_ms())
            self._reply(fd, outcome, keep_alive=plain.keep_alive)

    def _reply(self, fd: int, outcome: Reply, *, keep_alive: bool) -> None:
        metrics.count_requests("GET", outcome.status)
        now_ms = self._clock.now_ms()
        keep_alive = keep_alive and not self._parked.draining
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
                self._sent(fd)
            else:
                self._await_room(fd)
        except OSError:
            self.close(fd)

    def passed_back(self, fd: int, replies: bytes, *, last: bool, keep_alive: bool) -> None:
        """Send what the upstream replied to appends."""
        try:
            if last:
                self._finish(fd, (replies,), keep_alive=keep_alive)
            elif not self._outbox.send(fd, (replies,), self._clock.monotonic_s()):
                self._await_room(fd)
        except OSError:
            self.close(fd)
        except Exception as error:
            self._break_off(fd, error)

    def _stream(self, fd: int, plain: Plain, chunk: Chunk) -> None:
        """Send one step of an event stream; it goes on when its reader has it."""
        now_s, now_ms = self._clock.monotonic_s(), self._clock.now_ms()
        events = sse.encode_events(chunk, next_cursor(now_ms, plain.asked.cursor))
        step = wire.encode_frame(events)
        if self._catching_up.pop(fd, None) is None:
            metrics.count_requests("GET", 200)
            head = wire.encode_stream_head(
                reply.event_stream(plain.path, chunk, self._policy), now_ms
            )
            step = head + step
            self._seats.wait_until(fd, self._due(now_s, self._times.sse_s))
        if chunk.closed:
            self._finish(fd, (step + wire.STREAM_END,), keep_alive=False)
            return
        try:
            sent = self._outbox.send(fd, (step,), now_s)
        except OSError:
            self.close(fd)
            return
        if chunk.at_tail or chunk.empty:  # a careless upstream may not say so
            self._seats.state[fd] = seats.PARKED
            self._parked.park(fd, plain, chunk)
        else:
            self._seats.state[fd] = seats.CATCHING_UP
            self._catching_up[fd] = (plain, chunk.next)
        if not sent:
            self._await_room(fd)
        elif self._seats.state[fd] == seats.CATCHING_UP:
            self._listen_to(fd)

    def _end_stream(self, fd: int) -> None:
        self._catching_up.pop(fd, None)
        self._finish(fd, (wire.STREAM_END,), keep_alive=False)

    def _sent(self, fd: int) -> None:
        """A whole reply is with the kernel."""
        self.answered((fd,), keep_alive=self._seats.state[fd] == seats.SENDING)

    # --- the desk of those who are parked --------------------------------------------------------

    def answered(self, fds: Sequence[int], *, keep_alive: bool) -> None:
        """Wait for their next requests, or close."""
        if not keep_alive:
            for fd in fds:
                self._say_goodbye(fd)
            return
        self._seats.rest(fds, self._clock.monotonic_s() + self._bounds.keepalive_timeout_s)
        for fd in fds if self._received else ():
            received = self._received.pop(fd, None)
            if received is None:
                continue
            if len(received) > HEAD_BYTES_MAX:
                self._listen_to(fd)
            try:
                self._receive(fd, received)
            except Exception as error:
                self._break_off(fd, error)

    def _say_goodbye(self, fd: int) -> None:
        """Close our half, and the rest when the peer does: to close at once would reset it if it
        has said anything more, and a reset can overtake the reply."""
        if self._seats.state[fd] == seats.DEAF:
            self.close(fd)
            return
        ours = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=fd)  # of any family
        try:
            ours.shutdown(socket.SHUT_WR)
        except OSError:
            ours.detach()
            self.close(fd)
            return
        ours.detach()
        self._seats.state[fd] = seats.LINGERING
        self._seats.wait_until(fd, self._clock.monotonic_s() + _LINGER_S)
        self._received.pop(fd, None)
        self._listen_to(fd)

    def unsent(self, fd: int, payload: bytes, sent: int, *, keep_alive: bool | None) -> None:
        """Keep what the kernel did not take."""
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
            self.close(fd, "memory")
        else:
            self._listen_to(fd)

    def close(self, fd: int, reason: str | None = None) -> None:
        """Close a connection, whatever it waits for."""
        if isinstance(self._seats.party[fd], Group):
            self._parked.leave(fd)
        else:
            self._seats.leave(fd)
        self._doors.left(fd)
        self._writes.leave(fd)
        self._uploading.discard(fd)
        self._seats.free(fd)
        self._outbox.drop(fd)
        self._received.pop(fd, None)
        self._catching_up.pop(fd, None)
        os.close(fd)  # the epoll forgets it
        if reason is not None:
            metrics.SLOW_READERS_CLOSED.labels(reason).inc()

    # --- deadlines -------------------------------------------------------------------------------

    async def _sweep_for_ever(self) -> None:
        told = [0, 0]
        while True:
            await asyncio.sleep(_SWEEP_S)
            self._doors.reopen()
            self._lines.expire()
            now_s = self._clock.monotonic_s()
            if now_s >= self._leave_by_s:
                if self._doors.open:
                    self._doors.shut()
                else:  # a sweep later: who was taken then has had the time to ask
                    self._hang_up()
            for fd in self._outbox.stalled(now_s):
                self.close(fd, "stalled")
            for number, fd in enumerate(self._seats.due(now_s), 1):
                if self._seats.due_s[fd] <= now_s:  # not if it moved during a pause
                    try:
                        self._expire(fd)
                    except Exception as error:
                        self._break_off(fd, error)
                if number % _SWEEP_WRITES == 0:
                    await asyncio.sleep(0)
            waiting = [self._parked.polls, self._parked.streams]
            for mode, now, before in zip(("long-poll", "sse"), waiting, told, strict=True):
                metrics.LIVE_READERS.labels(mode).inc(now - before)
            told = waiting
            metrics.CONNECTIONS.set(self.connections)
            leaving = self._seats.state.count(seats.LINGERING)
            under_way = any(waiting) or leaving or len(self._outbox) or self._catching_up
            if not (under_way or self._gatherings or self._writes or self._tasks):
                self._idle.set()

    def _expire(self, fd: int) -> None:
        match self._seats.state[fd]:
            case seats.HEAD | seats.TURNED_AWAY | seats.LINGERING:
                self.close(fd)
            case seats.PARTIAL if fd in self._uploading:
                # aiohttp has more patience, as long as the body goes on.
                self._hand_over(fd, self._received.pop(fd))
            case seats.PARTIAL:
                late = reply.head_late(self._bounds.header_timeout_s)
                self._reply(fd, late, keep_alive=False)
            case seats.PARKED:
                ended = self._parked.take_back(fd)
                if ended is not None:
                    self._time_out(fd, *ended)
            case seats.ASKED:  # for the next chunk of an event stream
                self._seats.leave(fd)
                self._end_stream(fd)
            case seats.CATCHING_UP:
                self._end_stream(fd)

    def _time_out(self, fd: int, plain: Plain, chunk: Chunk) -> None:
        if plain.asked.live is Live.SSE:
            self._end_stream(fd)
            return
        outcome = reply.read(plain.path, plain.asked, chunk, self._policy, self._clock.now_ms())
        self._reply(fd, outcome, keep_alive=plain.keep_alive)

    async def _send_heartbeats_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._times.heartbeat_s / 4)
            await self._parked.send_heartbeats(self._times.heartbeat_s)
