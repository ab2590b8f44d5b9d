"""Usage: what each service has written and keeps, counted from the records of a commit (pure).

A service is the first segment of a path. Counts follow from records alone, and enter the index in
the transaction that says up to which frame it has applied them: a crash repeats none and loses
none. A producer's retry makes no record, so it costs nothing.
"""

from dataclasses import astuple, dataclass
from typing import Final

UNIT_BYTES: Final = 10 * 1024


@dataclass(slots=True)
class Usage:
    """Counts of one service, or what they change by."""

    appends: int = 0  # accepted: with data, a close, or both; the first data of a stream is one too
    bytes: int = 0  # of those, as stored
    units: int = 0  # of 10 KiB begun, at least one an append
    stored: int = 0  # bytes of its streams' own that are kept
    streams: int = 0  # that exist, softly deleted ones too

    def add(self, more: "Usage") -> None:
        """Count what another has counted."""
        self.appends += more.appends
        self.bytes += more.bytes
        self.units += more.units
        self.stored += more.stored
        self.streams += more.streams

    def __bool__(self) -> bool:
        return any(astuple(self))


NOTHING: Final = Usage()


def service_of(path: str) -> str:
    """Return whose a stream is."""
    return path.partition("/")[0]


def units_of(size: int) -> int:
    """Return what an append of size bytes costs."""
    return max(1, -(-size // UNIT_BYTES))


def on_append(size: int) -> Usage:
    """Return what an accepted append counts; a close without data is one of no bytes."""
    return Usage(1, size, units_of(size), size)


def on_create(size: int) -> Usage:
    """Return what a new stream counts, with size bytes of its own."""
    return Usage(1, size, units_of(size), size, 1) if size else Usage(streams=1)


def on_trim(size: int) -> Usage:
    """Return what the loss of size bytes counts that are not kept any more."""
    return Usage(stored=-size)


def on_delete(kept: int) -> Usage:
    """Return what a stream takes away that goes for good, with kept bytes of its own."""
    return Usage(stored=-kept, streams=-1)
