"""What a swarm of readers is told, and what it reports."""

from __future__ import annotations

import time
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from loadtests.client import Target
from loadtests.dialect import Dialect, Place

PARK: Final = "park"  # connect every reader, and wait at its place
AGAIN: Final = "again"  # let those wait again that were released
TOTALS: Final = "totals"
LATEST: Final = "latest"  # as TOTALS, but not by reader, and times only since the last of these


@dataclass(frozen=True, slots=True)
class SwarmOrder:
    """What one client process does."""

    url: str
    path: str
    mode: str
    dialect: Callable[[Target], Dialect]
    place: Place  # where the readers begin
    readers: int
    source: str  # its own loopback address: one has only so many ports
    ramps: int = 1  # processes that connect at the same time, and so share the accept queue
    hold: bool = False  # a released reader asks again only when told to
    # None: all read the stream at `path`; else each one of its own, from this number on.
    streams_from: int | None = None
    seen: int = 0  # the last wave before `place`
    clock: Callable[[], float] = time.monotonic  # of stamps; another machine's needs another


@dataclass(frozen=True, slots=True)
class Storm:
    """The connections end at one moment; each reader comes back within spread_s, if it is let."""

    spread_s: float
    close: bool  # by the readers; else the server is going to


@dataclass(frozen=True, slots=True)
class Parked:
    """Every reader has sent its request; with events, every one has also had its first answer."""

    at: float  # on the monotonic clock


@dataclass(frozen=True, slots=True)
class Wave:
    """Every reader has seen this wave."""

    number: int
    at: array[float]  # when each did, on the monotonic clock that all processes share


@dataclass(slots=True)
class Totals:
    """What the readers saw in all."""

    last: array[int] = field(default_factory=lambda: array("I"))  # wave by reader
    lost: int = 0  # as History counts both
    doubled: int = 0
    # Of stamped messages, but those that were there before all readers were.
    late_s: array[float] = field(default_factory=lambda: array("f"))
    empty: int = 0  # waits that ended without data
    reconnects: int = 0  # tries
    refused: int = 0  # answers 503
    parked: int = 0  # readers, now
    parked_at: float = 0.0  # when the last one did
    cpu_s: float = 0.0  # of this process since it was forked
    errors: Counter[str] = field(default_factory=Counter)


def stream_path(path: str, number: int) -> str:
    """Return the path of one of many streams."""
    return f"{path}/{number:06d}"
