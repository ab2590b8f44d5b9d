"""How many processes a crowd of readers takes, at both ends: each has only so many descriptors."""

from __future__ import annotations

import math
from typing import Final

SOURCES_MAX: Final = 250  # client processes, with a loopback address for each
READERS_MAX: Final = 20_000  # of one source address, which has some 60,000 ports
_CLIENT_SPARE: Final = 200  # descriptors that a client process keeps for itself
_EDGE_SPARE: Final = 900  # those of an edge: connections to its upstream, above all
# The kernel gives a connection to one of the processes that share a port by a hash: each gets its
# share give or take the square root of it. Five of those happen to one process in three million.
_UNEVENNESS: Final = 5.0
_WAIT_S: Final = 55
_WAIT_MOST_S: Final = 300  # what Headwater lets a long-poll wait at most
_RAMP_PER_S: Final = 3000  # readers that connect in a second, at the least


def edge_readers(descriptors: int) -> int:
    """Return how many readers one edge process may be given when it is alone."""
    return descriptors - _EDGE_SPARE


def edges_for(readers: int, descriptors: int) -> int:
    """Return how many processes that share a port can hold so many readers.

    Args:
        descriptors: how many files one process may have open.
    """
    room = edge_readers(descriptors)
    if readers <= room:
        return 1
    # The largest mean for which mean + unevenness * sqrt(mean) still fits.
    root = (math.sqrt(_UNEVENNESS**2 + 4 * room) - _UNEVENNESS) / 2
    return math.ceil(readers / root**2)


def client_shares(readers: int, descriptors: int, at_least: int = 1) -> list[int]:
    """Return how many readers each client process holds.

    Raises:
        ValueError: no number of processes is enough, or there is nobody to hold.
    """
    most = min(descriptors - _CLIENT_SPARE, READERS_MAX)
    processes = max(at_least, math.ceil(readers / most))
    if readers < processes or processes > SOURCES_MAX:
        raise ValueError(f"expected {at_least} to {most * SOURCES_MAX} readers, received {readers}")
    share, rest = divmod(readers, processes)
    return [share + (at < rest) for at in range(processes)]


def live_s(readers: int) -> int:
    """Return how long a live reply should last: none should end while the others still connect."""
    return min(_WAIT_MOST_S, _WAIT_S + readers // _RAMP_PER_S)
