"""Doors: the sockets that listen, and whom they let in: so many in all, and so many in a turn."""

import errno
import logging
import os
import select
import socket
from collections.abc import Callable
from typing import Final

from edge import seats
from edge.seats import Seats
from shared.clock import Clock
from shared.sockets import BACKLOG

_log = logging.getLogger(__name__)

_ACCEPTS: Final = 64  # connections taken in one turn: 5 ms of the loop at most
# Over the limit, so many more are let in to be told so: to close without having read what they sent
# would reset them, and they would never see the 503.
_TURNED_AWAY_MAX: Final = 128
_TURNED_AWAY_S: Final = 1.0


class Doors:
    """Gives each connection that comes a seat, and a place in the epoll."""

    def __init__(
        self,
        epoll: select.epoll,
        seats_: Seats,
        clock: Clock,
        is_full: Callable[[], bool],
        header_timeout_s: float,
    ) -> None:
        """
        Args:
            is_full: tells whether there are as many connections as there may be.
        """
        self._epoll = epoll
        self._seats = seats_
        self._clock = clock
        self._is_full = is_full
        self._header_timeout_s = header_timeout_s
        self._listening: dict[int, socket.socket] = {}
        self._paused: set[int] = set()  # of them, those that rest until `reopen`
        self._turned_away: set[int] = set()
        self._in_need = False  # of descriptors or memory, when somebody came last

    @property
    def open(self) -> bool:
        """Whether anybody may come."""
        return bool(self._listening)

    def __contains__(self, fd: int) -> bool:
        return fd in self._listening

    def listen(self, sock: socket.socket) -> None:
        """Take connections from a socket that is bound and listens; it is closed at the end."""
        sock.setblocking(False)
        self._listening[sock.fileno()] = sock
        self._epoll.register(sock.fileno(), select.EPOLLIN)

    def accept(self, fd: int) -> bool:
        """Let in some of those who wait at a listening socket; return whether there may be more."""
        due_s = self._clock.monotonic_s() + self._header_timeout_s
        for _ in range(_ACCEPTS):
            full = self._is_full()
            if full and len(self._turned_away) >= _TURNED_AWAY_MAX:
                self._pause(fd)
                return False
            try:
                sock, _ = self._listening[fd].accept()
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno == errno.ECONNABORTED:
                    continue
                self._pause_in_need(fd, error)
                return False
            try:
                self._seat(sock.fileno(), due_s, full=full)
            except OSError as error:  # the epoll may have no more of them
                sock.close()
                self._pause_in_need(fd, error)
                return False
            sock.detach()
            self._in_need = False
        return True

    def shut(self) -> bool:
        """Let in those who are connected already, and nobody after them; return whether there were
        any.

        Whoever comes from now on is refused at once, and goes elsewhere. Let in and then cut off
        when we end, a client would see its reply break off.
        """
        before = self._seats.taken
        for fd, sock in self._listening.items():
            for _ in range(BACKLOG // _ACCEPTS + 1):  # else a crowd would hold us up for ever
                if not self.accept(fd):
                    break
            sock.close()  # the epoll forgets it
        self._listening.clear()
        self._paused.clear()
        return self._seats.taken > before

    def reopen(self) -> None:
        """Accept again where that was given up; to be called now and then."""
        for fd in self._paused:
            self._epoll.modify(fd, select.EPOLLIN)
        self._paused.clear()

    def left(self, fd: int) -> None:
        """Note that a connection is closed."""
        self._turned_away.discard(fd)

    def close(self) -> None:
        """Let nobody in any more."""
        for sock in self._listening.values():
            sock.close()

    def _seat(self, fd: int, due_s: float, *, full: bool) -> None:
        os.set_blocking(fd, False)
        self._epoll.register(fd, select.EPOLLIN)
        if full:
            self._turned_away.add(fd)
            self._seats.take(fd, seats.TURNED_AWAY, self._clock.monotonic_s() + _TURNED_AWAY_S)
        else:
            self._seats.take(fd, seats.HEAD, due_s)

    def _pause_in_need(self, fd: int, error: OSError) -> None:
        """No descriptor or memory is left: whoever waits goes on waiting, and so do we."""
        if not self._in_need:  # said once, and not at each try
            _log.warning("cannot accept: error=%s", error.strerror)
        self._in_need = True
        self._pause(fd)

    def _pause(self, fd: int) -> None:
        """Accept no more before the next sweep: to try again at once would only spin."""
        self._paused.add(fd)
        self._epoll.modify(fd, 0)
