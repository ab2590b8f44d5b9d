"""A client process of thousands of live readers, all on one epoll.

A reader is a descriptor and a place in a few arrays: a million of them leave the memory of the
machine to the server that is measured.
"""

from __future__ import annotations

import os
import select
import time
from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from loadtests.client import READ_BYTES, Target
from loadtests.crew import Pipe
from loadtests.dialect import DIALECTS, Step
from loadtests.history import History
from loadtests.proc import accept_queue

PARK: Final = "park"  # connect every reader, and wait at the tail
AGAIN: Final = "again"  # let those wait again that were released
TOTALS: Final = "totals"
_QUEUE_MAX: Final = 128  # waiting connections; Node's server, the least patient, drops the 512th
_BURST: Final = 256  # connections between two looks at that queue, over all processes
_KNOWN_MAX: Final = 256  # different bytes remembered; readers of one stream receive the same ones
_RETRY_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class SwarmOrder:
    """What one client process does."""

    url: str
    path: str
    mode: str  # of DIALECTS
    offset: str  # the tail at which the readers wait
    readers: int
    processes: int  # how many share the ramp
    source: str  # its own loopback address: one has only some 28,000 ports towards a server
    hold: bool  # a released reader asks again only when told to


@dataclass(frozen=True, slots=True)
class Parked:
    """Every reader has sent its request; with events, every one has also had its first answer."""


@dataclass(frozen=True, slots=True)
class Wave:
    """Every reader has seen this wave."""

    number: int
    at: array[float]  # when each did, on the monotonic clock that all processes share


@dataclass(slots=True)
class Totals:
    """What the readers saw in all."""

    last_waves: Counter[int] = field(default_factory=Counter)  # readers by the last wave they saw
    lost: int = 0  # as History counts both
    doubled: int = 0
    empty: int = 0  # waits that ended without data
    reconnects: int = 0
    errors: Counter[str] = field(default_factory=Counter)


class _Swarm:
    def __init__(self, pipe: Pipe, order: SwarmOrder) -> None:
        self._pipe = pipe
        self._order = order
        self._target = Target.of(order.url)
        self._dialect = DIALECTS[order.mode](self._target, order.path)
        self._first = self._dialect.request(order.offset)
        self._known: dict[bytes, Step] = {}
        self._history = History(order.readers)
        self._totals = Totals()
        self._epoll = select.epoll()
        self._epoll.register(pipe, select.EPOLLIN)
        self._unconnected = 0
        self._parked = 0
        # By descriptor, which stays a reader's own when it connects again.
        self._requests: list[bytes | None] = []
        self._received: dict[int, bytes] = {}  # the incomplete only
        self._greeted: set[int] = set()
        self._resting: set[int] = set()
        # When to ask again, the soonest first: the delay is always the same.
        self._later: dict[int, float] = {}

    def run(self) -> None:
        """Obey until the parent ends this process."""
        control = self._pipe.fileno()
        while True:
            for fd, _ in self._epoll.poll(self._patience()):
                if fd == control:
                    self._obey(self._pipe.recv())
                else:
                    self._receive(fd)
            if self._unconnected:
                self._connect_some()
            while self._later and next(iter(self._later.values())) <= time.monotonic():
                fd = next(iter(self._later))
                del self._later[fd]
                self._ask(fd)

    def _patience(self) -> float | None:
        if self._unconnected:
            return 0.0
        if self._later:
            return max(0.0, next(iter(self._later.values())) - time.monotonic())
        return None

    def _ask_later(self, fd: int) -> None:
        self._later.pop(fd, None)
        self._later[fd] = time.monotonic() + _RETRY_S

    def _obey(self, message: object) -> None:
        if message == PARK:
            self._unconnected = self._order.readers
        elif message == AGAIN:
            resting, self._resting = self._resting, set()
            for fd in resting:
                self._ask(fd)
        elif message == TOTALS:
            readers = (fd for fd, request in enumerate(self._requests) if request is not None)
            self._totals.last_waves = self._history.last_waves(readers)
            self._totals.lost = self._history.lost
            self._totals.doubled = self._history.doubled
            self._pipe.send(self._totals)

    def _connect_some(self) -> None:
        if accept_queue(self._target.port) > _QUEUE_MAX:
            time.sleep(0.001)
            return
        for _ in range(min(max(1, _BURST // self._order.processes), self._unconnected)):
            sock = self._target.connect(self._order.source)
            sock.setblocking(False)
            fd = sock.detach()
            self._requests += [None] * (fd + 1 - len(self._requests))
            self._requests[fd] = self._first
            self._epoll.register(fd, select.EPOLLIN)
            self._ask(fd)
            self._unconnected -= 1
            if self._order.mode == "lp":
                self._count_parked()

    def _count_parked(self) -> None:
        self._parked += 1
        if self._parked == self._order.readers:
            self._pipe.send(Parked())

    def _ask(self, fd: int) -> None:
        request = self._requests[fd]
        assert request is not None
        try:
            written = os.write(fd, request)
        except OSError:
            return  # the connection is gone, as its next event says
        assert written == len(request)  # an idle socket takes far more than one request

    def _receive(self, fd: int) -> None:
        try:
            data = os.read(fd, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        now = time.monotonic()
        if not data:
            self._reconnect(fd)
            return
        if fd in self._received:
            data = self._received.pop(fd) + data
        step = self._known.get(data)
        if step is None:
            step = self._dialect.step(data)
            if step is None:
                self._received[fd] = data
                return
            if len(self._known) >= _KNOWN_MAX:
                self._known.clear()
            self._known[data] = step
        self._take(fd, step, now)

    def _take(self, fd: int, step: Step, now: float) -> None:
        if step.status not in (200, 204):
            self._totals.errors[str(step.status)] += 1
            self._ask_later(fd)
            return
        if step.request is not None:
            self._requests[fd] = step.request
        news = bool(step.waves) and step.waves[-1] > self._history.last_wave(fd)
        for wave in step.waves:
            arrivals = self._history.see(fd, wave, now)
            if arrivals is not None:
                self._pipe.send(Wave(wave, arrivals))
        if not step.waves and step.status == 204:
            self._totals.empty += 1
        if self._order.mode == "sse" and fd not in self._greeted:
            self._greeted.add(fd)
            self._count_parked()
        if step.ended:
            if news and self._order.hold:
                self._resting.add(fd)
            else:
                self._ask(fd)

    def _reconnect(self, fd: int) -> None:
        """Give the reader a new connection under its old descriptor, and let it resume."""
        self._received.pop(fd, None)
        self._totals.reconnects += 1
        self._epoll.unregister(fd)
        try:
            sock = self._target.connect(self._order.source)
        except OSError as error:
            # No event will come from a descriptor that is not registered: this reader is out.
            self._totals.errors[f"no connection: {error.strerror}"] += 1
            return
        sock.setblocking(False)
        os.dup2(sock.fileno(), fd)
        sock.close()
        self._epoll.register(fd, select.EPOLLIN)
        if fd not in self._resting:
            self._ask_later(fd)


def swarm(pipe: Pipe, order: SwarmOrder) -> None:
    """Hold the readers of one order, and report as the parent asks."""
    _Swarm(pipe, order).run()
