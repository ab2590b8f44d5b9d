"""Outbox: bytes that the kernel did not take yet, per descriptor, and when that is too much."""

import os
from collections import deque
from dataclasses import dataclass, field
from itertools import islice, takewhile
from typing import Final, cast

# Past this, a live reader that gets more is closed: it is slower than its stream, and resumes by
# offset from a chunk that all share. One step of any size may wait: it was begun before.
BACKLOG_BYTES: Final = 64 * 1024
# A reader that took nothing for this long has gone, or holds memory for no use.
STALLED_S: Final = 30.0
# Replies that wait mostly share their bytes with the chunk cache, but a chunk that has left it
# lives on for them. Each body counts once.
_HELD_BYTES_MAX: Final = 64 * 1024 * 1024
_CLOSED_AT_ONCE: Final = 64  # of those over it, a look; readers who still make progress are spared
_PARTS_MAX: Final = 64  # of one write; Linux takes 1,024, and no reader should need as many


@dataclass(slots=True)
class _Rest:
    """What one reader has still to get."""

    progressed_s: float
    parts: deque[memoryview] = field(default_factory=deque)
    size: int = 0


class Outbox:
    """Sends at once what the kernel takes, and keeps the rest within bounds.

    Whoever sends is told by False that a rest waits; it then asks for `flush` when the descriptor
    can be written to.
    """

    def __init__(self, backlog_bytes: int = BACKLOG_BYTES) -> None:
        self._backlog_bytes = backlog_bytes
        self._rests: dict[int, _Rest] = {}  # whoever progressed last is last
        self._holders: dict[int, int] = {}  # rests by id of the body that they hold
        self._held_bytes = 0

    def __contains__(self, fd: int) -> bool:
        return fd in self._rests

    def __len__(self) -> int:
        return len(self._rests)

    def send(self, fd: int, parts: tuple[bytes, ...], now_s: float) -> bool:
        """Write parts behind whatever waits; return whether all is with the kernel.

        Raises:
            OSError: the connection is broken.
        """
        if fd in self._rests:
            self.add(fd, parts)
            return False
        try:
            sent = os.writev(fd, parts) if len(parts) > 1 else os.write(fd, parts[0])
        except BlockingIOError:
            sent = 0
        return self.keep(fd, parts, sent, now_s)

    def keep(self, fd: int, parts: tuple[bytes, ...], sent: int, now_s: float) -> bool:
        """Keep what lies beyond the bytes that were sent; return whether there is nothing."""
        if sent == sum(map(len, parts)):
            return True
        rest = _Rest(now_s)
        for part in parts:
            if sent < len(part):
                self._append(rest, memoryview(part)[sent:])
            sent = max(0, sent - len(part))
        self._rests[fd] = rest
        return False

    def is_full(self, fd: int) -> bool:
        """Tell whether a reader is too far behind to be given more."""
        rest = self._rests.get(fd)
        return rest is not None and rest.size > self._backlog_bytes

    @property
    def is_overfull(self) -> bool:
        """Whether so much is held that nobody new may wait: those who are `stalled` go too late."""
        return self._held_bytes > 2 * _HELD_BYTES_MAX

    def add(self, fd: int, parts: tuple[bytes, ...]) -> None:
        """Put parts behind what waits; callers ask `is_full` before."""
        rest = self._rests[fd]
        for part in parts:
            self._append(rest, memoryview(part))

    def flush(self, fd: int, now_s: float) -> bool:
        """Write what waits; return whether all is with the kernel.

        Raises:
            OSError: the connection is broken.
        """
        rest = self._rests.get(fd)
        if rest is None:
            return True
        try:
            sent = os.writev(fd, tuple(rest.parts)[:_PARTS_MAX])
        except BlockingIOError:
            return False
        rest.size -= sent
        while sent:
            part = rest.parts.popleft()
            if sent < len(part):
                rest.parts.appendleft(part[sent:])
                break
            sent -= len(part)
            self._release(part)
        if not rest.parts:
            del self._rests[fd]
            return True
        rest.progressed_s = now_s
        self._rests[fd] = self._rests.pop(fd)
        return False

    def drop(self, fd: int) -> None:
        """Forget what waits for a reader."""
        rest = self._rests.pop(fd, None)
        if rest is not None:
            for part in rest.parts:
                self._release(part)

    def stalled(self, now_s: float) -> list[int]:
        """Return who must go: took nothing for too long, or has waited longest where too much is
        held."""
        waiting = iter(self._rests.items())  # the longest without progress first
        over = _CLOSED_AT_ONCE if self._held_bytes > _HELD_BYTES_MAX else 0
        found = [fd for fd, _ in islice(waiting, over)]
        found += [
            fd for fd, _ in takewhile(lambda one: now_s - one[1].progressed_s > STALLED_S, waiting)
        ]
        return found

    def _append(self, rest: _Rest, part: memoryview) -> None:
        rest.parts.append(part)
        rest.size += len(part)
        body = cast(bytes, part.obj)
        holders = self._holders.get(id(body), 0)
        self._holders[id(body)] = holders + 1
        if not holders:
            self._held_bytes += len(body)

    def _release(self, part: memoryview) -> None:
        body = cast(bytes, part.obj)
        self._holders[id(body)] -= 1
        if not self._holders[id(body)]:
            del self._holders[id(body)]
            self._held_bytes -= len(body)
