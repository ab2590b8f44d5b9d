"""When a request that failed is sent again: full jitter, within a budget of seconds."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from deploy.client.failures import Unavailable

BACKOFF_BASE_S = 0.1
BACKOFF_MAX_S = 5.0


@dataclass(frozen=True, slots=True)
class Timing:
    """Time and chance, which tests replace."""

    clock: Callable[[], float] = time.monotonic
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep
    chance: Callable[[], float] = random.random


def backoff_s(failures: int, chance: float, retry_after_s: float = 0.0) -> float:
    """Return how long to wait, in seconds: what the server asked for, and full jitter on top."""
    return retry_after_s + chance * min(BACKOFF_MAX_S, BACKOFF_BASE_S * 2.0 ** min(failures, 16))


class Outage:
    """How long a request that keeps failing is tried again."""

    def __init__(self, budget_s: float, timing: Timing, notice: Callable[[str], None]) -> None:
        self._budget_s = budget_s
        self._timing = timing
        self._notice = notice
        self._began_at: float | None = None
        self._failures = 0

    def over(self) -> None:
        """Note that the server is back."""
        self._began_at = None
        self._failures = 0

    async def wait(self, failure: Unavailable) -> None:
        """Pause before the next attempt, or raise failure when the budget does not allow one."""
        now = self._timing.clock()
        if self._began_at is None:
            self._began_at = now
        delay_s = backoff_s(self._failures, self._timing.chance(), failure.retry_after_s)
        self._failures += 1
        if now + delay_s - self._began_at >= self._budget_s:
            tries = "try" if self._failures == 1 else "tries"
            failure.add_note(f"gave up after {self._failures} {tries}")
            raise failure
        # Live replies are cut now and then by whatever is in between; that alone is no news.
        if self._failures == 2:
            self._notice(f"{failure}; trying again")
        await self._timing.pause(delay_s)
