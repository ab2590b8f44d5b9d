"""Store: a database of blobs by number, packs or frames; of these, some lie in files."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from threading import Lock
from typing import Final, cast

import apsw
import orjson

from origin.database import Database, empty_log, is_full, one
from origin.frame import CorruptLog
from origin.journal import DiskFull, JournalFailed
from origin.large import LARGE_ROWS, ROW_BYTES, LargeFrames

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
        number = -1
        try:
            for number, run in groupby(places, itemgetter(0)):
                if blob is None:
                    blob = reader.blob_open("main", self._table, self._body, number, False)
                else:
                    blob.reopen(number)
                found += self._pieces(blob, number, [(at, size) for _, at, size in run])
        except (apsw.Error, ValueError) as error:  # ValueError: seek past the end
            raise CorruptLog(f"{self.name}: {self._table} {number}: {error}") from error
        finally:
            if blob is not None:
                blob.close(True)
        return found

    def _pieces(
        self, blob: apsw.Blob, number: int, places: Sequence[tuple[int, int]]
    ) -> list[bytes]:
        found = []
        for at, size in places:
            blob.seek(at)
            piece = blob.read(size)
            if len(piece) != size:
                raise CorruptLog(
                    f"{self.name}: {self._table} {number} ends before byte {at + size}"
                )
            found.append(piece)
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


class Frames(Store):
    """The frames of a journal. Of one that lies in a file of its own, the row has the head."""

    def __init__(self, database: Database, large: LargeFrames, lock: Lock) -> None:
        super().__init__(database, "frame", "lsn", lock)
        self.large = large
        # A crash left some that no row names, or a backup was in the way of their removal.
        self._stray = True
        self._stray_again = False

    def full(self, lsn: int, row: bytes) -> bytes:
        """Return a frame.

        Args:
            row: what the database has of it.

        Raises:
            CorruptLog: its file is not there, or another.
        """
        return self.large.whole(lsn, row) if len(row) == ROW_BYTES else row

    def remove(self, numbers: Sequence[int]) -> None:
        files = self._among(numbers, _IN_FILES)
        super().remove(numbers)
        self._remove_files(files)

    def tidy(self) -> bool:
        """Remove some of the files that no row names; return whether there is more to look at."""
        if not self._stray:
            return False
        lsns = self.large.some(_FILES_AT_ONCE)
        if not lsns:
            self._stray, self._stray_again = self._stray_again, False
            return False
        self._remove_files(self._among(lsns, _STRAY))
        return True

    def _pieces(
        self, blob: apsw.Blob, number: int, places: Sequence[tuple[int, int]]
    ) -> list[bytes]:
        if blob.length() == ROW_BYTES:
            return self.large.read(number, places)
        return super()._pieces(blob, number, places)

    def _remove_files(self, lsns: Sequence[int]) -> None:
        try:
            if lsns and not self.large.remove(lsns):
                self._stray = self._stray_again = True
        except OSError as error:
            raise JournalFailed(f"{self.large.path}: {error.strerror}") from error

    def _among(self, numbers: Sequence[int], sql: str) -> list[int]:
        rows = self.database.reader().execute(sql, (orjson.dumps(numbers).decode(),))
        return [cast("int", lsn) for (lsn,) in rows]


_FILES_AT_ONCE: Final = 256  # names, of which each is looked up
_IN_FILES: Final = f"{LARGE_ROWS} AND lsn IN (SELECT value FROM json_each(?))"
# The last row's successor may be on its way, with its file there and its row not yet.
_STRAY: Final = f"""
SELECT value FROM json_each(?) WHERE value < (SELECT max(lsn) FROM frame)
    AND NOT EXISTS (SELECT 1 FROM frame WHERE lsn = value AND length(body) = {ROW_BYTES})"""
