"""Which waves each reader saw, and when: none twice, none left out, none before an earlier one."""

from __future__ import annotations

from array import array


class History:
    """The waves of many readers, each known by a small number such as its descriptor."""

    def __init__(self, seen: int = 0) -> None:
        """Expect each reader to see the waves after this one."""
        self._seen = seen
        self.lost = 0  # waves that a reader missed between two that it saw
        self.doubled = 0  # waves that came again, or after a later one
        self._last = array("I")  # by reader; waves count from 1

    def see(self, reader: int, wave: int) -> bool:
        """Note that a reader saw a wave; return whether it is later than all it saw before."""
        if reader >= len(self._last):
            self._last.extend([self._seen] * (reader + 1 - len(self._last)))
        expected = self._last[reader] + 1
        if wave < expected:
            self.doubled += 1
            return False
        self.lost += wave - expected
        self._last[reader] = wave
        return True

    def last_wave(self, reader: int) -> int:
        """Return the last wave that a reader saw, or was to have seen before."""
        return self._last[reader] if reader < len(self._last) else self._seen


class Arrivals:
    """When each wave reached its readers."""

    def __init__(self, readers: int) -> None:
        """Expect every wave to reach this many readers."""
        self._readers = readers
        self._times: dict[int, array[float]] = {}  # by wave, until all have seen it

    def note(self, wave: int, at: float) -> array[float] | None:
        """Note that one more reader has a wave; return all times of arrival, once all have."""
        times = self._times.setdefault(wave, array("d"))
        times.append(at)
        return self._times.pop(wave) if len(times) == self._readers else None
