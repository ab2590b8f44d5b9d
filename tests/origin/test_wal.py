"""A damaged WAL never loses a commit in silence, and a torn one never stops a start."""

import random
import re
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from origin.frame import CorruptLog
from origin.journal import Batch
from origin.sqlite import SqliteJournal
from origin.wal import check

HEADER, HEAD, PAGE = 32, 24, 16384
STRIDE = HEAD + PAGE
# Small ones share a page, so that a commit is one frame of the log; large ones take several.
SIZES = [60, 60, 36_000, 60, 60, 80_000, 60, 60]


@dataclass(frozen=True)
class Killed:
    """A data folder as SIGKILL leaves it."""

    folder: Path
    commits: list[range]  # frames of the WAL, by commit; the last ones are the appends

    @property
    def appends(self) -> list[range]:
        return self.commits[-len(SIZES) :]


def body(lsn: int) -> bytes:
    return bytes([lsn]) * SIZES[lsn - 1]


def kill(folder: Path, *, checkpoint_after: int = 0) -> Killed:
    """Make a journal and copy its files while it is open, which is what a kill leaves."""
    live, dead = folder / "live", folder / "dead"
    journal = SqliteJournal(live)
    for lsn in range(1, len(SIZES) + 1):
        journal.append(lsn, [body(lsn)])
        if lsn == checkpoint_after:
            journal.apply(Batch(0, 1))
    shutil.copytree(live, dead)
    journal.close()
    return Killed(dead, commits_of((dead / "journal.db-wal").read_bytes()))


def commits_of(log: bytes) -> list[range]:
    salts, found, first = log[16:24], [], 0
    for number in range((len(log) - HEADER) // STRIDE):
        at = HEADER + number * STRIDE
        if log[at + 8 : at + 16] == salts and struct.unpack_from(">I", log, at + 4)[0]:
            found.append(range(first, number + 1))
            first = number + 1
    return found


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    return kill(tmp_path_factory.mktemp("wal"))


@pytest.fixture(scope="module")
def checkpointed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    return kill(tmp_path_factory.mktemp("wal"), checkpoint_after=len(SIZES))


def start(folder: Path) -> list[int] | str:
    """Return which frames a start finds, each with its own bytes; or why it is refused.

    A refused start leaves every byte where it was, so that the next one is refused as well.
    """
    files = [folder / "journal.db", folder / "journal.db-wal"]
    before = [file.read_bytes() for file in files]
    found = _start(folder)
    if isinstance(found, str):
        assert [file.read_bytes() for file in files] == before
        assert _start(folder) == found
    return found


def _start(folder: Path) -> list[int] | str:
    try:
        journal = SqliteJournal(folder)
    except CorruptLog as refusal:
        return str(refusal)
    found = list(journal.frames(0))
    journal.close()
    assert found == [(lsn, body(lsn)) for lsn, _ in found]
    return [lsn for lsn, _ in found]


def damaged(killed: Killed, folder: Path, change: Callable[[bytearray], object]) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(killed.folder, folder)
    log = bytearray((folder / "journal.db-wal").read_bytes())
    change(log)
    (folder / "journal.db-wal").write_bytes(log)
    return folder


def flip(at: int, bit: int = 0) -> Callable[[bytearray], None]:
    def change(log: bytearray) -> None:
        log[at] ^= 1 << bit

    return change


def cut(size: int) -> Callable[[bytearray], None]:
    def change(log: bytearray) -> None:
        del log[size:]

    return change


EVERY = list(range(1, len(SIZES) + 1))


def test_killed_journal_has_every_commit(killed: Killed, tmp_path: Path) -> None:
    assert [len(frames) for frames in killed.appends] == [1, 1, 5, 1, 1, 9, 1, 1]
    assert start(damaged(killed, tmp_path / "copy", lambda log: None)) == EVERY


def test_no_flipped_bit_loses_a_commit_that_others_follow(killed: Killed, tmp_path: Path) -> None:
    random_ = random.Random(1)
    last = killed.commits[-1]
    wrong = []
    for number in range(last.start):
        at = HEADER + number * STRIDE
        # Every field of a frame's head, and a few bytes of its page: the head is what tells
        # commits apart.
        places = [at + n for n in range(HEAD)] + random_.sample(range(at + HEAD, at + STRIDE), 4)
        for place in places:
            bit = random_.randrange(8)
            folder = damaged(killed, tmp_path / "copy", flip(place, bit))
            if not isinstance(start(folder), str):
                wrong.append((number, place - at, bit))
    assert wrong == []


def test_flipped_bit_in_the_header_is_refused(killed: Killed, tmp_path: Path) -> None:
    for place in range(HEADER):
        folder = damaged(killed, tmp_path / "copy", flip(place, place % 8))
        assert isinstance(start(folder), str)


def test_damage_to_the_last_commit_costs_that_commit_alone(killed: Killed, tmp_path: Path) -> None:
    """It can't be told from a commit that a crash tore, which nobody was told of."""
    first = HEADER + killed.commits[-1].start * STRIDE
    for place in range(first, first + STRIDE, 97):
        folder = damaged(killed, tmp_path / "copy", flip(place, place % 8))
        assert start(folder) == EVERY[:-1]


def test_torn_last_commit_is_dropped_wherever_it_was_torn(killed: Killed, tmp_path: Path) -> None:
    frames = killed.appends[5]
    first, end = (HEADER + n * STRIDE for n in (frames.start, frames.stop))
    for size in [*range(first, end, 333), end - 1]:
        folder = damaged(killed, tmp_path / "copy", cut(size))
        assert start(folder) == EVERY[:5]
    folder = damaged(killed, tmp_path / "copy", cut(end))
    assert start(folder) == EVERY[:6]


@pytest.mark.parametrize("hole", range(8))
def test_last_commit_with_a_hole_is_dropped(killed: Killed, tmp_path: Path, hole: int) -> None:
    """A power failure may keep later pages of a commit, and lose earlier ones."""
    frames = killed.appends[5]
    end = HEADER + frames.stop * STRIDE

    def tear(log: bytearray) -> None:
        del log[end:]
        at = HEADER + frames[hole] * STRIDE
        log[at : at + STRIDE] = bytes(STRIDE)

    assert start(damaged(killed, tmp_path / "copy", tear)) == EVERY[:5]


def test_rest_of_a_commit_that_found_the_disk_full_is_no_damage(
    killed: Killed, tmp_path: Path
) -> None:
    """Such a commit leaves frames without an end; a shorter one, torn, then lies before them."""
    full, torn = killed.appends[5], killed.appends[4]

    def leave(log: bytearray) -> None:
        del log[HEADER + (full.stop - 1) * STRIDE :]  # the frame that would have ended it
        log[HEADER + torn.start * STRIDE + HEAD + 4000] ^= 1

    assert isinstance(start(damaged(killed, tmp_path / "copy", leave)), str)  # it did follow

    def overwritten(log: bytearray) -> None:
        leave(log)
        # The torn commit was written over what was the first frame of the full one.
        first, second = (HEADER + n * STRIDE for n in (torn.start, full.start))
        log[second : second + STRIDE] = log[first : first + STRIDE]
        del log[first : first + STRIDE]

    assert start(damaged(killed, tmp_path / "copy", overwritten)) == EVERY[:4]


def test_rests_of_commits_that_several_crashes_tore_are_no_damage(tmp_path: Path) -> None:
    """Each was written over the one before it, and ends in a frame that says so."""
    journal = SqliteJournal(tmp_path / "live")
    for lsn in range(1, 6):
        journal.append(lsn, [body(lsn)])
    shutil.copytree(tmp_path / "live", tmp_path / "dead")
    place = (tmp_path / "dead" / "journal.db-wal").stat().st_size
    journal.append(6, [body(6)])
    long = (tmp_path / "live" / "journal.db-wal").read_bytes()
    journal.close()
    other = SqliteJournal(tmp_path / "dead")
    other.append(6, [b"another"])
    shutil.copytree(tmp_path / "dead", tmp_path / "torn")
    other.close()
    log = bytearray((tmp_path / "torn" / "journal.db-wal").read_bytes())
    assert len(long) > len(log) + STRIDE
    log[place + HEAD + 4000] ^= 1
    log += long[len(log) :]
    assert len(commits_of(bytes(log))) == len(commits_of(bytes(log[:place]))) + 2
    (tmp_path / "torn" / "journal.db-wal").write_bytes(log)
    assert start(tmp_path / "torn") == [1, 2, 3, 4, 5]


def test_damage_before_a_torn_commit_is_seen_by_the_row_that_was_torn(
    killed: Killed, tmp_path: Path
) -> None:
    last, torn = killed.commits[-2], killed.commits[-1]

    def change(log: bytearray) -> None:
        log[HEADER + last.start * STRIDE + HEAD + 4000] ^= 1
        log[HEADER + torn.start * STRIDE + HEAD + 3000] ^= 1

    assert isinstance(start(damaged(killed, tmp_path / "copy", change)), str)


def test_damage_in_what_was_checkpointed_is_refused_too(
    checkpointed: Killed, tmp_path: Path
) -> None:
    """Taken as the end, it would put old pages over newer ones of the database."""
    for frames in checkpointed.commits[:-1]:
        at = HEADER + frames.start * STRIDE + HEAD + 9
        folder = damaged(checkpointed, tmp_path / "copy", flip(at))
        assert re.search(r"journal\.db-wal: frame \d+ is damaged", str(start(folder)))


def test_frames_of_an_earlier_use_of_the_file_are_no_commits(tmp_path: Path) -> None:
    """After a checkpoint the log begins anew in the same file, over the old frames."""
    journal = SqliteJournal(tmp_path / "live")
    for lsn in range(1, 4):
        journal.append(lsn, [body(lsn)])
    journal.apply(Batch(0, 1))
    journal.append(4, [body(4)])
    shutil.copytree(tmp_path / "live", tmp_path / "dead")
    journal.close()
    log = tmp_path / "dead" / "journal.db-wal"
    assert log.stat().st_size > HEADER + 3 * STRIDE
    assert len(commits_of(log.read_bytes())) == 1
    assert start(tmp_path / "dead") == [1, 2, 3, 4]


@pytest.mark.parametrize("size", [0, 1, HEADER - 1, HEADER, HEADER + 3], ids=str)
def test_log_without_a_frame_says_nothing(tmp_path: Path, size: int) -> None:
    (tmp_path / "journal.db-wal").write_bytes(bytes(size))
    check(tmp_path / "journal.db", 0, 0)


def test_log_that_is_not_there_says_nothing(tmp_path: Path) -> None:
    check(tmp_path / "journal.db", 0, 0)
