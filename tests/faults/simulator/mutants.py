"""Mutants: what the product must not do, done on purpose: a simulator that can't tell proves
nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final
from unittest.mock import patch

import apsw

from origin.commit import Committer
from origin.database import Database
from origin.frame import Appended, Deleted, Encoded, Record, encode_frame
from origin.journal import DiskFull, JournalFailed
from origin.large import FOLDER
from origin.sqlite import SqliteJournal
from tests.faults.simulator.runner import Broken


def without_fsync() -> Broken:
    """The journal's fsync does nothing."""
    return Broken(forgets_syncs_of="journal.db*")


def large_frame_without_sync() -> Broken:
    """What is written to the file of a large frame is not synced, and its name is."""
    return Broken(forgets_syncs_of=f"{FOLDER}/*")


def large_frame_without_name() -> Broken:
    """What is written to the file of a large frame is synced, and its name is not."""
    return Broken(forgets_syncs_of=FOLDER)


def synchronous_normal() -> Broken:
    """Commits are synced with the next checkpoint only; the checkpoint is, as it should be."""
    prepare = Database._prepare

    def carelessly(self: Database, *args: Any) -> None:
        prepare(self, *args)
        self.writer.pragma("synchronous", "NORMAL")

    return Broken(product=patch.object(Database, "_prepare", carelessly))


def failed_fsync_tried_again() -> Broken:
    """A commit whose fsync failed counts as refused, and the process goes on."""
    append = SqliteJournal.append

    def lightly(self: SqliteJournal, lsn: int, frame: Sequence[bytes]) -> None:
        try:
            append(self, lsn, frame)
        except JournalFailed as error:
            raise DiskFull(str(error)) from error

    return Broken(product=patch.object(SqliteJournal, "append", lightly))


def producers_in_a_second_commit() -> Broken:
    """What a producer has sent goes into one frame, and that it has into the next one."""
    return Broken(product=_producers_later())


def acknowledged_before_durable() -> Broken:
    """Nobody waits for the commit."""

    async def at_once(self: Committer) -> None:
        await asyncio.sleep(0)

    return Broken(product=patch.object(Committer, "settled", at_once))


def pages_not_verified() -> Broken:
    """What a page of the index says is believed, whatever its checksum."""
    prepare, reader = Database._prepare, Database.reader

    def prepared(self: Database, *args: Any) -> None:
        prepare(self, *args)
        self.writer.execute("PRAGMA checksum_verification = OFF")

    def credulous(self: Database) -> apsw.Connection:
        connection = reader(self)
        connection.execute("PRAGMA checksum_verification = OFF")
        return connection

    return Broken(product=patch.multiple(Database, _prepare=prepared, reader=credulous))


@contextmanager
def _producers_later() -> Iterator[None]:
    held: list[Appended] = []

    def encode(lsn: int, at_ms: int, records: Iterable[Record]) -> Encoded:
        now: list[Record] = list(held)
        held.clear()
        for record in records:
            if isinstance(record, Appended) and record.producer is not None and not record.close:
                held.append(replace(record, payload=b"", stream_seq=None))
                record = replace(record, producer=None)
            elif isinstance(record, Deleted):
                gone = record.incarnation
                held[:] = [later for later in held if later.incarnation != gone]
            now.append(record)
        return encode_frame(lsn, at_ms, now)

    with patch("origin.commit.encode_frame", encode):
        yield


MUTANTS: Final[dict[str, Callable[[], Broken]]] = {
    "the journal's fsync does nothing": without_fsync,
    "the journal is opened with synchronous NORMAL": synchronous_normal,
    "a failed fsync counts as a refusal": failed_fsync_tried_again,
    "producer state goes into a second commit": producers_in_a_second_commit,
    "an append is acknowledged before it is durable": acknowledged_before_durable,
    "checksums of pages are not verified": pages_not_verified,
    "the file of a large frame is not synced before its row": large_frame_without_sync,
    "the name of a large frame's file is not synced": large_frame_without_name,
}
