"""Coalescer: one upstream read for many readers, and still read-your-writes."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from shared import metrics

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(slots=True)
class _Flight(Generic[V]):
    """The read under way for a key, and the one that starts when it ends."""

    running: asyncio.Future[V]
    following: asyncio.Future[V] | None = None


class Coalescer(Generic[K, V]):
    """Lets readers share reads that started after they arrived.

    Whoever arrives during a read joins the next one: what was acknowledged before a reader asked is
    in what it gets. So there are never more than two reads for a key, one of them only planned.
    """

    def __init__(self) -> None:
        self._flights: dict[K, _Flight[V]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def get(self, key: K, fetch: Callable[[], Awaitable[V]]) -> V:
        """Return what fetch returns, called now or when the read under way ends.

        A reader that leaves does not end the read that others share; an error reaches all who share
        it, once, and is not retried here.
        """
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(_promise())
            self._start(key, flight, fetch)
            return await asyncio.shield(flight.running)
        metrics.COALESCED.inc()
        if flight.following is None:
            flight.following = _promise()
        return await asyncio.shield(flight.following)

    async def close(self) -> None:
        """End all reads."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, key: K, flight: _Flight[V], fetch: Callable[[], Awaitable[V]]) -> None:
        task = asyncio.create_task(self._run(key, flight, fetch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, key: K, flight: _Flight[V], fetch: Callable[[], Awaitable[V]]) -> None:
        try:
            value = await fetch()
        except asyncio.CancelledError:
            flight.running.cancel()
            if flight.following is not None:
                flight.following.cancel()
            raise
        except Exception as error:
            flight.running.set_exception(error)
        else:
            flight.running.set_result(value)
        if flight.following is None:
            del self._flights[key]
        else:
            flight.running, flight.following = flight.following, None
            self._start(key, flight, fetch)


def _promise() -> "asyncio.Future[V]":
    promise: asyncio.Future[V] = asyncio.get_running_loop().create_future()
    # All who wait may have left: an error that nobody sees any more is no error of ours.
    promise.add_done_callback(lambda done: done.cancelled() or done.exception())
    return promise
