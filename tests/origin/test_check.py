"""Check finds every fault by file and record; a backup is a folder without any."""

import asyncio
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import apsw
import pytest

from origin import cleaner
from origin.backup import BackupFailed, backup
from origin.check import NoFolder, check
from origin.journal import JournalFailed
from origin.large import LargeFrames
from origin.sqlite import FILES, SqliteJournal
from tests.origin.test_compact import settle
from tests.origin.wired import Wired, wired
from tests.service import ROOT

HUGE = b"huge" * 75_000  # a frame in a file of its own


async def write(origin: Wired) -> None:
    """Leave something of every kind: in frames and their files, and in packs."""
    await origin.create("a/plain", b"one")
    for number in range(30):
        await origin.append("a/plain", b"<%d>" % number, producer=("p", 0, number))
    await origin.create("a/large", b"x" * 50_000)
    await origin.create("b/source", b"inherited")
    await origin.create("b/fork", b"own", kind=None, source="b/source")
    await origin.create("b/fork2", b"own", kind=None, source="b/fork")
    await origin.streams.delete("b/source")
    await origin.create("c/closed", b"end", closed=True)
    await origin.create("c/gone", b"gone")
    await origin.streams.delete("c/gone")
    await origin.create("e/file", HUGE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with packs, frames, and frames that the index lacks."""
    monkeypatch.setattr(cleaner, "_WORTH_BYTES", 0)
    monkeypatch.setattr(cleaner, "_FIRST_S", 0)

    async def fill() -> None:
        journal = SqliteJournal(tmp_path / "data")
        async with wired(journal, registry=True) as origin:
            await write(origin)
            settle(origin)
            await origin.append("a/plain", b"in a frame")
            origin.index()
            await origin.append("a/plain", b"the index lacks this")
            await origin.create("d/new", b"and this", kind=None, source="b/fork2")
            await origin.append("e/file", HUGE)
        journal.close()

    asyncio.run(fill())
    return tmp_path / "data"


def content(folder: Path) -> dict[str, bytes]:
    """Return databases and files of frames."""
    paths = [*folder.glob("*.db"), *folder.glob("frames/*")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_folder_without_a_fault_has_none_and_stays_as_it_is(folder: Path) -> None:
    before = content(folder)
    assert list(check(folder)) == []
    assert content(folder) == before


def sql(name: str, *statements: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        with apsw.Connection(str(folder / name)) as connection:
            for statement in statements:
                connection.execute(statement)
        connection.close()

    return change


def flip(name: str, text: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        damaged = bytearray((folder / name).read_bytes())
        damaged[damaged.index(text) + len(text) // 2] ^= 1
        (folder / name).write_bytes(damaged)

    return change


def file_of(folder: Path, which: int) -> Path:
    """Return one of the two files of frames: of the last, the index knows nothing."""
    return sorted((folder / "frames").iterdir(), key=lambda path: int(path.name))[which]


def flip_in_file(which: int, text: bytes) -> Callable[[Path], None]:
    return lambda folder: flip(f"frames/{file_of(folder, which).name}", text)(folder)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "flip in a pack": (flip("packs.db", b"<11><12>"), r"packs\.db: pack 1: byte \d+: checksum"),
    "flip in a frame": (
        flip("journal.db", b"x" * 100),
        r"journal\.db: frame \d+: byte \d+: checksum",
    ),
    "flip in what is to be replayed": (
        flip("journal.db", b"the index lacks this"),
        r"journal\.db: frame \d+: byte \d+: checksum",
    ),
    "flip in a file": (flip_in_file(0, HUGE), r"frame \d+: byte \d+: checksum .*extent 0"),
    "flip in the table of a file": (flip_in_file(0, b"e/file"), r"frame \d+: checksum"),
    "flip in the head of a file": (
        flip_in_file(0, b"HWF"),
        r"frames/(\d+): frame \1 is not the one that was committed",
    ),
    "flip in a file that is to be replayed": (
        flip_in_file(1, HUGE),
        r"frame \d+: byte \d+: checksum",
    ),
    "file of a frame lost": (
        lambda folder: file_of(folder, 0).unlink(),
        r"frames/(\d+): frame \1: No such file or directory .*extent 0",
    ),
    "file of a frame cut": (
        lambda folder: os.truncate(file_of(folder, 0), 299_999),
        r"frames/(\d+): frame \1 ends before byte \d+ .*extent 0",
    ),
    "file lost that is to be replayed": (
        lambda folder: file_of(folder, 1).unlink(),
        r"frames/(\d+): frame \1: No such file or directory$",
    ),
    "page of noise": (
        lambda folder: _noise(folder / "index.db"),
        r"index\.db: .+",
    ),
    "frame lost that extents need": (
        sql("journal.db", "DELETE FROM frame WHERE lsn = (SELECT min(lsn) FROM frame)"),
        r"journal\.db: frame \d+: .*extent 0",
    ),
    "last frames lost": (
        sql("journal.db", "DELETE FROM frame WHERE lsn > 10"),
        r"journal\.db: ends with frame 0|journal\.db: ends with frame \d+, but the index has",
    ),
    "pack lost": (sql("packs.db", "DELETE FROM pack"), r"packs\.db: pack 1: .*extent 0"),
    "extent lost": (
        sql("index.db", "DELETE FROM extent WHERE incarnation = 2 AND start > 10"),
        r"index\.db: stream 2 \('a/plain'\): extents end at \d+, its tail is \d+",
    ),
    "extent lost in the middle": (
        sql("index.db", "UPDATE extent SET start = start + 1 WHERE incarnation = 2 AND start > 9"),
        r"index\.db: stream 2 \('a/plain'\): an extent ends at \d+, the next begins at \d+",
    ),
    "boundaries that do not add up": (
        sql("index.db", "UPDATE extent SET sizes = '[4,5]' WHERE incarnation = 2 AND start = 0"),
        r"index\.db: stream 2, extent 0: sizes of appends",
    ),
    "count of forks": (
        sql("index.db", "UPDATE stream SET forks = 5 WHERE path = 'b/fork'"),
        r"index\.db: stream \d+ \('b/fork'\): counts 5 forks, has 1",
    ),
    "fork source lost": (
        sql("index.db", "DELETE FROM stream WHERE path = 'b/source'"),
        r"index\.db: stream \d+ \('b/fork'\): lacks its fork source 4",
    ),
    "usage": (
        sql("index.db", "UPDATE usage SET stored = stored + 1 WHERE service = 'a'"),
        r"index\.db: usage of 'a': says \d+ bytes of 2 streams, there are \d+ of 2",
    ),
    "usage lost": (
        sql("index.db", "DELETE FROM usage WHERE service = 'b'"),
        r"index\.db: usage of 'b': is missing",
    ),
    "account of a pack": (
        sql("index.db", "UPDATE blob SET live = live - 1 WHERE lsn = -1"),
        r"index\.db: blob -1: counts \d+ bytes, extents hold \d+",
    ),
    "stream that the next frame needs": (
        sql(
            "index.db",
            "DELETE FROM stream WHERE path = 'a/plain'",
            "DELETE FROM extent WHERE incarnation = 2",
        ),
        r"journal\.db: frame \d+: names stream 2, which does not exist",
    ),
    "file lost": (lambda folder: (folder / "packs.db").unlink(), r"packs\.db: is missing"),
    "file of something else": (
        lambda folder: (folder / "index.db").write_bytes(b"index" * 5000),
        r"index\.db: NotADB",
    ),
}


def _noise(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096 * 3 : 4096 * 4] = os.urandom(4096)
    path.write_bytes(content)


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_named_by_file_and_record(folder: Path, name: str) -> None:
    damage, message = FAULTS[name]
    damage(folder)
    found = list(check(folder))
    assert found
    told = "\n".join(found)

    assert re.search(message, told, re.MULTILINE), told
    assert all(line.startswith(str(folder)) for line in found), told


def test_what_is_no_data_folder_is_not_made_one(tmp_path: Path) -> None:
    with pytest.raises(NoFolder, match="is no data folder"):
        list(check(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_folder_in_use_is_not_checked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("origin.sqlite._LOCK_WAIT_S", 0.1)
    journal = SqliteJournal(folder)
    with pytest.raises(JournalFailed, match="in use"):
        list(check(folder))
    journal.close()


# --- backup --------------------------------------------------------------------------------------


async def test_backup_of_a_folder_in_use_has_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies are made while appends, compaction and removal go on."""
    monkeypatch.setattr(cleaner, "_WORTH_BYTES", 0)
    monkeypatch.setattr(cleaner, "_FIRST_S", 0)
    data = tmp_path / "data"
    journal = SqliteJournal(data)
    done = threading.Event()

    def copy() -> list[Path]:
        copies: list[Path] = []
        while not done.is_set() or len(copies) < 3:
            copies.append(tmp_path / f"copy-{len(copies)}")
            backup(data, copies[-1])
        return copies

    removed: list[object] = []
    remove = LargeFrames.remove

    def note(large: LargeFrames, lsns: Sequence[int]) -> bool:
        removed.append(done := remove(large, lsns))
        return done

    monkeypatch.setattr(LargeFrames, "remove", note)
    async with wired(journal) as origin:
        copying = asyncio.create_task(asyncio.to_thread(copy))
        kept: list[bytes] = []
        for path in ("s", "other", "large", "brief"):
            await origin.create(path)
        for number in range(400):
            kept.append(b"<%d>" % number)
            await origin.append("s", kept[-1])
            if number % 20 == 0:
                await origin.append("other", b"x" * 40_000)
            if number % 40 == 0:
                # What is left of these frames moves to packs once the other part of them is gone.
                await origin.streams.delete("brief")
                await origin.create("brief")
                both = (("large", b"y" * 50_000), ("brief", b"z" * 250_000))
                await asyncio.gather(*(origin.append(path, body) for path, body in both))
            if number % 10 == 0:
                settle(origin)
                await asyncio.sleep(0)
        done.set()
        copies = await copying
        for _ in range(2):
            settle(origin)
        assert len(content(data)) == len(FILES) + 1  # of the last frame that is needed
    journal.close()
    everything = b"".join(kept)
    for folder in copies:
        assert list(check(folder)) == [], folder
        copied = SqliteJournal(folder)
        async with wired(copied) as again:
            if again.catalog.at("s") is not None:
                assert everything.startswith(await again.content("s"))
            for path, byte in (("large", b"y"), ("brief", b"z")):
                if again.catalog.at(path) is not None:
                    assert not (await again.content(path)).strip(byte)
        copied.close()
    assert len(copies) >= 3
    assert sum(len(content(folder)) - len(FILES) for folder in copies) > 3
    assert False in removed  # it came while one was copied, and had to wait


def test_backup_of_a_stopped_folder_leaves_it_as_it_is(folder: Path, tmp_path: Path) -> None:
    before = content(folder)
    backup(folder, tmp_path / "copy")
    assert content(folder) == before
    names = ["frames", "index.db", "journal.db", "packs.db"]
    assert sorted(os.listdir(tmp_path / "copy")) == names
    assert list(check(tmp_path / "copy")) == []


async def test_copy_reads_as_its_original_does(folder: Path, tmp_path: Path) -> None:
    backup(folder, tmp_path / "copy")
    assert content(tmp_path / "copy").keys() == content(folder).keys()
    read: list[dict[str, bytes]] = []
    for place in (folder, tmp_path / "copy"):
        journal = SqliteJournal(place)
        async with wired(journal) as origin:
            paths = [stored.state.path for stored in journal.stored() if not stored.state.deleted]
            read.append({path: await origin.content(path) for path in [*paths, "d/new"]})
        journal.close()
    assert read[0] == read[1]
    assert read[1]["e/file"] == 2 * HUGE


def test_folder_of_the_earlier_version_is_copied_too(tmp_path: Path) -> None:
    """Just before an upgrade, by the command that is there already."""
    SqliteJournal(tmp_path / "data").close()
    (tmp_path / "data" / "frames").rmdir()
    backup(tmp_path / "data", tmp_path / "copy")
    assert list(check(tmp_path / "copy")) == []


def test_backup_that_lacks_a_file_says_which(folder: Path, tmp_path: Path) -> None:
    lost = file_of(folder, 0)
    lost.unlink()
    with pytest.raises(BackupFailed, match=re.escape(str(lost))):
        backup(folder, tmp_path / "copy")


def test_backup_does_not_write_over_anything(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "mine").write_text("mine")
    with pytest.raises(BackupFailed, match="is not empty"):
        backup(folder, tmp_path / "copy")
    with pytest.raises(BackupFailed, match="is no data folder"):
        backup(tmp_path / "none", tmp_path / "copy2")


# --- commands ------------------------------------------------------------------------------------


def run(*arguments: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "deploy", *arguments]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    return ended.returncode, ended.stdout, ended.stderr


def test_commands_tell_by_their_exit_code(folder: Path, tmp_path: Path) -> None:
    copy = str(tmp_path / "copy")
    assert run("check", str(folder)) == (0, f"{folder}: no faults\n", "")
    assert run("backup", str(folder), copy) == (0, f"{copy} holds a copy of {folder}\n", "")
    code, _, error = run("backup", str(folder), copy)
    assert (code, error) == (1, f"headwater backup: {copy} is not empty\n")
    flip("packs.db", b"<11><12>")(tmp_path / "copy")
    code, told, _ = run("check", copy)
    assert code == 1
    assert told.splitlines()[-1] == f"{copy}: 1 fault"
    code, told, error = run("check", str(tmp_path / "none"))
    assert (code, told) == (2, "")
    assert "is no data folder" in error
