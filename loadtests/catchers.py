"""A client process of readers that read one whole stream, chunk by chunk, as fast as it comes."""

from __future__ import annotations

import os
import select
import socket
import time
import zlib
from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from loadtests.client import Head, Target, parse_head, required
from loadtests.crew import Pipe
from loadtests.proc import accept_queue

_HEAD_BYTES: Final = 1 << 13
_BODY_BYTES: Final = 1 << 20  # asked for in one call; what nobody looks at, is never copied
_QUEUE_MAX: Final = 64
_EVERY: Final = 50  # every so many readers, one looks at all it gets
_SILENCE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class CatchOrder:
    """What one client process does."""

    url: str
    path: str
    readers: int
    total_bytes: int  # of the stream
    checksum: int  # CRC-32 of all of it


@dataclass(frozen=True, slots=True)
class Connected:
    """Every reader has a connection."""


@dataclass(slots=True)
class CatchReport:
    """What one client process saw. Times are seconds on the monotonic clock."""

    began: float = 0.0
    ended: float = 0.0
    cpu_s: float = 0.0
    took_s: array[float] = field(default_factory=lambda: array("d"))  # of each that has all of it
    reads: int = 0  # replies of those
    looked_at: int = 0  # readers that compared every byte
    wrong: int = 0  # readers that got another stream than was appended
    errors: Counter[str] = field(default_factory=Counter)


class _Reader:
    __slots__ = ("buffer", "checksum", "head", "left", "looks", "reads", "sock", "total")

    def __init__(self, sock: socket.socket, *, looks: bool) -> None:
        self.sock = sock
        self.looks = looks
        self.head: Head | None = None
        self.buffer = b""  # of a head, until it is whole
        self.left = 0  # bytes of the body still to come
        self.total = self.checksum = self.reads = 0

    def take(self, scratch: bytearray) -> bool:
        """Read once; return whether a reply is whole. Raises ConnectionError at its end."""
        if self.head is None:
            data = self.sock.recv(_HEAD_BYTES)
            if not data:
                raise ConnectionResetError
            self.buffer += data
            self.head = parse_head(self.buffer)
            if self.head is None:
                return False
            if self.head.length is None:
                raise ConnectionError("a reply without a length")
            body, self.buffer = self.buffer[self.head.size :], b""
            self.left = self.head.length - len(body)
            self.total += self.head.length
            self.checksum = zlib.crc32(body, self.checksum)
        elif self.looks:
            size = self.sock.recv_into(scratch, min(self.left, _BODY_BYTES))
            self.checksum = zlib.crc32(memoryview(scratch)[:size], self.checksum)
            self._less(size)
        else:
            # To TCP this means: throw it away where it is.
            self._less(self.sock.recv_into(scratch, min(self.left, _BODY_BYTES), socket.MSG_TRUNC))
        return self.left == 0

    def _less(self, size: int) -> None:
        if not size:
            raise ConnectionResetError
        self.left -= size


class _Catchers:
    def __init__(self, order: CatchOrder) -> None:
        self._order = order
        self._target = Target.of(order.url)
        self._scratch = bytearray(_BODY_BYTES)
        self._report = CatchReport()
        self._epoll = select.epoll()
        self._by_fd: dict[int, _Reader] = {}
        for at in range(order.readers):
            # The server is no faster than its loop: nobody should wait for a lost SYN.
            while accept_queue(self._target.port) > _QUEUE_MAX:
                time.sleep(0.001)
            sock = self._target.connect()
            sock.setblocking(False)
            self._by_fd[sock.fileno()] = _Reader(sock, looks=at % _EVERY == 0)
            self._epoll.register(sock, select.EPOLLIN)

    def run(self) -> CatchReport:
        """Let all begin at once, and wait until the last has all of it."""
        report = self._report
        report.began = time.monotonic()
        for fd in self._by_fd:
            self._ask(fd, "-1")
        while self._by_fd:
            ready = self._epoll.poll(_SILENCE_S)
            if not ready:
                report.errors["silence"] += len(self._by_fd)
                break
            for fd, _ in ready:
                reader = self._by_fd[fd]
                try:
                    whole = reader.take(self._scratch)
                except BlockingIOError:
                    continue
                except OSError as error:
                    self._end(fd, str(error) or "connection lost")
                    continue
                if whole:
                    self._next(fd, reader)
        report.ended = time.monotonic()
        report.cpu_s = time.process_time()
        return report

    def _ask(self, fd: int, offset: str) -> None:
        os.write(fd, self._target.request("GET", f"{self._order.path}?offset={offset}"))

    def _next(self, fd: int, reader: _Reader) -> None:
        head, reader.head = reader.head, None
        assert head is not None
        reader.reads += 1
        if head.status != 200:
            self._end(fd, str(head.status))
        elif head.field("Stream-Up-To-Date") == "true":
            report = self._report
            report.took_s.append(time.monotonic() - report.began)
            report.reads += reader.reads
            report.looked_at += reader.looks
            right = reader.total == self._order.total_bytes and (
                not reader.looks or reader.checksum == self._order.checksum
            )
            report.wrong += not right
            self._end(fd)
        else:
            self._ask(fd, required(head, "Stream-Next-Offset"))

    def _end(self, fd: int, error: str | None = None) -> None:
        if error is not None:
            self._report.errors[error] += 1
        self._epoll.unregister(fd)
        self._by_fd.pop(fd).sock.close()


def catch(pipe: Pipe, order: CatchOrder) -> None:
    """Connect, report that, begin when told to, and report what happened."""
    catchers = _Catchers(order)
    pipe.send(Connected())
    pipe.recv()
    pipe.send(catchers.run())
