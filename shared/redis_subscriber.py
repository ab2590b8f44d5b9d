"""An edge's end of the Redis bus: a connection a node, and what was asked on each."""

import asyncio
import logging
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

from redis.asyncio.connection import Connection
from redis.exceptions import InvalidResponse, MovedError

from shared import metrics
from shared.bus import OnDoubt, OnWake
from shared.interest import Interest
from shared.reconnect import keep_connected
from shared.redis_cluster import SINGLE, Node
from shared.redis_link import LOST, PING, Dialer, encode_command, exchange, read_reply, send
from shared.redis_origins import BEAT_CHANNEL, BEAT_S, Origins, decode_beat
from shared.wake import ForeignWake, channel_of, decode_wake

_log = logging.getLogger(__name__)

_CHANNEL_PREFIX: Final = channel_of("").encode()
# How often is looked whether anything was heard. After one silence a PING is sent, after three the
# server is given up: within 1.6 s, as a reader may be late by 2 s. One alone proves nothing, since
# our own loop may have stood.
_QUIET_S: Final = 0.4
_SILENCES_MAX: Final = 3
# How long is waited for more slots to move before the map is read anew: of thousands that move one
# after another, only so many times a second is everything looked at.
_MOVE_PAUSE_S: Final = 0.2
# Messages taken before others have a turn: a few ms at most.
_TURN_MESSAGES: Final = 128


class RedisSubscriber:
    """An edge's end: one connection a node, whatever the number of streams."""

    def __init__(self, url: str) -> None:
        """
        Args:
            url: as for RedisPublisher.

        Raises:
            ValueError: url is no URL of a Redis server.
        """
        self._dialer = Dialer(url)
        self._interest = Interest(heard=False)
        self._origins = Origins()
        self._task: asyncio.Task[None] | None = None
        # Of the present life:
        self._topology = SINGLE
        self._links: dict[Node, _Link] = {}
        self._moved_from: Node = None
        self._moved = False  # something is not where the map says

    async def start(self, on_wake: OnWake, on_doubt: OnDoubt) -> None:
        """Begin to connect; returns once the first attempt has ended, well or not."""
        assert self._task is None
        self._on_wake = on_wake
        self._interest.begin(on_doubt)
        self._task = asyncio.create_task(keep_connected(self._dialer.name, self._live, LOST))
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
            self._topology = await self._dialer.topology()
            self._origins.begin(self._topology.nodes)
            async with asyncio.TaskGroup() as group:
                for node in self._topology.nodes:
                    self._join(node, group)
                for link in self._links.values():
                    await link.ready.wait()
                _log.info(
                    "bus connected: server=%s role=subscriber nodes=%d",
                    *(self._dialer.name, len(self._links)),
                )
                self._interest.connected()
                group.create_task(self._ask(group))
                group.create_task(self._tick())
        finally:
            self._links = {}
            self._moved = False
            self._interest.lost()
            self._interest.hears(False)

    def _join(self, node: Node, group: asyncio.TaskGroup) -> None:
        link = self._links[node] = _Link(node, self)
        group.create_task(link.live(self._dialer, group))

    async def _ask(self, group: asyncio.TaskGroup) -> None:
        while True:
            subscribe, unsubscribe = await self._interest.next_commands()
            if self._moved:
                await self._read_map(group)
            for on, paths in ((True, subscribe), (False, unsubscribe)):
                for slot, some in self._by_slot(paths).items():
                    self._links[self._topology.owner(slot)].add(_Command(on, slot, some))
            for link in self._links.values():
                await link.send()

    def _by_slot(self, paths: list[str]) -> dict[int, list[str]]:
        """Return paths by what one command may name: a node refuses one that names two slots."""
        found: dict[int, list[str]] = {}
        for path in paths:
            found.setdefault(self._topology.slot(channel_of(path).encode()), []).append(path)
        return found

    async def _read_map(self, group: asyncio.TaskGroup) -> None:
        await asyncio.sleep(_MOVE_PAUSE_S)
        self._moved = False  # what moves from now on is another reason
        # Who said that something has moved knows where to.
        topology = await self._dialer.topology(self._moved_from)
        topology.check_holds_all(list(self._links))
        for node in topology.nodes:
            if node not in self._links:
                self._join(node, group)
                await self._links[node].ready.wait()
                self._origins.add(node)
        self._topology = topology

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            self._origins.tick()
            self._interest.hears(self._origins.well)

    # --- for the connections ---------------------------------------------------------------------

    @property
    def sharded(self) -> bool:
        return self._topology.sharded

    def answered(self, path: str) -> None:
        self._interest.answered(path)

    def refused(self, node: Node, paths: list[str]) -> None:
        """Take in that a node says that others are to be asked."""
        self._moved, self._moved_from = True, node
        for path in paths:
            self._interest.refused(path)

    def withdrawn(self, node: Node, path: str) -> None:
        """Take in that a node ended a subscription by itself, as its slot has moved."""
        self._moved, self._moved_from = True, node
        self._interest.withdrawn(path)

    def deliver(self, node: Node, channel: bytes, payload: bytes) -> None:
        """Take in a message."""
        try:
            if channel == BEAT_CHANNEL:
                news = self._origins.hear(node, decode_beat(payload))
                self._interest.hears(self._origins.well, doubt=news)
                return
            path, wake = _path_of(channel), decode_wake(payload)
        except ForeignWake:
            metrics.WAKES_RECEIVED.labels("foreign").inc()
            return
        if path in self._interest:
            self._on_wake(path, wake)


@dataclass(slots=True)
class _Command:
    """That a node was asked for channels, or for no more of them."""

    on: bool
    slot: int
    paths: list[str]  # not answered yet; the last one is answered first

    def encode(self, *, sharded: bool) -> bytes:
        word = (b"S" if sharded else b"") + (b"SUBSCRIBE" if self.on else b"UNSUBSCRIBE")
        return encode_command(word, *(channel_of(path).encode() for path in reversed(self.paths)))


class _Link:
    """A connection to one node, and the commands that it has not answered yet."""

    def __init__(self, node: Node, owner: RedisSubscriber) -> None:
        self.ready = asyncio.Event()
        self._node = node
        self._owner = owner
        self._connection: Connection
        self._unsent: list[_Command] = []
        self._unanswered: deque[_Command] = deque()  # bounded by what Interest says at once
        self._heard = 0  # replies and messages

    async def live(self, dialer: Dialer, group: asyncio.TaskGroup) -> None:
        """Connect, and hear until the connection is lost."""
        async with dialer.connection(self._node) as connection:
            await exchange(connection, encode_command(b"SUBSCRIBE", BEAT_CHANNEL))
            self._connection = connection
            self.ready.set()
            group.create_task(self._watch())
            while True:
                try:
                    message = await read_reply(connection)
                except MovedError as moved:
                    self._take_refusal(moved.slot_id)
                else:
                    self._take(message)
                self._heard += 1
                if self._heard % _TURN_MESSAGES == 0:
                    await asyncio.sleep(0)  # what has arrived is read without a turn for others

    def add(self, command: _Command) -> None:
        self._unsent.append(command)

    async def send(self) -> None:
        """Send what was added, in one go."""
        unsent, self._unsent = self._unsent, []
        if unsent:
            self._unanswered.extend(unsent)
            sharded = self._owner.sharded
            data = b"".join(command.encode(sharded=sharded) for command in unsent)
            await send(self._connection, data)

    async def _watch(self) -> None:
        """Find out that the other end is gone where the network does not tell."""
        silences, heard = 0, self._heard
        while silences < _SILENCES_MAX:
            await asyncio.sleep(_QUIET_S)
            if self._heard != heard:
                # Noted here, and not after the PING: its answer may be there before we go on.
                silences, heard = 0, self._heard
                continue
            silences += 1
            if silences == 1:
                await send(self._connection, PING)
        raise TimeoutError(f"no answer to a PING for {(_SILENCES_MAX - 1) * _QUIET_S:g} s")

    def _take(self, message: Any) -> None:
        match message:
            case [b"smessage" | b"message", bytes(channel), bytes(payload)]:
                self._owner.deliver(self._node, channel, payload)
            case [b"ssubscribe" | b"subscribe", bytes(channel), int()]:
                self._take_answer(True, _path_of(channel))
            case [b"sunsubscribe" | b"unsubscribe", bytes(channel), int()]:
                self._take_answer(False, _path_of(channel))
            case [b"pong", _]:
                pass
            case _:
                metrics.WAKES_RECEIVED.labels("foreign").inc()

    def _take_answer(self, on: bool, path: str) -> None:
        head = self._unanswered[0] if self._unanswered else None
        if head is not None and head.on == on and head.paths[-1] == path:
            head.paths.pop()
            if not head.paths:
                self._unanswered.popleft()
            self._owner.answered(path)
        elif not on:
            self._owner.withdrawn(self._node, path)
        else:
            raise InvalidResponse(f"subscribed to what was not asked for: {path[:64]!r}")

    def _take_refusal(self, slot: int) -> None:
        # A subscription that ends by itself while we ask for its end looks like the answer. The
        # refusal that follows is of nothing then, or of what will be refused anyway.
        if self._unanswered and self._unanswered[0].slot == slot:
            self._owner.refused(self._node, self._unanswered.popleft().paths)


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
