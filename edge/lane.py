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
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from edge import seats
from edge.deadlines import Deadlines
from edge.doors import Doors
from edge.gatherings import Gatherings
from edge.groups import Group
from edge.lines import Lines
from edge.outbox import Outbox
from edge.parked import Parked
from edge.passes import Desk
from edge.replies import Replies
from edge.seats import NEVER, Seats
from edge.source import EdgeSource
from edge.tails import Tails
from edge.writes import BODY_BYTES_MAX, Writes
from shared import metrics
from shared.clock import Clock
from shared.plain import HEAD_BYTES_MAX, Plain, is_partial, parse_plain
from shared.protocol import reply
from shared.protocol.caching import CachePolicy
from shared.protocol.errors import Unavailable
from shared.reading import LiveTimes
from shared.tasks import background
from shared.web import Listener, failure

_log = logging.getLogger(__name__)

_READ_BYTES: Final = HEAD_BYTES_MAX + 1  # one more than any plain head: what fills it is not plain
# Events in one turn of the loop: 5 ms of requests at most. While many readers are written to, less,
# so that those who were served do not keep the others waiting.
_EVENTS: Final = 256
_EVENTS_WHEN_BUSY: Final = 32
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
        self._bounds = bounds
        self._clock = clock
        self._epoll = select.epoll()
        self._seats = Seats()
        self._outbox = Outbox()
        self._doors = Doors(self._epoll, self._seats, clock, self._is_full, bounds.header_timeout_s)
        self._lines = lines
        self._deadlines = Deadlines(self._seats, self._outbox, self._doors, lines, self, clock)
        self._parked = parking(self._seats, self._outbox, self, tails, source, policy, clock)
        self._replies = Replies(
            self._seats, self._outbox, self._parked, self._deadlines, self, policy, times, clock
        )
        self._gatherings = Gatherings(source, self._seats, self._replies, clock, self._spawn)
        self._writes = Writes(lines, self._replies, prefix, clock, bounds.body_bytes_max)
        self._uploading: set[int] = set()  # those of whose append some of the body is missing
        self._received: dict[int, bytes] = {}  # what has come of a next request
        self._tasks: set[asyncio.Task[None]] = set()

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
            async with background(
                self._deadlines.sweep_for_ever(), self._replies.send_heartbeats_for_ever()
            ):
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
        self._parked.draining = self._writes.draining = True
        self._deadlines.release(window_s)

    async def drain(self, window_s: float) -> None:
        """Return once nobody waits any more, at most after window_s."""
        await self._deadlines.drain(window_s)

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
                self.break_off(fd, error)

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
                self.listen_to(fd)
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
                self._replies.reply(fd, failure(error), keep_alive=False)
            case seats.LEAVING | seats.LINGERING:
                pass  # there is no next request
            case _:
                # The next request comes before this one is answered: it waits here, and what is
                # more waits in the kernel.
                self._received[fd] = self._received.get(fd, b"") + data
                if len(self._received[fd]) > HEAD_BYTES_MAX:
                    self.listen_to(fd)

    def _writable(self, fd: int) -> None:
        try:
            if not self._outbox.flush(fd, self._clock.monotonic_s()):
                return
        except OSError:
            self.close(fd)
            return
        state = self._seats.state[fd]
        if state == seats.CATCHING_UP:
            self._ask(fd, *self._replies.catching_up[fd])
        elif state in (seats.SENDING, seats.LEAVING, seats.DEAF):
            self.answered((fd,), keep_alive=state == seats.SENDING)
        elif state == seats.WRITING and fd in self._received:
            self._receive(fd, self._received.pop(fd))
        if self._seats.state[fd] != seats.FREE:
            self.listen_to(fd)

    def expire(self, fd: int) -> None:
        """End what a connection waits for in vain."""
        match self._seats.state[fd]:
            case seats.HEAD | seats.TURNED_AWAY | seats.LINGERING:
                self.close(fd)
            case seats.PARTIAL if fd in self._uploading:
                # aiohttp has more patience, as long as the body goes on.
                self._hand_over(fd, self._received.pop(fd))
            case seats.PARTIAL:
                late = reply.head_late(self._bounds.header_timeout_s)
                self._replies.reply(fd, late, keep_alive=False)
            case seats.PARKED:
                ended = self._parked.take_back(fd)
                if ended is not None:
                    self._replies.time_out(fd, *ended)
            case seats.ASKED:  # for the next chunk of an event stream
                self._seats.leave(fd)
                self._replies.end_stream(fd)
            case seats.CATCHING_UP:
                self._replies.end_stream(fd)

    def listen_to(self, fd: int) -> None:
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
            self._replies.reply(fd, reply.refused(plain.error), keep_alive=plain.keep_alive)
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
                self.listen_to(fd)  # what is more waits in the kernel
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
            self._replies.give(fd, plain, found)
            return
        self._seats.state[fd] = seats.ASKED
        if fd not in self._replies.catching_up:
            self._seats.wait_until(fd, NEVER)  # every read of the upstream ends in time
        self._gatherings.join(fd, plain, offset)

    # --- the desk --------------------------------------------------------------------------------

    def answered(self, fds: Sequence[int], *, keep_alive: bool) -> None:
        """Wait for their next requests, or close."""
        if not keep_alive:
            for fd in fds:
                self.say_goodbye(fd)
            return
        self._seats.rest(fds, self._clock.monotonic_s() + self._bounds.keepalive_timeout_s)
        for fd in fds if self._received else ():
            received = self._received.pop(fd, None)
            if received is None:
                continue
            if len(received) > HEAD_BYTES_MAX:
                self.listen_to(fd)
            try:
                self._receive(fd, received)
            except Exception as error:
                self.break_off(fd, error)

    def say_goodbye(self, fd: int) -> None:
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
        self.listen_to(fd)

    def unsent(self, fd: int, payload: bytes, sent: int, *, keep_alive: bool | None) -> None:
        """Keep the rest of what a live reader got."""
        self._replies.unsent(fd, payload, sent, keep_alive=keep_alive)

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
        self._replies.leave(fd)
        self._received.pop(fd, None)
        os.close(fd)  # the epoll forgets it
        if reason is not None:
            metrics.SLOW_READERS_CLOSED.labels(reason).inc()

    def break_off(self, fd: int, error: Exception) -> None:
        """Close a connection that we failed: nobody else is to suffer for it."""
        _log.error("unexpected error", exc_info=error)
        if self._seats.state[fd] != seats.FREE:
            self.close(fd)

    def swept(self) -> bool:
        """Tell metrics what there is; return whether anything is under way."""
        self._parked.tell()
        metrics.CONNECTIONS.set(self.connections)
        waiting = self._parked.polls or self._parked.streams or self._replies.catching_up
        leaving = self._seats.state.count(seats.LINGERING)
        under_way = self._gatherings or self._writes or self._outbox or self._tasks
        return bool(waiting or leaving or under_way)
