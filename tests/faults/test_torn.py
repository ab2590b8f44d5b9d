"""Torn and damaged files: a start finds everything, or says which file and what is wrong."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import apsw
import pytest

from tests.faults.ledger import session
from tests.faults.lives import Origin
from tests.http.api import Server
from tests.service import ROOT

APPENDS = 40
QUIET = ("--log-level", "error", "--long-poll-timeout-s", "0.5")


LARGE = 33  # the append whose commit is a file of its own


def payload(number: int) -> bytes:
    size = 300_000 if number == LARGE else 3000 if number % 5 == 0 else 40
    return b"<%d:" % number + bytes([65 + number % 26]) * size + b">"


EVERYTHING = b"".join(map(payload, range(APPENDS)))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return two data folders of an origin: killed just after its last append, and stopped."""
    folder = tmp_path_factory.mktemp("written")
    killed, stopped = folder / "killed", folder / "stopped"

    async def write() -> None:
        async with Origin(folder, *QUIET) as origin, session() as client:
            stream = Server(origin.url, client).stream("s")
            assert (await stream.put()).status == 201
            for number in range(APPENDS):
                assert (await stream.post(payload(number))).status == 204
                if number == APPENDS // 2:
                    await asyncio.sleep(1.3)  # the index learns of the first half
            await origin.kill()
            shutil.copytree(origin.data, killed)
            await origin.start()
            await origin.stop()
            shutil.copytree(origin.data, stopped)

    asyncio.run(write())
    return killed, stopped


Damage = Callable[[Path], object]


def flip(name: str, at: Callable[[bytes], int]) -> Damage:
    def change(data: Path) -> None:
        content = bytearray((data / name).read_bytes())
        content[at(bytes(content))] ^= 1
        (data / name).write_bytes(content)

    return change


def cut(name: str, size: Callable[[int], int]) -> Damage:
    def change(data: Path) -> None:
        os.truncate(data / name, size((data / name).stat().st_size))

    return change


def sql(name: str, statement: str) -> Damage:
    def change(data: Path) -> None:
        with apsw.Connection(str(data / name)) as connection:
            connection.execute(statement)
        connection.close()

    return change


def lose(name: str) -> Damage:
    return lambda data: (data / name).unlink()


def in_file(damage: Callable[[str], Damage]) -> Damage:
    """Return a damage to the one file of a frame."""

    def change(data: Path) -> None:
        (name,) = os.listdir(data / "frames")
        damage(f"frames/{name}")(data)

    return change


def all_of(*damages: Damage) -> Damage:
    def change(data: Path) -> None:
        for damage in damages:
            damage(data)

    return change


def place_of(number: int) -> Callable[[bytes], int]:
    """Return where a file holds the payload of an append."""

    def find(content: bytes) -> int:
        at = content.rfind(b"<%d:" % number)
        assert at > 0
        return at + 1

    return find


def refused(data: Path) -> str:
    """Start an origin that must not start; return its one line of error."""
    flags = ["--port", "0", "--admin-port", "0", "--log-level", "error"]
    ended = subprocess.run(
        [sys.executable, "-m", "origin", *flags, "--data-dir", str(data)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert ended.returncode != 0
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    return line


REFUSED: dict[str, tuple[bool, Damage, str]] = {
    "flip in the log, with commits behind it": (
        True,
        # In the commit that appended it: later ones have it in the same page.
        flip("journal.db-wal", lambda content: content.find(b"<30:") + 1),
        r"journal\.db-wal: frame \d+ is damaged",
    ),
    "log's header overwritten": (
        True,
        flip("journal.db-wal", lambda content: 2),
        r"journal\.db-wal: header",
    ),
    "journal overwritten": (
        False,
        lambda data: (data / "journal.db").write_bytes(os.urandom(20_000)),
        r"journal\.db: NotADB",
    ),
    "journal of something else": (
        False,
        all_of(lose("journal.db"), sql("journal.db", "CREATE TABLE t (a)")),
        r"journal\.db: is not a Headwater database",
    ),
    "journal lost": (
        False,
        lose("journal.db"),
        r"journal\.db: ends with frame 0, but the index has applied \d+",
    ),
    "journal cut in half": (False, cut("journal.db", lambda size: size // 2), r"journal\.db: "),
    "last frames lost": (
        False,
        sql("journal.db", "DELETE FROM frame WHERE lsn > 35"),
        r"journal\.db: ends with frame 35, but the index has applied \d+",
    ),
    "frame lost that is to be replayed": (
        False,
        all_of(lose("index.db"), sql("journal.db", "DELETE FROM frame WHERE lsn = 17")),
        r"journal\.db: frame 17 is missing",
    ),
    "frame damaged that is to be replayed": (
        False,
        all_of(lose("index.db"), flip("journal.db", place_of(20))),
        r"journal\.db: frame \d+: byte \d+: checksum [0-9a-f]{8}, expected [0-9a-f]{8}",
    ),
    "file lost that is to be replayed": (
        True,
        all_of(lose("index.db"), lose("index.db-wal"), in_file(lose)),
        r"frames/(\d+): frame \1: No such file or directory",
    ),
    "file cut that is to be replayed": (
        False,
        all_of(lose("index.db"), in_file(lambda name: cut(name, lambda size: size // 2))),
        r"frames/(\d+): frame \1 ends before byte \d+",
    ),
    "file damaged that is to be replayed": (
        False,
        all_of(lose("index.db"), in_file(lambda name: flip(name, place_of(LARGE)))),
        r"frame \d+: byte \d+: checksum [0-9a-f]{8}, expected [0-9a-f]{8}",
    ),
    "index overwritten": (
        False,
        lambda data: (data / "index.db").write_bytes(b"index" * 5000),
        r"index\.db: NotADB",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_start_on_damage_is_refused_with_one_line_each_time(
    written: tuple[Path, Path], tmp_path: Path, name: str
) -> None:
    was_killed, damage, message = REFUSED[name]
    data = tmp_path / "data"
    shutil.copytree(written[0] if was_killed else written[1], data)
    damage(data)
    line = refused(data)
    assert re.search(message, line), line
    assert str(data) in line
    # A supervisor starts it again, and again: it must not be talked into it.
    assert refused(data) == line


def test_log_that_ends_before_what_the_index_has_is_refused(
    written: tuple[Path, Path], tmp_path: Path
) -> None:
    killed, stopped = written
    shutil.copytree(killed, tmp_path / "data")
    cut("journal.db-wal", lambda size: size // 2)(tmp_path / "data")
    for file in (tmp_path / "data").glob("index.db*"):
        file.unlink()
    shutil.copy(stopped / "index.db", tmp_path / "data")
    for _ in range(2):
        line = refused(tmp_path / "data")
        assert re.search(r"journal\.db: ends with frame \d+, but the index has applied", line), line


def test_folder_that_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("in the way")
    assert str(tmp_path / "data") in refused(tmp_path / "data")


async def test_folder_in_use_is_named(tmp_path: Path) -> None:
    async with Origin(tmp_path, *QUIET) as origin:
        line = await asyncio.to_thread(refused, origin.data)
        assert f"{origin.data} is in use by another process" in line


# --- what starts ---------------------------------------------------------------------------------


async def whole(data: Path, folder: Path) -> bytes:
    """Start an origin on a copy of a data folder; return what it serves."""
    shutil.copytree(data, folder / "data", dirs_exist_ok=True)
    async with Origin(folder, *QUIET) as origin, session() as client:
        return await Server(origin.url, client).stream("s").whole()


@pytest.mark.parametrize("which", [0, 1], ids=["killed", "stopped"])
async def test_start_finds_everything(
    written: tuple[Path, Path], tmp_path: Path, which: int
) -> None:
    assert await whole(written[which], tmp_path) == EVERYTHING


async def test_start_without_its_index_finds_everything(
    written: tuple[Path, Path], tmp_path: Path
) -> None:
    shutil.copytree(written[0], tmp_path / "data")
    for file in (tmp_path / "data").glob("index.db*"):
        file.unlink()
    async with Origin(tmp_path, *QUIET) as origin, session() as client:
        stream = Server(origin.url, client).stream("s")
        assert await stream.whole() == EVERYTHING
        assert (await stream.post(b"more")).status == 204
        await origin.kill()
        await origin.start()
        assert await stream.whole() == EVERYTHING + b"more"


async def test_torn_last_commit_is_dropped_and_the_next_append_takes_its_place(
    written: tuple[Path, Path], tmp_path: Path
) -> None:
    shutil.copytree(written[0], tmp_path / "data")
    # Its frame begins the page that holds it; what was acknowledged before it lies in earlier ones.
    flip("journal.db-wal", place_of(APPENDS - 1))(tmp_path / "data")
    async with Origin(tmp_path, *QUIET) as origin, session() as client:
        stream = Server(origin.url, client).stream("s")
        kept = b"".join(map(payload, range(APPENDS - 1)))
        assert await stream.whole() == kept
        assert (await stream.post(b"another")).status == 204
        assert await stream.whole() == kept + b"another"


# --- damage that a start does not look at --------------------------------------------------------


@pytest.mark.parametrize("number", [0, 3, 5, 20, LARGE, 38])
async def test_damage_in_an_old_frame_is_an_error_to_readers_and_no_wrong_byte(
    written: tuple[Path, Path], tmp_path: Path, number: int
) -> None:
    shutil.copytree(written[1], tmp_path / "data")
    in_place = partial(flip, at=place_of(number))
    damage = in_file(in_place) if number == LARGE else in_place("journal.db")
    damage(tmp_path / "data")
    async with Origin(tmp_path, *QUIET) as origin, session() as client:
        stream = Server(origin.url, client).stream("s")
        for answer in [await stream.at("-1"), await stream.poll("-1")]:
            assert answer.status == 500
            assert answer.refusal()[0] == "internal"
            assert "ETag" not in answer.headers
        async with stream.sse("-1") as events:
            assert events.reply.status == 500
        # It says in its log what an operator needs; the service goes on.
        assert re.search(r"CorruptLog: .*frame \d+.*checksum", origin.log.read_text())
        assert (await stream.head()).status == 200
        assert (await stream.post(b"more")).status == 204
        other = Server(origin.url, client).stream("other")
        assert (await other.put(b"whole")).status == 201
        assert await other.whole() == b"whole"


async def test_frame_that_was_lost_is_an_error_to_readers(
    written: tuple[Path, Path], tmp_path: Path
) -> None:
    shutil.copytree(written[1], tmp_path / "data")
    sql("journal.db", "DELETE FROM frame WHERE lsn = 9")(tmp_path / "data")
    async with Origin(tmp_path, *QUIET) as origin, session() as client:
        answer = await Server(origin.url, client).stream("s").at("-1")
        assert answer.refusal()[0] == "internal"
        assert "frame 9" in origin.log.read_text()
