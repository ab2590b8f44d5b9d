"""Reads are whole appends, a chunk at a time, wherever they lie; wrong bytes are never served."""

import asyncio
import random
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import apsw
import pytest

from origin import reader as reader_module
from origin.frame import CorruptLog
from origin.journal import Extent, Journal
from origin.memory import MemoryJournal
from origin.reader import _OVERHEAD_BYTES, Reader
from origin.sqlite import SqliteJournal
from shared.protocol.expiry import NEVER
from shared.protocol.stream import StreamState
from tests.fakes import FakeClock
from tests.origin.wired import CHUNK_BYTES, Wired, wired


@pytest.fixture(params=["recent", "indexed", "half and half"])
async def origin(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Wired]:
    """An origin whose `indexed` is set by where the bytes are to be found."""
    journal = SqliteJournal(tmp_path)
    async with wired(journal, FakeClock()) as made:
        yield made
    journal.close()


async def put(origin: Wired, where: str, sizes: list[int]) -> bytes:
    """Append to `s`, in several commits; return all of it."""
    random_ = random.Random(len(sizes))
    pieces = [random_.randbytes(size) for size in sizes]
    await origin.create("s")
    third = max(1, len(pieces) // 3)
    for first in range(0, len(pieces), third):
        await asyncio.gather(*(origin.append("s", p) for p in pieces[first : first + third]))
        if where == "indexed" or (where == "half and half" and first == 0):
            forget(origin)
    return b"".join(pieces)


def forget(origin: Wired) -> None:
    """Leave what is durable so far to the index and the disk."""
    origin.index()
    origin.reader._cache.clear()
    origin.reader._cache_bytes = 0


SIZES = [100, 1, 3995, 4096, 1, 5000, 10, 10, 9000, 3, 4095, 4097, 1]


async def test_reads_follow_each_other_without_gap_or_overlap(
    origin: Wired, request: pytest.FixtureRequest
) -> None:
    data = await put(origin, request.node.callspec.params["origin"], SIZES)
    state = origin.catalog.by_path["s"].state
    boundaries = {sum(SIZES[:n]) for n in range(len(SIZES) + 1)}
    position, got = 0, b""
    while position < state.tail:
        span = await origin.reader.chunk(state, position)
        assert span.start == position
        assert span.end in boundaries
        assert span.end > position
        # As much as the chunk holds, and not an append more.
        limit = (position // CHUNK_BYTES + 1) * CHUNK_BYTES
        assert span.end == min((b for b in boundaries if b >= limit), default=state.tail)
        got += span.stored
        position = span.end
    assert got == data


async def test_read_from_anywhere_begins_with_the_append_that_is_there(
    origin: Wired, request: pytest.FixtureRequest
) -> None:
    data = await put(origin, request.node.callspec.params["origin"], SIZES)
    state = origin.catalog.by_path["s"].state
    starts = [sum(SIZES[:n]) for n in range(len(SIZES))]
    for position in [*starts, *(s + 1 for s in starts), *range(0, len(data), 997)]:
        span = await origin.reader.chunk(state, position)
        begun = max((s for s in starts if s <= position), default=0)
        assert span.start == (begun if position < len(data) else len(data))
        assert span.stored == data[span.start : span.end]


async def test_one_append_is_one_append(origin: Wired, request: pytest.FixtureRequest) -> None:
    data = await put(origin, request.node.callspec.params["origin"], SIZES)
    state = origin.catalog.by_path["s"].state
    position = 0
    for size in SIZES:
        span = await origin.reader.one_append(state, position)
        assert (span.start, span.end) == (position, position + size)
        assert span.stored == data[position : position + size]
        position += size


async def test_read_at_the_tail_is_empty(origin: Wired, request: pytest.FixtureRequest) -> None:
    data = await put(origin, request.node.callspec.params["origin"], [10, 10])
    span = await origin.reader.chunk(origin.catalog.by_path["s"].state, len(data))
    assert (span.start, span.end, span.stored) == (20, 20, b"")


async def test_fork_is_stitched_from_its_sources(
    origin: Wired, request: pytest.FixtureRequest
) -> None:
    where = request.node.callspec.params["origin"]
    data = await put(origin, where, SIZES)
    base = origin.catalog.by_path["s"].state
    at = base.offset_at(sum(SIZES[:6])).token()
    await origin.create("f", b"own of f", kind=None, source="s", at=at, sub=3)
    await origin.create("g", b"own of g", kind=None, source="f")
    await origin.append("g", b"more of g")
    if where == "indexed":
        forget(origin)
    cut = sum(SIZES[:6]) + 3
    assert await origin.content("g") == data[:cut] + b"own of f" + b"own of gmore of g"
    assert await origin.content("s") == data
    # The source is gone for readers, and there for its forks.
    await origin.streams.delete("s")
    forget(origin)
    assert await origin.content("f") == data[:cut] + b"own of f"


async def test_reads_beside_appends_and_the_index_are_always_a_prefix(
    origin: Wired, request: pytest.FixtureRequest
) -> None:
    """The index catches up while a read is between memory and disk."""
    await put(origin, request.node.callspec.params["origin"], [1])
    done = False

    async def append() -> None:
        for number in range(150):
            await origin.append("s", b"<%d>" % number * 40)
            if number % 7 == 0:
                await asyncio.to_thread(origin.index)

    async def read() -> None:
        previous = b""
        while not done:
            got = await origin.content("s")
            assert got.startswith(previous)
            previous = got
            await asyncio.sleep(0)  # what is in memory is answered without a turn of the loop

    readers = [asyncio.create_task(read()) for _ in range(3)]
    await append()
    done = True
    await asyncio.gather(*readers)
    assert (await origin.content("s"))[1:] == b"".join(b"<%d>" % n * 40 for n in range(150))


# --- memory --------------------------------------------------------------------------------------


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "_RECENT_BYTES_MAX", 10_000)
    reader = Reader(MemoryJournal(), lambda incarnation: (), CHUNK_BYTES)
    for lsn in range(100):
        size = 100 * (lsn % 30)
        reader.remember(Extent(0, lsn, 0, (size,), 0), bytes(size))
        held = sum(len(payload) + _OVERHEAD_BYTES for payload in reader._cache.values())
        assert reader._cache_bytes == held <= 10_000
    reader.remember(Extent(0, 100, 0, (10_001,), 0), bytes(10_001))
    assert (100, 0) not in reader._cache
    reader.close()


async def test_read_of_a_large_stream_holds_a_chunk_and_an_append() -> None:
    asked: list[int] = []

    class Watched(MemoryJournal):
        def read(self, places):  # type: ignore[no-untyped-def]
            asked.append(sum(size for _, _, size in places))
            return super().read(places)

    async with wired(Watched()) as origin:
        await origin.create("s")
        for _ in range(20):
            await asyncio.gather(*(origin.append("s", bytes(600)) for _ in range(50)))
        forget(origin)
        await origin.content("s")
    # Extents are read whole, so that they can be verified: one more at each end.
    assert max(asked) <= CHUNK_BYTES + 2 * 50 * 600


# --- damage --------------------------------------------------------------------------------------


def journal_with(damage: str) -> tuple[Journal, Extent]:
    payload = b"0123456789" * 10
    crc = zlib.crc32(payload)
    journal = MemoryJournal()
    extent = Extent(0, 1, 4, (60, 40), crc)
    stored = {
        "none": b"head" + payload,
        "flipped": b"head" + payload[:50] + b"X" + payload[51:],
        "flipped in what is not asked for": b"head" + payload[:-1] + b"X",
        "cut off": b"head" + payload[:-1],
        "moved": b"hea" + payload + b"d",
        "gone": b"",
    }
    journal.append(1, [stored[damage]])
    return journal, extent


@pytest.mark.parametrize(
    "damage",
    ["flipped", "flipped in what is not asked for", "cut off", "moved", "gone"],
)
@pytest.mark.parametrize("position", [0, 60], ids=["from the start", "from within the extent"])
async def test_damaged_bytes_are_an_error_that_names_the_frame(damage: str, position: int) -> None:
    journal, extent = journal_with(damage)
    reader = Reader(journal, lambda incarnation: (extent,), CHUNK_BYTES)
    state = StreamState("s", 1, "text/plain", NEVER, 0, tail=100)
    with pytest.raises(CorruptLog, match="frame 1"):
        await reader.chunk(state, position)
    with pytest.raises(CorruptLog, match="frame 1"):
        await reader.one_append(state, position)
    reader.close()


async def test_whole_bytes_are_no_error() -> None:
    journal, extent = journal_with("none")
    reader = Reader(journal, lambda incarnation: (extent,), CHUNK_BYTES)
    state = StreamState("s", 1, "text/plain", NEVER, 0, tail=100)
    assert (await reader.chunk(state, 60)).stored == b"0123456789" * 4
    reader.close()


@pytest.mark.parametrize("table", ["extent", "frame"])
async def test_row_that_is_missing_is_an_error(tmp_path: Path, table: str) -> None:
    journal = SqliteJournal(tmp_path)
    async with wired(journal) as origin:
        await origin.create("s")
        for _ in range(3):
            await origin.append("s", b"x" * 100)
        forget(origin)
        name = "index.db" if table == "extent" else "journal.db"
        with apsw.Connection(str(tmp_path / name)) as other:
            other.execute(f"DELETE FROM {table} WHERE lsn = 3")
        other.close()
        with pytest.raises((CorruptLog, AssertionError)):
            await origin.content("s")
    journal.close()
