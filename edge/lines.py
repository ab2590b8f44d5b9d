"""Lines: small writes of many clients on few connections to the upstream, pipelined.

An HTTP client with a connection a request costs an edge 140 µs a write. Here requests that come in
one turn of the loop leave in one write, their replies come back in order, and are passed on as
they are. So it is only for an upstream that is known to be another Headwater.
"""

import asyncio
import re
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol, cast

from edge.getter import IDLE_S
from edge.upstream import outcome_unknown
from shared.protocol.errors import Unavailable

Answer = Callable[[bytes | Exception], None]


class Peer(Protocol):
    """The upstream, as far as lines need it."""

    @property
    def is_headwater(self) -> bool:
        """Whether it is known to be another Headwater, with nothing in between."""
        ...

    async def connect(self, factory: Callable[[], asyncio.Protocol]) -> object:
        """Connect a new protocol to it."""
        ...


# One that breaks takes what is under way on it along; more would make each batch smaller.
_LINES: Final = 2
# Of requests that are not answered, on one line: a second of what an origin makes durable.
_BYTES_MAX: Final = 8 * 1024 * 1024
_HEAD_BYTES_MAX: Final = 16 * 1024
_REPLY_BYTES_MAX: Final = 1024 * 1024  # of an append: its offset, or a refusal
_END: Final = b"\r\n\r\n"
_CLOSE: Final = b"\r\nConnection: close\r\n"  # as every Headwater spells it
_STATUS: Final = re.compile(rb"HTTP/1\.1 ([2-5][0-9]{2}) ")
_LENGTH: Final = re.compile(rb"\r\nContent-Length: ([0-9]{1,7})\r\n", re.IGNORECASE)


class Lines:
    """The connections that small writes share."""

    def __init__(self, upstream: Peer, timeout_s: float) -> None:
        """
        Args:
            timeout_s: how long the upstream may take to connect, and to answer.
        """
        self._upstream = upstream
        self._timeout_s = timeout_s
        self._lines = [_Line() for _ in range(_LINES)]
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def usable(self) -> bool:
        """Whether requests may be sent. Once a reply made no sense, none are: something is in
        between after all, and each would be in doubt."""
        misled = any(line.misled for line in self._lines)
        return self._upstream.is_headwater and not misled and not self._closed

    def send(self, request: bytes, sender: int, answer: Answer) -> None:
        """Send a request behind all those of the same sender.

        Args:
            request: whole, and of a kind that is answered with a length.
            answer: called once, later, with the whole reply or an error; must not raise.

        Raises:
            Unavailable: too much is under way. Nothing was sent.
        """
        number = sender % _LINES
        line = self._lines[number]
        if line.waiting_bytes + len(request) > _BYTES_MAX:
            raise Unavailable("too many writes wait for the upstream")
        if line.over:
            line = self._lines[number] = _Line()
        if not line.begun:
            line.begun = True
            task = asyncio.create_task(self._open(line))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        line.add(request, answer)

    def expire(self) -> None:
        """Give up lines that were not answered for too long, and those that idle; to be called
        about once a second."""
        now_s = asyncio.get_running_loop().time()
        for line in self._lines:
            line.expire(now_s, self._timeout_s)

    def close(self) -> None:
        """Close all lines; whoever waits is told what is known of their request."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        for line in self._lines:
            line.fail("this edge is stopping")

    async def _open(self, line: "_Line") -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._upstream.connect(lambda: line)
        except (OSError, TimeoutError) as error:
            line.fail(str(error) or "no connection in time")


class _Line(asyncio.Protocol):
    """One connection, from before it is opened until it is given up."""

    def __init__(self) -> None:
        self.begun = False  # it is open, or about to be
        self.over = False
        self.misled = False  # by what is at the other end
        self.waiting_bytes = 0
        self._transport: asyncio.Transport | None = None
        self._unsent: list[bytes] = []
        self._answers: deque[tuple[Answer, int, float]] = deque()  # bytes, and since when
        self._received = b""
        self._active_s = 0.0

    def add(self, request: bytes, answer: Answer) -> None:
        loop = asyncio.get_running_loop()
        self._active_s = loop.time()
        self.waiting_bytes += len(request)
        self._answers.append((answer, len(request), self._active_s))
        if not self._unsent and self._transport is not None:
            loop.call_soon(self._flush)  # with what else this turn brings
        self._unsent.append(request)

    def expire(self, now_s: float, timeout_s: float) -> None:
        if self._answers and now_s - self._answers[0][2] > timeout_s:
            self.fail(f"no answer within {timeout_s:g} s")
        elif self.begun and not self._answers and now_s - self._active_s > IDLE_S:
            self.fail("closed")  # nobody waits

    def fail(self, reason: str, *, ignored: bool = False) -> None:
        """Close, and tell everyone who waits.

        Args:
            ignored: the upstream has said that it has not looked at what is not answered.
        """
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
        self.over = True
        self._received = b""
        self.waiting_bytes = 0
        answers, self._answers = self._answers, deque()
        in_doubt = 0 if ignored else len(answers) - len(self._unsent)
        self._unsent.clear()
        for number, (answer, _, _) in enumerate(answers):
            if number < in_doubt:
                answer(outcome_unknown(reason))
            else:
                answer(Unavailable(f"the upstream cannot be reached: {reason}"))

    # --- what asyncio tells ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self.over:
            cast(asyncio.Transport, transport).abort()
            return
        self._transport = cast(asyncio.Transport, transport)
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:  # else it was given up before
            self.fail(str(exc or "the connection was closed"))

    def data_received(self, data: bytes) -> None:
        data = self._received + data if self._received else data
        at = 0
        while self._answers:
            try:
                head_end, end = _find_reply(data, at)
            except ValueError:
                self.misled = True
                self.fail("the reply makes no sense")
                return
            if not end:
                break
            answer, size, _ = self._answers.popleft()
            self.waiting_bytes -= size
            closing = data.find(_CLOSE, at, head_end)
            if closing >= 0:
                # That is said of this connection, and whatever came after it is not looked at (RFC
                # 9112 §9.6).
                answer(data[at:closing] + data[closing + len(_CLOSE) - 2 : end])
                self.fail("it closes this connection", ignored=True)
                return
            answer(data[at:end])
            at = end
        self._received = data[at:]
        if self._received and not self._answers:
            self.fail("a reply to nothing")

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        if unsent and self._transport is not None:
            self._transport.write(unsent[0] if len(unsent) == 1 else b"".join(unsent))


def _find_reply(data: bytes, at: int) -> tuple[int, int]:
    """Return where the head of the reply that begins at `at` ends, and where all of it does; 0: it
    is not here yet.

    Raises:
        ValueError: it is no reply of the kind that is expected.
    """
    head_end = data.find(_END, at)
    if head_end < 0:
        if len(data) - at > _HEAD_BYTES_MAX:
            raise ValueError
        return 0, 0
    status = _STATUS.match(data, at)
    if status is None:
        raise ValueError
    end = head_end = head_end + len(_END)
    if status[1] not in (b"204", b"304"):
        length = _LENGTH.search(data, at, end)
        if length is None or int(length[1]) > _REPLY_BYTES_MAX:
            raise ValueError
        end += int(length[1])
    return head_end, end if len(data) >= end else 0
