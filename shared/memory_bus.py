"""MemoryBus: both ends of a bus in one process; the contract in its shortest form."""

import asyncio

from shared import metrics
from shared.bus import OnDoubt, OnWake
from shared.wake import Wake


class MemoryBus:
    """Connects publishers and subscribers that are given the same one."""

    def __init__(self) -> None:
        self.subscribers: list[MemorySubscriber] = []

    def publisher(self) -> "MemoryPublisher":
        return MemoryPublisher(self)

    def subscriber(self) -> "MemorySubscriber":
        return MemorySubscriber(self)


class MemoryPublisher:
    """The origin's end; each new one is a reason for doubt, as a new connection is elsewhere."""

    def __init__(self, bus: MemoryBus) -> None:
        self._bus = bus

    async def start(self) -> None:
        for subscriber in self._bus.subscribers:
            subscriber.on_doubt()

    def publish(self, path: str, wake: Wake) -> None:
        metrics.WAKES_PUBLISHED.inc()
        loop = asyncio.get_running_loop()
        for subscriber in self._bus.subscribers:
            # Not at once: no other bus calls an edge from within an origin's publish either.
            loop.call_soon(subscriber.deliver, path, wake)

    async def close(self) -> None:
        pass


class MemorySubscriber:
    """An edge's end."""

    def __init__(self, bus: MemoryBus) -> None:
        self._bus = bus
        self._on_wake: OnWake
        self.on_doubt: OnDoubt
        self._paths: set[str] = set()

    async def start(self, on_wake: OnWake, on_doubt: OnDoubt) -> None:
        self._on_wake, self.on_doubt = on_wake, on_doubt
        self._bus.subscribers.append(self)
        metrics.BUS_UP.set(True)
        on_doubt()

    def deliver(self, path: str, wake: Wake) -> None:
        if self.up and path in self._paths:
            self._on_wake(path, wake)

    async def subscribe(self, path: str) -> bool:
        self._paths.add(path)
        return self.up

    def unsubscribe(self, path: str) -> None:
        self._paths.discard(path)

    @property
    def up(self) -> bool:
        return self in self._bus.subscribers

    async def close(self) -> None:
        if self.up:
            self._bus.subscribers.remove(self)
        metrics.BUS_UP.set(False)
