"""One suite over every bus: what Publisher and Subscriber promise (shared/bus.py)."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.buses import (
    Bus,
    Edge,
    MemoryBus,
    RedisBus,
    UnixBus,
    counted,
    pair,
    running,
    stream,
    until,
    until_count,
    until_doubt,
    until_heard,
    wake,
)
from tests.service import ValkeyCluster, ValkeyServer, valkey_cluster, valkey_server


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyServer]:
    with valkey_server() as server:
        yield server


@pytest.fixture(scope="module")
def cluster() -> Iterator[ValkeyCluster]:
    with valkey_cluster() as found:
        yield found


@pytest.fixture(params=["memory", "unix", "redis", "cluster"])
def bus(request: pytest.FixtureRequest, tmp_path: Path) -> Bus:
    if request.param == "memory":
        return MemoryBus()
    if request.param == "unix":
        return UnixBus(tmp_path / "bus")
    return RedisBus(request.getfixturevalue("cluster" if request.param == "cluster" else "valkey"))


async def test_wake_after_subscribe_arrives(bus: Bus) -> None:
    async with pair(bus) as (publisher, edge):
        path = stream()
        assert await edge.bus.subscribe(path) is True
        publisher.publish(path, wake())
        await until(lambda: edge.wakes)
        assert edge.wakes == [(path, wake())]


@pytest.mark.parametrize(
    "payload",
    [None, b"", b"\n", b"\r\n$0\r\n", bytes(range(256)) * 16],
    ids=["none", "empty", "newline", "resp", "every byte"],
)
async def test_payload_arrives_as_it_was_sent(bus: Bus, payload: bytes | None) -> None:
    async with pair(bus) as (publisher, edge):
        path = stream()
        await edge.bus.subscribe(path)
        publisher.publish(path, wake(3, payload))
        await until(lambda: edge.wakes)
        assert edge.of(path) == [wake(3, payload)]


async def test_wakes_of_a_stream_arrive_in_the_order_in_which_they_were_published(bus: Bus) -> None:
    async with pair(bus) as (publisher, edge):
        paths = [stream(), stream(), stream()]
        for path in paths:
            await edge.bus.subscribe(path)
        sent = [(paths[n % 3], wake(n)) for n in range(3000)]
        for path, one in sent:
            publisher.publish(path, one)
        await until(lambda: len(edge.wakes) == len(sent))
        for path in paths:
            assert edge.of(path) == [one for to, one in sent if to == path]


async def test_wake_of_a_stream_reaches_only_its_subscribers(bus: Bus) -> None:
    async with pair(bus) as (publisher, edge):
        other = Edge(bus.subscriber())
        async with running(other):
            mine, theirs, nobodys = stream(), stream(), stream()
            assert await edge.bus.subscribe(mine)
            assert await other.bus.subscribe(theirs)
            for path in (nobodys, theirs, mine, theirs):
                publisher.publish(path, wake())
            await until(lambda: len(edge.wakes) == 1 and len(other.wakes) == 2)
            assert edge.wakes == [(mine, wake())]
            assert other.wakes == [(theirs, wake())] * 2


async def test_wake_reaches_every_subscriber(bus: Bus) -> None:
    async with pair(bus) as (publisher, edge):
        other, path = Edge(bus.subscriber()), stream()
        async with running(other):
            assert await edge.bus.subscribe(path)
            assert await other.bus.subscribe(path)
            publisher.publish(path, wake())
            await until(lambda: edge.wakes and other.wakes)


async def test_no_wake_arrives_after_unsubscribe(bus: Bus) -> None:
    async with pair(bus) as (publisher, edge):
        left, kept = stream(), stream()
        await edge.bus.subscribe(left)
        await edge.bus.subscribe(kept)
        edge.bus.unsubscribe(left)
        publisher.publish(left, wake())
        publisher.publish(kept, wake())
        await until(lambda: edge.wakes)
        assert edge.wakes == [(kept, wake())]


async def test_wake_arrives_after_unsubscribe_and_subscribe(bus: Bus) -> None:
    async with pair(bus) as (publisher, edge):
        path = stream()
        for _ in range(5):
            assert await edge.bus.subscribe(path)
            edge.bus.unsubscribe(path)
        assert await edge.bus.subscribe(path)
        publisher.publish(path, wake())
        await until(lambda: edge.wakes)
        assert edge.wakes == [(path, wake())]


async def test_subscribing_twice_brings_each_wake_once(bus: Bus) -> None:
    async with pair(bus) as (publisher, edge):
        path = stream()
        assert await asyncio.gather(*(edge.bus.subscribe(path) for _ in range(3))) == [True] * 3
        assert await edge.bus.subscribe(path)
        for n in range(3):
            publisher.publish(path, wake(n))
        await until(lambda: len(edge.wakes) >= 3)
        assert edge.of(path) == [wake(0), wake(1), wake(2)]


async def test_unsubscribing_twice_and_from_the_unknown_is_harmless(bus: Bus) -> None:
    async with pair(bus) as (publisher, edge):
        path = stream()
        edge.bus.unsubscribe(stream())
        await edge.bus.subscribe(path)
        edge.bus.unsubscribe(path)
        edge.bus.unsubscribe(path)
        await until_heard(publisher, edge)
        assert not edge.of(path)


async def test_subscription_from_before_the_publisher_was_there_holds(bus: Bus) -> None:
    publisher, edge, path = bus.publisher(), Edge(bus.subscriber()), stream()
    async with running(edge):
        await edge.bus.subscribe(path)
        doubts = len(edge.doubts)
        async with running(publisher):
            await until_doubt(edge, doubts)
            publisher.publish(path, wake())
            await until(lambda: edge.wakes)
            assert edge.wakes == [(path, wake())]


async def test_thousands_of_streams_can_be_subscribed_at_once(bus: Bus) -> None:
    async with pair(bus) as (publisher, edge):
        paths = [stream() for _ in range(2000)]
        assert all(await asyncio.gather(*map(edge.bus.subscribe, paths)))
        for path in paths:
            publisher.publish(path, wake())
        await until(lambda: len(edge.wakes) == len(paths))
        assert {path for path, _ in edge.wakes} == {*paths}


async def test_subscriber_that_nobody_answers_says_so_at_once(tmp_path: Path) -> None:
    edge = Edge(UnixBus(tmp_path / "nobody").subscriber())
    async with running(edge):
        assert not edge.bus.up
        assert await edge.bus.subscribe(stream()) is False


async def test_publisher_that_starts_again_raises_doubt_and_is_heard(bus: Bus) -> None:
    edge, path = Edge(bus.subscriber()), stream()
    async with running(edge):
        for life in range(3):
            publisher, doubts = bus.publisher(), len(edge.doubts)
            async with running(publisher):
                await until_doubt(edge, doubts)
                await edge.bus.subscribe(path)
                publisher.publish(path, wake(life))
                await until_count(edge, life + 1)


async def test_every_wake_is_counted(bus: Bus) -> None:
    async with pair(bus) as (publisher, edge):
        before = counted("wakes_published")
        publisher.publish(stream(), wake())
        assert counted("wakes_published") == before + 1
        await until_heard(publisher, edge)


async def test_wakes_published_right_before_close_arrive(bus: Bus) -> None:
    edge, path = Edge(bus.subscriber()), stream()
    async with running(edge):
        doubts, publisher = len(edge.doubts), bus.publisher()
        async with running(publisher):
            await until_doubt(edge, doubts)
            await edge.bus.subscribe(path)
            for n in range(500):
                publisher.publish(path, wake(n))
        await until(lambda: len(edge.wakes) == 500)


async def test_closed_ends_do_nothing_more(bus: Bus) -> None:
    async with pair(bus) as (publisher, edge):
        path = stream()
        await edge.bus.subscribe(path)
        await publisher.close()
        await edge.bus.close()
        publisher.publish(path, wake())
        assert not edge.bus.up
        assert await edge.bus.subscribe(stream()) is False
        assert edge.wakes == []
