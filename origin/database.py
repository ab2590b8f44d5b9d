"""Database: how this origin opens SQLite files, copies their logs, and tells what went wrong.

Pages may have checksums, which SQLite's own checksum VFS writes and verifies, in C, whenever a page
leaves for the file or comes from it. It sits on top of whatever is the default VFS when this module
is imported, and leaves files alone that have none.
"""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import apsw
from apsw import sqlite_extra

from origin.frame import CorruptLog

_APPLICATION_ID: Final = 0x48574A31  # "HWJ1"
_SUM_BYTES: Final = 8  # at the end of each page; any other number switches checksums off
BUSY_MS: Final = 10_000  # only a checkpoint and a commit ever meet, for milliseconds


def load_sums() -> None:
    """Let pages be summed, and verified, on top of what is the default VFS now."""
    connection = apsw.Connection(":memory:")
    sqlite_extra.load(connection, "cksumvfs")
    connection.close()


load_sums()


class Database:
    """One file: a connection that writes, and one for each thread that reads."""

    def __init__(
        self,
        path: Path,
        schema: str,
        *,
        vfs: str | None,
        version: int = 0,
        remedy: str = "",
        pages: str = "",
        summed: bool = False,
        cache_bytes: int = 0,
        look: Callable[[apsw.Connection], None] = lambda connection: None,
    ) -> None:
        """Open or create a file.

        Args:
            version: of its format, as `PRAGMA user_version`.
            remedy: what to do about a file of another format, for the error.
            pages: pragmas that only an empty file takes.
            summed: whether its pages have checksums. One wrong bit makes a whole page unreadable,
                so that is for rows that have no checksum of their own.
            cache_bytes: of pages that the writer keeps; 0: SQLite's 2 MB.
            look: called before anything is written.

        Raises:
            CorruptLog: it is not ours, is damaged, or has another format.
        """
        self.path = path
        self._vfs = vfs
        self._threads = threading.local()
        self._opened: list[apsw.Connection] = []
        with reading(path):
            self.writer = apsw.Connection(str(path), vfs=vfs)
            self.writer.set_busy_timeout(BUSY_MS)
            # A start that is refused leaves the files as it found them. Closing would copy the WAL
            # up to the damage into the database and delete the rest: the next start would see none.
            self.writer.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            if cache_bytes:
                self.writer.pragma("cache_size", -(cache_bytes // 1024))
            self._prepare(schema, version, remedy, pages, summed, look)

    def reader(self) -> apsw.Connection:
        """Return this thread's own read connection."""
        connection: apsw.Connection | None = getattr(self._threads, "connection", None)
        if connection is None:
            connection = apsw.Connection(str(self.path), vfs=self._vfs)
            connection.set_busy_timeout(BUSY_MS)
            connection.wal_autocheckpoint(0)
            self._threads.connection = connection
            self._opened.append(connection)
        return connection

    def wal_bytes(self) -> int:
        """Return the size of the log beside the file."""
        try:
            return os.stat(f"{self.path}-wal").st_size
        except FileNotFoundError:
            return 0

    def let_go(self) -> None:
        """Let go of the file and its log as they are."""
        for connection in (*self._opened, self.writer):
            connection.close()

    def close(self) -> None:
        """Copy the log into the file and let go of both; what has no room stays in the log."""
        for connection in self._opened:
            connection.close()
        try:
            checkpoint(self.writer, "TRUNCATE")
            self.writer.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)
        except apsw.Error as error:
            if not is_full(error, self.writer):
                raise
        self.writer.close()

    def _prepare(
        self,
        schema: str,
        version: int,
        remedy: str,
        pages: str,
        summed: bool,
        look: Callable[[apsw.Connection], None],
    ) -> None:
        writer = self.writer
        found = one(writer, "PRAGMA application_id")[0]
        tables = one(writer, "SELECT count(*) FROM sqlite_schema")[0]
        if tables and found != _APPLICATION_ID:
            raise CorruptLog(f"{self.path}: is not a Headwater database")
        if tables and not summed and (found := _tables(writer)) != _tables_of(schema):
            raise CorruptLog(f"{self.path}: has the tables {found}, expected {_tables_of(schema)}")
        look(writer)
        format_ = one(writer, "PRAGMA user_version")[0]
        if tables and format_ != version:
            raise CorruptLog(
                f"{self.path}: has format {format_}, this version of Headwater needs {version}"
                f"{remedy}"
            )
        if not tables and summed:
            writer.reserve_bytes("main", _SUM_BYTES)
        if not tables and pages:
            writer.execute(pages)
        writer.pragma("journal_mode", "WAL")
        # What one file says of another must not be undone by a crash.
        writer.pragma("synchronous", "FULL")
        # A checkpoint inside a commit could report its own failure as the commit's: they are kept
        # apart.
        writer.wal_autocheckpoint(0)
        if not tables:
            writer.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            writer.execute(f"PRAGMA user_version = {version}")
        writer.execute(schema)
        if summed and not is_summed(writer):
            raise CorruptLog(f"{self.path}: its header says that pages have no checksums")


def _tables(connection: apsw.Connection) -> list[str]:
    """Return what tables there are, to the byte: a key that is no key any more finds nothing."""
    rows: list[tuple[Any, ...]] = connection.execute(
        "SELECT CAST(concat_ws(' ', type, name, tbl_name, sql) AS BLOB) FROM sqlite_schema"
    ).fetchall()
    return sorted(row[0].decode(errors="backslashreplace") for row in rows)


def _tables_of(schema: str) -> list[str]:
    connection = apsw.Connection(":memory:")
    try:
        connection.execute(schema)
        return _tables(connection)
    finally:
        connection.close()


def is_summed(connection: apsw.Connection) -> bool:
    """Tell whether the pages of a file have checksums."""
    return one(connection, "PRAGMA checksum_verification") == ("1",)


def add_sums(connection: apsw.Connection) -> None:
    """Rewrite a file, so that its pages have checksums."""
    connection.pragma("journal_mode", "DELETE")  # in WAL mode the header would not be told
    connection.reserve_bytes("main", _SUM_BYTES)
    connection.execute("VACUUM")


def wrong_pages(path: Path) -> Iterator[int]:
    """Yield the numbers of the pages of a file whose checksums are wrong."""
    connection = apsw.Connection(":memory:")
    try:
        with path.open("rb") as file:
            page_bytes = int.from_bytes(file.read(18)[16:], "big")
            page_bytes = 65536 if page_bytes == 1 else page_bytes
            file.seek(0)
            number = 0
            while page := file.read(page_bytes):
                number += 1
                if not connection.execute("SELECT verify_checksum(?)", (page,)).get:
                    yield number
    finally:
        connection.close()


def is_sum_wrong(error: apsw.Error) -> bool:
    """Tell whether a page was read whose checksum is wrong."""
    return getattr(error, "extendedresult", 0) == apsw.SQLITE_IOERR_DATA


def one(connection: apsw.Connection, sql: str) -> tuple[Any, ...]:
    """Return the one row of a query."""
    row = connection.execute(sql).fetchone()
    assert row is not None
    return tuple(row)


def checkpoint(connection: apsw.Connection, mode: str) -> int:
    """Copy the log into the file, and return how many frames of it are valid."""
    return int(one(connection, f"PRAGMA wal_checkpoint({mode})")[1])


def empty_log(connection: apsw.Connection) -> None:
    """Copy what can be copied of the log into the file; what has no room there stays in it."""
    try:
        checkpoint(connection, "PASSIVE")
    except apsw.Error as error:
        if not is_full(error, connection):
            raise


def is_full(error: apsw.Error, *connections: apsw.Connection) -> bool:
    """Tell whether there was no room for a write, so that SQLite goes on as if it had not been.

    SQLite says so of ENOSPC alone; a quota and a limit on a file's size are I/O errors to it.
    """
    if isinstance(error, apsw.FullError) or is_index_full(error):
        return True
    extended = getattr(error, "extendedresult", 0)
    return extended == apsw.SQLITE_IOERR_WRITE and any(
        connection.system_errno in (errno.EDQUOT, errno.EFBIG) for connection in connections
    )


def is_index_full(error: apsw.Error) -> bool:
    """Tell whether there was no room for the WAL index, in its file of shared memory."""
    return getattr(error, "extendedresult", 0) == apsw.SQLITE_IOERR_SHMSIZE


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Name the file, where what was read of it makes no sense."""
    try:
        yield
    except (apsw.Error, ValueError, TypeError, KeyError) as error:
        raise CorruptLog(f"{path}: {told(error)}") from error


def told(error: Exception) -> str:
    """Return what an error says."""
    if isinstance(error, apsw.Error) and is_sum_wrong(error):
        return "the checksum of a page is wrong"
    return f"{type(error).__name__}: {error}"
