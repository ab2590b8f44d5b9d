"""When a reader that lost its connection, or was refused, comes again: full jitter."""

from __future__ import annotations

from typing import Final

FIRST_S: Final = 0.5
MOST_S: Final = 10.0


def delay_s(
    attempt: int, dice: float, first_s: float = FIRST_S, retry_after_s: float = 0.0
) -> float:
    """Return how long to wait before a try.

    Args:
        attempt: how many tries went wrong since all was well.
        dice: evenly from 0 to 1; the whole wait is diced, so that a crowd that was lost at one
            moment does not come back in waves.
        first_s: bound of the first wait; each further one is twice as long, up to MOST_S.
        retry_after_s: what the server asked for, which comes before all of that.
    """
    return retry_after_s + dice * min(max(first_s, MOST_S), first_s * 2.0**attempt)
