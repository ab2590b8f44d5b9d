"""The read lane: answers plain reads itself, and hands everything else to aiohttp.

A connection is a descriptor in one epoll and a seat in a few arrays: it holds no task, future,
timer, parser or transport, so a waiting reader costs some 30 bytes beside the kernel's socket. An
`asyncio.Protocol` with slots in its place costs 1.3 KB, an awaiting aiohttp handler over 10 KB.
"""

import asyncio
import errno
import logging
import os
import random
import select
import socket
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from edge import seats
from edge.outbox import Outbox
from edge.parked import Group, Parked
from edge.seats import NEVER, Party, Seats
from edge.source import EdgeSource
from edge.tails import Tails
from shared import metrics, wire
from shared.clock import Clock
from shared.plain import HEAD_BYTES_MAX, Plain, is_partial, parse_plain
from shared.protocol import reply, sse
from shared.protocol.caching import CachePolicy
from shared.protocol.chunk import Chunk
from shared.protocol.cursor import next_cursor
from shared.protocol.errors import RequestTimeout, Unavailable
from shared.protocol.reply import Reply
from shared.protocol.request import Live
from shared.reading import LiveTimes
from shared.sockets import BACKLOG
from shared.tasks import background
from shared.web import Listener, failure

_log = logging.getLogger(__name__)

_READ_BYTES: Final = HEAD_BYTES_MAX + 1  # one more than any plain head: what fills it is not plain
# Events in one turn of the loop: 5 ms of requests at most. While many readers are written to, less,
# so that those who were served do not keep the others waiting.
_EVENTS: Final = 256
_EVENTS_WHEN_BUSY: Final = 32
_ACCEPTS: Final = 64  # connections taken in one turn, for the same reason
# How late a deadline may be kept. 56 edges that idle on one machine wake up for it.
_SWEEP_S: Final = 0.25
_SWEEP_WRITES: Final = 256  # in one turn
# A small body leaves in one piece with its head: one copy is cheaper than a second buffer.
_COPY_BYTES: Final = 16 * 1024
# Over the limit, so many more are let in to be told so: to close without having read what they sent
# would reset them, and they would never see the 503.
_TURNED_AWAY_MAX: Final = 128
_TURNED_AWAY_S: Final = 1.0
_LINGER_S: Final = 1.0  # how long a peer may take to close after us (RFC 9112 §9.6)
# Reads for readers at once: enough that an upstream has always more to do. A task for each stream
# whose reader comes, where 20,000 come together, would leave 5 KB of holes for each.
_READS_AT_ONCE: Final = 128
_PATIENCE_S: Final = 30.0  # what has waited longer for its turn is refused: who asked has left
_RETRY_S: Final = (1, 10)  # those who are turned away come back over this long


class _Gathering(Party):
    """Readers who asked for the same chunk before the read of it began."""

    __slots__ = ("asked", "key", "since_s")

    def __init__(self, key: tuple[str, str, bool], since_s: float) -> None:
        super().__init__()
        self.key = key
        self.since_s = since_s
        self.asked: list[Plain] = []  # of the member at the same place


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a lane allows."""

    connections: int  # those that were handed to aiohttp included
    header_timeout_s: float  # from accept, or the first byte of a head, to its end
    keepalive_timeout_s: float  # between two requests


class Lane:
    """The connections of an edge."""

    def __init__(
        self,
        source: EdgeSource,
        tails: Tails,
        listener: Listener,
        prefix: str,
        policy: CachePolicy,
        times: LiveTimes,
        bounds: Bounds,
        clock: Clock,
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
        self._listening: dict[int, socket.socket] = {}
        self._paused: set[int] = set()  # listening sockets that are let rest until the next sweep
        self._seats = Seats()
        self._outbox = Outbox()
        self._parked = Parked(self._seats, self._outbox, self, tails, source, policy, clock)
        self._received: dict[int, bytes] = {}  # what has come of a next request
        self._catching_up: dict[int, tuple[Plain, str]] = {}  # and from which offset on
        self._gatherings: dict[tuple[str, str, bool], _Gathering] = {}  # not begun yet
        self._backlog: deque[_Gathering] = deque()  # of them, in order, all that may begin
        self._reading: set[tuple[str, str, bool]] = set()  # keys of those that have begun
        self._tasks: set[asyncio.Task[None]] = set()
        self._turned_away: set[int] = set()
        self._leave_by_s = NEVER  # once draining: nobody waits any longer
        self._idle = asyncio.Event()

    # --- life ------------------------------------------------------------------------------------

    @property
    def connections(self) -> int:
        """How many are open, those of aiohttp included."""
        return self._seats.taken + self._listener.connections

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
            self._backlog.clear()
            self._gatherings.clear()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for fd, state in enumerate(self._seats.state):
                if state != seats.FREE:
                    self.close(fd)
            for listening in self._listening.values():
                listening.close()
            self._epoll.close()

    def listen(self, sock: socket.socket) -> None:
        """Take connections from a socket that is bound and listens; it is closed at the end."""
        sock.setblocking(False)
        self._listening[sock.fileno()] = sock
        self._epoll.register(sock.fileno(), select.EPOLLIN)

    def release(self, window_s: float) -> None:
        """Let everyone who waits go within a window, spread out, so that they do not all return at
        once."""
        now_s = self._clock.monotonic_s()
        self._leave_by_s = now_s + window_s
        self._parked.draining = True
        for fd, state in enumerate(self._seats.state):
            if state in (seats.PARKED, seats.CATCHING_UP):
                self._seats.wait_until(fd, self._due(now_s, self._seats.due_s[fd] - now_s))

    async def drain(self, window_s: float) -> None:
        """Return once nobody waits any more, at most after window_s."""
        self._idle.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(window_s):
                await self._idle.wait()
                if self._listen_no_more():
                    self._idle.clear()
                    await self._idle.wait()

    def _listen_no_more(self) -> bool:
        """Take those who are connected already, and nobody after them; return whether there were
        any.

        Whoever comes from now on is refused at once, and goes elsewhere. Taken and then cut off
        when we end, a client would see its reply break off.
        """
        before = self._seats.taken
        for listening in self._listening.values():
            for _ in range(BACKLOG // _ACCEPTS + 1):  # else a crowd would hold us up for ever
                if not self._accept(listening):
                    break
            listening.close()  # the epoll forgets it
        self._listening.clear()
        self._paused.clear()
        return self._seats.taken > before

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
            if fd in self._listening:
                self._accept(self._listening[fd])
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

    def _accept(self, listening: socket.socket) -> bool:
        """Take some of those who connect; return whether there may be more."""
        due_s = self._clock.monotonic_s() + self._bounds.header_timeout_s
        for _ in range(_ACCEPTS):
            full = self.connections >= self._bounds.connections
            if full and len(self._turned_away) >= _TURNED_AWAY_MAX:
                self._pause(listening)
                return False
            try:
                sock, _ = listening.accept()
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno == errno.ECONNABORTED:
                    continue
                # No descriptor or memory is left: whoever waits goes on waiting, and so do we.
                _log.warning("cannot accept: error=%s", error.strerror)
                self._pause(listening)
                return False
            fd = sock.detach()
            os.set_blocking(fd, False)
            if full:
                self._turned_away.add(fd)
                self._seats.take(fd, seats.TURNED_AWAY, self._clock.monotonic_s() + _TURNED_AWAY_S)
            else:
                self._seats.take(fd, seats.HEAD, due_s)
            self._epoll.register(fd, select.EPOLLIN)
        return True

    def _pause(self, listening: socket.socket) -> None:
        """Accept no more before the next sweep: to try again at once would only spin."""
        self._paused.add(listening.fileno())
        self._epoll.modify(listening.fileno(), 0)

    def _readable(self, fd: int) -> None:
        try:
            data = os.read(fd, _READ_BYTES)
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
        if self._seats.state[fd] != seats.FREE:
            self._listen_to(fd)

    def _listen_to(self, fd: int) -> None:
        """Ask for the events that a connection needs now."""
        state = self._seats.state[fd]
        more = state != seats.DEAF and len(self._received.get(fd, b"")) <= HEAD_BYTES_MAX
        rest = fd in self._outbox or state == seats.CATCHING_UP
        self._epoll.modify(fd, select.EPOLLIN * more | select.EPOLLOUT * rest)

    # --- requests --------------------------------------------------------------------------------

    def _receive(self, fd: int, received: bytes) -> None:
        """Take the bytes of a next request."""
        plain = parse_plain(received, self._prefix)
        if isinstance(plain, Plain):
            self._ask(fd, plain, plain.asked.offset)
        elif plain is not None:
            self._reply(fd, reply.refused(plain.error), keep_alive=plain.keep_alive)
        elif not is_partial(received):
            self._hand_over(fd, received)
        else:
            self._received[fd] = received
            if self._seats.state[fd] == seats.HEAD:
                self._seats.state[fd] = seats.PARTIAL
                self._seats.wait_until(
                    fd, self._clock.monotonic_s() + self._bounds.header_timeout_s
                )

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
        live = plain.asked.live is not None
        found = self._source.found(plain.path, offset, live=live)
        if found is not None:
            self._give(fd, plain, found)
            return
        key = (plain.path, offset, live)
        gathering = self._gatherings.get(key)
        if gathering is None:
            gathering = self._gatherings[key] = _Gathering(key, self._clock.monotonic_s())
            if key not in self._reading:  # else it begins when that ends
                self._backlog.append(gathering)
                self._read_next()
        if gathering.asked or key in self._reading:
            metrics.COALESCED.inc()
        self._seats.state[fd] = seats.ASKED
        if fd not in self._catching_up:
            self._seats.wait_until(fd, NEVER)  # every read of the upstream ends in time
        self._seats.join(fd, gathering)
        gathering.asked.append(plain)

    def _read_next(self) -> None:
        while self._backlog and len(self._reading) < _READS_AT_ONCE:
            gathering = self._backlog.popleft()
            self._reading.add(gathering.key)
            self._spawn(self._gather(gathering))

    async def _gather(self, gathering: _Gathering) -> None:
        # Whoever comes from now on may know of more than this read finds.
        del self._gatherings[gathering.key]
        path, offset, live = gathering.key
        chunk: Chunk | None = None
        try:
            if self._clock.monotonic_s() - gathering.since_s > _PATIENCE_S:
                raise Unavailable("too many reads of the upstream are under way")
            if gathering.count:
                read = self._source.join if live else self._source.read
                chunk = await read(path, offset)
        except Exception as error:
            refusal = failure(error)
        finally:
            self._reading.discard(gathering.key)
            following = self._gatherings.get(gathering.key)
            if following is not None:
                self._backlog.append(following)
            self._read_next()
        for given, (place, fd) in enumerate(self._seats.places(gathering), 1):
            plain = gathering.asked[place]
            self._seats.leave(fd)
            try:
                if chunk is not None:
                    self._give(fd, plain, chunk)
                elif fd in self._catching_up:
                    self._end_stream(fd)
                else:
                    self._reply(fd, refusal, keep_alive=plain.keep_alive)
            except Exception as error:
                self._break_off(fd, error)
            if given % _SWEEP_WRITES == 0:
                await asyncio.sleep(0)

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
            outcome = reply.read(asked, chunk, self._policy, self._clock.now_ms())
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

    def _stream(self, fd: int, plain: Plain, chunk: Chunk) -> None:
        """Send one step of an event stream; it goes on when its reader has it."""
        now_s, now_ms = self._clock.monotonic_s(), self._clock.now_ms()
        events = sse.encode_events(chunk, next_cursor(now_ms, plain.asked.cursor))
        step = wire.encode_frame(events)
        if self._catching_up.pop(fd, None) is None:
            metrics.count_requests("GET", 200)
            head = wire.encode_stream_head(reply.event_stream(chunk, self._policy), now_ms)
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
        self.answered(fd, keep_alive=self._seats.state[fd] == seats.SENDING)

    # --- the desk of those who are parked --------------------------------------------------------

    def answered(self, fd: int, *, keep_alive: bool) -> None:
        """Wait for the next request, or close."""
        if not keep_alive:
            self._say_goodbye(fd)
            return
        self._seats.state[fd] = seats.HEAD
        self._seats.wait_until(fd, self._clock.monotonic_s() + self._bounds.keepalive_timeout_s)
        received = self._received.pop(fd, None) if self._received else None
        if received is not None:
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
        self._turned_away.discard(fd)
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
            for listening in self._paused:
                self._epoll.modify(listening, select.EPOLLIN)
            self._paused.clear()
            now_s = self._clock.monotonic_s()
            if now_s >= self._leave_by_s:
                if self._listening:
                    self._listen_no_more()
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
            if not (under_way or self._gatherings or self._tasks):
                self._idle.set()

    def _expire(self, fd: int) -> None:
        match self._seats.state[fd]:
            case seats.HEAD | seats.TURNED_AWAY | seats.LINGERING:
                self.close(fd)
            case seats.PARTIAL:
                waited = f"no whole request within {self._bounds.header_timeout_s:g} s"
                self._reply(fd, reply.refused(RequestTimeout(waited)), keep_alive=False)
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
        outcome = reply.read(plain.asked, chunk, self._policy, self._clock.now_ms())
        self._reply(fd, outcome, keep_alive=plain.keep_alive)

    async def _send_heartbeats_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._times.heartbeat_s / 4)
            await self._parked.send_heartbeats(self._times.heartbeat_s)
