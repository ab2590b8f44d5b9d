"""What the Redis bus promises where the server is a cluster: nodes that die, slots that move."""

import asyncio
from collections.abc import Iterator

import pytest
from redis.asyncio import Redis
from redis.crc import key_slot

from shared.bus import Publisher
from shared.redis_bus import RedisPublisher, RedisSubscriber
from shared.wake import channel_of
from tests.contract.buses import (
    DEADLINE_S,
    POLL_S,
    Edge,
    RedisBus,
    counted,
    pair,
    running,
    stream,
    until,
    until_heard,
    wake,
)
from tests.service import ValkeyCluster, ValkeyServer, valkey_cluster

# So many that every node has some.
STREAMS = 60


@pytest.fixture(scope="module")
def cluster() -> Iterator[ValkeyCluster]:
    with valkey_cluster() as found:
        yield found


def slot_of(path: str) -> int:
    return key_slot(channel_of(path).encode())


def owner_of(cluster: ValkeyCluster, path: str) -> ValkeyServer:
    return cluster.owner(channel_of(path).encode())


def another(cluster: ValkeyCluster, than: ValkeyServer) -> ValkeyServer:
    return next(node for node in cluster.nodes if node is not than)


async def subscribed(edge: Edge, count: int = STREAMS) -> list[str]:
    paths = [stream() for _ in range(count)]
    assert all(await asyncio.gather(*map(edge.bus.subscribe, paths)))
    return paths


async def until_all_heard(publisher: Publisher, edge: Edge, paths: list[str]) -> None:
    """Publish to streams until the wakes of all arrive."""
    async with asyncio.timeout(DEADLINE_S):
        while missing := set(paths) - {path for path, _ in edge.wakes}:
            for path in missing:
                publisher.publish(path, wake())
            await asyncio.sleep(POLL_S)


async def sharded_channels(node: ValkeyServer) -> list[bytes]:
    redis = Redis(port=node.port)
    try:
        channels: list[bytes] = await redis.pubsub_shardchannels()  # type: ignore[assignment]
        return channels
    finally:
        await redis.aclose()


async def test_each_wake_goes_to_one_node_alone(cluster: ValkeyCluster) -> None:
    async with pair(RedisBus(cluster)) as (publisher, edge):
        paths = await subscribed(edge)
        for node in cluster.nodes:
            mine = {channel_of(path).encode() for path in paths if owner_of(cluster, path) is node}
            assert {*await sharded_channels(node)} == mine != set()
        for path in paths:
            publisher.publish(path, wake())
        await until(lambda: len(edge.wakes) == len(paths))


async def test_any_node_shows_the_whole_cluster(cluster: ValkeyCluster) -> None:
    publisher = RedisPublisher(cluster.nodes[1].url)
    edge = Edge(RedisSubscriber(cluster.nodes[2].url))
    async with running(edge, publisher):
        await until(lambda: edge.bus.up)
        paths = await subscribed(edge)
        for path in paths:
            publisher.publish(path, wake())
        await until(lambda: len(edge.wakes) == len(paths))


async def test_slot_that_moves_is_followed_with_doubt(cluster: ValkeyCluster) -> None:
    async with pair(RedisBus(cluster)) as (publisher, edge):
        path, other = await subscribed(edge, 2)
        owner = owner_of(cluster, path)
        to = another(cluster, owner)
        edge.doubts.clear()
        await asyncio.to_thread(cluster.move_slot, slot_of(path), to)
        # The edge is told by the node, and asks the new one. On a machine that stands still for a
        # second, the bus may be doubted for that too: so it is never counted how often it was.
        await until(lambda: edge.doubts and edge.bus.up)
        assert edge.doubts[-1] is True
        assert channel_of(path).encode() in await sharded_channels(to)
        # The publisher learns by a wake that is lost, and says so.
        moved = counted("wakes_dropped", reason="moved")
        edge.doubts.clear()
        publisher.publish(path, wake(1))
        await until(lambda: edge.doubts and edge.bus.up)
        assert counted("wakes_dropped", reason="moved") == moved + 1
        edge.wakes.clear()
        publisher.publish(path, wake(2))
        publisher.publish(other, wake(2))
        await until(lambda: len(edge.wakes) == 2)
        assert edge.of(path) == edge.of(other) == [wake(2)]
        assert edge.bus.up


async def test_stream_is_found_that_was_asked_for_by_an_old_map(cluster: ValkeyCluster) -> None:
    async with pair(RedisBus(cluster)) as (publisher, edge):
        path, left = stream(), stream()
        assert await edge.bus.subscribe(left)
        for one in (path, left):
            to = another(cluster, owner_of(cluster, one))
            await asyncio.to_thread(cluster.move_slot, slot_of(one), to)
        edge.bus.unsubscribe(left)
        assert await edge.bus.subscribe(path) is True
        await until_all_heard(publisher, edge, [path])
        await until(lambda: edge.bus.up)
        assert not edge.of(left)


async def test_many_slots_that_move_at_once_are_looked_at_together(
    cluster: ValkeyCluster,
) -> None:
    async with pair(RedisBus(cluster)) as (publisher, edge):
        paths = await subscribed(edge, 600)
        owner = cluster.nodes[0]
        moving = {slot_of(path) for path in paths if owner_of(cluster, path) is owner}
        assert len(moving) > 50
        edge.doubts.clear()
        for slot in moving:
            await asyncio.to_thread(cluster.move_slot, slot, cluster.nodes[1])
        await until(lambda: edge.bus.up)
        assert 1 <= len(edge.doubts) < len(moving)
        await until_all_heard(publisher, edge, paths)
        for slot in moving:
            await asyncio.to_thread(cluster.move_slot, slot, owner)


async def test_node_that_dies_and_returns_costs_doubt_and_no_wake(
    cluster: ValkeyCluster,
) -> None:
    async with pair(RedisBus(cluster)) as (publisher, edge):
        paths = await subscribed(edge)
        node = cluster.nodes[0]  # the one of the URL
        edge.doubts.clear()
        await asyncio.to_thread(node.kill)
        await until(lambda: not edge.bus.up)
        assert False in edge.doubts
        late = stream()
        assert await edge.bus.subscribe(late) is False
        await asyncio.to_thread(node.start)
        await until(lambda: edge.bus.up)
        assert edge.doubts[-1] is True
        edge.wakes.clear()
        await until_all_heard(publisher, edge, [*paths, late])
        await until_heard(publisher, edge)


async def test_replica_takes_the_place_of_a_node_that_dies() -> None:
    with valkey_cluster(replicas=1) as cluster:
        async with pair(RedisBus(cluster)) as (publisher, edge):
            paths = await subscribed(edge)
            edge.doubts.clear()
            # Neither end can ask the node of its URL any more.
            await asyncio.to_thread(cluster.nodes[0].kill)
            await until(lambda: not edge.bus.up)
            await until(lambda: edge.bus.up)
            assert edge.doubts[0] is False
            assert edge.doubts[-1] is True
            edge.wakes.clear()
            await until_all_heard(publisher, edge, paths)
            assert await sharded_channels(cluster.nodes[3])
