"""One suite over every journal: what Journal promises (origin/journal.py)."""

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import apsw
import pytest

from origin.frame import LARGE_BYTES, CorruptLog
from origin.journal import Batch, Extent, Journal, JournalFailed, Overdue, Stored
from origin.memory import MemoryJournal
from origin.sqlite import SqliteJournal
from origin.usage import Usage
from shared.protocol.expiry import Expiry
from shared.protocol.producer import ProducerKey, ProducerState
from shared.protocol.retention import Stretch
from shared.protocol.stream import Ancestor, ForkPoint, StreamState
from tests.service import ROOT

PLAIN = StreamState("a/b", 1, "text/plain", Expiry(), 1_800_000_000_000, tail=7)
FULL = StreamState(
    path="ü/" + "x" * 900,
    incarnation=2,
    content_type='application/json; q="\\"',
    expiry=Expiry(None, "2030-01-01T00:00:00+02:00", 1_893_448_800_000),
    created_ms=1_800_000_000_001,
    fork=ForkPoint("a/b", 1, 4, "0000000000000001_0000000000000003", 1),
    lineage=(Ancestor(1, 4),),
    tail=2**53 - 1,
    closed=True,
    closed_by=ProducerKey("p \x7f'\"", 3, 9),
    last_seq="z\u2603",
    deleted=True,
)


@pytest.fixture(params=["memory", "sqlite"])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Journal]:
    opened: Journal = MemoryJournal() if request.param == "memory" else SqliteJournal(tmp_path)
    yield opened
    opened.close()


def write(journal: Journal, *frames: bytes) -> None:
    for lsn, frame in enumerate(frames, 1):
        journal.append(lsn, [frame])


def held(journal: Journal) -> list[tuple[StreamState, int, dict[str, ProducerState]]]:
    return [(s.state, s.touched_ms, dict(s.producers)) for s in journal.stored()]


# --- frames --------------------------------------------------------------------------------------


def test_new_journal_holds_nothing(journal: Journal) -> None:
    assert journal.applied() == (0, 1)
    assert list(journal.frames(0)) == []
    assert held(journal) == []
    assert journal.extents(1, 0, 100) == []


def test_frames_come_back_in_order_and_whole(journal: Journal) -> None:
    frames = [bytes([n]) * size for n, size in enumerate((1, 100, 5000, 3_000_000, 0))]
    write(journal, *frames)
    assert list(journal.frames(0)) == list(enumerate(frames, 1))


@pytest.mark.parametrize("size", [1000, LARGE_BYTES - 1, LARGE_BYTES, 1_000_000])
def test_frame_in_pieces_comes_back_as_one(journal: Journal, size: int) -> None:
    frame = random.Random(size).randbytes(size)
    cuts = [0, 20, 21, 500, size - 1, size]
    write(journal, b"before")
    journal.append(2, [frame[start:end] for start, end in pairwise(cuts)])
    journal.append(3, [b"after"])
    assert list(journal.frames(0)) == [(1, b"before"), (2, frame), (3, b"after")]


@pytest.mark.parametrize(
    ("after", "expected"), [(0, [1, 2, 3]), (1, [2, 3]), (2, [3]), (3, []), (9, [])]
)
def test_frames_after_an_lsn_are_those_after_it(
    journal: Journal, after: int, expected: list[int]
) -> None:
    write(journal, b"one", b"two", b"three")
    assert [lsn for lsn, _ in journal.frames(after)] == expected


# --- bytes ---------------------------------------------------------------------------------------


def test_read_returns_the_bytes_of_each_place_in_the_order_asked(journal: Journal) -> None:
    write(journal, b"0123456789", bytes(range(256)) * 100)
    places = [(2, 255, 2), (1, 0, 10), (1, 9, 1), (2, 25_599, 1), (1, 4, 0)]
    assert list(journal.read(places)) == [b"\xff\x00", b"0123456789", b"9", b"\xff", b""]


def test_read_goes_to_and_fro_between_small_frames_and_large_ones(journal: Journal) -> None:
    one, two = (random.Random(n).randbytes(LARGE_BYTES + n) for n in (1, 2))
    write(journal, one, b"0123456789", two)
    places = [(1, 0, 30), (2, 3, 2), (3, 250_000, 9999), (3, 9, 0), (1, 1, 200_000), (2, 0, 10)]
    bodies = {1: one, 2: b"0123456789", 3: two}
    assert list(journal.read(places)) == [bodies[n][at : at + size] for n, at, size in places]


@pytest.mark.parametrize("size", [10, LARGE_BYTES])  # whole blocks: a file has no more than that
@pytest.mark.parametrize(
    ("after", "count"), [(-2, 3), (0, 1), (89, 1)], ids=["over the end", "at the end", "beyond it"]
)
def test_read_past_the_end_of_a_frame_is_an_error(
    journal: Journal, size: int, after: int, count: int
) -> None:
    write(journal, bytes(size))
    with pytest.raises(CorruptLog, match="frame 1"):
        list(journal.read([(1, size + after, count)]))


def test_read_of_a_frame_that_is_not_there_is_an_error(journal: Journal) -> None:
    write(journal, b"0123456789")
    with pytest.raises(CorruptLog, match="frame 2"):
        list(journal.read([(1, 0, 1), (2, 0, 1)]))


# --- index ---------------------------------------------------------------------------------------


def test_applied_batch_is_there(journal: Journal) -> None:
    write(journal, b"one", b"two")
    extent = Extent(0, 1, 20, (3, 4), 2**32 - 1)
    producers = [(1, "p", ProducerState(1, 5)), (2, "p", ProducerState(0, 0))]
    streams = [(PLAIN, 10), (FULL, 20)]
    journal.apply(Batch(2, 3, streams, list(producers), [(1, extent)], []))
    assert journal.applied() == (2, 3)
    assert held(journal) == [
        (PLAIN, 10, {"p": ProducerState(1, 5)}),
        (FULL, 20, {"p": ProducerState(0, 0)}),
    ]
    assert journal.extents(1, 0, 7) == [extent]
    assert journal.extents(2, 0, 7) == []


def test_later_batch_replaces_what_it_names_and_keeps_the_rest(journal: Journal) -> None:
    write(journal, b"one", b"two")
    extents = [(1, Extent(0, 1, 20, (7,), 1)), (1, Extent(7, 2, 20, (1,), 2))]
    first = [(1, "p", ProducerState(1, 5)), (1, "q", ProducerState(1, 1))]
    journal.apply(Batch(1, 3, [(PLAIN, 10), (FULL, 20)], list(first), extents[:1], []))
    moved = StreamState("a/b", 1, "text/plain", Expiry(), 5, tail=8)
    second = [(1, "p", ProducerState(2, 0))]
    journal.apply(Batch(2, 3, [(moved, 30)], list(second), extents[1:], []))
    assert held(journal) == [
        (moved, 30, {"p": ProducerState(2, 0), "q": ProducerState(1, 1)}),
        (FULL, 20, {}),
    ]
    assert journal.extents(1, 0, 8) == [extent for _, extent in extents]


def test_batch_applied_twice_is_as_if_once(journal: Journal) -> None:
    write(journal, b"one")
    batch = Batch(
        1, 2, [(PLAIN, 10)], [(1, "p", ProducerState(1, 5))], [(1, Extent(0, 1, 20, (7,), 1))]
    )
    journal.apply(batch)
    journal.apply(batch)
    assert held(journal) == [(PLAIN, 10, {"p": ProducerState(1, 5)})]
    assert journal.extents(1, 0, 7) == [Extent(0, 1, 20, (7,), 1)]


def test_deleted_stream_leaves_nothing(journal: Journal) -> None:
    write(journal, b"one", b"two")
    rows = [(n, "p", ProducerState(1, n)) for n in (1, 2)]
    extents = [(n, Extent(0, 1, 20, (7,), n)) for n in (1, 2)]
    journal.apply(Batch(1, 3, [(PLAIN, 10), (FULL, 20)], list(rows), extents, []))
    journal.apply(Batch(2, 3, deleted=[1]))
    assert held(journal) == [(FULL, 20, {"p": ProducerState(1, 2)})]
    assert journal.extents(1, 0, 7) == []
    assert journal.extents(2, 0, 7) == [extents[1][1]]


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0, 1, [0]),
        (0, 10, [0]),
        (0, 11, [0, 10]),
        (9, 10, [0]),
        (10, 11, [10]),
        (12, 13, [10]),
        (14, 16, [10, 15]),
        (0, 99, [0, 10, 15]),
        (19, 20, [15]),
    ],
)
def test_extents_hold_the_positions_asked_for(
    journal: Journal, start: int, end: int, expected: list[int]
) -> None:
    write(journal, b"one")
    sizes = {0: (10,), 10: (2, 3), 15: (5,)}
    rows = [(1, Extent(at, 1, at, size, 0)) for at, size in sizes.items()]
    journal.apply(Batch(1, 2, [(PLAIN, 1)], [], rows, []))
    assert [extent.start for extent in journal.extents(1, start, end)] == expected


def test_stream_is_found_by_path_and_by_number(journal: Journal) -> None:
    write(journal, b"one")
    producers = [(2, "p", ProducerState(1, 5)), (2, "q", ProducerState(0, 0))]
    journal.apply(Batch(1, 3, [(PLAIN, 10), (FULL, 20)], producers, forks={1: 4}))
    plain = Stored(PLAIN, 10, {}, 4)
    full = Stored(FULL, 20, {"p": ProducerState(1, 5), "q": ProducerState(0, 0)})
    assert (journal.find(PLAIN.path), journal.load(1)) == (plain, plain)
    assert (journal.find(FULL.path), journal.load(2)) == (full, full)
    assert (journal.find("a"), journal.find("a/b/"), journal.load(3)) == (None, None, None)
    journal.apply(Batch(2, 3, forks={1: 3}))
    assert journal.load(1) == Stored(PLAIN, 10, {}, 3)


def test_path_may_be_taken_over_in_the_batch_that_frees_it(journal: Journal) -> None:
    write(journal, b"one", b"two")
    journal.apply(Batch(1, 2, [(PLAIN, 10)]))
    heir = replace(PLAIN, incarnation=2)
    journal.apply(Batch(2, 3, [(heir, 20)], deleted=[1]))
    assert journal.find(PLAIN.path) == Stored(heir, 20, {})
    assert journal.load(1) is None


def test_page_holds_what_follows_a_path_below_a_prefix(journal: Journal) -> None:
    write(journal, b"one")
    paths = ["a", "a/", "a/b", "a/c", "a0", "b", "\u00e9/x", "\U0010ffff"]
    streams = [(replace(PLAIN, path=path, incarnation=n), n) for n, path in enumerate(paths, 1)]
    journal.apply(Batch(1, 9, streams[::-1]))

    def page(prefix: str, after: str, limit: int) -> list[str]:
        return [stored.state.path for stored in journal.page(prefix, after, limit)]

    assert page("", "", 99) == paths
    assert page("", "a/b", 3) == ["a/c", "a0", "b"]
    assert page("a/", "", 99) == ["a/", "a/b", "a/c"]
    assert page("a/", "a/", 1) == ["a/b"]
    assert page("a/", "a0", 99) == []
    assert page("", "\U0010ffff", 99) == []


def test_due_streams_come_in_the_order_of_their_deadlines(journal: Journal) -> None:
    write(journal, b"one")
    window, instant = Expiry(10), Expiry(None, "2027-01-15T08:00:05Z", 5000)
    streams = [
        (replace(PLAIN, path="1", incarnation=1, expiry=window), 0),  # 10,000
        (replace(PLAIN, path="2", incarnation=2, expiry=instant), 0),  # 5000
        (replace(PLAIN, path="3", incarnation=3, expiry=instant), 9000),  # 5000
        (replace(PLAIN, path="4", incarnation=4), 0),
        (replace(PLAIN, path="5", incarnation=5, expiry=window, deleted=True), 0),
    ]
    journal.apply(Batch(1, 9, streams))
    assert journal.due(4999, (0, 0), 9) == []
    assert journal.due(5000, (0, 0), 9) == [(5000, 2), (5000, 3)]
    assert journal.due(10_000, (5000, 2), 9) == [(5000, 3), (10_000, 1)]
    assert journal.due(10_000, (0, 0), 1) == [(5000, 2)]
    journal.apply(Batch(2, 9, [(streams[1][0], 0), (replace(PLAIN, incarnation=3, path="3"), 0)]))
    assert journal.due(9999, (0, 0), 9) == [(5000, 2)]


def test_trimmed_extents_go_whole_and_not_before(journal: Journal) -> None:
    write(journal, b"one")
    extents = [(1, Extent(at, 1, at, (6, 4), at, at_ms=at)) for at in (0, 10, 20, 30)]
    journal.apply(Batch(1, 2, [(replace(PLAIN, tail=40), 1)], [], extents))
    journal.apply(Batch(2, 2, trims={1: 20}))
    assert [extent.start for extent in journal.extents(1, 0, 99)] == [20, 30]
    journal.apply(Batch(3, 2, trims={1: 29}))
    assert [extent.start for extent in journal.extents(1, 0, 99)] == [20, 30]


def test_overdue_streams_come_with_how_they_begin(journal: Journal) -> None:
    write(journal, b"one")
    extents = [(n, Extent(at, 1, at, (10,), 0, at_ms=at)) for n in (1, 2) for at in (0, 10, 20)]
    streams = [(PLAIN, 1), (replace(PLAIN, incarnation=2, path="2", low=10), 1)]
    looks: dict[int, int | None] = {1: 500, 2: 400}
    journal.apply(Batch(1, 3, streams, [], extents, looks=looks))
    assert journal.overdue(399, (0, 0), 9) == []
    two = Overdue((400, 2), [Stretch(20, 10), Stretch(30, 20)])
    one = Overdue((500, 1), [Stretch(10, 0), Stretch(20, 10), Stretch(30, 20)])
    assert journal.overdue(500, (0, 0), 9) == [two, one]
    assert journal.overdue(500, (0, 0), 1) == [two]
    assert journal.overdue(500, (400, 2), 9) == [one]
    journal.apply(Batch(2, 3, looks={1: 900, 2: None}))
    assert [overdue.due for overdue in journal.overdue(900, (0, 0), 9)] == [(900, 1)]
    journal.apply(Batch(3, 3, deleted=[1]))
    assert journal.overdue(900, (0, 0), 9) == []


def test_usage_adds_up_once_a_frame(journal: Journal) -> None:
    write(journal, b"one", b"two")
    batch = Batch(1, 2, usage={"a": Usage(1, 10, 1, 10, 1), "b": Usage(streams=1)})
    journal.apply(batch)
    journal.apply(batch)  # as if it were not known that it had been
    assert journal.usage("", 9) == (1, [("a", Usage(1, 10, 1, 10, 1)), ("b", Usage(streams=1))])
    journal.apply(Batch(2, 2, usage={"a": Usage(2, 5, 2, -10, -1), "": Usage(1, 1, 1)}))
    counts = [("", Usage(1, 1, 1)), ("a", Usage(3, 15, 3, 0, 0)), ("b", Usage(streams=1))]
    assert journal.usage("a", 9) == (2, counts[2:])
    assert journal.usage("", 1) == (2, counts[1:2])
    assert journal.total() == Usage(4, 16, 4, 0, 1)


# --- what only files can go through --------------------------------------------------------------


def test_closed_journal_opens_as_it_was(tmp_path: Path) -> None:
    first = SqliteJournal(tmp_path)
    write(first, b"one", b"two")
    first.apply(Batch(1, 3, [(PLAIN, 10), (FULL, 20)], [(1, "p", ProducerState(1, 5))], [], []))
    first.close()
    second = SqliteJournal(tmp_path)
    assert second.applied() == (1, 3)
    assert list(second.frames(1)) == [(2, b"two")]
    assert held(second) == [(PLAIN, 10, {"p": ProducerState(1, 5)}), (FULL, 20, {})]
    second.append(3, [b"three"])
    assert [lsn for lsn, _ in second.frames(0)] == [1, 2, 3]
    second.close()


def test_closed_journal_leaves_no_log_behind(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path)
    write(journal, b"one")
    journal.close()
    assert sorted(os.listdir(tmp_path)) == ["frames", "index.db", "journal.db", "lock", "packs.db"]


KILLED = """
import os, signal, sys
from pathlib import Path
from origin.journal import Batch
from origin.sqlite import SqliteJournal
journal = SqliteJournal(Path(sys.argv[1]))
for lsn in range(1, 6):
    journal.append(lsn, [bytes([lsn]) * 5000])
journal.apply(Batch(3, 7))
os.kill(os.getpid(), signal.SIGKILL)
"""


def run_killed(folder: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED, str(folder)], cwd=ROOT, timeout=60)
    assert ended.returncode == -9


def test_killed_journal_opens_with_all_that_it_confirmed(tmp_path: Path) -> None:
    run_killed(tmp_path)
    journal = SqliteJournal(tmp_path)
    assert journal.applied() == (3, 7)
    assert list(journal.frames(0)) == [(lsn, bytes([lsn]) * 5000) for lsn in range(1, 6)]
    journal.close()


def test_start_syncs_what_a_killed_process_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may not have come to that, and readers are about to be given what is there."""
    folder = tmp_path / "data"
    run_killed(folder)
    synced = []
    fsync = os.fsync

    def note(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        fsync(fd)

    monkeypatch.setattr("os.fsync", note)
    journal = SqliteJournal(folder)
    needed = [folder / "journal.db", folder / "journal.db-wal", folder, tmp_path]
    assert set(map(str, needed)) <= set(synced)
    journal.close()


def test_start_that_cannot_sync_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        with pytest.raises(JournalFailed, match=r"fsync: Input/output error"):
            SqliteJournal(tmp_path)
    SqliteJournal(tmp_path).close()


def test_lost_index_begins_anew_behind_the_same_frames(tmp_path: Path) -> None:
    run_killed(tmp_path)
    for file in tmp_path.glob("index.db*"):
        file.unlink()
    journal = SqliteJournal(tmp_path)
    assert journal.applied() == (0, 1)
    assert [lsn for lsn, _ in journal.frames(0)] == [1, 2, 3, 4, 5]
    journal.close()


def test_second_process_on_the_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("origin.sqlite._LOCK_WAIT_S", 0.1)
    journal = SqliteJournal(tmp_path)
    with pytest.raises(JournalFailed, match=r"in use by another process"):
        SqliteJournal(tmp_path)
    journal.append(1, [b"one"])
    journal.close()
    SqliteJournal(tmp_path).close()


def test_folder_is_free_again_after_a_refused_start(tmp_path: Path) -> None:
    (tmp_path / "journal.db").write_bytes(b"no database at all" * 100)
    for _ in range(2):
        with pytest.raises(CorruptLog, match=r"journal\.db: NotADB"):
            SqliteJournal(tmp_path)


def foreign(path: Path) -> None:
    with apsw.Connection(str(path)) as connection:
        connection.execute("CREATE TABLE frame (lsn INTEGER PRIMARY KEY, body BLOB)")
    connection.close()


def noise(path: Path) -> None:
    path.write_bytes(os.urandom(9000))


def folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("name", ["journal.db", "index.db", "packs.db"])
@pytest.mark.parametrize("make", [foreign, noise, folder])
def test_file_that_is_not_ours_is_named_and_left_alone(
    tmp_path: Path, name: str, make: Callable[[Path], None]
) -> None:
    path = tmp_path / name
    make(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(CorruptLog, match=rf"{name}: "):
        SqliteJournal(tmp_path)
    assert (path.read_bytes() if path.is_file() else None) == before


def test_index_of_another_format_is_named(tmp_path: Path) -> None:
    SqliteJournal(tmp_path).close()
    with apsw.Connection(str(tmp_path / "index.db")) as connection:
        connection.execute("PRAGMA user_version = 0")
    connection.close()
    with pytest.raises(CorruptLog, match=r"index\.db: has format 0, .* needs 5"):
        SqliteJournal(tmp_path)


def test_index_ahead_of_the_journal_is_refused(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path)
    write(journal, b"one", b"two")
    journal.apply(Batch(2, 3))
    journal.close()
    (tmp_path / "journal.db").unlink()
    journal = SqliteJournal(tmp_path)
    with pytest.raises(CorruptLog, match=r"journal\.db: ends with frame 0.*applied 2"):
        journal.applied()
    journal.close()


def test_missing_frame_is_named(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path)
    write(journal, b"one", b"two", b"three")
    journal.close()
    with apsw.Connection(str(tmp_path / "journal.db")) as connection:
        connection.execute("DELETE FROM frame WHERE lsn = 2")
    connection.close()
    journal = SqliteJournal(tmp_path)
    found = journal.frames(0)
    assert next(iter(found)) == (1, b"one")
    with pytest.raises(CorruptLog, match=r"journal\.db: frame 2 is missing"):
        list(found)
    journal.close()


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        pytest.param("journal.db", b"body BLOB", b"bodx BLOB", id="column"),
        pytest.param("journal.db", b"PRIMARY", b"PR\xc9MARY", id="key that is none"),
        pytest.param("journal.db", b"tableframe", b"tablefrale", id="name"),
        pytest.param("packs.db", b"PRIMARY", b"PRIMASY", id="packs"),
    ],
)
def test_damaged_schema_is_named(tmp_path: Path, name: str, old: bytes, new: bytes) -> None:
    """A flipped bit may leave a schema that reads well, and lacks a column, a key or a table."""
    journal = SqliteJournal(tmp_path)
    write(journal, b"one")
    journal.close()
    path = tmp_path / name
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new))
    damaged = path.read_bytes()
    for _ in range(2):
        with pytest.raises(CorruptLog, match=rf"{name}: "):
            SqliteJournal(tmp_path)
    assert path.read_bytes() == damaged


def test_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(JournalFailed, match=r"data folder .*/file"):
        SqliteJournal(tmp_path / "file")
