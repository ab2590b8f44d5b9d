"""Readers on an edge's internals: a scripted upstream, a bus that a test lies on, no HTTP."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

from edge.chunks import Chunks
from edge.coalesce import Coalescer
from edge.source import EdgeSource
from edge.tails import Tails
from edge.upstream import Upstream
from shared.bus import OnDoubt, OnWake
from shared.protocol.chunk import Chunk
from shared.wake import Wake
from tests.fakes import FakeClock, ScriptedUpstream

PATH = "s"
DEADLINE_S = 5.0  # for what takes milliseconds, or the half second of a retry


class Line:
    """A bus whose every word is the test's."""

    def __init__(self) -> None:
        self.up = True
        self.wanted: list[str] = []
        self.answer = asyncio.Event()  # subscriptions are confirmed while it is set
        self.answer.set()
        self.on_wake: OnWake
        self.on_doubt: OnDoubt

    async def start(self, on_wake: OnWake, on_doubt: OnDoubt) -> None:
        self.on_wake, self.on_doubt = on_wake, on_doubt

    async def subscribe(self, path: str) -> bool:
        self.wanted.append(path)
        await self.answer.wait()
        return self.up

    def unsubscribe(self, path: str) -> None:
        self.wanted = [other for other in self.wanted if other != path]

    async def close(self) -> None:
        pass

    def fall(self) -> None:
        """Lose the connection."""
        self.up = False
        self.on_doubt()

    def rise(self) -> None:
        """Have it again."""
        self.up = True
        self.on_doubt()


class Edge:
    """An edge without HTTP, before one stream of a scripted upstream."""

    def __init__(self, upstream: ScriptedUpstream, line: Line | None, clock: FakeClock) -> None:
        self.upstream, self.line, self.clock = upstream, line, clock
        real = cast(Upstream, upstream)
        self.reads: Coalescer[tuple[str, str], Chunk] = Coalescer()
        self.tails = Tails(real, self.reads, line, clock)
        self.chunks = Chunks(10_000_000)
        self.source = EdgeSource(real, self.tails, self.reads, self.chunks, clock)

    def append(self, more: bytes) -> Wake:
        """Let the stream grow; return the wake that tells of it, for the test to deliver."""
        before, after = self.upstream.append(more)
        return Wake(self.upstream.incarnation, before, after, payload=more)

    def wake(self, wake: Wake, path: str = PATH) -> None:
        assert self.line is not None
        self.line.on_wake(path, wake)


@asynccontextmanager
async def edge(
    data: bytes = b"", *, bus: bool = True, chunk_bytes: int = 1024
) -> AsyncIterator[Edge]:
    upstream = ScriptedUpstream(data, chunk_bytes=chunk_bytes)
    made = Edge(upstream, Line() if bus else None, FakeClock())
    await made.tails.start()
    try:
        yield made
    finally:
        await made.tails.close()
        await made.reads.close()


class Reader:
    """Follows the stream as a live client does: each read goes on where the last one ended."""

    def __init__(self, edge: Edge, offset: str = "-1") -> None:
        self.got = bytearray()
        self.closed = False
        self.error: Exception | None = None
        self.steps = 0
        self._source = edge.source
        self._offset = offset
        self.task = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        try:
            while True:
                chunk = await self._source.join(PATH, self._offset)
                if chunk.empty and not chunk.closed:
                    chunk = await self._source.next(PATH, chunk)
                self.steps += 1
                assert not chunk.empty or chunk.closed, "woken for nothing"
                self.got += chunk.body
                self._offset = chunk.next
                if chunk.closed:
                    self.closed = True
                    return
        except Exception as error:
            self.error = error

    async def has(self, data: bytes | bytearray) -> None:
        """Return once it has all of data, and nothing else."""
        await until(lambda: len(self.got) >= len(data) or self.error is not None)
        if self.error is not None:
            raise self.error
        assert self.got == data

    async def leave(self) -> None:
        self.task.cancel()
        await asyncio.wait((self.task,))


async def turn(times: int = 20) -> None:
    """Let everything that can run now run."""
    for _ in range(times):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object]) -> None:
    """Return once the condition holds; fail the test if it does not in time."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            if condition():
                return
            await asyncio.sleep(0.001)
