"""Progress of a long read, on standard error."""

import time
from collections.abc import Callable
from typing import TextIO

SHOWN_AFTER_S = 1.0
SHOWN_EVERY_S = 0.5


class Progress:
    """One line about a read that takes more than a second: bytes, and bytes a second."""

    def __init__(
        self, out: TextIO, *, wanted: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._out = out
        self._wanted = wanted
        self._clock = clock
        self._began_at = clock()
        self._due_at = self._began_at + SHOWN_AFTER_S
        self._count = 0
        self._shown = False
        # A terminal shows the line in place, a log file line by line.
        self._start, self._end = ("\r", "\x1b[K") if out.isatty() else ("", "\n")

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        """Show the last figures, if any were shown, and leave the line."""
        if self._shown:
            self._show()
            self._out.write("\n" if self._start else "")
            self._out.flush()

    def add(self, count: int) -> None:
        """Note count more bytes."""
        self._count += count
        if self._wanted and self._clock() >= self._due_at:
            self._show()

    def _show(self) -> None:
        now = self._clock()
        self._due_at = now + SHOWN_EVERY_S
        self._shown = True
        rate = self._count / (now - self._began_at)
        self._out.write(f"{self._start}{amount(self._count)}, {amount(rate)}/s{self._end}")
        self._out.flush()


def amount(count: float) -> str:
    """Write a number of bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
