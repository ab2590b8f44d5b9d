"""SqliteJournal: how long its log becomes, and when it is begun anew; frames in files."""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest

from origin import sqlite
from origin.frame import LARGE_BYTES, CorruptLog
from origin.journal import Batch, DiskFull, JournalFailed
from origin.large import ROW_BYTES
from origin.sqlite import SqliteJournal
from tests.fakes import Disk, failing_call, failing_disk

WAL_BYTES_MAX, STEP = 512 * 1024, 128 * 1024
FRAME = bytes(40_000)
COMMIT_BYTES_MAX = 6 * 16 * 1024  # that the log grows by for one of them


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SqliteJournal]:
    monkeypatch.setattr(sqlite, "_WAL_BYTES_MAX", WAL_BYTES_MAX)
    monkeypatch.setattr(sqlite, "_WAL_BYTES_STEP", STEP)
    journal = SqliteJournal(tmp_path)
    yield journal
    journal.close()


def append(journal: SqliteJournal, folder: Path, lsns: range) -> list[int]:
    """Append frames; return how long the log's file was after each."""
    sizes = []
    for lsn in lsns:
        journal.append(lsn, [FRAME])
        sizes.append((folder / "journal.db-wal").stat().st_size)
    return sizes


def test_log_is_begun_anew_in_the_blocks_that_it_has(
    journal: SqliteJournal, tmp_path: Path
) -> None:
    sizes = append(journal, tmp_path, range(1, 100))
    assert WAL_BYTES_MAX < max(sizes) <= WAL_BYTES_MAX + COMMIT_BYTES_MAX
    assert sizes == sorted(sizes)  # given back and asked for again, blocks cost twice
    assert [lsn for lsn, _ in journal.frames(0)] == list(range(1, 100))


def test_log_that_readers_have_made_long_is_cut_when_they_are_gone(
    journal: SqliteJournal, tmp_path: Path
) -> None:
    append(journal, tmp_path, range(1, 3))
    reader = apsw.Connection(str(tmp_path / "journal.db"))
    reader.execute("BEGIN; SELECT count(*) FROM frame").fetchall()
    grown = append(journal, tmp_path, range(3, 60))
    assert grown[-1] > 2 * WAL_BYTES_MAX
    reader.close()
    cut = append(journal, tmp_path, range(60, 100))
    assert cut[-1] <= WAL_BYTES_MAX + STEP
    assert [lsn for lsn, _ in journal.frames(0)] == list(range(1, 100))


# --- large frames --------------------------------------------------------------------------------


def large(seed: int, size: int = LARGE_BYTES + 100) -> bytes:
    return random.Random(seed).randbytes(size)


def files(folder: Path) -> list[str]:
    return sorted(os.listdir(folder / "frames"))


@pytest.fixture
def disk() -> Iterator[tuple[Disk, str]]:
    with failing_disk() as made:
        yield made


def test_large_frame_is_written_once_and_its_row_names_it(
    journal: SqliteJournal, tmp_path: Path
) -> None:
    frames = {1: large(1), 2: large(2, LARGE_BYTES - 1), 3: large(3, LARGE_BYTES)}
    before = (tmp_path / "journal.db-wal").stat().st_size
    journal.append(1, [frames[1]])
    assert (tmp_path / "journal.db-wal").stat().st_size - before < 3 * 16 * 1024
    for lsn in (2, 3):
        journal.append(lsn, [frames[lsn][:30], frames[lsn][30:]])
    connection = apsw.Connection(str(tmp_path / "journal.db"))
    sizes = connection.execute("SELECT lsn, length(body) FROM frame").fetchall()
    connection.close()
    assert sizes == [(1, ROW_BYTES), (2, LARGE_BYTES - 1), (3, ROW_BYTES)]
    assert files(tmp_path) == ["1", "3"]
    for lsn in (1, 3):
        assert (tmp_path / "frames" / str(lsn)).read_bytes().startswith(frames[lsn])


@pytest.mark.parametrize("ending", ["closed", "killed"])
def test_large_frames_are_there_after_whatever_end(tmp_path: Path, ending: str) -> None:
    frames = [(1, large(1)), (2, b"small"), (3, large(3, 900_000))]
    journal = SqliteJournal(tmp_path / "live")
    for lsn, frame in frames:
        journal.append(lsn, [frame])
        journal.apply(Batch(min(lsn, 2), 1))
    if ending == "killed":
        shutil.copytree(tmp_path / "live", tmp_path / "dead")
    journal.close()
    journal = SqliteJournal(tmp_path / ("live" if ending == "closed" else "dead"))
    assert list(journal.frames(0)) == frames
    assert list(journal.frames(2)) == frames[2:]
    journal.append(4, [large(4)])
    assert list(journal.frames(3)) == [(4, large(4))]
    journal.close()


@pytest.mark.parametrize("following", [large(9, LARGE_BYTES), b"small"], ids=["large", "small"])
@pytest.mark.parametrize("most", [4096, 10**9], ids=["a part", "all"])
def test_kill_between_file_and_row_leaves_a_number_to_use_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, following: bytes, most: int
) -> None:
    journal = SqliteJournal(tmp_path / "live")
    journal.append(1, [b"one"])
    pwrite = os.pwrite

    class Kill(BaseException):
        pass

    def writes(file: int, data: memoryview, at: int) -> int:
        pwrite(file, data[:most], at)
        shutil.copytree(tmp_path / "live", tmp_path / "dead")
        raise Kill

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", writes)
        with pytest.raises(Kill):
            journal.append(2, [large(2, 500_000)])
    journal.close()
    journal = SqliteJournal(tmp_path / "dead")
    assert files(tmp_path / "dead") == ["2"]
    assert list(journal.frames(0)) == [(1, b"one")]
    journal.append(2, [following])
    assert list(journal.frames(0)) == [(1, b"one"), (2, following)]
    assert list(journal.read([(2, 1, 4)])) == [following[1:5]]
    journal.close()


def test_file_and_its_name_are_on_disk_before_the_row_is_written(
    tmp_path: Path, disk: tuple[Disk, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing, vfs = disk
    journal = SqliteJournal(tmp_path, vfs=vfs)
    calls: list[str] = []

    def noting(owner: object, call: str, name_of: Callable[..., object]) -> None:
        real = getattr(owner, call)

        def note(*arguments: object) -> object:
            calls.append(f"{call} {Path(str(name_of(arguments[0]))).name}")
            return real(*arguments)

        monkeypatch.setattr(owner, call, note)

    for call in ("pwrite", "fsync"):  # a write is durable by itself: tests of LargeFrames
        noting(os, call, lambda file: os.readlink(f"/proc/self/fd/{file}"))
    for call in ("write", "sync"):
        noting(failing, call, lambda name: name)
    journal.append(1, [large(1)])
    assert calls[:2] == ["pwrite 1", "fsync frames"]
    assert set(calls[2:-1]) == {"write journal.db-wal"}
    assert calls[-1] == "sync journal.db-wal"
    journal.close()


@pytest.mark.parametrize("call", ["open", "pwrite", "fsync"])
@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "EFBIG"])
def test_file_without_room_is_refused_and_leaves_nothing(
    journal: SqliteJournal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, name: str
) -> None:
    journal.append(1, [b"one"])
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing_call(getattr(errno, name)))
        for _ in range(2):
            with pytest.raises(DiskFull, match=re.escape(f"{tmp_path}/frames: ")):
                journal.append(2, [large(1)])
            assert files(tmp_path) == []
    journal.append(2, [large(2)])
    assert list(journal.frames(0)) == [(1, b"one"), (2, large(2))]


def test_file_that_fills_the_disk_in_its_middle_is_gone(
    journal: SqliteJournal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite, no_room = os.pwrite, failing_call(errno.ENOSPC)

    def writes(file: int, data: memoryview, at: int) -> int:
        return pwrite(file, data[:8192], at) if at == 0 else no_room()

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", writes)
        with pytest.raises(DiskFull):
            journal.append(1, [large(1)])
    assert files(tmp_path) == []
    journal.append(1, [b"small now"])
    assert list(journal.frames(0)) == [(1, b"small now")]


@pytest.mark.parametrize("call", ["open", "pwrite", "fsync"])
def test_file_that_cannot_be_written_is_a_failure(
    journal: SqliteJournal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing_call(errno.EIO))
        with pytest.raises(JournalFailed, match=r"/frames: Input/output error"):
            journal.append(1, [large(1)])
    assert list(journal.frames(0)) == []


def test_frame_is_a_row_while_no_file_can_be_opened(
    journal: SqliteJournal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", failing_call(errno.EMFILE))
        journal.append(1, [large(1)])
    journal.append(2, [large(2)])
    assert files(tmp_path) == ["2"]
    assert list(journal.frames(0)) == [(1, large(1)), (2, large(2))]
    assert list(journal.read([(1, 9, 9), (2, 9, 9)])) == [large(1)[9:18], large(2)[9:18]]


def test_row_without_room_takes_its_file_with_it(tmp_path: Path, disk: tuple[Disk, str]) -> None:
    failing, vfs = disk
    journal = SqliteJournal(tmp_path, vfs=vfs)
    failing.room_bytes = 0
    with pytest.raises(DiskFull, match=r"journal\.db"):
        journal.append(1, [large(1)])
    assert files(tmp_path) == []
    failing.room_bytes = None
    journal.append(1, [large(2)])
    assert list(journal.frames(0)) == [(1, large(2))]
    journal.close()


def test_row_that_may_be_there_keeps_its_file(tmp_path: Path, disk: tuple[Disk, str]) -> None:
    failing, vfs = disk
    journal = SqliteJournal(tmp_path / "live", vfs=vfs)
    failing.on_sync = {"journal.db-wal": errno.EIO}
    with pytest.raises(JournalFailed, match=r"journal\.db"):
        journal.append(1, [large(1)])
    shutil.copytree(tmp_path / "live", tmp_path / "dead")
    failing.on_sync = {}
    journal.close()
    journal = SqliteJournal(tmp_path / "dead")
    assert list(journal.frames(0)) == [(1, large(1))]
    journal.close()


def test_start_that_lacks_a_frame_file_is_stopped_by_its_name(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path)
    for lsn in (1, 2, 3):
        journal.append(lsn, [large(lsn)])
    journal.apply(Batch(1, 1))
    journal.close()
    (tmp_path / "frames" / "1").unlink()  # the index has what was in it
    (tmp_path / "frames" / "3").unlink()
    journal = SqliteJournal(tmp_path)
    found = journal.frames(1)
    assert next(found) == (2, large(2))
    with pytest.raises(CorruptLog, match=re.escape(f"{tmp_path}/frames/3: frame 3: No such file")):
        next(found)
    journal.close()


def test_start_that_is_refused_leaves_no_descriptor_open(tmp_path: Path) -> None:
    (tmp_path / "journal.db").write_bytes(b"no database at all" * 100)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(CorruptLog, match=r"journal\.db: NotADB"):
        SqliteJournal(tmp_path)
    assert os.listdir("/proc/self/fd") == before
