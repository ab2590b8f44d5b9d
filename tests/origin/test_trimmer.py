"""Retention: what goes, what stays, and for whom."""

import asyncio
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from origin import cleaner
from origin.check import check
from origin.journal import Deadline, DiskFull, Journal, Overdue
from origin.memory import MemoryJournal
from origin.sqlite import SqliteJournal
from origin.trimmer import Trimmer
from shared.protocol.errors import Trimmed
from shared.protocol.expiry import NEVER
from shared.protocol.retention import KEEP_ALL, Retention
from shared.protocol.stream import Create
from tests.fakes import FailingJournal, FakeClock
from tests.origin.test_recover import counted, state_of
from tests.origin.wired import Wired, wired


@pytest.fixture(params=["memory", "sqlite"])
def journal(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Journal]:
    monkeypatch.setattr(cleaner, "_WORTH_BYTES", 0)
    monkeypatch.setattr(cleaner, "_FIRST_S", 0)
    made = MemoryJournal() if request.param == "memory" else SqliteJournal(tmp_path)
    yield made
    made.close()
    if request.param == "sqlite":
        assert list(check(tmp_path)) == []


def trimmer(origin: Wired) -> Trimmer:
    return Trimmer(origin.catalog, origin.streams, origin.ledger, origin.journal, origin.clock)


async def trim(origin: Wired) -> None:
    """Do all that there is to do, and let the index learn of it."""
    origin.index()
    made = trimmer(origin)
    for _ in range(50):
        if not await made.turn():
            break
    origin.index()


async def create(
    origin: Wired, path: str, keep: Retention, body: bytes = b"", source: str | None = None
) -> None:
    kind = None if source else "text/plain"
    asked = Create(kind, NEVER, closed=False, body=body, forked_from=source, retention=keep)
    await origin.streams.create(path, asked)


async def test_old_data_goes(journal: Journal) -> None:
    clock = FakeClock()
    async with wired(journal, clock) as origin:
        await create(origin, "s", Retention(age_s=60), b"one")
        first = origin.catalog.find("s").state
        clock.turn(30)
        await origin.append("s", b"two")
        await trim(origin)
        assert await origin.content("s") == b"onetwo"
        clock.turn(30)
        await trim(origin)
        assert await origin.content("s") == b"two"
        with pytest.raises(Trimmed) as refused:
            await origin.content("s", first.offset_at(0).token())
        earliest = refused.value.headers()["Stream-Earliest-Offset"]
        assert await origin.content("s", earliest) == b"two"
        assert [extent.start for extent in journal.extents(1, 0, 99)] == [3]
        assert counted(origin)["s"].stored == 3
        clock.turn(30)
        await trim(origin)
        assert await origin.content("s") == b""
        await origin.append("s", b"three")
        clock.turn(59)
        await trim(origin)
        assert await origin.content("s") == b"three"
    async with wired(journal, clock) as again:
        assert await again.content("s") == b"three"
        clock.turn(1)
        await trim(again)
        assert await again.content("s") == b""


async def test_so_many_of_the_last_bytes_stay(journal: Journal) -> None:
    async with wired(journal) as origin:
        await create(origin, "s", Retention(bytes=100))
        everything = b""
        for number in range(40):
            everything += (piece := b"<%03d.....>" % number)
            await origin.append("s", piece)
            if number % 7 == 0:
                await trim(origin)
                kept = await origin.content("s")
                assert everything.endswith(kept)
                assert min(len(everything), 100) <= len(kept) < 125 + 10
        assert origin.catalog.find("s").state.low > 0


async def test_cold_stream_is_trimmed_too(journal: Journal) -> None:
    clock = FakeClock()
    async with wired(journal, clock, hot_streams=1) as origin:
        for number in range(100):
            await create(origin, f"s{number}", Retention(age_s=60), b"old")
        await trim(origin)
        clock.turn(61)
        await trim(origin)
        assert {stored.state.low for stored in journal.stored()} == {3}
        assert counted(origin)["s7"].stored == 0


async def test_fork_keeps_what_it_inherits(journal: Journal) -> None:
    clock = FakeClock()
    async with wired(journal, clock) as origin:
        await create(origin, "s", Retention(age_s=60), b"inherited")
        await create(origin, "f", KEEP_ALL, b"+own", source="s")
        clock.turn(61)
        await trim(origin)
        assert await origin.content("s") == b""
        assert await origin.content("f") == b"inherited+own"
        with pytest.raises(Trimmed):
            await origin.create("g", kind=None, source="s", at=f"{1:016d}_{0:016d}")
        await origin.create("g", kind=None, source="s")
        assert await origin.content("g") == b""
        await origin.streams.delete("f")
        await origin.streams.delete("g")
        await origin.append("s", b"new")
        origin.index()
        assert [extent.start for extent in journal.extents(1, 0, 99)] == [9]
        assert await origin.content("s") == b"new"


async def test_fork_with_a_retention_of_its_own_lets_all_go_that_it_inherits(
    journal: Journal,
) -> None:
    clock = FakeClock()
    async with wired(journal, clock) as origin:
        await create(origin, "s", KEEP_ALL, b"inherited")
        await create(origin, "f", Retention(age_s=60), b"+own", source="s")
        clock.turn(59)
        await origin.append("f", b"+more")
        clock.turn(1)
        await trim(origin)
        assert await origin.content("f") == b"+more"
        assert await origin.content("s") == b"inherited"
        assert counted(origin)["f"].stored == 5


async def test_default_is_for_streams_that_ask_for_none(journal: Journal) -> None:
    clock = FakeClock()
    async with wired(journal, clock) as origin:
        origin.streams._retention = Retention(age_s=60)
        await create(origin, "default", KEEP_ALL, b"x")
        await create(origin, "own", Retention(bytes=5), b"x")
        await create(origin, "fork", KEEP_ALL, source="own")
        await origin.streams.open_registry()
        kept = {path: s.state.retention for path, s in origin.catalog.by_path.items()}
        assert kept == {
            "default": Retention(age_s=60),
            "own": Retention(bytes=5),
            "fork": KEEP_ALL,
            "__registry__": KEEP_ALL,
        }


async def test_trim_that_finds_the_disk_full_is_tried_again() -> None:
    clock, journal = FakeClock(), FailingJournal()
    async with wired(journal, clock) as origin:
        await create(origin, "s", Retention(age_s=60), b"one")
        clock.turn(60)
        journal.append_failures.append(DiskFull("no room"))
        before = origin.shape()
        await trim(origin)
        assert origin.shape() == before
        assert await origin.content("s") == b"one"
        clock.turn(1)
        await trim(origin)
        assert await origin.content("s") == b""


async def test_compaction_joins_only_what_goes_together(journal: Journal) -> None:
    clock = FakeClock()
    async with wired(journal, clock) as origin:
        await create(origin, "s", Retention(age_s=80))
        for number in range(40):
            await origin.append("s", b"<%02d>" % number)
            clock.turn(4)
            origin.index()
            while journal.compact():
                pass
            await trim(origin)
            kept = await origin.content("s")
            appended = b"".join(b"<%02d>" % n for n in range(number + 1))
            assert appended.endswith(kept)
            # 80 s are 20 appends, and an eighth of it more.
            assert min(number + 1, 19) <= len(kept) // 4 <= 24


@pytest.mark.parametrize("seed", range(4))
async def test_start_finds_what_was_kept_wherever_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(cleaner, "_WORTH_BYTES", 0)
    monkeypatch.setattr(cleaner, "_FIRST_S", 0)
    random_, clock = random.Random(seed), FakeClock()
    written: dict[str, bytes] = {}
    for life in range(4):
        journal = SqliteJournal(tmp_path)
        async with wired(journal, clock, hot_streams=2) as origin:
            for step in range(60):
                path = f"s{random_.randrange(6)}"
                clock.turn(random_.random() * 5)
                if path not in written:
                    keep = Retention(random_.choice([None, 40]), random_.choice([None, 300]))
                    source = next(iter(written), None) if random_.random() < 0.3 else None
                    inherited = b"" if source is None else await origin.content(source)
                    await create(origin, path, keep, source=source)
                    written[path] = inherited
                piece = b"<%d.%d%s>" % (life, step, b"." * random_.randrange(60))
                await origin.append(path, piece)
                written[path] += piece
                match random_.randrange(6):
                    case 0:
                        await trim(origin)
                    case 1:
                        origin.index()
                        while journal.compact():
                            pass
                for name, content in written.items():
                    assert content.endswith(await origin.content(name))
            before, usage = state_of(origin), counted(origin)
        async with wired(journal, clock) as again:
            assert (state_of(again), counted(again)) == (before, usage)
        journal.close()
        assert list(check(tmp_path)) == []


async def test_reader_of_what_is_trimmed_meanwhile_is_told(tmp_path: Path) -> None:
    clock, journal = FakeClock(), SqliteJournal(tmp_path)
    async with wired(journal, clock) as origin:
        await create(origin, "s", Retention(age_s=60), b"one")
        clock.turn(60)
        await origin.append("s", b"two")
        origin.index()
        origin.reader._cache.clear()
        stale = origin.catalog.find("s").state
        await trim(origin)
        with pytest.raises(Trimmed):
            await origin.reads._read_from(stale, stale.offset_at(0), 0)
        await asyncio.sleep(0)
    journal.close()


async def test_look_that_is_cancelled_has_ended_before_the_journal_is_closed() -> None:
    going, may_end, ended = threading.Event(), threading.Event(), False

    class Slow(MemoryJournal):
        def overdue(self, now_ms: int, after: Deadline, limit: int) -> list[Overdue]:
            nonlocal ended
            going.set()
            may_end.wait()
            ended = True
            return []

    async with wired(Slow()) as origin:
        made = trimmer(origin)
        turn = asyncio.create_task(made.turn())
        await asyncio.to_thread(going.wait)
        turn.cancel()
        finishing = asyncio.create_task(made.finish())
        await asyncio.wait([turn])
        assert not finishing.done()
        may_end.set()
        await finishing
        assert ended
