"""Writes: small appends that are passed on over lines, and their replies, in order, passed back.

A writer costs no task, future or request object: a place in a queue while its append is under way.
What is passed on is rendered anew, so that one request from a client is one at the upstream.
"""

import asyncio
from collections import deque
from functools import partial
from typing import Final, Protocol

from edge.lines import Lines
from shared import metrics, wire
from shared.clock import Clock
from shared.plain import Passable, parse_passable
from shared.protocol.errors import Unavailable
from shared.web import failure

# Larger bodies cost aiohttp little by comparison.
BODY_BYTES_MAX: Final = 64 * 1024
# Of one connection: as many as an origin takes. An edge behind this one has that many writers.
_UNDER_WAY_MAX: Final = 1024
_END: Final = b"\r\n\r\n"
_RELAYED: Final = metrics.RELAYED.labels("POST")  # to look it up costs as much as to count


class Desk(Protocol):
    """Where appends come from, and their replies go to."""

    def passed_back(self, fd: int, replies: bytes, *, last: bool, keep_alive: bool) -> None:
        """There are replies for a connection; `last`: nothing more of it is under way."""
        ...


class _Write:
    """The place of a reply in the order of its connection."""

    __slots__ = ("keep_alive", "reply")

    def __init__(self, *, keep_alive: bool) -> None:
        self.keep_alive = keep_alive
        self.reply: bytes | None = None  # None until it is known


_Queue = deque[_Write]


class Writes:
    """The appends of all connections that are under way."""

    def __init__(
        self, lines: Lines, desk: Desk, prefix: str, clock: Clock, body_bytes_max: int
    ) -> None:
        self.draining = False  # connections are not kept for another request
        self._lines = lines
        self._desk = desk
        self._prefix = prefix
        self._clock = clock
        self._body_bytes_max = min(body_bytes_max, BODY_BYTES_MAX)
        self._queues: dict[int, _Queue] = {}  # of connections that have any under way
        self._ready: dict[int, _Queue] = {}  # of them, those with replies to send after this turn

    def __contains__(self, fd: int) -> bool:
        return fd in self._queues

    def __len__(self) -> int:
        return len(self._queues)

    def take(self, fd: int, received: bytes) -> bytes:
        """Pass on the appends that have come whole, up to the first request that is something else;
        return what follows them."""
        queue = self._queues.get(fd, ())
        while len(queue) < _UNDER_WAY_MAX:
            if queue and not queue[-1].keep_alive:
                return b""  # nothing counts after a last
            found = self._head(received)
            if found is None:
                break
            append, head_end = found
            end = head_end + append.size
            if len(received) < end:
                break
            queue = self._pass_on(fd, append, received[head_end:end])
            received = received[end:]
        return received

    def is_begun(self, received: bytes) -> bool:
        """Tell whether an append has begun to come, of which only some of the body is missing."""
        return self._head(received) is not None

    def leave(self, fd: int) -> None:
        """Forget a connection: what it has under way goes on, and nobody hears of it."""
        self._queues.pop(fd, None)
        self._ready.pop(fd, None)

    def _head(self, received: bytes) -> tuple[Passable, int] | None:
        """Return the append whose head is here, and where its body begins."""
        if not received.startswith(b"POST ") or not self._lines.usable:
            return None
        end = received.find(_END) + len(_END)
        if end < len(_END):
            return None
        append = parse_passable(received[:end], self._prefix)
        return (append, end) if append is not None and append.size <= self._body_bytes_max else None

    def _pass_on(self, fd: int, append: Passable, body: bytes) -> _Queue:
        _RELAYED.inc()
        queue = self._queues.get(fd)
        if queue is None:
            queue = self._queues[fd] = deque()
        write = _Write(keep_alive=append.keep_alive)
        queue.append(write)
        answer = partial(self._answered, fd, queue, write)
        try:
            self._lines.send(append.head + body, fd, answer)
        except Unavailable as error:
            asyncio.get_running_loop().call_soon(answer, error)
        return queue

    def _answered(self, fd: int, queue: _Queue, write: _Write, said: bytes | Exception) -> None:
        if self._queues.get(fd) is not queue:
            return  # who asked has left, and the descriptor may be another's by now
        write.reply = self._encode(said) if isinstance(said, Exception) else said
        if queue[0] is not write or fd in self._ready:
            return
        if len(queue) == 1:
            self._send(fd, queue)
        else:
            if not self._ready:
                asyncio.get_running_loop().call_soon(self._send_ready)
            self._ready[fd] = queue

    def _encode(self, error: Exception) -> bytes:
        return wire.encode_reply(failure(error), self._clock.now_ms(), keep_alive=True)

    def _send_ready(self) -> None:
        while self._ready:
            self._send(*self._ready.popitem())

    def _send(self, fd: int, queue: _Queue) -> None:
        """Send the replies that are next in order and known."""
        replies: list[bytes] = []
        keep_alive = True
        while queue and (reply := queue[0].reply) is not None:
            metrics.count_requests("POST", int(reply[9:12]))  # as `HTTP/1.1 204 No Content`
            keep_alive = queue.popleft().keep_alive and not (self.draining and not queue)
            replies.append(reply if keep_alive else _closing(reply))
        if not queue:
            del self._queues[fd]
        data = replies[0] if len(replies) == 1 else b"".join(replies)
        self._desk.passed_back(fd, data, last=not queue, keep_alive=keep_alive)


def _closing(reply: bytes) -> bytes:
    """Return a reply that says that it is the last of its connection."""
    status_line, _, rest = reply.partition(b"\r\n")
    return status_line + b"\r\nConnection: close\r\n" + rest
