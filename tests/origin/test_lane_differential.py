"""The origin's lane and its handlers alone give the same replies, and make the same streams."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

from origin.app import Origin, drain, open_origin
from origin.memory import MemoryJournal
from shared.config import Settings
from shared.connection import Connection
from shared.sockets import listen_tcp
from shared.web import Listener
from tests.appends import Appends, Tally, say_to_both
from tests.edge.requests import Dialogue
from tests.edge.served import Line, Reply, SameDay, asking, run

SEEDS, DIALOGUES = 2, 150


@dataclass(frozen=True, slots=True)
class Served:
    """An origin, and a port of it."""

    origin: Origin
    port: int

    async def connect(self) -> Line:
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        return Line(sock)

    async def ask(self, target: str, *fields: str, method: str = "GET") -> Reply:
        line = await self.connect()
        await line.send(asking(target, *fields, method=method))
        reply = await line.reply()
        line.close()
        return reply


@asynccontextmanager
async def served(*, lane: bool, **changes: Any) -> AsyncIterator[Served]:
    """Serve an origin in memory through its lane, or past it, with settings other than the usual
    ones."""
    settings = replace(Settings(), **changes)
    async with open_origin(settings, MemoryJournal(), [], SameDay()) as origin:
        if lane:
            sock = listen_tcp("127.0.0.1", 0)
            await origin.lane.listen(sock)
            port = int(sock.getsockname()[1])
        else:
            port = await origin.listener.listen()
        try:
            yield Served(origin, port)
        finally:
            await drain(origin, 0.0)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_same_replies_the_same_fate_of_the_connection_and_the_same_streams(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed_over, tally = 0, Tally()
    adopt = Listener.adopt

    def spy(listener: Listener, received: bytes) -> Connection:
        nonlocal handed_over
        handed_over += 1
        return adopt(listener, received)

    monkeypatch.setattr(Listener, "adopt", spy)

    async def compare(lane: Served, alone: Served, appends: Appends) -> None:
        before = handed_over

        def check(dialogue: Dialogue) -> None:
            assert not (dialogue.plain and handed_over > before)

        await say_to_both(await lane.connect(), await alone.connect(), appends, tally, check)

    async def story() -> None:
        async with served(lane=True) as lane, served(lane=False) as alone:
            appends = Appends(seed)
            for path in appends.paths:
                for here in (lane, alone):
                    kind = f"Content-Type: {appends.content_type(path)}"
                    assert (await here.ask(path, kind, method="PUT")).status == 201
            for _ in range(DIALOGUES):
                await compare(lane, alone, appends)
            for path in appends.paths:
                there = await lane.ask(f"{path}?offset=-1")
                assert there == await alone.ask(f"{path}?offset=-1")
                assert there.status == 200
        tally.check(DIALOGUES)
        assert handed_over > DIALOGUES / 5

    run(story)
