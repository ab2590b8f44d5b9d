"""Descriptors: how many connections a process may hold."""

import logging
import resource
from typing import Final

_log = logging.getLogger(__name__)

# What a process opens beside connections: its loop, bus, logs, admin requests, files of the day.
_OWN: Final = 128
_MOST: Final = 1 << 20  # where the system sets no limit: what Linux opens in one process at most
_LEAST: Final = 64  # below it an edge serves nobody well; it says so at the start


def claim_descriptors(wanted: int | None, upstream_connections: int) -> int:
    """Raise the limit of this process as far as it may be, and share it out.

    Args:
        wanted: connections that an operator allows; None: as many as there is room for.
        upstream_connections: bound on each of the kinds of requests to the upstream: reads, waits
            and writes.

    Returns:
        How many connections of clients may be open.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = _MOST
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    room = hard - _OWN - 3 * upstream_connections
    if room < _LEAST or (wanted is not None and wanted > room):
        _log.warning("few descriptors: limit=%d connections=%s room=%d", hard, wanted, room)
    room = max(_LEAST, room)
    return room if wanted is None else min(wanted, room)
