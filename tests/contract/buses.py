"""What the bus contract is tested with: every bus by one face, an edge that notes what it hears."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from prometheus_client import REGISTRY

from shared.bus import Publisher, Subscriber
from shared.memory_bus import MemoryBus
from shared.protocol.offset import Offset
from shared.redis_bus import RedisPublisher, RedisSubscriber
from shared.unix_bus import UnixPublisher, UnixSubscriber
from shared.wake import Wake
from tests.service import ValkeyCluster, ValkeyServer

DEADLINE_S = 15.0  # for what takes milliseconds, or a second where a server comes back
POLL_S = 0.002


class Bus(Protocol):
    """Makes the two ends of a bus, which find each other."""

    def publisher(self) -> Publisher: ...

    def subscriber(self) -> Subscriber: ...


class UnixBus:
    def __init__(self, path: Path) -> None:
        self.path = path

    def publisher(self) -> UnixPublisher:
        return UnixPublisher(self.path)

    def subscriber(self) -> UnixSubscriber:
        return UnixSubscriber(self.path)


class RedisBus:
    """By one server, or by the cluster that it is a node of."""

    def __init__(self, server: ValkeyServer | ValkeyCluster) -> None:
        self.server = server

    def publisher(self) -> RedisPublisher:
        return RedisPublisher(self.server.url)

    def subscriber(self) -> RedisSubscriber:
        return RedisSubscriber(self.server.url)


__all__ = ["Bus", "MemoryBus", "RedisBus", "UnixBus"]


class Edge:
    """A subscriber, and all that it was told."""

    def __init__(self, bus: Subscriber) -> None:
        self.bus = bus
        self.wakes: list[tuple[str, Wake]] = []
        self.doubts: list[bool] = []  # whether the bus was up, at each

    async def start(self) -> None:
        await self.bus.start(
            lambda path, wake: self.wakes.append((path, wake)),
            lambda: self.doubts.append(self.bus.up),
        )

    def of(self, path: str) -> list[Wake]:
        return [wake for heard, wake in self.wakes if heard == path]


async def until(condition: Callable[[], object]) -> None:
    """Return once the condition holds; fail the test if it does not in time."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            if condition():
                return
            await asyncio.sleep(POLL_S)


async def until_count(edge: Edge, count: int) -> None:
    """Return once so many wakes were heard."""
    await until(lambda: len(edge.wakes) >= count)
    assert len(edge.wakes) == count


async def until_doubt(edge: Edge, since: int) -> None:
    """Return once the bus is up and there was doubt beyond the count from before.

    A publisher that is new to an edge makes it doubt: only then do both know each other.
    """
    await until(lambda: len(edge.doubts) > since and edge.bus.up)


@asynccontextmanager
async def running(*ends: Publisher | Edge) -> AsyncIterator[None]:
    """Start ends of a bus in this order; close them afterwards, and see that nothing goes on."""
    before = asyncio.all_tasks()
    try:
        for one in ends:
            await one.start()
        yield
    finally:
        for one in ends:
            await (one.bus if isinstance(one, Edge) else one).close()
    if before == {asyncio.current_task()}:  # the outermost: what runs now is theirs
        await until(lambda: asyncio.all_tasks() == before)


@asynccontextmanager
async def pair(bus: Bus) -> AsyncIterator[tuple[Publisher, Edge]]:
    """Run a publisher and an edge, which have met when the block begins."""
    publisher, edge = bus.publisher(), Edge(bus.subscriber())
    async with running(edge):
        doubts = len(edge.doubts)
        async with running(publisher):
            await until_doubt(edge, doubts)
            yield publisher, edge


async def until_heard(publisher: Publisher, edge: Edge) -> None:
    """Publish until a wake arrives on a stream of its own."""
    path = stream()
    await edge.bus.subscribe(path)
    async with asyncio.timeout(DEADLINE_S):
        while not edge.of(path):
            publisher.publish(path, wake())
            await asyncio.sleep(POLL_S)


def stream() -> str:
    """Return a path that no other test uses: one server carries them all."""
    return f"/a stream/{uuid4()}/ü\n%2f"


def wake(before: int = 0, payload: bytes | None = b"x") -> Wake:
    return Wake(
        incarnation=7,
        before=Offset(7, before).token(),
        after=Offset(7, before + len(payload or b"")).token(),
        payload=payload,
    )


def counted(name: str, **labels: str) -> float:
    """Return the value of a counter."""
    return REGISTRY.get_sample_value(f"headwater_{name}_total", labels) or 0.0
