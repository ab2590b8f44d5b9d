"""Database: how this origin opens SQLite files, copies their logs, and tells what went wrong."""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import apsw

from origin.frame import CorruptLog

_APPLICATION_ID: Final = 0x48574A31  # "HWJ1"
BUSY_MS: Final = 10_000  # only a checkpoint and a commit ever meet, for milliseconds


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
        look: Callable[[apsw.Connection], None] = lambda connection: None,
    ) -> None:
        """Open or create a file.

        Args:
            version: of its format, as `PRAGMA user_version`.
            remedy: what to do about a file of another format, for the error.
            pages: pragmas that only an empty file takes.
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
            self._prepare(schema, version, remedy, pages, look)

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
        look: Callable[[apsw.Connection], None],
    ) -> None:
        writer = self.writer
        found = one(writer, "PRAGMA application_id")[0]
        tables = one(writer, "SELECT count(*) FROM sqlite_schema")[0]
        if tables and found != _APPLICATION_ID:
            raise CorruptLog(f"{self.path}: is not a Headwater database")
        look(writer)
        format_ = one(writer, "PRAGMA user_version")[0]
        if tables and format_ != version:
            raise CorruptLog(
                f"{self.path}: has format {format_}, this version of Headwater needs {version}"
                f"{remedy}"
            )
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
        raise CorruptLog(f"{path}: {type(error).__name__}: {error}") from error
