"""A client process that appends to many streams at a steady rate, whatever the answers take."""

from __future__ import annotations

import os
import random
import select
import socket
import time
from array import array
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Final

from loadtests.client import READ_BYTES, Target, parse_reply
from loadtests.crew import Pipe
from loadtests.dialect import stamped_message
from loadtests.orders import stream_path
from loadtests.speech import Speech

CREATE: Final = "create"  # all streams, as fast as they are made
_DRAIN_S: Final = 30.0  # how long answers may be late after the last append was due


@dataclass(frozen=True, slots=True)
class PaceOrder:
    """What the process does."""

    url: str
    speech: Speech
    name: str  # of the folder of the streams
    streams: int
    connections: int
    size: int  # bytes of an append
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Created:
    """Every stream is there."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Append for a while, each time to a stream that the dice choose."""

    per_s: float
    seconds: float


@dataclass(slots=True)
class PaceReport:
    """What became of it."""

    appended: array[int]  # by stream, since it was made
    acknowledged: int = 0
    behind_s: float = 0.0  # how late the latest was sent, for want of a free connection or of time
    errors: Counter[str] = field(default_factory=Counter)


class _Line:
    """One connection, with what it has to send: one after the other, so that streams keep order."""

    __slots__ = ("fd", "received", "requests", "sock")

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.fd = sock.fileno()
        self.received = b""
        self.requests: deque[tuple[float, bytes]] = deque()  # when due; the first is on its way

    def put(self, due: float, request: bytes) -> float:
        """Queue a request; return how late it is if it is sent now, else 0."""
        self.requests.append((due, request))
        return self._send() if len(self.requests) == 1 else 0.0

    def answered(self) -> float:
        """Take the request away that was answered, and send the next one; return as put does."""
        self.requests.popleft()
        return self._send() if self.requests else 0.0

    def _send(self) -> float:
        due, request = self.requests[0]
        written = os.write(self.fd, request)
        assert written == len(request)  # nothing else is on its way
        return time.monotonic() - due


class _Pacer:
    def __init__(self, order: PaceOrder) -> None:
        self._order = order
        self._target = Target.of(order.url)
        self._dice = random.Random(order.seed)
        self._report = PaceReport(array("I", bytes(4 * order.streams)))
        self._epoll = select.epoll()
        self._lines: list[_Line] = []
        self._by_fd: dict[int, _Line] = {}

    def _connect(self) -> None:
        """Begin with new connections: servers end those that were idle, and that is no fault."""
        for line in self._lines:
            line.sock.close()
        self._lines = [_Line(self._target.connect()) for _ in range(self._order.connections)]
        self._by_fd = {line.fd: line for line in self._lines}
        for line in self._lines:
            self._epoll.register(line.fd, select.EPOLLIN)

    def create(self) -> None:
        """Make all streams."""
        self._connect()
        for number in range(self._order.streams):
            name = stream_path(self._order.name, number)
            request = self._order.speech.create_request(self._target, name)
            if request is not None:
                self._lines[number % len(self._lines)].put(time.monotonic(), request)
        self._answers(deadline=time.monotonic() + _DRAIN_S + self._order.streams / 100)
        if self._report.errors:
            raise RuntimeError(f"streams could not be made: {dict(self._report.errors)}")
        self._report.acknowledged, self._report.behind_s = 0, 0.0

    def pace(self, pace: Pace) -> PaceReport:
        """Append on time."""
        self._connect()
        began = time.monotonic()
        for at in range(round(pace.per_s * pace.seconds)):
            due = began + at / pace.per_s
            # Not slept but polled for: a wait on an epoll may be shorter than a millisecond.
            while (now := time.monotonic()) < due:
                self._hear(due - now)
            if at % 16 == 0:
                self._hear(0)
            self._append(due)
        self._answers(time.monotonic() + _DRAIN_S)
        return self._report

    def _append(self, due: float) -> None:
        stream = self._dice.randrange(self._order.streams)
        self._report.appended[stream] += 1
        body = stamped_message(self._report.appended[stream], due, self._order.size)
        name = stream_path(self._order.name, stream)
        request = self._order.speech.append_request(self._target, name, body)
        self._note(self._lines[stream % len(self._lines)].put(due, request))

    def _note(self, behind_s: float) -> None:
        self._report.behind_s = max(self._report.behind_s, behind_s)

    def _answers(self, deadline: float) -> None:
        while any(line.requests for line in self._lines):
            if time.monotonic() > deadline:
                self._report.errors["no answer"] += sum(len(line.requests) for line in self._lines)
                return
            self._hear(1.0)

    def _hear(self, wait_s: float) -> None:
        for fd, _ in self._epoll.poll(wait_s):
            line = self._by_fd[fd]
            try:
                data = os.read(fd, READ_BYTES)
            except OSError:
                data = b""
            if not data:
                self._replace(line)
                continue
            line.received += data
            reply = parse_reply(line.received)
            if reply is None:
                continue
            line.received = line.received[reply.size :]
            if 200 <= reply.head.status < 300:
                self._report.acknowledged += 1
            else:
                self._report.errors[str(reply.head.status)] += 1
            self._note(line.answered())

    def _replace(self, line: _Line) -> None:
        """Go on with a new connection; what became of the append on its way, nobody knows."""
        del self._by_fd[line.fd]
        line.sock.close()
        new = _Line(self._target.connect())
        self._lines[self._lines.index(line)] = self._by_fd[new.fd] = new
        self._epoll.register(new.fd, select.EPOLLIN)
        if line.requests:
            self._report.errors["connection lost"] += 1
            new.requests = line.requests
            self._note(new.answered())


def pace(pipe: Pipe, order: PaceOrder) -> None:
    """Connect, and do what the parent asks."""
    pacer = _Pacer(order)
    while True:
        message = pipe.recv()
        if message == CREATE:
            pacer.create()
            pipe.send(Created())
        else:
            assert isinstance(message, Pace)
            pipe.send(pacer.pace(message))
