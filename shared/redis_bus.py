"""Redis bus: wakes over pub/sub, one channel a stream. Nothing that matters is kept in Redis.

RESP2 throughout: pub/sub needs no more, and the client library formats every RESP3 push for its
log. The commands have names here, as a sharded bus differs in little but these.
"""

import asyncio
import logging
import math
import socket
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from redis.asyncio.connection import Connection, parse_url
from redis.exceptions import RedisError

from shared import metrics
from shared.bus import OnDoubt, OnWake
from shared.interest import Interest
from shared.reconnect import keep_connected
from shared.wake import ForeignWake, Wake, channel_of, decode_wake, encode_wake

_log = logging.getLogger(__name__)

_PUBLISH: Final = b"PUBLISH"
_SUBSCRIBE: Final = b"SUBSCRIBE"
_UNSUBSCRIBE: Final = b"UNSUBSCRIBE"
_CHANNEL_PREFIX: Final = channel_of("").encode()

# A publisher that is new, or that had to drop wakes, says so here, and every edge doubts. Edges
# whose own connection is in order have no other way to learn of it.
DOUBT_CHANNEL: Final = b"headwater:doubt"
DOUBT: Final = b"HW1 doubt"

CONNECT_TIMEOUT_S: Final = 1.0
REPLY_TIMEOUT_S: Final = 1.5
# How often is looked whether anything was heard. After one silence a PING is sent, after three the
# server is given up: within 1.6 s, as a reader may be late by 2 s. One alone proves nothing, since
# our own loop may have stood.
QUIET_S: Final = 0.4
SILENCES_MAX: Final = 3
CLOSE_TIMEOUT_S: Final = 1.0
# Some seconds of wakes, if the server is slow for that long.
QUEUE_BYTES_MAX: Final = 8 * 1024 * 1024
BATCH_BYTES: Final = 256 * 1024


class RedisPublisher:
    """The origin's end: wakes wait in a bounded queue, one task sends them in pipelines."""

    def __init__(self, url: str) -> None:
        """
        Args:
            url: redis://, rediss:// or unix://, with credentials and options as redis-py reads
                them.

        Raises:
            ValueError: url is none of these.
        """
        self._dialer = _Dialer(url)
        self._task: asyncio.Task[None] | None = None
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._news = asyncio.Event()
        self._up = False
        self._closing = False
        self._owes_doubt = True
        self._unanswered = 0  # wakes in the batch that is on its way

    async def start(self) -> None:
        """Begin to connect."""
        assert self._task is None
        self._task = asyncio.create_task(keep_connected(self._dialer.name, self._live))

    def publish(self, path: str, wake: Wake) -> None:
        """Queue a wake, or drop and count it."""
        metrics.WAKES_PUBLISHED.inc()
        if not self._up:
            self._drop("away", 1)
            return
        command = _command(_PUBLISH, channel_of(path).encode(), encode_wake(wake))
        if self._queued_bytes + len(command) > QUEUE_BYTES_MAX:
            self._drop("full", 1)
            return
        self._queue.append(command)
        self._queued_bytes += len(command)
        self._news.set()

    async def close(self) -> None:
        """Send what is queued, if the server takes it within a second, and disconnect."""
        if self._task is None:
            return
        self._closing = True
        self._news.set()
        if self._up:
            await asyncio.wait((self._task,), timeout=CLOSE_TIMEOUT_S)
        self._task.cancel()
        await asyncio.wait((self._task,))

    async def _live(self) -> None:
        async with self._dialer.connection() as connection:
            _log.info("bus connected: server=%s role=publisher", self._dialer.name)
            self._up = True
            try:
                await self._send_for_ever(connection)
            finally:
                self._up = False
                self._drop("away", self._unanswered + len(self._queue))
                self._queue.clear()
                self._queued_bytes = self._unanswered = 0

    async def _send_for_ever(self, connection: Connection) -> None:
        """Send what is queued; returns once that is all and no more will come."""
        while True:
            batch = self._take()
            if batch:
                await _exchange(connection, batch)
                self._unanswered = 0
            elif self._closing:
                return
            elif not await self._hears_news():
                # Nobody writes: find out now, and not by the next wake, if the server is gone.
                await _exchange(connection, [_PING])

    def _take(self) -> list[bytes]:
        """Return the next commands of the queue, and after the last one what there is of doubt."""
        batch: list[bytes] = []
        size = 0
        while self._queue and size < BATCH_BYTES:
            batch.append(self._queue.popleft())
            size += len(batch[-1])
        self._queued_bytes -= size
        self._unanswered = len(batch)
        if self._owes_doubt and not self._queue:
            self._owes_doubt = False
            batch.append(_command(_PUBLISH, DOUBT_CHANNEL, DOUBT))
        return batch

    async def _hears_news(self) -> bool:
        self._news.clear()  # nothing was awaited since the queue was seen empty
        with suppress(TimeoutError):
            async with asyncio.timeout(QUIET_S):
                return await self._news.wait()
        return False

    def _drop(self, reason: str, count: int) -> None:
        metrics.WAKES_DROPPED.labels(reason).inc(count)
        self._owes_doubt = True


class RedisSubscriber:
    """An edge's end: one connection, whatever the number of streams."""

    def __init__(self, url: str) -> None:
        """
        Args:
            url: as for RedisPublisher.

        Raises:
            ValueError: url is no URL of a Redis server.
        """
        self._dialer = _Dialer(url)
        self._interest = Interest()
        self._task: asyncio.Task[None] | None = None
        self._heard = 0  # replies and messages

    async def start(self, on_wake: OnWake, on_doubt: OnDoubt) -> None:
        """Begin to connect; returns once the first attempt has ended, well or not."""
        assert self._task is None
        self._on_wake = on_wake
        self._interest.begin(on_doubt)
        self._task = asyncio.create_task(keep_connected(self._dialer.name, self._live))
        await self._interest.tried()

    async def subscribe(self, path: str) -> bool:
        """Do as Subscriber says; many at once share commands."""
        return await self._interest.want(path)

    def unsubscribe(self, path: str) -> None:
        self._interest.unwant(path)

    @property
    def up(self) -> bool:
        return self._interest.up

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def _live(self) -> None:
        try:
            async with self._dialer.connection() as connection:
                await _exchange(connection, [_command(_SUBSCRIBE, DOUBT_CHANNEL)])
                _log.info("bus connected: server=%s role=subscriber", self._dialer.name)
                self._interest.connected()
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._hear(connection))
                    group.create_task(self._ask(connection))
                    group.create_task(self._watch(connection))
        finally:
            self._interest.lost()

    async def _hear(self, connection: Connection) -> None:
        while True:
            message = await connection.read_response(disable_decoding=True, timeout=math.inf)
            self._heard += 1
            self._take(message)

    async def _ask(self, connection: Connection) -> None:
        while True:
            subscribe, unsubscribe = await self._interest.next_commands()
            for word, paths in ((_SUBSCRIBE, subscribe), (_UNSUBSCRIBE, unsubscribe)):
                if paths:
                    channels = (channel_of(path).encode() for path in paths)
                    await connection.send_packed_command(_command(word, *channels))

    async def _watch(self, connection: Connection) -> None:
        """Find out that the other end is gone where the network does not tell."""
        silences = 0
        while silences < SILENCES_MAX:
            heard = self._heard
            await asyncio.sleep(QUIET_S)
            if self._heard != heard:
                silences = 0
                continue
            silences += 1
            if silences == 1:
                await connection.send_packed_command(_PING)
        raise TimeoutError(f"no answer to a PING for {(SILENCES_MAX - 1) * QUIET_S:g} s")

    def _take(self, message: Any) -> None:
        match message:
            case [b"message", bytes(channel), bytes(payload)]:
                self._deliver(channel, payload)
            case [b"subscribe" | b"unsubscribe", bytes(channel), int()]:
                self._interest.answered(_path_of(channel))
            case [b"pong", _]:
                pass
            case _:
                metrics.WAKES_RECEIVED.labels("foreign").inc()

    def _deliver(self, channel: bytes, payload: bytes) -> None:
        if channel == DOUBT_CHANNEL and payload == DOUBT:
            self._interest.doubt()
            return
        try:
            path, wake = _path_of(channel), decode_wake(payload)
        except ForeignWake:
            metrics.WAKES_RECEIVED.labels("foreign").inc()
            return
        if path in self._interest:
            self._on_wake(path, wake)


class _Dialer:
    """What a URL says of connections to a server."""

    def __init__(self, url: str) -> None:
        options: dict[str, Any] = {**parse_url(url)}
        self._class: type[Connection] = options.pop("connection_class", Connection)
        if "path" in options:
            self.name = f"unix:{options['path']}"
        else:
            self.name = f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
            # What a dead server never acknowledges is not held on to for the kernel's 15 minutes.
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                options["socket_keepalive_options"] = {
                    socket.TCP_USER_TIMEOUT: int(2 * REPLY_TIMEOUT_S * 1000)
                }
        self._options = options | {
            "protocol": 2,
            "decode_responses": False,
            "driver_info": None,  # saves its two commands a connection
            "socket_connect_timeout": CONNECT_TIMEOUT_S,
            "socket_timeout": REPLY_TIMEOUT_S,
        }
        try:
            self._class(**self._options)
        except (TypeError, RedisError) as error:
            raise ValueError(f"Redis URL with an option that is unknown: {error}") from error

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Connect; disconnect after the block.

        Raises:
            OSError, RedisError: nobody answers, or not as it should.
        """
        connection = self._class(**self._options)
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            yield connection
        finally:
            await connection.disconnect(nowait=True)


async def _exchange(connection: Connection, commands: list[bytes]) -> None:
    """Send commands in one go and take their replies.

    Raises:
        OSError, RedisError: the connection is lost, or the server refused one.
    """
    await connection.send_packed_command(b"".join(commands))
    async with asyncio.timeout(REPLY_TIMEOUT_S):
        for _ in commands:
            await connection.read_response(disable_decoding=True, timeout=math.inf)


def _command(*words: bytes) -> bytes:
    parts = [b"*%d\r\n" % len(words)]
    parts += [b"$%d\r\n%b\r\n" % (len(word), word) for word in words]
    return b"".join(parts)


_PING: Final = _command(b"PING")


def _path_of(channel: bytes) -> str:
    """Return the path of a wake channel.

    Raises:
        ForeignWake: the channel is not one of ours.
    """
    try:
        if channel.startswith(_CHANNEL_PREFIX):
            return channel[len(_CHANNEL_PREFIX) :].decode()
    except UnicodeDecodeError:
        pass
    raise ForeignWake(f"foreign channel {channel[:64]!r}")
