"""Waiters: futures parked until news comes; whoever parks takes itself off the list."""

import asyncio


class Waiters:
    """The parked half of live reads at one place."""

    __slots__ = ("_parked",)

    def __init__(self) -> None:
        self._parked: set[asyncio.Future[None]] = set()

    def __len__(self) -> int:
        return len(self._parked)

    def wake(self) -> None:
        """Wake everyone who is parked now."""
        parked, self._parked = self._parked, set()
        for waiter in parked:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self) -> None:
        """Return at the next wake; callers test before, without an await between, and bound the
        wait."""
        waiter = asyncio.get_running_loop().create_future()
        self._parked.add(waiter)
        try:
            await waiter
        finally:
            self._parked.discard(waiter)
