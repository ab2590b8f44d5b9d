"""Deadlines: when a wait is over, kept in sweeps; once an edge drains, all are within a window."""

import asyncio
import random
from contextlib import suppress
from typing import Final, Protocol

from edge import seats
from edge.doors import Doors
from edge.lines import Lines
from edge.outbox import Outbox
from edge.seats import NEVER, Seats
from shared.clock import Clock

# How late a deadline may be kept. 56 edges that idle on one machine wake up for it.
_SWEEP_S: Final = 0.25
_SWEEP_WRITES: Final = 256  # in one turn


class Desk(Protocol):
    """The connections whose deadlines are kept."""

    def expire(self, fd: int) -> None:
        """What it waits for has not come in time."""
        ...

    def close(self, fd: int, reason: str | None = None) -> None:
        """It takes nothing of what it has to get."""
        ...

    def say_goodbye(self, fd: int) -> None:
        """It may ask for nothing more."""
        ...

    def break_off(self, fd: int, error: Exception) -> None:
        """We failed it."""
        ...

    def swept(self) -> bool:
        """All were looked at; return whether any of them, or of what was begun for them, is not
        done."""
        ...


class Deadlines:
    """The end of every wait."""

    def __init__(
        self, seats_: Seats, outbox: Outbox, doors: Doors, lines: Lines, desk: Desk, clock: Clock
    ) -> None:
        self._seats = seats_
        self._outbox = outbox
        self._doors = doors
        self._lines = lines
        self._desk = desk
        self._clock = clock
        self.draining = False
        self._leave_by_s = NEVER  # once draining: nobody waits any longer
        self._idle = asyncio.Event()

    def due(self, now_s: float, wait_s: float) -> float:
        """Return when a live reader's wait that begins now ends."""
        if self.draining:
            wait_s = min(wait_s, random.uniform(0, max(0.0, self._leave_by_s - now_s)))
        return now_s + wait_s

    def release(self, window_s: float) -> None:
        """Let everyone who waits go within a window, spread out, so that they do not all return at
        once."""
        now_s = self._clock.monotonic_s()
        self.draining = True
        self._leave_by_s = now_s + window_s
        for fd, state in enumerate(self._seats.state):
            if state in (seats.PARKED, seats.CATCHING_UP):
                self._seats.wait_until(fd, self.due(now_s, self._seats.due_s[fd] - now_s))

    async def drain(self, window_s: float) -> None:
        """Return once nobody waits any more, at most after window_s."""
        self._idle.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(window_s):
                await self._idle.wait()
                if self._doors.shut():
                    self._idle.clear()
                    await self._idle.wait()

    async def sweep_for_ever(self) -> None:
        """Look, now and then, at whose wait is over."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            self._doors.reopen()
            self._lines.expire()
            now_s = self._clock.monotonic_s()
            if now_s >= self._leave_by_s:
                self._send_away()
            for fd in self._outbox.stalled(now_s):
                self._desk.close(fd, "stalled")
            for number, fd in enumerate(self._seats.due(now_s), 1):
                if self._seats.due_s[fd] <= now_s:  # not if it moved during a pause
                    try:
                        self._desk.expire(fd)
                    except Exception as error:
                        self._desk.break_off(fd, error)
                if number % _SWEEP_WRITES == 0:
                    await asyncio.sleep(0)
            if not self._desk.swept():
                self._idle.set()

    def _send_away(self) -> None:
        """Let nobody in any more, then let go of those who are between two requests: none of theirs
        would be answered."""
        if self._doors.open:
            self._doors.shut()
            return  # a sweep later, who was taken now has had the time to ask
        for fd, state in enumerate(self._seats.state):
            if state == seats.HEAD:
                self._desk.say_goodbye(fd)
