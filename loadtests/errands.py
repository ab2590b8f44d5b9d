"""A client process that sends one request for each of many streams, over a few connections."""

from __future__ import annotations

import os
import select
import socket
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Final

from loadtests.client import READ_BYTES, Target, parse_reply
from loadtests.crew import Pipe
from loadtests.writers import GO, Ready

_SILENCE_S: Final = 30.0  # without any answer: then the rest is given up


@dataclass(frozen=True, slots=True)
class Errand:
    """What one client process does."""

    url: str
    method: str
    folder: str  # the streams are named by number in it
    streams: int
    connections: int
    fields: tuple[str, ...] = ()
    body: bytes | None = None
    per_s: float = 0.0  # requests; 0: each connection sends the next when it is answered


@dataclass(slots=True)
class ErrandReport:
    """What became of it."""

    elapsed_s: float = 0.0
    statuses: Counter[str] = field(default_factory=Counter)


def path_of(folder: str, number: int) -> str:
    """Return the path of a stream."""
    return f"/v1/stream/{folder}/{number}"


class _Errands:
    def __init__(self, order: Errand) -> None:
        self._order = order
        self._target = Target.of(order.url)
        self._free: deque[socket.socket] = deque()
        self._received: dict[int, tuple[socket.socket, bytes]] = {}
        self._epoll = select.epoll()
        for _ in range(order.connections):
            sock = self._target.connect()
            self._received[sock.fileno()] = sock, b""
            self._epoll.register(sock, select.EPOLLIN)
            self._free.append(sock)

    def run(self) -> ErrandReport:
        order, report = self._order, ErrandReport()
        began = heard = time.monotonic()
        sent = answered = 0
        while answered < order.streams and time.monotonic() - heard < _SILENCE_S:
            now = time.monotonic()
            due = began + sent / order.per_s if order.per_s else now
            while sent < order.streams and self._free and due <= now:
                sock = self._free.popleft()
                path = path_of(order.folder, sent)
                sock.sendall(
                    self._target.request(order.method, path, *order.fields, body=order.body)
                )
                sent += 1
                due = began + sent / order.per_s if order.per_s else now
            wait_s = max(0.0, due - now) if sent < order.streams and self._free else 1.0
            for fd, _ in self._epoll.poll(wait_s):
                if (status := self._answer(fd)) is not None:
                    report.statuses[status] += 1
                    answered += 1
                    heard = time.monotonic()
        report.elapsed_s = time.monotonic() - began
        if answered < order.streams:
            report.statuses["no answer"] = order.streams - answered
        return report

    def _answer(self, fd: int) -> str | None:
        sock, received = self._received[fd]
        data = os.read(fd, READ_BYTES)
        if not data:
            raise ConnectionError(f"{self._order.method}: the server closed a connection")
        received += data
        reply = parse_reply(received)
        self._received[fd] = sock, received if reply is None else received[reply.size :]
        if reply is None:
            return None
        self._free.append(sock)
        return str(reply.head.status)


def run_errand(pipe: Pipe, order: Errand) -> None:
    """Connect, report that, and on GO send all; then report what happened."""
    errands = _Errands(order)
    pipe.send(Ready())
    assert pipe.recv() == GO
    pipe.send(errands.run())
