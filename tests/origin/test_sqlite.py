"""The log of the journal: how long it becomes, and when it is begun anew."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from origin import sqlite
from origin.sqlite import SqliteJournal

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
        journal.append(lsn, FRAME)
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
