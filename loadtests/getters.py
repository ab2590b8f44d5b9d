"""A client process that reads the same small thing over and over, on each connection in turn."""

from __future__ import annotations

import os
import select
import socket
import time
from array import array
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from loadtests.client import READ_BYTES, Target, parse_reply
from loadtests.crew import Pipe

WRONG_BODY: Final = "another body"
_INCOMPLETE: Final = "connection lost"  # if no more comes
_PATIENCE_S: Final = 5.0
_KNOWN_MAX: Final = 64  # different whole replies remembered: their Date changes every second


@dataclass(frozen=True, slots=True)
class GetOrder:
    """What one client process does."""

    url: str
    connections: int


@dataclass(frozen=True, slots=True)
class Get:
    """Read for a while."""

    path: str
    body: bytes  # what each reply must bring
    seconds: float


@dataclass(frozen=True, slots=True)
class Ready:
    """Every connection is open."""


@dataclass(slots=True)
class GetReport:
    """What one client process saw. Times are seconds on the monotonic clock, latencies seconds."""

    began: float = 0.0
    ended: float = 0.0
    cpu_s: float = 0.0
    latencies_s: array[float] = field(default_factory=lambda: array("f"))
    errors: Counter[str] = field(default_factory=Counter)


class _Getters:
    def __init__(self, order: GetOrder) -> None:
        self._target = Target.of(order.url)
        self._epoll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._sent: dict[int, float] = {}  # by descriptor: when, if an answer is due
        for _ in range(order.connections):
            self._open()

    def _open(self) -> int:
        sock = self._target.connect()
        sock.setblocking(False)
        self._sockets[sock.fileno()] = sock
        self._epoll.register(sock, select.EPOLLIN)
        return sock.fileno()

    def run(self, order: Get) -> GetReport:
        """Read for this long on all connections, then wait for what is still to come."""
        report = GetReport()
        late, sent = report.latencies_s, self._sent
        known: set[bytes] = set()  # whole replies that were found to be right
        parts: dict[int, bytes] = {}
        request = self._target.request("GET", order.path, "Accept: */*")
        cpu_s = time.process_time()
        report.began = now = time.monotonic()
        deadline = now + order.seconds
        for fd in list(self._sockets):
            self._send(fd, request)
        while sent:
            for fd, _ in self._epoll.poll(_PATIENCE_S) or self._give_up():
                try:
                    data = os.read(fd, READ_BYTES)
                except OSError:
                    data = b""
                now = time.monotonic()
                if data not in known:
                    data = parts.pop(fd, b"") + data if data else b""
                    fault = _fault(data, order.body)
                    if fault == _INCOMPLETE and data:
                        parts[fd] = data
                        continue
                    if fault is not None:
                        report.errors[fault] += 1
                        fd = self._replace(fd)
                    elif len(known) < _KNOWN_MAX:
                        known.add(data)
                if fd in sent:
                    late.append(now - sent.pop(fd))
                if now < deadline:
                    self._send(fd, request)
        report.ended = now
        report.cpu_s = time.process_time() - cpu_s
        return report

    def _send(self, fd: int, request: bytes) -> None:
        self._sent[fd] = time.monotonic()
        with suppress(OSError):  # the connection is gone, as its next event says
            os.write(fd, request)

    def _give_up(self) -> list[tuple[int, int]]:
        """Return those that wait in vain, with their connections shut: reading tells no more."""
        for fd in self._sent:
            with suppress(OSError):
                self._sockets[fd].shutdown(socket.SHUT_RDWR)
        return [(fd, 0) for fd in self._sent]

    def _replace(self, fd: int) -> int:
        self._sent.pop(fd, None)
        self._epoll.unregister(fd)
        self._sockets.pop(fd).close()
        return self._open()


def _fault(data: bytes, body: bytes) -> str | None:
    """Return what is wrong with a reply; None if it is whole and brings the body."""
    reply = parse_reply(data)
    if reply is None:
        return _INCOMPLETE
    if reply.head.status != 200:
        return str(reply.head.status)
    return None if reply.body == body else WRONG_BODY


def get(pipe: Pipe, order: GetOrder) -> None:
    """Connect, report that, and read as often as the parent asks."""
    getters = _Getters(order)
    pipe.send(Ready())
    while True:
        message = pipe.recv()
        assert isinstance(message, Get)
        pipe.send(getters.run(message))
