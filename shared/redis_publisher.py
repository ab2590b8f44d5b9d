"""The origin's end of the Redis bus: wakes wait in bounded queues, a task a node sends them."""

import asyncio
import logging
from collections import deque
from contextlib import suppress
from dataclasses import replace
from hashlib import blake2b
from typing import Final
from uuid import uuid4

from redis.asyncio.connection import Connection
from redis.exceptions import MovedError

from shared import metrics
from shared.reconnect import keep_connected
from shared.redis_cluster import SINGLE, Node, Topology, parse_slots
from shared.redis_link import (
    CLUSTER_SLOTS,
    LOST,
    PING,
    REPLY_TIMEOUT_S,
    Dialer,
    encode_command,
    exchange,
    read_reply,
    send,
)
from shared.redis_origins import BEAT_CHANNEL, BEAT_S, Beat, encode_beat
from shared.wake import Wake, channel_of, encode_wake

_log = logging.getLogger(__name__)

CLOSE_TIMEOUT_S: Final = 1.0
# Some seconds of wakes, if the server is slow for that long; of all nodes together.
QUEUE_BYTES_MAX: Final = 8 * 1024 * 1024
BATCH_BYTES: Final = 256 * 1024


class RedisPublisher:
    """The origin's end: one connection a node, whatever the number of streams."""

    def __init__(self, url: str, name: str | None = None) -> None:
        """
        Args:
            url: of a server, or of any node of a cluster; see Dialer.
            name: of what it writes, such as a shard; the same after a restart, so that edges know
                that one is back which they missed. None: a new one each time.

        Raises:
            ValueError: url is no URL of a Redis server.
        """
        self._dialer = Dialer(url)
        known = blake2b(name.encode(), digest_size=16).hexdigest() if name else uuid4().hex
        # New to every edge, which is to look once: wakes were lost before there was a publisher.
        self._beat = Beat(known, uuid4().hex, doubts=0)
        self._task: asyncio.Task[None] | None = None
        self._ending = asyncio.Event()
        self._up = False
        # Of the present life:
        self._topology = SINGLE
        self._lanes: dict[Node, _Lane] = {}
        self._queued_bytes = 0

    async def start(self) -> None:
        """Begin to connect."""
        assert self._task is None
        self._task = asyncio.create_task(keep_connected(self._dialer.name, self._live, LOST))

    def publish(self, path: str, wake: Wake) -> None:
        """Queue a wake, or drop and count it."""
        metrics.WAKES_PUBLISHED.inc()
        if not self._up:
            self._drop("away", 1)
            return
        channel = channel_of(path).encode()
        word = b"SPUBLISH" if self._topology.sharded else b"PUBLISH"
        command = encode_command(word, channel, encode_wake(wake))
        if self._queued_bytes + len(command) > QUEUE_BYTES_MAX:
            self._drop("full", 1)
            return
        self._queued_bytes += len(command)
        self._lanes[self._topology.owner(self._topology.slot(channel))].push(command)

    async def close(self) -> None:
        """Send what is queued and take leave, if the server takes it within a second; then
        disconnect."""
        if self._task is None:
            return
        self._ending.set()
        if self._up:
            await asyncio.wait((self._task,), timeout=CLOSE_TIMEOUT_S)
        self._task.cancel()
        await asyncio.wait((self._task,))

    async def _live(self) -> None:
        topology = await self._dialer.topology()
        try:
            async with asyncio.TaskGroup() as group:
                self._follow(topology, group)
                self._up = True
                await self._beat_on()
        finally:
            self._up = False
            self._drop("away", sum(lane.wakes for lane in self._lanes.values()))
            self._lanes = {}
            self._queued_bytes = 0

    def _follow(self, topology: Topology, group: asyncio.TaskGroup) -> None:
        """Send by this map from now on.

        Raises:
            NodesLeft: a node left the cluster; edges may not hear what it is told.
        """
        topology.check_holds_all(list(self._lanes))
        for node in topology.nodes:
            if node not in self._lanes:
                lane = self._lanes[node] = _Lane(node)
                group.create_task(self._serve(lane, group))
        self._topology = topology

    async def _beat_on(self) -> None:
        """Beat through the first node, which tells the others, while every node answers."""
        first, *others = self._lanes.values()
        for lane in (first, *others):
            await lane.connected.wait()
        _log.info(
            "bus connected: server=%s role=publisher origin=%s nodes=%d",
            *(self._dialer.name, self._beat.name, len(self._lanes)),
        )
        while not self._ending.is_set():
            others = [lane for lane in self._lanes.values() if lane is not first]
            if all(lane.connected.is_set() and not lane.has_pulse for lane in others):
                first.pulse(self._beat_command())
            for lane in others:
                lane.pulse(PING)
            with suppress(TimeoutError):
                async with asyncio.timeout(BEAT_S):
                    await self._ending.wait()
        self._beat = replace(self._beat, last=True)
        first.push(self._beat_command())
        for lane in self._lanes.values():
            lane.news.set()

    def _beat_command(self) -> bytes:
        return encode_command(b"PUBLISH", BEAT_CHANNEL, encode_beat(self._beat))

    async def _serve(self, lane: "_Lane", group: asyncio.TaskGroup) -> None:
        """Send what is queued for a node; returns once that is all and no more will come."""
        async with self._dialer.connection(lane.node) as connection:
            lane.connected.set()
            while True:
                batch = lane.take()
                if batch:
                    moved = await _send(connection, batch)
                    self._queued_bytes -= lane.sent()
                    if moved:
                        # Who says that a slot has moved knows where to. Edges doubt once wakes go
                        # there.
                        try:
                            reply = await exchange(connection, CLUSTER_SLOTS)
                            self._follow(parse_slots(reply, self._dialer.host(lane.node)), group)
                        finally:
                            self._drop("moved", moved)
                elif self._beat.last:
                    return
                else:
                    lane.news.clear()  # nothing was awaited since the queue was seen empty
                    await lane.news.wait()

    def _drop(self, reason: str, count: int) -> None:
        """Count wakes that were lost; the next beat tells every edge."""
        metrics.WAKES_DROPPED.labels(reason).inc(count)
        self._beat = replace(self._beat, doubts=self._beat.doubts + 1)


class _Lane:
    """The way to one node: what waits for it, and what is on its way."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.connected = asyncio.Event()
        self.news = asyncio.Event()
        self.has_pulse = False  # a beat or a PING waits, or is on its way
        self._queue: deque[bytes] = deque()
        self._pulse = b""
        self._batch: list[bytes] = []

    @property
    def wakes(self) -> int:
        """How many are not answered yet."""
        return len(self._queue) + len(self._batch) - self.has_pulse

    def push(self, command: bytes) -> None:
        self._queue.append(command)
        self.news.set()

    def pulse(self, command: bytes) -> None:
        """Send a command behind all others, unless the last one still waits: as late as wakes are,
        edges hear of it."""
        if not self.has_pulse:
            self.has_pulse = True
            self._pulse = command
            self.push(command)

    def take(self) -> list[bytes]:
        """Return what is to be sent next, in one go."""
        size = 0
        while self._queue and size < BATCH_BYTES:
            self._batch.append(self._queue.popleft())
            size += len(self._batch[-1])
        return self._batch

    def sent(self) -> int:
        """Take in that the batch was answered; return the bytes of wakes in it."""
        size = sum(map(len, self._batch))
        if self.has_pulse and any(command is self._pulse for command in self._batch):
            self.has_pulse = False
            size -= len(self._pulse)
        self._batch = []
        return size


async def _send(connection: Connection, batch: list[bytes]) -> int:
    """Send commands in one go and take their replies.

    Returns:
        How many of them another node should have had.

    Raises:
        OSError, RedisError: the connection is lost, or the server refused one.
    """
    moved = 0
    await send(connection, b"".join(batch))
    async with asyncio.timeout(REPLY_TIMEOUT_S):
        for _ in batch:
            try:
                await read_reply(connection)
            except MovedError:
                moved += 1
    return moved
