"""The lane in front of aiohttp: answers complete small appends and hot reads, and hands over every
other connection with each byte intact.

aiohttp spends 28 µs on a request and its reply. Here a writer costs no task, future or request
object: its append is decided as it arrives, and answered by the commit that made it durable.
Requests may be pipelined, as edges do that relay for many writers; answers keep their order.
"""

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final, cast

from origin.commit import Committer
from origin.reads import Reads
from origin.streams import Streams
from shared import metrics, wire
from shared.clock import Clock
from shared.plain import Plain, PlainAppend, Refusal, is_partial, parse_head
from shared.protocol import reply
from shared.protocol.append import Accepted, Append, Unchanged
from shared.protocol.caching import CachePolicy
from shared.protocol.errors import RequestTimeout, Unavailable
from shared.protocol.reply import Reply
from shared.sockets import BACKLOG
from shared.tasks import wait_while
from shared.web import REST_S, Listener, failure

_END: Final = b"\r\n\r\n"
# Any number of bodies up to this size may be here before they are whole, ...
BODY_BYTES_MAX: Final = 64 * 1024
# ... and larger ones while there are not too many of them: aiohttp takes each of their pieces
# through a queue and a task, and adds as much as an append of 100 KB costs otherwise.
_LARGE_BYTES_MAX: Final = 1024 * 1024
_LARGE_BYTES_HELD: Final = 64 * 1024 * 1024  # of all together: as much as may wait for the disk
_SILENCE_S: Final = 30.0  # a large body may take its time, but it has to go on, as with aiohttp
# Answers that one connection may wait for: more than an edge has writers under way, and a client
# that never reads costs a few 100 KB.
_PIPELINED_MAX: Final = 1024
_SWEEP_S: Final = 1.0


class _Answer:
    """The place of an answer in the order of its connection."""

    __slots__ = ("data", "keep_alive")

    def __init__(self, *, keep_alive: bool) -> None:
        self.keep_alive = keep_alive
        self.data: bytes | None = None  # None until it is known


class Lane:
    """The connections of an origin."""

    def __init__(
        self,
        streams: Streams,
        reads: Reads,
        committer: Committer,
        listener: Listener,
        prefix: str,
        policy: CachePolicy,
        clock: Clock,
        *,
        body_bytes_max: int,
        header_timeout_s: float,
        keepalive_timeout_s: float,
    ) -> None:
        """
        Args:
            listener: gets every connection whose request the lane does not answer.
        """
        self.streams = streams
        self.reads = reads
        self.committer = committer
        self.listener = listener
        self.prefix = prefix
        self.held_bytes = 0  # of large bodies that were waited for, as their heads tell
        self._body_bytes_max = min(body_bytes_max, _LARGE_BYTES_MAX)
        self.draining = False
        self._policy = policy
        self._clock = clock
        self._header_timeout_s = header_timeout_s
        self._keepalive_timeout_s = keepalive_timeout_s
        self._open: set[Connection] = set()
        self._ready: list[Connection] = []  # have answers to send, at the end of this turn
        self._tasks: set[asyncio.Task[None]] = set()
        self._listening: list[tuple[socket.socket, asyncio.Server]] = []

    async def listen(self, sock: socket.socket) -> None:
        """Take connections from a socket that is bound and listens; it is closed by `drain`."""
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        create = loop.create_unix_server if sock.family == socket.AF_UNIX else loop.create_server
        server = await create(self.connection, sock=sock, backlog=BACKLOG)
        self._listening.append((sock, server))

    def connection(self) -> "Connection":
        """Return a new connection: the factory of listening sockets."""
        return Connection(self)

    def opened(self, connection: "Connection") -> None:
        self._open.add(connection)

    def left(self, connection: "Connection") -> None:
        self._open.discard(connection)

    def takes(self, size: int, missing: int) -> bool:
        """Tell whether a body is for the lane.

        Args:
            missing: bytes of it that have not come yet.
        """
        if size > self._body_bytes_max:
            return False
        if size <= BODY_BYTES_MAX:
            return True
        if missing and self.held_bytes + size > _LARGE_BYTES_HELD:
            return False
        try:
            self.streams.check_room()
        except Unavailable:
            return False  # the handlers say so at once, before they take any more of it
        return True

    def ready(self, connection: "Connection") -> None:
        """Send what a connection has to send once this turn's answers are all known."""
        if not self._ready:
            asyncio.get_running_loop().call_soon(self._send)
        self._ready.append(connection)

    def encode(self, outcome: Reply, *, keep_alive: bool) -> bytes:
        """Return a reply as bytes."""
        return wire.encode_reply(outcome, self._clock.now_ms(), keep_alive=keep_alive)

    def respond(self, plain: Plain) -> Reply | None:
        """Return the reply to a read if it is hot, or None."""
        chunk = self.reads.found(plain.path, plain.asked.offset)
        if chunk is None:
            return None
        return reply.read(plain.path, plain.asked, chunk, self._policy, self._clock.now_ms())

    def read(self, plain: Plain, done: Callable[[Reply], None]) -> None:
        """Read what is not hot."""
        task = asyncio.create_task(self._read(plain, done))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def sweep(self) -> None:
        """Close connections that idle, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_SWEEP_S)
            now_s = loop.time()
            for connection in list(self._open):
                connection.expire(now_s, self._header_timeout_s, self._keepalive_timeout_s)

    async def drain(self, window_s: float) -> None:
        """Let nobody in any more, and end each connection with a reply that says so, at most for
        window_s.

        What was written to a connection that closes without a word leaves its writer in doubt. So
        those that are used get that reply, and only those that idle do not.
        """
        await self._shut()
        self.draining = True
        rest_s = min(REST_S, window_s)
        await wait_while(lambda: bool(self._open), rest_s)
        await wait_while(self._close_idle, window_s - rest_s)
        for task in self._tasks:
            task.cancel()
        for connection in list(self._open):
            connection.close()

    def _close_idle(self) -> bool:
        """Close what idles; return whether anything is left."""
        for connection in list(self._open):
            connection.close_if_idle()
        return bool(self._open)

    async def _shut(self) -> None:
        """Let in those who are connected already, and nobody after them: to close before would
        reset who waits to be accepted, with what they have sent."""
        loop = asyncio.get_running_loop()
        for sock, server in self._listening:
            with suppress(OSError):  # there is nobody, or no descriptor is left
                for _ in range(BACKLOG):  # else a crowd would hold us up for ever
                    accepted, _ = sock.accept()
                    accepted.setblocking(False)
                    await loop.connect_accepted_socket(self.connection, accepted)
            server.close()

    async def _read(self, plain: Plain, done: Callable[[Reply], None]) -> None:
        try:
            chunk = await self.reads.read(plain.path, plain.asked.offset)
            outcome = reply.read(plain.path, plain.asked, chunk, self._policy, self._clock.now_ms())
        except Exception as error:
            outcome = failure(error)
        done(outcome)

    def _send(self) -> None:
        ready, self._ready = self._ready, []
        for connection in ready:
            connection.send()


class Connection(asyncio.Protocol):
    """One connection, until it closes or is handed over."""

    __slots__ = (
        "_answers",
        "_closing",
        "_held",
        "_lane",
        "_large",
        "_missing",
        "_more",
        "_partial",
        "_queued",
        "_reading",
        "_received",
        "_since_s",
        "_stopped",
        "_transport",
    )

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._transport: asyncio.Transport | None = None
        self._received = b""  # what no answer was begun for
        self._missing = 0  # bytes, until the append is whole with which that begins, ...
        self._more = bytearray()  # ... and what has come of them
        self._large = 0  # bytes of its body, if that is large and was waited for
        self._answers: deque[_Answer] = deque()
        self._queued = False  # to be sent at the end of this turn
        self._reading = False  # a read that is not hot is under way: what follows it waits
        self._held = False  # what has come waits until all answers are out
        self._stopped = False  # the peer does not take its answers: no more are made
        self._closing = False  # nothing more is taken in
        self._partial = False  # some of a request is here
        self._since_s = 0.0  # it is, or the connection idles

    # --- what asyncio tells ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none by name
        self._since_s = asyncio.get_running_loop().time()
        self._lane.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._answers.clear()
        self._received = b""
        self._more = bytearray()
        self._let_go()
        self._lane.left(self)

    def data_received(self, data: bytes) -> None:
        if self._missing:
            # Into one buffer: to join what is there with each piece would copy all of it each time.
            self._more += data
            if len(self._more) < self._missing:
                if self._large:
                    self._since_s = asyncio.get_running_loop().time()
                return
            self._received += self._more
            self._missing, self._more = 0, bytearray()
        else:
            self._received = self._received + data if self._received else data
        if not self._is_blocked():
            self._take()

    def pause_writing(self) -> None:
        self._stopped = True

    def resume_writing(self) -> None:
        self._stopped = False
        self._go_on()

    # --- requests --------------------------------------------------------------------------------

    def _is_blocked(self) -> bool:
        """Tell whether what has come must wait; the transport stops reading then."""
        blocked = (
            self._reading
            or self._held
            or self._stopped
            or self._closing
            or len(self._answers) >= _PIPELINED_MAX
        )
        if blocked and self._transport is not None:
            self._transport.pause_reading()
        return blocked

    def _go_on(self) -> None:
        """Take what waited, if it may be taken now."""
        if self._transport is None or self._is_blocked():
            return
        self._transport.resume_reading()
        if self._received and not self._missing:
            self._take()

    def _take(self) -> None:
        """Answer the requests that have arrived whole."""
        lane, data, at = self._lane, self._received, 0
        self._received = b""
        while at < len(data) and not self._is_blocked():
            end = data.find(_END, at) + len(_END)
            if end < len(_END):
                if is_partial(data[at:]):
                    break
                end = len(data)  # no head of ours
            found = parse_head(data[at:end], lane.prefix)
            size = found.size if isinstance(found, PlainAppend | Refusal) else 0
            missing = max(0, end + size - len(data))
            live = isinstance(found, Plain) and found.asked.live is not None
            others = found is None or live or not lane.takes(size, missing)
            if self._answers and (others or isinstance(found, Plain)):
                self._held = True  # a read sees what was written before it, as does aiohttp's
                self._is_blocked()
                break
            if found is None or others:
                self._hand_over(data[at:])
                return
            if missing:
                self._wait_for(missing, size)
                break
            at = end + size
            self._answer(found, data[end:at])
            if self._large:
                self._let_go()
        self._received = data[at:]
        self._note_rest()

    def _wait_for(self, missing: int, size: int) -> None:
        """Look at nothing before the rest of a body is here."""
        self._missing = missing
        if size > BODY_BYTES_MAX:
            self._large = size
            self._lane.held_bytes += size
            self._since_s = asyncio.get_running_loop().time()

    def _let_go(self) -> None:
        """Hold no large body any more: its append is decided, or never will be."""
        self._lane.held_bytes -= self._large
        self._large = 0

    def _note_rest(self) -> None:
        partial = bool(self._received)
        if partial and not self._partial:
            self._since_s = asyncio.get_running_loop().time()
        self._partial = partial

    def _hand_over(self, rest: bytes) -> None:
        """Let aiohttp have the connection, with every byte that is not answered."""
        transport = self._transport
        assert transport is not None
        self._transport = None
        self._let_go()
        self._lane.left(self)
        connection = self._lane.listener.adopt(rest)
        transport.set_protocol(connection)
        transport.resume_reading()
        connection.connection_made(transport)
        connection.hold_back()

    def _answer(self, found: Plain | PlainAppend | Refusal, body: bytes) -> None:
        answer = _Answer(keep_alive=found.keep_alive and not self._lane.draining)
        self._answers.append(answer)
        if not answer.keep_alive:
            self._closing = True
        match found:
            case PlainAppend():
                self._append(answer, found.path, found.asked.with_body(body))
            case Plain():
                self._read(answer, found)
            case Refusal():
                self._fill(answer, found.method, reply.refused(found.error))

    def _append(self, answer: _Answer, path: str, asked: Append) -> None:
        decided: Accepted | Unchanged | Exception
        try:
            decided = self._lane.streams.decide(path, asked)
        except Exception as error:
            decided = error
        # Refusals too: what they were decided against may never be durable.
        self._lane.committer.when_settled(partial(self._settled, answer, asked, decided))

    def _settled(
        self,
        answer: _Answer,
        asked: Append,
        decided: Accepted | Unchanged | Exception,
        error: Unavailable | None,
    ) -> None:
        if error is not None:
            decided = error
        if isinstance(decided, Exception):
            self._fill(answer, "POST", failure(decided))
        else:
            self._fill(answer, "POST", reply.appended(asked, decided))

    def _read(self, answer: _Answer, plain: Plain) -> None:
        metrics.ORIGIN_READS.labels("catch-up").inc()
        outcome = self._lane.respond(plain)
        if outcome is not None:
            self._fill(answer, "GET", outcome)
            return
        self._reading = True
        self._lane.read(plain, partial(self._has_read, answer))

    def _has_read(self, answer: _Answer, outcome: Reply) -> None:
        self._reading = False
        self._fill(answer, "GET", outcome)

    # --- answers ---------------------------------------------------------------------------------

    def _fill(self, answer: _Answer, method: str, outcome: Reply) -> None:
        """Put a reply in its place; all that are ready in order leave together, this turn."""
        metrics.count_requests(method, outcome.status)
        answer.data = self._lane.encode(outcome, keep_alive=answer.keep_alive)
        if not self._queued and self._transport is not None:
            self._queued = True
            self._lane.ready(self)

    def send(self) -> None:
        """Send the answers that are next in order and known."""
        self._queued = False
        transport, answers = self._transport, self._answers
        if transport is None:
            return
        parts = []
        while answers and (data := answers[0].data) is not None:
            last = answers.popleft()
            parts.append(data)
            if not last.keep_alive:
                transport.write(b"".join(parts))
                transport.close()
                return
        if parts:
            transport.write(parts[0] if len(parts) == 1 else b"".join(parts))
        if not answers:
            self._held = False
            self._since_s = asyncio.get_running_loop().time()
        self._go_on()

    # --- ends ------------------------------------------------------------------------------------

    def expire(self, now_s: float, header_timeout_s: float, keepalive_timeout_s: float) -> None:
        """Close if the peer has sent nothing, or no whole request, for too long."""
        if self._transport is None or self._answers:
            return
        waited_s = now_s - self._since_s
        if self._large:
            if waited_s > _SILENCE_S:
                late = RequestTimeout(f"no more of the body within {_SILENCE_S:g} s")
                self._give_up("POST", reply.refused(late))
        elif self._partial:
            if waited_s > header_timeout_s:
                self._give_up("other", reply.head_late(header_timeout_s))
        elif waited_s > keepalive_timeout_s:
            self._transport.close()

    def _give_up(self, method: str, outcome: Reply) -> None:
        """Tell that what was begun has not come to its end in time, and close."""
        assert self._transport is not None
        metrics.count_requests(method, outcome.status)
        self._transport.write(self._lane.encode(outcome, keep_alive=False))
        self._transport.close()

    def close_if_idle(self) -> None:
        """End the connection if nothing of a request is here, and no answer is owed."""
        if not self._answers and not self._received:
            self.close()

    def close(self) -> None:
        """End the connection; what was written to it is still sent."""
        if self._transport is not None:
            self._transport.close()
