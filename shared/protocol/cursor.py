"""Stream-Cursor: the interval number that renews a live URL's cache key (PROTOCOL §10.1)."""

from typing import Final

INTERVAL_S: Final = 20
_EPOCH_S: Final = 1_728_432_000  # 2024-10-09T00:00:00Z
_DIGITS_MAX: Final = (
    1000  # whatever we gave is known again; int() of more would be work for nothing
)


def next_cursor(now_ms: int, sent: str | None) -> str:
    """Return the cursor of a live reply.

    It comes from the clock and the request alone: every edge gives the same one to the same
    request, so readers behind any of them stay on one cache key. It is always above the one that
    was sent. A cursor that is not a number of ours (another server minted it) counts as none.
    """
    interval = (now_ms // 1000 - _EPOCH_S) // INTERVAL_S
    if sent is not None and len(sent) <= _DIGITS_MAX and sent.isascii() and sent.isdigit():
        return str(max(interval, int(sent) + 1))
    return str(max(interval, 0))
