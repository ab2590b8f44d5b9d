"""Compaction moves nothing that a reader could tell; a crash at any point loses nothing."""

import asyncio
import errno
import os
import random
import shutil
import zlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import apsw
import pytest

from origin import cleaner, compact, store
from origin.compact import EXTENT_BYTES_MAX, Joined, Part, join
from origin.frame import CorruptLog
from origin.journal import DiskFull, Extent, JournalFailed
from origin.large import LargeFrames
from origin.large import kept as kept_files
from origin.sqlite import SqliteJournal
from origin.upkeep import Compactor
from tests.fakes import FailingJournal, FakeClock, failing_call, failing_disk
from tests.origin.test_recover import contents, history, state_of, take
from tests.origin.wired import Wired, wired


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every step be worth it."""
    monkeypatch.setattr(cleaner, "_WORTH_BYTES", 0)
    monkeypatch.setattr(cleaner, "_FIRST_S", 0)


def settle(origin: Wired) -> None:
    """Index all, and compact until there is nothing to do; read from the disk from now on."""
    origin.index()
    for _ in range(100):
        if not origin.journal.compact():
            origin.reader._cache.clear()
            origin.reader._cache_bytes = 0
            return
    raise AssertionError("compaction does not come to an end")


def rows(folder: Path, name: str, sql: str) -> list[tuple[int, ...]]:
    with apsw.Connection(str(folder / name)) as connection:
        found = [tuple(row) for row in connection.execute(sql)]
    connection.close()
    return found


def frames(folder: Path) -> list[int]:
    return [row[0] for row in rows(folder, "journal.db", "SELECT lsn FROM frame ORDER BY lsn")]


def packs(folder: Path) -> list[int]:
    return [row[0] for row in rows(folder, "packs.db", "SELECT number FROM pack ORDER BY number")]


def check_account(folder: Path) -> None:
    """What the index counts of each blob is what its extents hold; nothing else is there."""
    counted = rows(folder, "index.db", "SELECT lsn, live FROM blob WHERE live > 0 ORDER BY lsn")
    held = "SELECT lsn, sum(size) FROM extent GROUP BY lsn ORDER BY lsn"
    assert counted == rows(folder, "index.db", held)
    assert {-row[0] for row in counted if row[0] < 0} <= set(packs(folder))
    assert {row[0] for row in counted if row[0] > 0} <= set(frames(folder))


async def fill(origin: Wired, count: int = 200, streams: int = 3) -> dict[str, list[bytes]]:
    """Append to several streams, one append a frame; return what each holds."""
    random_ = random.Random(count)
    written: dict[str, list[bytes]] = {f"s{n}": [] for n in range(streams)}
    for path in written:
        await origin.create(path)
    for number in range(count):
        path = f"s{number % streams}"
        piece = random_.randbytes(random_.choice([1, 10, 100, 1000]))
        await origin.append(path, piece)
        written[path].append(piece)
    return written


async def check(origin: Wired, written: dict[str, list[bytes]]) -> None:
    """Read everything: as a whole, and append by append."""
    for path, pieces in written.items():
        assert await origin.content(path) == b"".join(pieces)
        state = origin.catalog.find(path).state
        position = 0
        for piece in pieces:
            span = await origin.reader.one_append(state, position)
            assert (span.start, span.stored) == (position, piece)
            position = span.end


async def test_small_appends_become_one_stretch_and_their_frames_go(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path)
    async with wired(journal) as origin:
        written = await fill(origin)
        settle(origin)
        for number, pieces in enumerate(written.values(), 1):
            (extent,) = journal.extents(number, 0, 10**9)
            assert extent.lsn < 0
            assert extent.sizes == tuple(map(len, pieces))
        await check(origin, written)
        last = origin.ledger.lsn
        assert frames(tmp_path) == [last]
        assert packs(tmp_path) == [1]
        check_account(tmp_path)
    journal.close()
    journal = SqliteJournal(tmp_path)
    async with wired(journal) as again:
        await check(again, written)
        await again.append("s0", b"more")
        assert again.ledger.lsn == last + 1
    journal.close()


async def test_large_append_stays_where_it_is(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path)
    large = b"x" * compact.LARGE_BYTES
    async with wired(journal) as origin:
        written = await fill(origin, 9)
        await origin.append("s0", large)
        written["s0"].append(large)
        await origin.append("s0", b"after")
        written["s0"].append(b"after")
        settle(origin)
        lsns = [extent.lsn > 0 for extent in journal.extents(1, 0, 10**9)]
        assert lsns == [False, True, False]
        await check(origin, written)
        assert len(frames(tmp_path)) == 2
        await origin.streams.delete("s0")
        settle(origin)
        assert frames(tmp_path) == [origin.ledger.lsn]
        check_account(tmp_path)
    journal.close()


async def test_large_append_moves_once_its_frame_is_mostly_dead(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path)
    async with wired(journal) as origin:
        for path in ("keep", "drop"):
            await origin.create(path)
        kept, dropped = b"k" * compact.LARGE_BYTES, b"d" * 2 * compact.LARGE_BYTES
        await asyncio.gather(origin.append("keep", kept), origin.append("drop", dropped))
        settle(origin)
        assert packs(tmp_path) == []
        await origin.streams.delete("drop")
        settle(origin)
        assert packs(tmp_path) == [1]
        assert frames(tmp_path) == [origin.ledger.lsn]
        assert await origin.content("keep") == kept
    journal.close()


async def test_stream_that_comes_slowly_has_few_stretches(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path)
    async with wired(journal) as origin:
        await origin.create("s")
        pieces = []
        most = 0
        for number in range(300):
            pieces.append(b"<%d>" % number)
            await origin.append("s", pieces[-1])
            settle(origin)
            most = max(most, len(journal.extents(1, 0, 10**9)))
        assert most <= 9
        await check(origin, {"s": pieces})
        live, held = rows(tmp_path, "index.db", "SELECT sum(live), sum(size) FROM blob")[0]
        assert held < 4 * live  # what is mostly dead does not pile up
        check_account(tmp_path)
    journal.close()


@pytest.mark.parametrize("seed", range(6))
async def test_any_history_reads_the_same_whenever_it_is_compacted(
    tmp_path: Path, seed: int
) -> None:
    """Beside the same history in a journal that is never compacted."""
    clock, random_ = FakeClock(), random.Random(seed)
    steps = list(history(seed, 240))
    sources = [f"s{random_.randrange(8)}" for _ in steps]
    plain = SqliteJournal(tmp_path / "plain")
    for life in range(4):
        journal = SqliteJournal(tmp_path / "compacted")
        async with wired(journal, clock, hot_streams=2) as origin, wired(plain, clock) as other:
            for number in range(life * 60, life * 60 + 60):
                await take(origin, steps[number], sources[number])
                await take(other, steps[number], sources[number])
                if random_.random() < 0.2:
                    settle(origin)
                    check_account(tmp_path / "compacted")
            assert await contents(origin) == await contents(other)
            assert _decided(origin) == _decided(other)
            for path, stream in other.catalog.by_path.items():
                if not stream.state.deleted:
                    await _same_boundaries(origin, other, path)
        journal.close()
    plain.close()


def _decided(origin: Wired) -> list[object]:
    return list(state_of(origin).items())


async def _same_boundaries(one: Wired, other: Wired, path: str) -> None:
    state, same = one.catalog.find(path).state, other.catalog.find(path).state
    position = 0
    while position < state.tail:
        span = await one.reader.one_append(state, position)
        assert span == await other.reader.one_append(same, position)
        position = span.end


CRASHES: dict[str, tuple[str, str, bool]] = {
    "before the pack is written": ("Store", "put", True),
    "between pack and index": ("Store", "put", False),
    "before it is read back": ("Cleaner", "_reread", True),
    "before the index switches": ("Cleaner", "_switch", True),
    "before frames are removed": ("Cleaner", "_switch", False),
    "between frames and the index": ("Store", "remove", False),
}


@pytest.mark.parametrize("name", CRASHES)
async def test_crash_at_any_point_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    owner, method, before = CRASHES[name]
    kind = getattr(cleaner, owner)
    real = getattr(kind, method)

    class Crash(Exception):
        pass

    def crash(self: object, *args: object) -> None:
        if not before:
            real(self, *args)
        shutil.copytree(tmp_path / "live", tmp_path / "dead")
        raise Crash

    journal = SqliteJournal(tmp_path / "live")
    async with wired(journal) as origin:
        written = await fill(origin)
        monkeypatch.setattr(kind, method, crash)
        with pytest.raises(Crash):
            settle(origin)
        monkeypatch.setattr(kind, method, real)
        # It goes on where it was, too.
        await check(origin, written)
        settle(origin)
        await check(origin, written)
        check_account(tmp_path / "live")
    journal.close()
    journal = SqliteJournal(tmp_path / "dead")
    async with wired(journal) as again:
        await check(again, written)
        settle(again)
        await check(again, written)
        check_account(tmp_path / "dead")
        assert frames(tmp_path / "dead") == [again.ledger.lsn]
        assert len(packs(tmp_path / "dead")) == 1
    journal.close()


async def begin(origin: Wired, steps: int) -> dict[str, list[bytes]]:
    """Append, index, and rest in the midst of a round; return what each stream holds."""
    written = await fill(origin)
    origin.index()
    for _ in range(steps):
        assert origin.journal.compact()
    return written


@pytest.mark.parametrize("steps", range(9))
async def test_whatever_happens_while_a_round_rests_holds(tmp_path: Path, steps: int) -> None:
    journal = SqliteJournal(tmp_path)
    async with wired(journal) as origin:
        written = await begin(origin, steps)
        await origin.streams.delete("s1")
        del written["s1"]
        await origin.append("s2", b"more")
        written["s2"].append(b"more")
        origin.index()
        assert journal.extents(2, 0, 10**9) == []
        settle(origin)
        await check(origin, written)
        check_account(tmp_path)
    journal.close()


@pytest.mark.parametrize("steps", range(9))
async def test_round_that_was_at_rest_when_the_journal_was_closed_leaves_nothing(
    tmp_path: Path, steps: int
) -> None:
    journal = SqliteJournal(tmp_path)
    async with wired(journal) as origin:
        written = await begin(origin, steps)
    journal.close()
    journal = SqliteJournal(tmp_path)
    async with wired(journal) as again:
        settle(again)
        await check(again, written)
        check_account(tmp_path)
        assert len(packs(tmp_path)) == 1
    journal.close()


async def test_stream_that_is_deleted_meanwhile_stays_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = SqliteJournal(tmp_path)
    async with wired(journal) as origin:
        written = await fill(origin)
        real = cleaner.Cleaner._switch
        loop = asyncio.get_running_loop()
        switched: list[object] = []

        def late(self: cleaner.Cleaner, *args: object) -> None:
            asyncio.run_coroutine_threadsafe(origin.streams.delete("s1"), loop).result(20)
            loop.call_soon_threadsafe(origin.index)
            while journal.load(2) is not None:
                pass
            real(self, *args)  # type: ignore[arg-type]
            switched.append(args)

        def compact() -> None:
            while not switched:
                assert journal.compact()

        origin.index()
        monkeypatch.setattr(cleaner.Cleaner, "_switch", late)
        await asyncio.to_thread(compact)
        monkeypatch.setattr(cleaner.Cleaner, "_switch", real)
        del written["s1"]
        assert journal.extents(2, 0, 10**9) == []
        settle(origin)
        await check(origin, written)
        check_account(tmp_path)
    journal.close()


def settle_at_the_first_read(
    origin: Wired, journal: SqliteJournal, monkeypatch: pytest.MonkeyPatch
) -> list[int]:
    """Move what can be moved once a reader has looked up where it is; return the lsns that reads
    begin with."""
    real = journal.read
    asked: list[int] = []

    def read(places: list[tuple[int, int, int]]) -> object:
        first = not asked
        asked.append(places[0][0])
        if first:
            settle(origin)
        return real(places)

    monkeypatch.setattr(journal, "read", read)
    return asked


async def test_reader_finds_what_was_moved_under_its_eyes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = SqliteJournal(tmp_path)
    async with wired(journal) as origin:
        written = await fill(origin)
        origin.index()
        asked = settle_at_the_first_read(origin, journal, monkeypatch)
        await check(origin, written)
        assert asked
        assert frames(tmp_path) == [origin.ledger.lsn]
    journal.close()


async def test_damaged_bytes_stay_where_they_are_and_are_never_served(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path)
    async with wired(journal) as origin:
        for path in ("good", "bad"):
            await origin.create(path)
        await asyncio.gather(origin.append("good", b"good" * 9), origin.append("bad", b"bad" * 9))
        origin.index()
    journal.close()
    content = bytearray((tmp_path / "journal.db").read_bytes())
    content[content.index(b"badbad") + 4] ^= 1
    (tmp_path / "journal.db").write_bytes(content)
    journal = SqliteJournal(tmp_path)
    async with wired(journal) as origin:
        settle(origin)
        assert await origin.content("good") == b"good" * 9
        with pytest.raises(CorruptLog, match="checksum"):
            await origin.content("bad")
        assert len(frames(tmp_path)) == 1
        assert journal.extents(2, 0, 99)[0].lsn > 0
    journal.close()


async def test_space_of_deleted_streams_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_FREE_BYTES", 0)
    journal = SqliteJournal(tmp_path)
    async with wired(journal) as origin:
        for number in range(20):
            await origin.create(f"s{number}", b"x" * (100_000 if number % 2 else 1000))
        settle(origin)
        for number in range(20):
            await origin.streams.delete(f"s{number}")
        settle(origin)
        assert packs(tmp_path) == []
        assert frames(tmp_path) == [origin.ledger.lsn]
        assert journal.total().stored == 0
    journal.close()
    assert (tmp_path / "journal.db").stat().st_size < 100_000
    assert (tmp_path / "packs.db").stat().st_size < 100_000


async def test_index_that_is_lost_after_frames_were_removed_is_missed(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path)
    async with wired(journal) as origin:
        await fill(origin, 10)
        settle(origin)
    journal.close()
    (tmp_path / "index.db").unlink()
    journal = SqliteJournal(tmp_path)
    with pytest.raises(CorruptLog, match=r"journal\.db: frame 1 is missing"):
        list(journal.frames(journal.applied()[0]))
    journal.close()


async def test_full_disk_waits_and_goes_on(tmp_path: Path) -> None:
    with failing_disk() as (disk, vfs):
        journal = SqliteJournal(tmp_path, vfs=vfs)
        async with wired(journal) as origin:
            written = await fill(origin, 60)
            origin.index()
            for room_bytes in range(0, 60_000, 4096):
                disk.room_bytes = room_bytes
                try:
                    while journal.compact():
                        pass
                except DiskFull:
                    disk.room_bytes = None
                    await check(origin, written)
            disk.room_bytes = None
            settle(origin)
            await check(origin, written)
            check_account(tmp_path)
        journal.close()


# --- frames in files of their own ----------------------------------------------------------------


async def two_large(origin: Wired) -> tuple[bytes, bytes]:
    """Make one large frame, of which two streams have a part; return what they hold."""
    for path in ("keep", "drop"):
        await origin.create(path)
    kept, dropped = (random.Random(n).randbytes(n * 100_000) for n in (1, 2))
    await asyncio.gather(origin.append("keep", kept), origin.append("drop", dropped))
    return kept, dropped


def files(folder: Path) -> list[int]:
    return sorted(int(name) for name in os.listdir(folder / "frames"))


async def test_large_frames_of_a_deleted_stream_go(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path)
    async with wired(journal) as origin:
        for path in ("stays", "goes"):
            await origin.create(path, path.encode() * 80_000)
        settle(origin)
        assert files(tmp_path) == frames(tmp_path) == [1, 2]
        await origin.streams.delete("goes")
        settle(origin)
        assert files(tmp_path) == [1]
        assert frames(tmp_path) == [1, origin.ledger.lsn]
        await check(origin, {"stays": [b"stays" * 80_000]})
        check_account(tmp_path)
    journal.close()


async def test_what_is_needed_of_a_large_frame_moves_once_most_is_not(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path)
    async with wired(journal) as origin:
        kept, dropped = await two_large(origin)
        settle(origin)
        assert (files(tmp_path), packs(tmp_path)) == ([origin.ledger.lsn], [])
        await check(origin, {"keep": [kept], "drop": [dropped]})
        await origin.streams.delete("drop")
        settle(origin)
        assert (files(tmp_path), packs(tmp_path)) == ([], [1])
        await check(origin, {"keep": [kept]})
        check_account(tmp_path)
    journal.close()


async def test_reader_finds_what_was_moved_out_of_a_file_under_its_eyes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = SqliteJournal(tmp_path)
    async with wired(journal) as origin:
        kept, _ = await two_large(origin)
        settle(origin)
        await origin.streams.delete("drop")
        origin.index()
        asked = settle_at_the_first_read(origin, journal, monkeypatch)
        await check(origin, {"keep": [kept]})
        assert asked[0] > 0 > asked[1]
        assert files(tmp_path) == []
    journal.close()


async def test_damaged_file_stays_where_it_is_and_is_never_served(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path)
    async with wired(journal) as origin:
        kept, _ = await two_large(origin)
        settle(origin)
        (lsn,) = files(tmp_path)
        content = bytearray((tmp_path / "frames" / str(lsn)).read_bytes())
        content[content.index(kept[500:600])] ^= 1
        (tmp_path / "frames" / str(lsn)).write_bytes(content)
        await origin.streams.delete("drop")
        settle(origin)
        assert (files(tmp_path), packs(tmp_path)) == ([lsn], [])
        with pytest.raises(CorruptLog, match="checksum"):
            await origin.content("keep")
    journal.close()


async def test_crash_between_a_row_and_its_file_leaves_a_file_that_goes_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crash(Exception):
        pass

    def crash(self: LargeFrames, lsns: object) -> bool:
        shutil.copytree(tmp_path / "live", tmp_path / "dead")
        raise Crash

    journal = SqliteJournal(tmp_path / "live")
    async with wired(journal) as origin:
        kept, _ = await two_large(origin)
        await origin.streams.delete("drop")
        with monkeypatch.context() as patch:
            patch.setattr(LargeFrames, "remove", crash)
            with pytest.raises(Crash):
                settle(origin)
    journal.close()
    dead = tmp_path / "dead"
    assert len(files(dead)) == 1
    assert not set(files(dead)) & set(frames(dead))
    journal = SqliteJournal(dead)
    async with wired(journal) as again:
        await check(again, {"keep": [kept]})
        settle(again)
        assert files(dead) == []
        await check(again, {"keep": [kept]})
    journal.close()


async def test_file_without_a_row_goes_unless_its_row_may_be_on_its_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_FILES_AT_ONCE", 2)
    journal = SqliteJournal(tmp_path)
    async with wired(journal) as origin:
        written = await fill(origin, 9)
        await origin.append("s0", large := b"x" * 300_000)
        named = origin.ledger.lsn
        await origin.append("s0", b"end")
        written["s0"] += [large, b"end"]
        last = origin.ledger.lsn
        for lsn in (1, 2, 3, 4, 5, last + 1):  # of small frames, and of the next one
            (tmp_path / "frames" / str(lsn)).write_bytes(b"left by a crash")
        (tmp_path / "frames" / "README").touch()
        settle(origin)
        (tmp_path / "frames" / "README").unlink()
        assert files(tmp_path) == [named, last + 1]
        await check(origin, written)
    journal.close()


async def test_file_that_is_being_written_is_no_stray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compaction comes by between the file of a commit and its row."""
    journal = SqliteJournal(tmp_path)
    put = LargeFrames.put
    async with wired(journal) as origin:
        await origin.create("s", b"one")
        origin.index()

        def late(self: LargeFrames, lsn: int, pieces: Sequence[bytes]) -> bytes:
            row = put(self, lsn, pieces)
            while journal.compact():
                pass
            return row

        with monkeypatch.context() as patch:
            patch.setattr(LargeFrames, "put", late)
            await origin.append("s", large := b"x" * 300_000)
        settle(origin)
        await check(origin, {"s": [b"one", large]})
    journal.close()


async def test_backup_under_way_holds_removal_off_and_it_happens_later(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path)
    async with wired(journal) as origin:
        kept, _ = await two_large(origin)
        settle(origin)
        before = files(tmp_path)
        await origin.streams.delete("drop")
        with kept_files(tmp_path):
            for _ in range(2):
                settle(origin)
                assert files(tmp_path) == before
            assert not set(files(tmp_path)) & set(frames(tmp_path))
            await check(origin, {"keep": [kept]})
        settle(origin)
        settle(origin)
        assert files(tmp_path) == []
        await check(origin, {"keep": [kept]})
    journal.close()


async def test_file_that_cannot_be_removed_stops_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = SqliteJournal(tmp_path)
    async with wired(journal) as origin:
        await origin.create("s", b"x" * 300_000)
        await origin.streams.delete("s")
        with monkeypatch.context() as patch:
            patch.setattr(os, "unlink", failing_call(errno.EIO))
            with pytest.raises(JournalFailed, match=r"/frames: Input/output error"):
                settle(origin)
    journal.close()


async def test_compaction_that_fails_stops_the_process() -> None:
    class Failing(FailingJournal):
        def compact(self) -> bool:
            raise JournalFailed("packs.db: I/O error")

    stopped: list[BaseException] = []
    compactor = Compactor(Failing(), stopped.append)
    assert not await compactor._step()
    assert [str(error) for error in stopped] == ["packs.db: I/O error"]


# --- what becomes one ----------------------------------------------------------------------------


def parts(*sizes: int, start: int = 0, lsn: int = 1, at_ms: int = 0) -> Iterator[Part]:
    for size in sizes:
        yield Part(1, Extent(start, lsn, start, (size,), zlib.crc32(b""), at_ms), size)
        start += size


def shape(joined: list[Joined]) -> list[list[int]]:
    return [[part.size for part in stretch.parts] for stretch in joined]


@pytest.mark.parametrize(
    ("before", "loose", "expected"),
    [
        ([], [1, 2, 3], [[1, 2, 3]]),
        ([4], [1, 2], [[1, 2]]),
        ([3], [1, 2], [[3, 1, 2]]),
        ([100, 6, 3], [1, 2], [[6, 3, 1, 2]]),
        ([12, 6, 3], [1, 2], [[12, 6, 3, 1, 2]]),
        ([], [EXTENT_BYTES_MAX, 1], [[EXTENT_BYTES_MAX], [1]]),
        ([], [1, EXTENT_BYTES_MAX], [[1], [EXTENT_BYTES_MAX]]),
        ([1], [EXTENT_BYTES_MAX], [[EXTENT_BYTES_MAX]]),
        ([], [10 * EXTENT_BYTES_MAX], [[10 * EXTENT_BYTES_MAX]]),
    ],
)
def test_neighbours_join_while_that_doubles_them(
    before: list[int], loose: list[int], expected: list[list[int]]
) -> None:
    packed, moving = parts(*before, lsn=-1), parts(*loose, start=sum(before))
    assert shape(join(moving, packed, {})) == expected


def test_gap_ends_a_stretch() -> None:
    moving = [*parts(1, 2), *parts(3, 4, start=10)]
    assert shape(join(moving, parts(3, start=6, lsn=-1), {})) == [[1, 2], [3, 4]]


def test_what_goes_by_age_joins_only_what_is_about_as_old() -> None:
    moving = [
        *parts(1, 1, at_ms=0),
        *parts(1, start=2, at_ms=10),
        *parts(1, start=3, at_ms=11),
    ]
    assert shape(join(moving, [], {1: 10})) == [[1, 1, 1], [1]]
    assert shape(join(moving, [], {2: 1})) == [[1, 1, 1, 1]]


def test_packs_hold_what_their_extents_say() -> None:
    random_ = random.Random(1)
    moving, data = [], {}
    for incarnation in range(50):
        start = 0
        for lsn in range(1, 9):
            body = random_.randbytes(random_.randrange(1, 40_000))
            extent = Extent(start, lsn, incarnation, (len(body),), 0)
            part = Part(incarnation, extent, len(body))
            data[lsn, incarnation] = body
            moving.append(part)
            start += len(body)
    made = list(compact.pack(join(moving, [], {}), data, 7))
    assert len(made) > 2
    for number, pack in enumerate(made, 7):
        for stretch, extent in pack.moves:
            body = b"".join(data[p.extent.lsn, p.extent.at] for p in stretch.parts)
            assert extent.lsn == -number
            assert pack.body[extent.at : extent.at + len(body)] == body
            assert (extent.crc, extent.end - extent.start) == (zlib.crc32(body), len(body))
    moves = sorted(
        (stretch.parts[0].incarnation, extent.start, extent.end)
        for pack in made
        for stretch, extent in pack.moves
    )
    for (stream, _, end), (other, start, _) in pairwise(moves):
        assert start == (end if stream == other else 0)
