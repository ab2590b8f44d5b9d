"""A service behind a cache: what reaches its edges, and readers who come through the cache."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

import aiohttp

from tests.http.api import Server, Stream

DEADLINE_S = 30.0
GONE = (404, 410)

_SAMPLE = re.compile(r'^(headwater_\w+)\{(.*process="edge-\d+".*)\} (\S+)$', re.MULTILINE)


EDGES = 2


@dataclass(slots=True)
class Behind:
    """The same service twice: through the cache, and past it."""

    cache: str
    url: str
    edge_url: str
    admin_url: str
    session: aiohttp.ClientSession

    @property
    def through(self) -> Server:
        return Server(self.url, self.session)

    @property
    def past(self) -> Server:
        return Server(self.edge_url, self.session)

    async def answered(self) -> Counter[int]:
        """Return how many GETs the edges have answered, by status."""
        found: Counter[int] = Counter()
        for name, labels, value in await self._samples():
            status = re.search(r'status="(\d+)"', labels)
            if name == "headwater_requests_total" and 'method="GET"' in labels and status:
                found[int(status[1])] += int(float(value))
        return found

    async def waiting(self) -> int:
        """Return how many long-polls the edges hold."""
        return sum(
            int(float(value))
            for name, labels, value in await self._samples()
            if name == "headwater_live_readers" and "sse" not in labels
        )

    async def _samples(self) -> list[tuple[str, str, str]]:
        answer = await Server(self.admin_url, self.session).ask("GET", "/metrics")
        assert answer.status == 200
        return _SAMPLE.findall(answer.body.decode())


@dataclass
class Reader:
    """One who follows a stream by long-polls, until it is closed or gone."""

    stream: Stream
    offset: str = "-1"
    cursor: str | None = None
    pieces: list[bytes] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    polls: int = 0
    sends_cursors: bool = True

    @property
    def seen(self) -> bytes:
        return b"".join(self.pieces)

    async def poll(self) -> bool:
        """Ask once; tell whether there is more to come."""
        self.polls += 1
        answer = await self.stream.poll(self.offset, self.cursor)
        self.statuses.append(answer.status)
        if answer.status in GONE:
            return False
        assert answer.status in (200, 204), answer
        self.pieces.append(answer.body)
        self.offset = answer.next
        if answer.closed:
            return False
        if self.sends_cursors:
            cursor = answer.headers["Stream-Cursor"]
            assert self.cursor is None or int(cursor) > int(self.cursor)
            self.cursor = cursor
        return True

    async def follow(self) -> None:
        while await self.poll():
            pass


async def readers_at_the_tail(stream: Stream, count: int) -> list[Reader]:
    """Return readers who have all that a stream holds, and the cursor that came with it."""
    first = Reader(stream)
    assert await first.poll()
    return [Reader(stream, first.offset, first.cursor) for _ in range(count)]


async def until(look: Callable[[], Awaitable[bool]], told: Callable[[], object]) -> None:
    """Look until it is so."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not await look():  # noqa: ASYNC110  # of other processes
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"at last {told()}") from None


async def all_are(readers: Iterable[Reader], true: Callable[[Reader], bool]) -> None:
    """Wait until something is true of all readers."""

    async def look() -> bool:
        return all(map(true, readers))

    await until(look, lambda: Counter((r.seen, tuple(r.statuses)) for r in readers))
