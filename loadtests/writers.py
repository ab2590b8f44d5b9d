"""A client process that appends: each connection when its last is answered, or all at a rate."""

from __future__ import annotations

import os
import select
import socket
import time
from array import array
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from loadtests.client import HEAD_END, READ_BYTES, Target, parse_reply
from loadtests.crew import Pipe
from loadtests.ledger import Sent
from loadtests.message import Shape, sign

GO: Final = "go"
_DRAIN_S: Final = 30.0  # how long answers may be late after the last append was sent
_SPIN_S: Final = 0.001
_NO_CONTENT: Final = b"HTTP/1.1 204"


@dataclass(frozen=True, slots=True)
class WriteOrder:
    """What one client process does."""

    url: str
    paths: tuple[str, ...]
    connections: tuple[int, ...]  # the numbers of this process's connections
    connections_total: int  # over all processes
    shape: Shape
    seconds: float
    per_s: float = 0.0  # appends of this process; 0: each connection sends when it is answered

    def streams_of(self, connection: int) -> Sequence[int]:
        """Return the streams to which a connection appends in turn; together they cover all."""
        if connection >= len(self.paths):
            return (connection % len(self.paths),)
        return range(connection, len(self.paths), self.connections_total)


@dataclass(frozen=True, slots=True)
class Ready:
    """Every connection is open."""


@dataclass(slots=True)
class WriteReport:
    """What one client process saw. Times are seconds on the monotonic clock, latencies seconds."""

    began: float = 0.0
    ended: float = 0.0
    cpu_s: float = 0.0
    latencies_s: array[float] = field(default_factory=lambda: array("d"))
    # By stream, then by connection.
    sent: dict[int, dict[int, Sent]] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)


class _Writer:
    """One connection: the streams it appends to in turn, and the append that is on its way."""

    __slots__ = (
        "blocked",
        "heads",
        "number",
        "received",
        "sent",
        "sent_at",
        "sock",
        "turn",
        "unsent",
    )

    def __init__(self, number: int, sock: socket.socket, heads: list[bytes]) -> None:
        self.number = number
        self.heads = heads
        self.sent = [Sent() for _ in heads]
        self.turn = 0
        self.sent_at = 0.0  # 0.0: nothing is on its way
        self.received = b""
        self.unsent = b""
        self.blocked = False  # the rest of the request waits until the socket takes more
        self.sock = sock


class _Writers:
    """All connections of one client process, on one epoll."""

    def __init__(self, order: WriteOrder) -> None:
        self._target = Target.of(order.url)
        self._template = order.shape.template()
        self._report = WriteReport()
        self._epoll = select.epoll()
        self._by_fd: dict[int, _Writer] = {}
        fields = (
            f"Content-Type: {order.shape.content_type}",
            f"Content-Length: {len(self._template)}",
        )
        for number in order.connections:
            streams = order.streams_of(number)
            heads = [self._target.request("POST", order.paths[at], *fields) for at in streams]
            writer = _Writer(number, self._target.connect(), heads)
            for at, sent in zip(streams, writer.sent, strict=True):
                self._report.sent.setdefault(at, {})[number] = sent
            self._adopt(writer)

    def run(self, seconds: float, per_s: float) -> WriteReport:
        """Append for this long, then wait for the answers that are due."""
        report = self._report
        cpu = time.process_time()
        report.began = report.ended = time.monotonic()
        if per_s:
            self._keep_pace(report.began, seconds, per_s)
        else:
            self._keep_all_busy(report.began + seconds)
        report.cpu_s = time.process_time() - cpu
        for writer in self._by_fd.values():
            if writer.sent_at:
                self._fail(writer, "no answer")
            writer.sock.close()
        self._epoll.close()
        return report

    def _keep_all_busy(self, deadline: float) -> None:
        for writer in self._by_fd.values():
            self._send_next(writer)
        waiting = len(self._by_fd)
        while waiting and time.monotonic() < deadline + _DRAIN_S:
            for writer in self._answered(1.0):
                if time.monotonic() < deadline and writer.sock.fileno() >= 0:
                    self._send_next(writer)
                else:
                    waiting -= 1

    def _keep_pace(self, began: float, seconds: float, per_s: float) -> None:
        """Send when the next one is due, on whatever connection is free.

        If none is, its time counts from when it was due: what a server that stalls holds up counts.
        """
        free = deque(self._by_fd.values())
        total, at = round(seconds * per_s), 0
        # An epoll waits whole milliseconds, and wakes late: where the next one is far away, the
        # last of them is spent asking. Often it would take the core that the server needs.
        spin_s = _SPIN_S if per_s * _SPIN_S < 0.25 else 0.0
        freed = began  # when a connection was free again, after none was
        deadline = began + seconds + _DRAIN_S
        while (at < total or len(free) < len(self._by_fd)) and time.monotonic() < deadline:
            due, now = began + at / per_s, time.monotonic()
            if at < total and now >= due and free:
                self._send_next(free.popleft(), due if due < freed else now)
                at += 1
                continue
            none = not free
            wait_s = max(0.0, due - now - spin_s) if at < total and free else 1.0
            free += (w for w in self._answered(wait_s) if w.sock.fileno() >= 0)
            if none and free:
                freed = time.monotonic()

    def _answered(self, wait_s: float) -> list[_Writer]:
        """Return the connections whose appends are answered, or given up, within a wait."""
        answered = []
        for fd, events in self._epoll.poll(wait_s):
            writer = self._by_fd[fd]
            if events & select.EPOLLOUT:
                self._send_rest(writer)
            if events & ~select.EPOLLOUT and self._settled(writer):
                answered.append(writer)
        return answered

    def _adopt(self, writer: _Writer) -> None:
        writer.sock.setblocking(False)
        writer.blocked = False
        self._by_fd[writer.sock.fileno()] = writer
        self._epoll.register(writer.sock, select.EPOLLIN)

    def _send_next(self, writer: _Writer, since: float | None = None) -> None:
        writer.turn = (writer.turn + 1) % len(writer.heads)
        sent = writer.sent[writer.turn]
        body = sign(self._template, writer.number, sent.count)
        sent.count += 1
        writer.unsent = writer.heads[writer.turn] + body
        writer.sent_at = time.monotonic() if since is None else since
        self._send_rest(writer)

    def _send_rest(self, writer: _Writer) -> None:
        try:
            written = os.write(writer.sock.fileno(), writer.unsent)
        except BlockingIOError:
            written = 0
        except OSError:
            return  # the connection is gone, as its next event says
        writer.unsent = writer.unsent[written:]
        blocked = bool(writer.unsent)
        if blocked != writer.blocked:
            writer.blocked = blocked
            mask = select.EPOLLIN | select.EPOLLOUT if blocked else select.EPOLLIN
            self._epoll.modify(writer.sock, mask)

    def _settled(self, writer: _Writer) -> bool:
        """Read what came; return whether the fate of the append is known, or given up."""
        try:
            data = os.read(writer.sock.fileno(), READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._fail(writer, "connection lost")
            self._reconnect(writer)
            return True
        if writer.received:
            data = writer.received + data
        # One append is on its way, so a 204 that ends as heads do is the whole reply.
        if not (data.startswith(_NO_CONTENT) and data.endswith(HEAD_END)):
            reply = parse_reply(data)
            if reply is None:
                writer.received = data
                return False
            if not 200 <= reply.head.status < 300 or writer.unsent:
                self._fail(writer, str(reply.head.status))
                if writer.unsent:  # refused before all of it was sent, so the rest would be misread
                    self._reconnect(writer)
                return True
        now = time.monotonic()
        self._report.latencies_s.append(now - writer.sent_at)
        self._report.ended = now
        writer.sent_at = 0.0
        writer.received = b""
        return True

    def _fail(self, writer: _Writer, why: str) -> None:
        sent = writer.sent[writer.turn]
        sent.unknown.add(sent.count - 1)
        self._report.errors[why] += 1
        writer.sent_at = 0.0
        writer.received = writer.unsent = b""

    def _reconnect(self, writer: _Writer) -> None:
        del self._by_fd[writer.sock.fileno()]
        writer.sock.close()
        try:
            writer.sock = self._target.connect()
        except OSError as error:
            self._report.errors[f"no connection: {error.strerror}"] += 1
            return
        self._adopt(writer)


def write(pipe: Pipe, order: WriteOrder) -> None:
    """Connect, report that, and on GO append; then report what happened."""
    writers = _Writers(order)
    pipe.send(Ready())
    assert pipe.recv() == GO
    pipe.send(writers.run(order.seconds, order.per_s))
