"""Connections to Redis: what a URL says of them, and commands as bytes.

RESP2 throughout: pub/sub needs no more, and the client library formats every RESP3 push for its
log.
"""

import asyncio
import math
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from redis.asyncio.connection import Connection, UnixDomainSocketConnection, parse_url
from redis.exceptions import RedisError, ResponseError

from shared.reconnect import BROKEN, Losses
from shared.redis_cluster import SINGLE, Node, Topology, parse_slots

LOST: Final[Losses] = (*BROKEN, RedisError)
CONNECT_TIMEOUT_S: Final = 1.0
REPLY_TIMEOUT_S: Final = 1.5
# Nodes asked for the map in one attempt: each may take the two time-outs above.
_SEEDS_ASKED_MAX: Final = 3


def encode_command(*words: bytes) -> bytes:
    """Return a command as the wire has it."""
    parts = [b"*%d\r\n" % len(words)]
    parts += [b"$%d\r\n%b\r\n" % (len(word), word) for word in words]
    return b"".join(parts)


PING: Final = encode_command(b"PING")
CLUSTER_SLOTS: Final = encode_command(b"CLUSTER", b"SLOTS")


async def exchange(connection: Connection, command: bytes) -> Any:
    """Send a command and return its reply.

    Raises:
        OSError, RedisError: the connection is lost, or the server refused.
    """
    await send(connection, command)
    async with asyncio.timeout(REPLY_TIMEOUT_S):
        return await read_reply(connection)


async def send(connection: Connection, data: bytes) -> None:
    """Send commands.

    Raises:
        OSError, RedisError: the connection is lost, or takes no more.
    """
    # The library's own time-out, off below, loses a cancellation that comes as the data has gone
    # (`asyncio.wait_for` before Python 3.12): whoever was to end would go on, for ever.
    async with asyncio.timeout(REPLY_TIMEOUT_S):
        await connection.send_packed_command(data)


async def read_reply(connection: Connection) -> Any:
    """Return the next reply or message, however long it takes.

    Raises:
        OSError, RedisError: the connection is lost, or the reply is a refusal.
    """
    return await connection.read_response(disable_decoding=True, timeout=math.inf)


class Dialer:
    """Connects to the server of a URL, and to the other nodes if that is one of a cluster."""

    def __init__(self, url: str) -> None:
        """
        Args:
            url: redis://, rediss:// or unix://, with credentials and options as redis-py reads
                them.

        Raises:
            ValueError: url is none of these.
        """
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
            "socket_timeout": None,  # see `send`
        }
        self._seeds: list[Node] = [None]  # who may be asked for the map, best first
        try:
            self._class(**self._options)
        except (TypeError, RedisError) as error:
            raise ValueError(f"Redis URL with an option that is unknown: {error}") from error

    def host(self, node: Node) -> str:
        """Return by what host a node is reached."""
        return node[0] if node is not None else str(self._options.get("host", "localhost"))

    @asynccontextmanager
    async def connection(self, node: Node = None) -> AsyncIterator[Connection]:
        """Connect; disconnect after the block.

        Raises:
            OSError, RedisError: nobody answers, or not as it should.
        """
        kind, options = self._class, self._options
        if node is not None:
            options = options | {"host": node[0], "port": node[1]}
            if issubclass(kind, UnixDomainSocketConnection):
                del options["path"]
                kind = Connection
        connection = kind(**options)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S + REPLY_TIMEOUT_S):
                await connection.connect()  # type: ignore[no-untyped-call]
            yield connection
        finally:
            await connection.disconnect(nowait=True)

    async def topology(self, first: Node = None) -> Topology:
        """Ask where channels belong; the node of the URL may be gone while its cluster lives.

        Args:
            first: a node that is known to know, if any.

        Raises:
            OSError, RedisError: nobody answers, or not as it should.
        """
        seeds = self._seeds if first is None else [first, *self._seeds]
        failure: Exception | None = None
        for seed in seeds[:_SEEDS_ASKED_MAX]:
            try:
                found = await self._topology_of(seed)
            except LOST as error:
                failure = failure or error
                if seed in self._seeds:  # asked last from now on
                    self._seeds.remove(seed)
                    self._seeds.append(seed)
            else:
                others = [node for node in found.nodes if node != seed]
                self._seeds = list(dict.fromkeys([seed, None, *others]))
                return found
        assert failure is not None
        raise failure

    async def _topology_of(self, seed: Node) -> Topology:
        async with self.connection(seed) as connection:
            try:
                reply = await exchange(connection, CLUSTER_SLOTS)
            except ResponseError:
                return SINGLE  # no cluster, or one that shows only one face, as proxies do
            return parse_slots(reply, self.host(seed))
