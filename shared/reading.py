"""GET on any Source of chunks: catch-up, long-poll and event streams, the same at origin and
edge."""

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol

from aiohttp import web

from shared import metrics
from shared.clock import Clock
from shared.protocol import reply, sse
from shared.protocol.caching import CachePolicy
from shared.protocol.chunk import Chunk
from shared.protocol.cursor import next_cursor
from shared.protocol.errors import ProtocolError, Unavailable
from shared.protocol.reply import COMMON_HEADERS
from shared.protocol.request import Live, Read
from shared.tasks import wait_while
from shared.web import respond

_log = logging.getLogger(__name__)


class Source(Protocol):
    """Where chunks come from."""

    async def read(self, path: str, offset: str) -> Chunk:
        """Return what is there from offset on: all that was acknowledged before this call, or a
        full chunk."""
        ...

    async def join(self, path: str, offset: str) -> Chunk:
        """Return what a live read starts with: what is there, or an empty chunk at the tail."""
        ...

    async def next(self, path: str, after: Chunk) -> Chunk:
        """Wait for what follows a chunk: data, or the close of the stream. Callers bound the
        wait."""
        ...


@dataclass(frozen=True, slots=True)
class LiveTimes:
    """How long live replies last, in seconds."""

    long_poll_s: float
    sse_s: float
    heartbeat_s: float


@dataclass(slots=True)
class Reading:
    """The reading side of a server."""

    source: Source
    policy: CachePolicy
    times: LiveTimes
    clock: Clock
    _waits: set[asyncio.Timeout] = field(default_factory=set)
    _released: float | None = None  # seconds over which those who come late leave too

    async def handle(self, request: web.BaseRequest, path: str, asked: Read) -> web.StreamResponse:
        """Answer a GET."""
        match asked.live:
            case None:
                chunk = await self.source.read(path, asked.offset)
            case Live.LONG_POLL:
                return respond(await self._long_poll(path, asked))
            case Live.SSE:
                return await self._event_stream(request, path, asked)
        return respond(reply.read(path, asked, chunk, self.policy, self.clock.now_ms()))

    def release(self, window_s: float) -> None:
        """Let everyone who waits go within a window, spread out, so that they do not all return at
        once."""
        self._released = window_s
        now = asyncio.get_running_loop().time()
        for wait in self._waits:
            if not wait.expired():  # nor about to: it is on its way out
                wait.reschedule(now + random.uniform(0, window_s))

    async def released(self) -> None:
        """Return once nobody waits any more, or the window is over."""
        await wait_while(lambda: bool(self._waits), self._released or 0.0)

    async def _long_poll(self, path: str, asked: Read) -> reply.Reply:
        chunk = await self.source.join(path, asked.offset)
        if chunk.empty and not chunk.closed:
            waiting = metrics.LIVE_READERS.labels("long-poll").track_inprogress()
            try:
                with waiting, suppress(TimeoutError):
                    async with self._bounded(self.times.long_poll_s):
                        chunk = await self.source.next(path, chunk)
            except ProtocolError as error:
                return reply.lost(path, asked, error, self.policy)
        return reply.read(path, asked, chunk, self.policy, self.clock.now_ms())

    async def _event_stream(
        self, request: web.BaseRequest, path: str, asked: Read
    ) -> web.StreamResponse:
        chunk = await self.source.join(path, asked.offset)
        head = reply.event_stream(path, chunk, self.policy)
        response = web.StreamResponse(headers={**head.headers, **COMMON_HEADERS})
        response.force_close()  # whoever reconnects may land on another edge
        await response.prepare(request)
        try:
            with metrics.LIVE_READERS.labels("sse").track_inprogress():
                async with (
                    self._bounded(self.times.sse_s),
                    aclosing(self._follow(path, chunk, asked.cursor)) as steps,
                ):
                    async for step in steps:
                        await response.write(step)
        except (TimeoutError, ConnectionError, ProtocolError, Unavailable):
            pass  # its time is over, the reader has left, the stream is deleted: it ends
        except Exception:
            # The head is sent, so there can be no other answer: the client comes back for one.
            _log.exception("event stream broken off: path=%s", path)
        return response

    async def _follow(
        self, path: str, chunk: Chunk, sent: str | None
    ) -> AsyncGenerator[bytes, None]:
        """Yield events until the stream closes: one step a chunk, a heartbeat where nothing
        comes."""
        while True:
            cursor = next_cursor(self.clock.now_ms(), sent)
            yield sse.encode_events(chunk, cursor)
            if chunk.closed:
                return
            if not (chunk.at_tail or chunk.empty):  # a careless upstream may not say so
                chunk = await self.source.join(path, chunk.next)
                continue
            following = asyncio.ensure_future(self.source.next(path, chunk))
            following.add_done_callback(lambda done: done.cancelled() or done.exception())
            try:
                while not (await asyncio.wait((following,), timeout=self.times.heartbeat_s))[0]:
                    yield sse.HEARTBEAT
                chunk = following.result()
            finally:
                following.cancel()

    @asynccontextmanager
    async def _bounded(self, wait_s: float) -> AsyncIterator[None]:
        """Bound a wait that `release` may cut short."""
        if self._released is not None:
            wait_s = min(wait_s, random.uniform(0, self._released))
        async with asyncio.timeout(wait_s) as wait:
            self._waits.add(wait)
            try:
                yield
            finally:
                self._waits.discard(wait)
