"""Readers that follow a stream until it is closed, and go on where they were if they are cut off,
as clients do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field

import aiohttp

from tests.http.api import EventStream, Stream

CUT_OFF = (ConnectionError, asyncio.TimeoutError, aiohttp.ClientError)
PAUSE_S = 0.01


@dataclass
class Follower:
    """What a reader was given, and how often it had to connect."""

    stream: Stream
    offset: str = "-1"
    pieces: list[bytes] = field(default_factory=list)
    connections: int = 0

    def seen(self) -> bytes:
        return b"".join(self.pieces)

    async def by_poll(self) -> None:
        closed = False
        while not closed:
            answer = await self.stream.poll(self.offset)
            assert answer.status in (200, 204), answer
            if answer.status == 200:
                self.pieces.append(answer.body)
            self.offset, closed = answer.next, answer.closed

    async def by_events(self) -> None:
        closed = False
        while not closed:
            try:
                async with self.stream.sse(self.offset) as events:
                    if events.reply.status == 200:
                        self.connections += 1
                        closed = await self._watch(events)
            except CUT_OFF:
                pass
            await asyncio.sleep(PAUSE_S)

    async def _watch(self, events: EventStream) -> bool:
        data, closed = b"", False
        async for event in events:
            if event.kind == "data":
                data += event.data.encode()
            elif event.kind == "control":
                # Data count with the offset behind them: without it, they will come again.
                self.pieces.append(data)
                self.offset, data = str(event.control["streamNextOffset"]), b""
                closed = event.control.get("streamClosed") is True
        return closed


Follow = Callable[[Follower], Coroutine[None, None, None]]
BY_POLL, BY_EVENTS = Follower.by_poll, Follower.by_events
