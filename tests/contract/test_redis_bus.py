"""What the Redis bus promises beyond the contract: outages, foreign messages, dead connections."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis

from shared import redis_subscriber
from shared.interest import BATCH_PATHS_MAX, UNANSWERED_PATHS_MAX, Interest
from shared.redis_bus import RedisPublisher, RedisSubscriber
from shared.redis_link import PING, Dialer, send
from shared.redis_origins import BEAT_CHANNEL
from shared.redis_publisher import QUEUE_BYTES_MAX
from shared.wake import PAYLOAD_BYTES_MAX, channel_of, encode_wake
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
from tests.service import ValkeyServer, valkey_server

GONE = "redis://127.0.0.1:9"  # the discard port: nobody listens


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyServer]:
    with valkey_server() as server:
        yield server


@asynccontextmanager
async def client(server: ValkeyServer) -> AsyncIterator[Redis]:
    found = Redis.from_url(server.url)
    try:
        yield found
    finally:
        await found.aclose()


async def test_wakes_flow_again_after_the_server_was_away(valkey: ValkeyServer) -> None:
    async with pair(RedisBus(valkey)) as (publisher, edge):
        paths = [stream() for _ in range(2500)]
        assert all(await asyncio.gather(*map(edge.bus.subscribe, paths)))
        edge.doubts.clear()
        await asyncio.to_thread(valkey.stop)
        await until(lambda: not edge.bus.up)
        assert edge.doubts == [False]  # noticed at once, and told once
        assert await edge.bus.subscribe(stream()) is False
        late = stream()
        assert await edge.bus.subscribe(late) is False
        await asyncio.to_thread(valkey.start)
        await until(lambda: edge.bus.up)
        await until_heard(publisher, edge)
        assert edge.doubts[1:].count(True) >= 1
        edge.wakes.clear()
        for path in [*paths, late]:
            publisher.publish(path, wake())
        await until(lambda: len(edge.wakes) == len(paths) + 1)
        assert {path for path, _ in edge.wakes} == {*paths, late}


async def test_killed_connections_come_back_with_doubt(valkey: ValkeyServer) -> None:
    async with pair(RedisBus(valkey)) as (publisher, edge), client(valkey) as redis:
        edge.doubts.clear()
        await redis.client_kill_filter(_type="pubsub", skipme=True)
        await until(lambda: edge.doubts == [False, True])
        # An edge can't see that the publisher lost its connection, and must be told.
        await redis.client_kill_filter(_type="normal", skipme=True)
        await until(lambda: edge.doubts == [False, True, True])
        await until_heard(publisher, edge)


async def test_publish_never_waits_for_a_server_that_is_gone() -> None:
    publisher = RedisPublisher(GONE)
    async with running(publisher):
        dropped = counted("wakes_dropped", reason="away")
        began_s = time.monotonic()
        for n in range(10_000):
            publisher.publish("/a", wake(n))
        assert time.monotonic() - began_s < 5.0  # 0.02 s where nothing else runs
        assert counted("wakes_dropped", reason="away") == dropped + 10_000


async def test_subscribe_to_a_server_that_is_gone_is_refused_at_once() -> None:
    edge = Edge(RedisSubscriber(GONE))
    async with running(edge):
        assert not edge.bus.up
        assert await edge.bus.subscribe("/a") is False
        assert edge.doubts == []


async def test_queue_is_bounded_and_what_it_refused_is_doubted(valkey: ValkeyServer) -> None:
    async with pair(RedisBus(valkey)) as (publisher, edge):
        path, dropped = stream(), counted("wakes_dropped", reason="full")
        big = wake(payload=b"x" * PAYLOAD_BYTES_MAX)
        await edge.bus.subscribe(path)
        edge.doubts.clear()
        count = 2 * QUEUE_BYTES_MAX // PAYLOAD_BYTES_MAX
        for _ in range(count):  # without a turn for the task that sends
            publisher.publish(path, big)
        refused = int(counted("wakes_dropped", reason="full") - dropped)
        assert count / 2 < refused < count * 0.6
        await until(lambda: edge.doubts == [True])
        assert len(edge.of(path)) == count - refused


async def test_foreign_messages_are_counted_and_ignored(valkey: ValkeyServer) -> None:
    async with pair(RedisBus(valkey)) as (publisher, edge), client(valkey) as redis:
        path = stream()
        await edge.bus.subscribe(path)
        edge.doubts.clear()
        foreign = counted("wakes_received", outcome="foreign")
        damaged = bytearray(encode_wake(wake()))
        damaged[-1] ^= 1
        messages = [b"", b"hello", b'{"path":"/a"}', b"HW2 " + bytes(damaged)[4:], bytes(damaged)]
        for message in messages:
            assert await redis.publish(channel_of(path), message) == 1
        assert await redis.publish(BEAT_CHANNEL, b"hello") == 1
        publisher.publish(path, wake())
        await until(lambda: edge.wakes)
        assert edge.wakes == [(path, wake())]
        assert counted("wakes_received", outcome="foreign") == foreign + len(messages) + 1
        assert edge.doubts == []


async def test_unsubscribed_streams_are_unsubscribed_at_the_server(valkey: ValkeyServer) -> None:
    async with pair(RedisBus(valkey)) as (_, edge), client(valkey) as redis:
        paths = [stream() for _ in range(50)]
        await asyncio.gather(*map(edge.bus.subscribe, paths))
        assert len(await redis.pubsub_channels(channel_of("*"))) == len(paths)
        for path in paths:
            edge.bus.unsubscribe(path)
        async with asyncio.timeout(DEADLINE_S):
            while await redis.pubsub_channels(channel_of("*")):
                pass


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1", "redis://127.0.0.1/?no_such_option=1"], ids=["scheme", "option"]
)
def test_url_of_no_redis_is_refused_before_anything_starts(url: str) -> None:
    with pytest.raises(ValueError):
        RedisPublisher(url)
    with pytest.raises(ValueError):
        RedisSubscriber(url)


async def test_wrong_password_is_an_outage_and_no_failure(
    valkey: ValkeyServer, caplog: pytest.LogCaptureFixture
) -> None:
    url = valkey.url.replace("redis://", "redis://somebody:secret@")
    publisher, edge = RedisPublisher(url), Edge(RedisSubscriber(url))
    async with running(publisher, edge):
        assert not edge.bus.up
        publisher.publish("/a", wake())
    assert "bus lost" in caplog.text
    assert "secret" not in caplog.text


class Relay:
    """A network between a bus and its server, which can fall silent without a word."""

    def __init__(self, server: ValkeyServer) -> None:
        self._server = server
        self._flows = asyncio.Event()
        self._flows.set()
        self._pumps: set[asyncio.Task[None]] = set()
        self.url = ""

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["Relay"]:
        server = await asyncio.start_server(self._on_client, "127.0.0.1", 0)
        self.url = "redis://{}:{}".format(*server.sockets[0].getsockname())
        try:
            yield self
        finally:
            server.close()
            for pump in self._pumps:
                pump.cancel()
            await asyncio.gather(*self._pumps, return_exceptions=True)

    def freeze(self) -> None:
        """Pass nothing on, and close nothing."""
        self._flows.clear()

    def thaw(self) -> None:
        self._flows.set()

    async def _on_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._server.port)
        for source, sink in ((reader, back), (there, writer)):
            pump = asyncio.create_task(self._pump(source, sink))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(1 << 16):
                await self._flows.wait()
                sink.write(data)
                await sink.drain()
        except OSError:
            pass  # one side is gone, so the other is closed too
        finally:
            sink.close()


async def test_connection_that_fell_silent_is_noticed_and_replaced(valkey: ValkeyServer) -> None:
    async with Relay(valkey).listening() as relay:
        publisher, edge = RedisPublisher(relay.url), Edge(RedisSubscriber(relay.url))
        async with running(edge, publisher):
            await until_heard(publisher, edge)
            relay.freeze()
            began_s = time.monotonic()
            await until(lambda: not edge.bus.up)
            assert time.monotonic() - began_s < 5.0  # 1.2 to 1.6 s where nothing else runs
            relay.thaw()
            await until(lambda: edge.bus.up)
            await until_heard(publisher, edge)


async def calls(redis: Redis, command: str) -> int:
    """Return how often the server did a command."""
    counted = (await redis.info("commandstats")).get(f"cmdstat_{command}", {})
    return int(counted.get("calls", 0))


async def until_called(redis: Redis, command: str, times: int) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            if await calls(redis, command) >= times:
                return
            await asyncio.sleep(POLL_S)


async def test_ends_that_idle_stay_connected_by_beats_alone(valkey: ValkeyServer) -> None:
    async with pair(RedisBus(valkey)) as (_, edge), client(valkey) as redis:
        doubts = len(edge.doubts)
        await redis.config_resetstat()
        await until_called(redis, "publish", 5)
        assert len(edge.doubts) == doubts
        assert await calls(redis, "ping") <= 1  # from before the first beat


async def test_subscriber_that_nobody_publishes_to_is_connected_and_not_up(
    valkey: ValkeyServer,
) -> None:
    edge = Edge(RedisSubscriber(valkey.url))
    async with running(edge), client(valkey) as redis:
        await redis.config_resetstat()
        assert await edge.bus.subscribe(stream()) is True
        await until_called(redis, "ping", 2)
        assert not edge.bus.up
        assert edge.doubts == []
        assert await calls(redis, "subscribe") == 1  # and no connection since


async def test_origin_that_is_cut_off_is_missed_by_edges_that_are_not(
    valkey: ValkeyServer,
) -> None:
    async with Relay(valkey).listening() as relay:
        edge, path = Edge(RedisSubscriber(valkey.url)), stream()
        publisher = RedisPublisher(relay.url)
        async with running(edge, publisher):
            await until_heard(publisher, edge)
            edge.doubts.clear()
            assert await edge.bus.subscribe(path)
            relay.freeze()
            await until(lambda: not edge.bus.up)
            assert edge.doubts == [False]
            publisher.publish(path, wake())
            relay.thaw()
            await until(lambda: edge.bus.up)
            assert edge.doubts[:2] == [False, True]
            await until_heard(publisher, edge)


async def test_one_origin_of_two_that_is_cut_off_is_missed(valkey: ValkeyServer) -> None:
    async with Relay(valkey).listening() as relay, pair(RedisBus(valkey)) as (publisher, edge):
        other, doubts = RedisPublisher(relay.url), len(edge.doubts)
        async with running(other):
            await until(lambda: len(edge.doubts) > doubts)  # it is new
            relay.freeze()
            await until(lambda: not edge.bus.up)
            await until_heard(publisher, edge)  # as far as it goes
            assert not edge.bus.up
            relay.thaw()
            await until(lambda: edge.bus.up)


async def test_origin_that_takes_its_leave_is_no_reason_for_doubt(valkey: ValkeyServer) -> None:
    async with pair(RedisBus(valkey)) as (_, edge), client(valkey) as redis:
        other, doubts = RedisPublisher(valkey.url), len(edge.doubts)
        async with running(other):
            await until(lambda: len(edge.doubts) > doubts)
        doubts = len(edge.doubts)
        await redis.config_resetstat()
        await until_called(redis, "publish", 6)  # longer than it takes to miss anybody
        assert edge.bus.up
        assert len(edge.doubts) == doubts


async def test_origin_that_died_is_replaced_by_its_next_life(valkey: ValkeyServer) -> None:
    async with Relay(valkey).listening() as relay:
        edge = Edge(RedisSubscriber(valkey.url))
        first, second = RedisPublisher(relay.url, "shard 1"), RedisPublisher(valkey.url, "shard 1")
        async with running(edge, first):
            await until(lambda: edge.bus.up)
            relay.freeze()
            await until(lambda: not edge.bus.up)
            async with running(second):
                await until(lambda: edge.bus.up)
                await until_heard(second, edge)
            relay.thaw()  # so that all can end


async def test_crowd_comes_back_in_batches_that_wait_for_their_answers(
    valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []  # paths of each command
    waiting: list[int] = []  # for an answer, after each command
    unanswered = 0

    class Counting(Interest):
        async def next_commands(self) -> tuple[list[str], list[str]]:
            nonlocal unanswered
            subscribe, unsubscribe = await super().next_commands()
            asked.append(len(subscribe))
            unanswered += len(subscribe) + len(unsubscribe)
            waiting.append(unanswered)
            return subscribe, unsubscribe

        def answered(self, path: str) -> None:
            nonlocal unanswered
            unanswered -= 1
            super().answered(path)

    monkeypatch.setattr(redis_subscriber, "Interest", Counting)
    async with pair(RedisBus(valkey)) as (publisher, edge), client(valkey) as redis:
        paths = [stream() for _ in range(20_000)]
        for batch in range(0, len(paths), 1000):
            some = paths[batch : batch + 1000]
            assert all(await asyncio.gather(*map(edge.bus.subscribe, some)))
        asked.clear()
        waiting.clear()
        edge.doubts.clear()
        await redis.config_resetstat()
        await redis.client_kill_filter(_type="pubsub", skipme=True)
        await until(lambda: edge.doubts)
        assert unanswered == 0
        left = paths.pop()  # of which the new connection may never have heard
        edge.bus.unsubscribe(left)
        await until(lambda: edge.bus.up)
        assert edge.doubts == [False, True]
        assert max(asked) <= BATCH_PATHS_MAX
        assert max(waiting) <= UNANSWERED_PATHS_MAX
        assert sum(asked) - len(paths) in (0, 1)
        assert len(asked) <= len(paths) // BATCH_PATHS_MAX + 3
        assert await calls(redis, "subscribe") <= len(asked) + 1
        for path in (left, *paths):
            publisher.publish(path, wake())
        await until(lambda: len(edge.wakes) == len(paths))
        assert {path for path, _ in edge.wakes} == {*paths}


async def test_no_cancellation_is_lost_while_commands_are_sent(valkey: ValkeyServer) -> None:
    async def work() -> None:
        async with Dialer(valkey.url).connection() as connection:
            connected.set()
            await send(connection, PING)
            await asyncio.Event().wait()

    # Wherever it comes: the library may be between the last byte and telling of it.
    for turns in range(12):
        connected = asyncio.Event()
        task = asyncio.create_task(work())
        await connected.wait()
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait((task,), timeout=DEADLINE_S)
        assert done, f"still at work, cancelled after {turns} turns"
        assert task.cancelled()
