"""A damaged index: what it cannot vouch for is an error, and never an answer."""

import asyncio
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import apsw
import pytest

from origin import database, index
from origin.check import check
from origin.frame import CorruptLog
from origin.journal import Journal, Stored
from origin.sqlite import SqliteJournal
from origin.usage import Usage
from tests.faults.test_full import serving
from tests.origin.wired import wired

STREAMS = 60
FLIPS = 120
PAGE_BYTES = 4096


def path_of(number: int) -> str:
    return f"s/{number:04d}-{'x' * 60}"


def fill(folder: Path) -> None:
    """Leave streams with all that the index knows of one, and nothing that it lacks."""

    async def write() -> None:
        journal = SqliteJournal(folder)
        async with wired(journal) as origin:
            for number in range(STREAMS):
                path = path_of(number)
                await origin.create(path, b"first", ttl_s=1000 + number)
                await origin.append(path, b"more", producer=("p", 3, 0), seq=f"{number:06d}")
            await origin.create("fork", kind=None, source=path_of(7))
            origin.index()
        journal.close()

    asyncio.run(write())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("index") / "data"
    fill(made)
    return made


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "data")


QUESTIONS: dict[str, Callable[[Journal], object]] = {
    "a stream by path": lambda journal: [journal.find(path_of(n)) for n in range(STREAMS)],
    "a path without a stream": lambda journal: journal.find("s/none"),
    "a stream by number": lambda journal: [journal.load(n) for n in range(1, STREAMS + 2)],
    "all streams": lambda journal: list(journal.stored()),
    "a page of the listing": lambda journal: journal.page("s/", path_of(5), 20),
    "whose time is over": lambda journal: journal.due(2**60, (0, 0), 100),
    "where data lies": lambda journal: [journal.extents(n, 0, 9) for n in range(1, STREAMS + 2)],
    "usage": lambda journal: (journal.usage("", 10), journal.total()),
    "how far it is": lambda journal: journal.applied(),
}


def answers(folder: Path) -> dict[str, object]:
    """Return what a journal answers, or that it says why it does not."""
    try:
        journal = SqliteJournal(folder)
    except CorruptLog as error:
        return dict.fromkeys(QUESTIONS, str(error))
    found: dict[str, object] = {}
    for name, ask in QUESTIONS.items():
        try:
            found[name] = ask(journal)
        except CorruptLog as error:
            found[name] = str(error)
    with suppress(apsw.Error):
        journal.close()
    return found


def test_flipped_bit_is_told_or_does_no_harm(copy: Path) -> None:
    right = answers(copy)
    assert isinstance(right["a stream by path"], list)
    stored = right["a stream by path"][3]
    assert isinstance(stored, Stored)
    assert stored.state.last_seq == "000003"
    count = Usage(120, 540, 120, 540, 60)
    fork = Usage(streams=1)
    assert right["usage"] == ((121, [("fork", fork), ("s", count)]), Usage(120, 540, 120, 540, 61))
    dice = random.Random("flips")
    whole = (copy / "index.db").read_bytes()
    written = [at for at, byte in enumerate(whole) if byte]
    told = 0
    for _ in range(FLIPS):
        content = bytearray(whole)
        content[dice.choice(written)] ^= 1 << dice.randrange(8)
        (copy / "index.db").write_bytes(content)
        faults = [answer for name, answer in answers(copy).items() if answer != right[name]]
        assert all(isinstance(fault, str) and "index.db" in fault for fault in faults), faults
        told += bool(faults)
    assert told > FLIPS * 0.9


def damage(folder: Path, text: bytes) -> int:
    """Flip a bit of the last place that has a text; return the number of its page."""
    content = bytearray((folder / "index.db").read_bytes())
    at = content.rindex(text)
    content[at + len(text) // 2] ^= 1
    (folder / "index.db").write_bytes(content)
    return at // PAGE_BYTES + 1


def test_check_names_a_damaged_page(copy: Path) -> None:
    number = damage(copy, path_of(30).encode())
    assert list(check(copy)) == [f"{copy}/index.db: page {number}: the checksum is wrong"]


async def test_streams_of_a_damaged_page_are_refused_and_the_others_served(copy: Path) -> None:
    damage(copy, path_of(30).encode())
    async with serving(copy) as here:
        statuses = set()
        for number in range(STREAMS):
            stream = here.server.stream(path_of(number))
            read, written = await stream.at("-1"), await stream.post(b"!")
            assert read.status == 500 or read.body == b"firstmore"
            statuses.add((read.status, written.status))
        assert statuses == {(200, 204), (500, 500)}
        assert here.stopped == []


def test_index_without_checksums_gets_them_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as before:
        before.setattr(database, "_SUM_BYTES", 0)
        before.setattr(database, "is_summed", lambda connection: True)
        before.setattr(index, "_FORMAT", 4)
        fill(tmp_path)
        right = answers(tmp_path)
    old = (tmp_path / "index.db").read_bytes()
    assert old[20] == 0
    needed = "has format 4, this version of Headwater needs 5; a start brings format 4 there"
    assert list(check(tmp_path)) == [f"{tmp_path}/index.db: {needed}"]
    assert (tmp_path / "index.db").read_bytes() == old
    for _ in range(2):
        assert answers(tmp_path) == right
    new = (tmp_path / "index.db").read_bytes()
    assert new[20] == 8
    assert list(database.wrong_pages(tmp_path / "index.db")) == []
    assert list(check(tmp_path)) == []


def test_header_that_switches_checksums_off_is_refused(copy: Path) -> None:
    content = bytearray((copy / "index.db").read_bytes())
    content[20] ^= 8
    (copy / "index.db").write_bytes(content)
    with pytest.raises(CorruptLog, match=r"index\.db"):
        SqliteJournal(copy)


def test_log_with_transactions_behind_damage_is_refused(copy: Path, tmp_path: Path) -> None:
    killed = tmp_path / "killed"

    async def write() -> None:
        journal = SqliteJournal(copy)
        reader = apsw.Connection(str(copy / "index.db"))
        reader.execute("BEGIN; SELECT * FROM applied")  # so the log is not begun anew
        async with wired(journal) as origin:
            for number in range(3):
                await origin.append(path_of(number), b"!")
                origin.index()
            shutil.copytree(copy, killed, ignore=shutil.ignore_patterns("*-shm"))
        reader.close()
        journal.close()

    asyncio.run(write())
    content = bytearray((killed / "index.db-wal").read_bytes())
    content[32 + 24 + 100] ^= 1  # the first page of the first transaction
    (killed / "index.db-wal").write_bytes(content)
    with pytest.raises(CorruptLog, match=r"index\.db-wal: frame 1 is damaged, and later commits"):
        SqliteJournal(killed)
