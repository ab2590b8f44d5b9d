"""A client process of thousands of live readers, all on one epoll.

A reader is a descriptor and a place in a few arrays: a million of them leave the memory of the
machine to the server that is measured.
"""

from __future__ import annotations

import errno
import heapq
import math
import os
import random
import resource
import select
import socket
import time
from array import array
from typing import Final

from loadtests.backoff import FIRST_S, delay_s
from loadtests.client import Target
from loadtests.crew import Pipe
from loadtests.dialect import Place, Step
from loadtests.history import Arrivals, History
from loadtests.orders import (
    AGAIN,
    LATEST,
    PARK,
    TOTALS,
    Parked,
    Storm,
    SwarmOrder,
    Totals,
    Wave,
    stream_path,
)
from loadtests.proc import accept_queue

_QUEUE_MAX: Final = 128  # waiting connections; Node's server, the least patient, drops the 512th
_BURST: Final = 256  # connections between two looks at that queue, over all processes
_KNOWN_MAX: Final = 256  # different bytes remembered; readers of one stream receive the same ones
# Counted out here: the kernel's own search for a free port, with that many taken, was half of what
# it costs to connect. In turn, so that one that was left is not wanted again for a while.
_PORTS: Final = range(2_000, 64_000)
_PORT_TRIES: Final = 1000
_READ_BYTES: Final = 1 << 14  # a wave in one read; os.read takes that much before it knows better

# What a reader is, in bits; one that is neither connected nor connecting is away.
_CONNECTING: Final = 1
_CONNECTED: Final = 2
_PARKED: Final = 4  # has asked on its connection; with events, has been answered there
_RESTING: Final = 8  # was released, and asks again when told to
_PATIENT: Final = 16  # is on the list of those that come later


class _Swarm:
    def __init__(self, pipe: Pipe, order: SwarmOrder) -> None:
        self._pipe = pipe
        self._order = order
        self._target = Target.of(order.url)
        self._ports = 0  # how many of them were tried
        self._dialect = order.dialect(self._target)
        self._known: dict[bytes, Step] = {}
        self._requests: dict[Place, bytes] = {}
        self._history = History(order.seen)
        self._arrivals = Arrivals(order.readers)
        self._totals = Totals()
        self._all_there_at = math.inf  # on the clock of stamps
        self._epoll = select.epoll()
        self._epoll.register(pipe, select.EPOLLIN)
        self._unconnected = 0
        self._dice = random.Random(order.source)
        self._spread_s = FIRST_S
        # A reader's descriptor is its name for good: while it is away, nothing else may get it.
        self._nothing = os.open(os.devnull, os.O_RDONLY)
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._readers = array("i")  # descriptors, in the order of streams
        # By descriptor.
        self._state = bytearray(most)
        self._tries = bytearray(most)
        self._places: list[Place] = [order.place] * most
        self._streams = array("I", bytes(4 * most)) if order.streams_from is not None else None
        self._received: dict[int, bytes] = {}  # the incomplete only
        self._later: list[tuple[float, int]] = []  # heap: when to connect, or to ask again

    def run(self) -> None:
        """Obey until the parent ends this process."""
        control = self._pipe.fileno()
        while True:
            for fd, _ in self._epoll.poll(self._patience()):
                if fd == control:
                    self._obey(self._pipe.recv())
                elif self._state[fd] & _CONNECTED:
                    self._receive(fd)
                elif self._state[fd] & _CONNECTING:
                    self._connected(fd)
            if self._unconnected:
                self._connect_some()
            while self._later and self._later[0][0] <= time.monotonic():
                _, fd = heapq.heappop(self._later)
                self._state[fd] &= ~_PATIENT
                if self._state[fd] & _CONNECTED:
                    self._ask(fd)
                else:
                    self._connect(fd)

    def _patience(self) -> float | None:
        if self._unconnected:
            return 0.0
        if self._later:
            return max(0.0, self._later[0][0] - time.monotonic())
        return None

    def _obey(self, message: object) -> None:
        if message == PARK:
            self._unconnected = self._order.readers
        elif message == AGAIN:
            for fd in self._readers:
                if self._state[fd] & _RESTING:
                    self._state[fd] &= ~_RESTING
                    self._ask(fd)
        elif isinstance(message, Storm):
            self._spread_s = message.spread_s
            for fd in self._readers if message.close else ():
                if self._state[fd] & (_CONNECTED | _CONNECTING):
                    self._lose(fd)
        elif message in (TOTALS, LATEST):
            readers = self._readers if message == TOTALS else ()
            self._totals.last = array("I", map(self._history.last_wave, readers))
            self._totals.lost = self._history.lost
            self._totals.doubled = self._history.doubled
            self._totals.cpu_s = time.process_time()
            self._pipe.send(self._totals)
            if message == LATEST:
                self._totals.late_s = array("f")

    # Connecting

    def _connect_some(self) -> None:
        if accept_queue(self._target.port) > _QUEUE_MAX:
            time.sleep(0.001)
            return
        for _ in range(min(max(1, _BURST // self._order.ramps), self._unconnected)):
            fd = os.dup(self._nothing)
            if self._streams is not None and self._order.streams_from is not None:
                self._streams[fd] = self._order.streams_from + len(self._readers)
            self._readers.append(fd)
            self._unconnected -= 1
            self._connect(fd)

    def _connect(self, fd: int) -> None:
        """Give the reader a connection under its own descriptor."""
        try:
            sock, there = self._begin_connect()
        except ConnectionRefusedError:  # nobody listens: a server that is being started again
            self._totals.reconnects += 1
            self._come_later(fd)
            return
        except OSError as error:
            self._totals.errors[f"no connection: {error.strerror}"] += 1
            self._come_later(fd)
            return
        os.dup2(sock.fileno(), fd)
        sock.close()
        self._state[fd] |= _CONNECTED if there else _CONNECTING
        self._epoll.register(fd, select.EPOLLIN if there else select.EPOLLOUT)
        if there:
            self._ask(fd)

    def _begin_connect(self) -> tuple[socket.socket, bool]:
        for _ in range(_PORT_TRIES):
            port = _PORTS[self._ports % len(_PORTS)]
            self._ports += 1
            try:
                return self._target.begin_connect((self._order.source, port))
            except OSError as error:
                if error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
                    raise
        raise OSError(errno.EADDRNOTAVAIL, f"no port in {_PORT_TRIES} tries")

    def _connected(self, fd: int) -> None:
        # Or refused: then what is written tells.
        self._state[fd] += _CONNECTED - _CONNECTING
        self._epoll.modify(fd, select.EPOLLIN)
        self._ask(fd)

    def _lose(self, fd: int) -> None:
        """The connection is gone; the reader is to come again, and to resume."""
        self._epoll.unregister(fd)
        os.dup2(self._nothing, fd)
        self._received.pop(fd, None)
        self._unpark(fd)
        self._state[fd] &= ~(_CONNECTED | _CONNECTING)
        self._totals.reconnects += 1
        self._come_later(fd)

    def _come_later(self, fd: int, retry_after_s: float = 0.0) -> None:
        if self._state[fd] & _PATIENT:
            return
        self._state[fd] |= _PATIENT
        wait_s = delay_s(self._tries[fd], self._dice.random(), self._spread_s, retry_after_s)
        self._tries[fd] = min(self._tries[fd] + 1, 255)
        heapq.heappush(self._later, (time.monotonic() + wait_s, fd))

    # Asking and hearing

    def _ask(self, fd: int) -> None:
        if self._state[fd] & _RESTING:
            return
        request = self._request(fd)
        try:
            written = os.write(fd, request)
        except OSError:
            return  # the connection is gone, as its next event says
        assert written == len(request)  # an idle socket takes far more than one request
        if self._order.mode == "lp":
            self._park(fd)

    def _request(self, fd: int) -> bytes:
        place = self._places[fd]
        if self._streams is not None:
            return self._dialect.request(stream_path(self._order.path, self._streams[fd]), place)
        request = self._requests.get(place)
        if request is None:
            if len(self._requests) >= _KNOWN_MAX:
                self._requests.clear()
            request = self._requests[place] = self._dialect.request(self._order.path, place)
        return request

    def _park(self, fd: int) -> None:
        if self._state[fd] & _PARKED:
            return
        self._state[fd] |= _PARKED
        self._totals.parked += 1
        if self._totals.parked == self._order.readers:
            self._totals.parked_at = time.monotonic()
            self._all_there_at = min(self._all_there_at, self._order.clock())
            self._pipe.send(Parked(self._totals.parked_at))

    def _unpark(self, fd: int) -> None:
        self._totals.parked -= bool(self._state[fd] & _PARKED)
        self._state[fd] &= ~_PARKED

    def _receive(self, fd: int) -> None:
        try:
            data = os.read(fd, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        now = self._order.clock()
        if not data:
            self._lose(fd)
            return
        if self._received and fd in self._received:
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
            if step.status == 503:
                self._totals.refused += 1
            else:
                self._totals.errors[str(step.status)] += 1
            self._unpark(fd)
            self._come_later(fd, step.retry_after_s)
            return
        self._tries[fd] = 0
        if step.place is not None:
            self._places[fd] = step.place
        news = False
        for wave in step.waves:
            if self._history.see(fd, wave):
                news = True
                if self._streams is None:
                    arrivals = self._arrivals.note(wave, now)
                    if arrivals is not None:
                        self._pipe.send(Wave(wave, arrivals))
        for stamp in step.stamps:
            if stamp >= self._all_there_at:
                self._totals.late_s.append(now - stamp)
        if step.status == 204:
            self._totals.empty += 1
        if self._order.mode == "sse":
            self._park(fd)
        if step.ended:
            if news and self._order.hold:
                self._state[fd] |= _RESTING
            else:
                self._ask(fd)


def swarm(pipe: Pipe, order: SwarmOrder) -> None:
    """Hold the readers of one order, and report as the parent asks."""
    # Readers on machines of their own would not interrupt the server at each byte that they get.
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    _Swarm(pipe, order).run()
