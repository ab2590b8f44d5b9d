"""An origin without HTTP: the real parts wired by hand, a journal that fails on cue."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson

from origin.catalog import HOT_STREAMS, Catalog
from origin.commit import Committer
from origin.journal import Journal
from origin.ledger import Ledger
from origin.reader import Reader
from origin.reads import Reads
from origin.recover import recover
from origin.streams import Streams
from shared.protocol.append import Accepted, Append, Unchanged
from shared.protocol.caching import CachePolicy
from shared.protocol.expiry import NEVER, Expiry
from shared.protocol.producer import ProducerKey
from shared.protocol.stream import Create, StreamState
from shared.wake import Wake
from tests.fakes import FakeClock

CHUNK_BYTES = 4096


class Wired:
    """The parts, and what they told the outside."""

    def __init__(self, journal: Journal, clock: FakeClock, hot_streams: int) -> None:
        found = recover(journal, "journal")
        self.journal, self.clock = journal, clock
        self.wakes: list[tuple[str, Wake]] = []
        self.stopped: list[BaseException] = []
        self.catalog = Catalog(
            clock, journal, found.streams, found.deleted, found.next_incarnation, hot_streams
        )
        self.reader = Reader(journal, self.catalog.recent_extents, CHUNK_BYTES)
        self.ledger = Ledger(
            self.catalog,
            self.reader,
            lambda path, wake: self.wakes.append((path, wake)),
            4096,
            found,
        )
        self.committer = Committer(journal, clock, self.ledger.on_commit, self.stopped.append)
        self.streams = Streams(self.catalog, self.committer, self.ledger, self.reader, clock)
        self.reads = Reads(
            self.catalog,
            self.committer,
            self.ledger,
            self.reader,
            CachePolicy(),
            clock,
            CHUNK_BYTES,
            json_offsets=False,
        )
        self.committer.start(found.lsn + 1)

    async def close(self) -> None:
        await self.committer.close()
        self.reader.close()

    # --- the protocol, in one line each ----------------------------------------------------------

    async def create(
        self,
        path: str,
        body: bytes = b"",
        *,
        kind: str | None = "text/plain",
        closed: bool = False,
        source: str | None = None,
        at: str | None = None,
        sub: int = 0,
        ttl_s: int | None = None,
    ) -> StreamState:
        expiry = NEVER if ttl_s is None else Expiry(ttl_s)
        asked = Create(kind, expiry, closed, body, source, at, sub)
        return (await self.streams.create(path, asked))[0]

    async def append(
        self,
        path: str,
        body: bytes,
        *,
        close: bool = False,
        producer: tuple[str, int, int] | None = None,
        seq: str | None = None,
        kind: str = "text/plain",
    ) -> Accepted | Unchanged:
        key = None if producer is None else ProducerKey(*producer)
        return await self.streams.append(path, Append(kind, body, close, key, seq))

    async def content(self, path: str, offset: str = "-1") -> bytes:
        """Read on to the end."""
        got = b""
        while True:
            chunk = await self.reads.read(path, offset)
            got += chunk.body
            offset = chunk.next
            if chunk.at_tail:
                return got

    async def listed(self) -> list[tuple[str, str]]:
        """Return what the registry says: operation and path."""
        body = await self.content("__registry__")
        return [(entry["headers"]["operation"], entry["key"]) for entry in orjson.loads(body)]

    def index(self) -> None:
        """Apply to the index what is durable."""
        batch = self.ledger.take_batch()
        if batch is not None:
            self.journal.apply(batch)
            self.ledger.applied(batch)

    def load(self) -> None:
        """Take every stream into memory."""
        for stored in self.journal.stored():
            self.catalog.at(stored.state.path)

    def shape(self) -> dict[str, object]:
        """Return all that decides what happens next, by path; a refused write leaves it be."""
        self.load()
        return {
            path: (
                stream.state,
                stream.durable,
                dict(stream.producers),
                stream.forks,
                stream.gone,
                self.catalog.by_incarnation.get(stream.state.incarnation) is stream,
            )
            for path, stream in sorted(self.catalog.by_path.items())
        }


@asynccontextmanager
async def wired(
    journal: Journal,
    clock: FakeClock | None = None,
    *,
    registry: bool = False,
    hot_streams: int = HOT_STREAMS,
) -> AsyncIterator[Wired]:
    origin = Wired(journal, clock or FakeClock(), hot_streams)
    try:
        if registry:
            await origin.streams.open_registry()
        yield origin
    finally:
        await origin.close()


async def turn(times: int = 10) -> None:
    """Let everything that can run now run."""
    for _ in range(times):
        await asyncio.sleep(0)
