"""Which waves each reader saw, and when: none twice, none left out, none before an earlier one."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable


class History:
    """The waves of many readers, each known by a small number such as its descriptor."""

    def __init__(self, readers: int) -> None:
        """Expect every wave to reach this many readers."""
        self.lost = 0  # waves that a reader missed between two that it saw
        self.doubled = 0  # waves that came again, or after a later one
        self._readers = readers
        self._last = array("L")  # by reader; waves count from 1
        self._arrivals: dict[int, array[float]] = {}  # by wave, until all have seen it

    def see(self, reader: int, wave: int, at: float) -> array[float] | None:
        """Note that a reader saw a wave; return all times at which it was seen, once all have."""
        if reader >= len(self._last):
            self._last.extend([0] * (reader + 1 - len(self._last)))
        expected = self._last[reader] + 1
        if wave < expected:
            self.doubled += 1
            return None
        self.lost += wave - expected
        self._last[reader] = wave
        arrivals = self._arrivals.setdefault(wave, array("d"))
        arrivals.append(at)
        return self._arrivals.pop(wave) if len(arrivals) == self._readers else None

    def last_wave(self, reader: int) -> int:
        """Return the last wave that a reader saw; 0 is none at all."""
        return self._last[reader] if reader < len(self._last) else 0

    def last_waves(self, readers: Iterable[int]) -> Counter[int]:
        """Return how many of these readers saw which wave last."""
        return Counter(map(self.last_wave, readers))
