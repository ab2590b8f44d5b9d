"""Store: a database of blobs by number, frames or packs."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Final

import apsw
import orjson

from origin.database import Database, empty_log, is_full, one
from origin.frame import CorruptLog
from origin.journal import DiskFull, JournalFailed

# Free pages are used again; more of them than this, and than a quarter of the file, go back.
_FREE_BYTES: Final = 64 * 1024 * 1024
_VACUUM_BYTES: Final = 4 * 1024 * 1024


class Store:
    """A database of blobs, by number, and what its writer must hold."""

    def __init__(self, database: Database, table: str, key: str, lock: Lock) -> None:
        self.database = database
        self._table = table
        self._key = key
        self._body = "body"
        self._lock = lock

    @property
    def name(self) -> str:
        """What errors call it."""
        return str(self.database.path)

    def read(self, places: Iterable[tuple[int, int, int]]) -> list[bytes]:
        """Return the bytes at (number, at, size) each; the same number again and again is cheap.

        Raises:
            CorruptLog: a row is not there, or shorter.
        """
        reader = self.database.reader()
        found: list[bytes] = []
        blob: apsw.Blob | None = None
        opened = number = -1
        try:
            for number, at, size in places:
                if blob is None:
                    blob = reader.blob_open("main", self._table, self._body, number, False)
                elif number != opened:
                    blob.reopen(number)
                opened = number
                blob.seek(at)
                piece = blob.read(size)
                if len(piece) != size:
                    raise CorruptLog(
                        f"{self.name}: {self._table} {number} ends before byte {at + size}"
                    )
                found.append(piece)
        except (apsw.Error, ValueError) as error:  # ValueError: seek past the end
            raise CorruptLog(f"{self.name}: {self._table} {number}: {error}") from error
        finally:
            if blob is not None:
                blob.close(True)
        return found

    def put(self, rows: Sequence[tuple[int, bytes]]) -> None:
        """Write rows, durably; one that is there already was named by nobody."""
        with self._writing() as writer:
            for row in rows:
                writer.execute(f"INSERT OR REPLACE INTO {self._table} VALUES (?, ?)", row)
        with self._lock:
            empty_log(self.database.writer)

    def remove(self, numbers: Sequence[int]) -> None:
        """Remove rows; those that are not there were removed before."""
        with self._writing() as writer:
            writer.execute(
                f"DELETE FROM {self._table} WHERE {self._key} IN (SELECT value FROM json_each(?))",
                (orjson.dumps(numbers).decode(),),
            )

    def remove_from(self, number: int) -> None:
        """Remove the rows from a number on."""
        with self._writing() as writer:
            writer.execute(f"DELETE FROM {self._table} WHERE {self._key} >= ?", (number,))

    def give_back(self) -> bool:
        """Return some free pages to the file system; return whether there were so many."""
        reader = self.database.reader()
        page_bytes, free, pages = (
            one(reader, f"PRAGMA {name}")[0]
            for name in ("page_size", "freelist_count", "page_count")
        )
        if free * page_bytes < _FREE_BYTES or free * 4 < pages:
            return False
        if not one(reader, "PRAGMA auto_vacuum")[0]:
            return False  # an older file, whose free pages are only used again
        with self._writing() as writer:
            for _ in writer.execute(f"PRAGMA incremental_vacuum({_VACUUM_BYTES // page_bytes})"):
                pass
        return True

    @contextmanager
    def _writing(self) -> Iterator[apsw.Connection]:
        writer = self.database.writer
        try:
            with self._lock, writer:
                yield writer
        except apsw.Error as error:
            if is_full(error, writer):
                raise DiskFull(f"{self.name}: {error}") from error
            raise JournalFailed(f"{self.name}: {type(error).__name__}: {error}") from error
