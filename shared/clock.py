"""Clock: the one way in which time enters, so that a test can turn it."""

import time
from typing import Protocol


class Clock(Protocol):
    """Wall time for what is stored and sent, monotonic time for waits."""

    def now_ms(self) -> int:
        """Return Unix time in milliseconds; it may jump."""
        ...

    def monotonic_s(self) -> float:
        """Return seconds since some moment; they only grow."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        return time.monotonic()
