"""Passes: one payload each on its way to many readers, some hundreds of them in a turn of the
loop."""

import asyncio
import os
import random
from collections import deque
from collections.abc import Sequence
from itertools import repeat
from typing import Final, Protocol

from edge.outbox import Outbox
from edge.seats import Party, Seats
from shared import metrics

# Payloads on their way at once. Each is bytes of its own, and clients choose how many groups there
# are: a cursor that nobody else has makes one.
_PASSES_MAX: Final = 16


class Desk(Protocol):
    """Where descriptors come from, and go to when they have their bytes."""

    def answered(self, fds: Sequence[int], *, keep_alive: bool) -> None:
        """Their replies are with the kernel."""
        ...

    def unsent(self, fd: int, payload: bytes, sent: int, *, keep_alive: bool | None) -> None:
        """Only some of a payload is with the kernel; None: the reply goes on after it."""
        ...

    def close(self, fd: int, reason: str | None = None) -> None:
        """The connection is broken, or too slow."""
        ...


class Pass:
    """One payload on its way to the members of a party."""

    __slots__ = (
        "answered",
        "began_s",
        "behind",
        "done",
        "ends",
        "first",
        "keep_alive",
        "party",
        "payload",
        "status",
    )

    def __init__(
        self,
        party: Party,
        payload: bytes,
        *,
        behind: bool,
        ends: bool,
        keep_alive: bool = False,
        status: int = 200,
    ) -> None:
        self.party = party
        self.payload = payload
        self.behind = behind  # some may have something to get before it
        self.ends = ends  # the reply ends with it
        self.keep_alive = keep_alive
        self.status = status
        self.done = 0
        self.answered = 0
        # Nobody is always the last: a pass begins anywhere, and goes round.
        self.first = random.randrange(len(party.fds))
        self.began_s = asyncio.get_running_loop().time()


class Keeper(Protocol):
    """Who keeps the parties that passes go over."""

    def released(self, party: Party, count: int) -> None:
        """So many members have left it, with their last bytes."""
        ...

    def finished(self, work: Pass) -> None:
        """A pass has been over all that were there."""
        ...


class Passes:
    """Those that are under way; they take turns.

    Nobody joins a party that a pass goes over, and its places stay as they are; members may leave.
    """

    def __init__(self, seats: Seats, outbox: Outbox, desk: Desk, keeper: Keeper) -> None:
        self._seats = seats
        self._outbox = outbox
        self._desk = desk
        self._keeper = keeper
        self.under_way: deque[Pass] = deque()  # for others to look at: a call costs more

    @property
    def full(self) -> bool:
        """Whether no more should begin now."""
        return len(self.under_way) >= _PASSES_MAX

    def begin(self, work: Pass) -> None:
        """Let a pass take its turns, which are the caller's to give."""
        self.under_way.append(work)

    def write(self, budget: int) -> int:
        """Write to the next members of the first pass; return how many places it went on."""
        work = self.under_way.popleft()
        payload, size, began = work.payload, len(work.payload), work.done
        fds = self._next_of(work, budget)
        if work.behind and len(self._outbox):
            fds = self._put_behind(work, fds)
        each = _write_each(fds, payload)
        short: list[tuple[int, int]] = []
        if each.count(size) != len(fds):
            for fd, sent in zip(fds, each, strict=True):
                if sent < 0:
                    self._desk.close(fd)
                elif sent < size:
                    short.append((fd, sent))
            fds = [fd for fd, sent in zip(fds, each, strict=True) if sent == size]
        if work.ends:
            self._release(work, fds)
            if short:
                self._release(work, [fd for fd, _ in short])
            self._desk.answered(fds, keep_alive=work.keep_alive)
        for fd, sent in short:
            keep_alive = work.keep_alive if work.ends else None
            self._desk.unsent(fd, payload, sent, keep_alive=keep_alive)
        if work.done < len(work.party.fds):
            self.under_way.append(work)
        else:
            metrics.FANOUT_SECONDS.observe(asyncio.get_running_loop().time() - work.began_s)
            self._keeper.finished(work)
        return work.done - began + 1

    def _next_of(self, work: Pass, budget: int) -> Sequence[int]:
        """Return who is at the next places of a pass, and has not left."""
        group, count = work.party, len(work.party.fds)
        # Whoever has its last bytes is counted no more: then all that are left are at these places.
        all_here = group.count == (count - work.done if work.ends else count)
        began, work.done = work.done, min(count, work.done + budget)
        first, end = work.first + began, work.first + work.done
        if all_here and end <= count:
            return group.fds[first:end]
        if all_here and first >= count:
            return group.fds[first - count : end - count]
        party, place = self._seats.party, self._seats.place
        found = []
        for number in range(first, end):
            at = number if number < count else number - count
            fd = group.fds[at]
            # Else it has left, and the descriptor may be another reader's by now.
            if party[fd] is group and place[fd] == at:
                found.append(fd)
        return found

    def _release(self, work: Pass, fds: Sequence[int]) -> None:
        """Let members go who have their last bytes, or will have."""
        self._seats.part(work.party, fds)
        self._keeper.released(work.party, len(fds))
        work.answered += len(fds)

    def _put_behind(self, work: Pass, fds: Sequence[int]) -> list[int]:
        """Put a payload behind what readers have still to get; return those who have it all."""
        free = [fd for fd in fds if fd not in self._outbox]
        for fd in fds if len(free) < len(fds) else ():
            if fd in self._outbox:
                self._add(work, fd)
        return free

    def _add(self, work: Pass, fd: int) -> None:
        """Put a payload behind what a reader has still to get, unless it is too slow for that."""
        if self._outbox.is_full(fd):
            self._desk.close(fd, "backlog")
            return
        if work.ends:
            self._seats.leave(fd)
            self._keeper.released(work.party, 1)
        keep_alive = False if work.ends else None
        self._desk.unsent(fd, work.payload, 0, keep_alive=keep_alive)


def _write_each(fds: Sequence[int], payload: bytes) -> list[int]:
    """Write the same to each descriptor; return how many bytes each took, -1 for one that is
    broken.

    A loop in the interpreter would cost half of what the kernel does; `map` and `extend` are one in
    C, and `extend` keeps what it has when a write fails.
    """
    sent: list[int] = []
    writes = map(os.write, fds, repeat(payload))
    while len(sent) < len(fds):
        try:
            sent.extend(writes)
        except BlockingIOError:
            sent.append(0)
        except OSError:
            sent.append(-1)
    return sent
