"""SqliteJournal: the journal and its index as two SQLite databases in one folder.

`journal.db` has one row per group commit, and one writer: the commit thread. One row, because each
row costs a turn of the interpreter lock beside a busy event loop (13 commits of 64 rows a second
against 673 of one). `index.db` is applied behind it in few large statements for the same reason:
rows enter as one JSON text, which SQLite takes apart without the interpreter.
"""

import errno
import fcntl
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import apsw
import orjson

from origin import wal
from origin.frame import CorruptLog, decode_state
from origin.journal import Batch, DiskFull, Extent, JournalFailed, Stored
from shared.protocol.producer import ProducerState

_APPLICATION_ID: Final = 0x48574A31  # "HWJ1"
_BUSY_MS: Final = 10_000  # only a checkpoint and a commit ever meet, for milliseconds
# Past this the commit thread itself finishes the checkpoint; behind it, the applier keeps up alone.
_WAL_BYTES_MAX: Final = 64 * 1024 * 1024

_WAL_BYTES_STEP: Final = 16 * 1024 * 1024  # where readers were in the way, it is tried again
_RESTART_WAIT_MS: Final = 20
_LOCK_WAIT_S: Final = 5.0  # a predecessor may still be draining

_JOURNAL_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS frame (lsn INTEGER PRIMARY KEY, body BLOB NOT NULL);
"""
_INDEX_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS applied (
    one INTEGER PRIMARY KEY CHECK (one = 1), lsn INTEGER NOT NULL, next_incarnation INTEGER NOT
    NULL);
INSERT OR IGNORE INTO applied VALUES (1, 0, 1);
CREATE TABLE IF NOT EXISTS stream (
    incarnation INTEGER PRIMARY KEY, touched_ms INTEGER NOT NULL, state TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS producer (
    incarnation INTEGER NOT NULL, id TEXT NOT NULL, epoch INTEGER NOT NULL, last_seq INTEGER NOT
    NULL, PRIMARY KEY (incarnation, id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS extent (
    incarnation INTEGER NOT NULL, start INTEGER NOT NULL, lsn INTEGER NOT NULL, at INTEGER NOT NULL,
    sizes TEXT NOT NULL, crc INTEGER NOT NULL,
    PRIMARY KEY (incarnation, start)) WITHOUT ROWID;
"""


class SqliteJournal:
    """The journal of one data folder, held by one process at a time."""

    def __init__(self, folder: Path, *, vfs: str | None = None) -> None:
        """Open or create the journal in a folder.

        Args:
            vfs: name of a registered SQLite VFS; None is the operating system's files.

        Raises:
            CorruptLog: a file is not ours, or is damaged.
            JournalFailed: the folder cannot be used, or another process holds it.
        """
        self._vfs = vfs
        self._lock = _lock_folder(folder)
        self._journal_path = folder / "journal.db"
        self._index_path = folder / "index.db"
        try:
            _sync_what_is_there(folder)
            self._writer = self._open(self._journal_path, _JOURNAL_SCHEMA, "FULL")
            self._index = self._open(self._index_path, _INDEX_SCHEMA, "NORMAL")
        except BaseException:
            os.close(self._lock)
            raise
        self._wal_bytes_due = _WAL_BYTES_MAX
        self._readers = threading.local()
        self._opened: list[apsw.Connection] = []

    def append(self, lsn: int, frame: bytes) -> None:
        try:
            self._writer.execute("INSERT INTO frame VALUES (?, ?)", (lsn, frame))
        except apsw.Error as error:
            # The WAL index grows last: where it has no room, the commit is on disk already.
            if _is_full(error, self._writer) and not _is_index_full(error):
                raise DiskFull(f"{self._journal_path}: {error}") from error
            raise JournalFailed(f"{self._journal_path}: {type(error).__name__}: {error}") from error
        wal_bytes = self._wal_bytes()
        if wal_bytes > self._wal_bytes_due:
            done = self._finish_checkpoint()
            self._wal_bytes_due = _WAL_BYTES_MAX if done else wal_bytes + _WAL_BYTES_STEP

    def applied(self) -> tuple[int, int]:
        with _reading(self._index_path):
            lsn, incarnation = self._one(self._index, "SELECT lsn, next_incarnation FROM applied")
        with _reading(self._journal_path):
            last = self._one(self._writer, _LAST_FRAME)[0]
        if lsn > last:
            raise CorruptLog(
                f"{self._journal_path}: ends with frame {last}, but the index has applied {lsn}"
            )
        return lsn, incarnation

    def stored(self) -> Iterator[Stored]:
        with _reading(self._index_path):
            yield from self._stored()

    def _stored(self) -> Iterator[Stored]:
        producers: dict[int, dict[str, ProducerState]] = {}
        for incarnation, key, epoch, last_seq in self._index.execute("SELECT * FROM producer"):
            producers.setdefault(incarnation, {})[key] = ProducerState(epoch, last_seq)
        for incarnation, touched_ms, state in self._index.execute(
            "SELECT incarnation, touched_ms, state FROM stream ORDER BY incarnation"
        ):
            yield Stored(
                decode_state(orjson.loads(state)), touched_ms, producers.get(incarnation, {})
            )

    def frames(self, after: int) -> Iterator[tuple[int, bytes]]:
        expected = after + 1
        try:
            rows = self._writer.execute(
                "SELECT lsn, body FROM frame WHERE lsn > ? ORDER BY lsn", (after,)
            )
            for lsn, body in rows:
                if lsn != expected:
                    raise CorruptLog(f"{self._journal_path}: frame {expected} is missing")
                yield lsn, body
                expected += 1
        except apsw.Error as error:
            raise CorruptLog(f"{self._journal_path}: frame {expected}: {error}") from error

    def apply(self, batch: Batch) -> None:
        streams = [(s.incarnation, touched_ms, s) for s, touched_ms in batch.streams]
        producers = [(inc, key, p.epoch, p.last_seq) for inc, key, p in batch.producers]
        extents = [(inc, e.start, e.lsn, e.at, e.sizes, e.crc) for inc, e in batch.extents]
        index = self._index
        try:
            with index:
                for sql, rows in (
                    (_PUT_STREAMS, streams),
                    (_PUT_PRODUCERS, producers),
                    (_PUT_EXTENTS, extents),
                    *((sql, batch.deleted) for sql in _DELETES),
                ):
                    if rows:
                        index.execute(sql, (orjson.dumps(rows).decode(),))
                index.execute(
                    "UPDATE applied SET lsn = ?, next_incarnation = ?",
                    (batch.lsn, batch.next_incarnation),
                )
            self._checkpoint(index, "PASSIVE")
            self._checkpoint(self._reader(), "PASSIVE")
        except apsw.Error as error:
            if _is_full(error, index, self._reader()):
                raise DiskFull(f"{self._index_path}: {error}") from error
            raise JournalFailed(f"{self._index_path}: {type(error).__name__}: {error}") from error

    def extents(self, incarnation: int, start: int, end: int) -> list[Extent]:
        with _reading(self._index_path):
            rows = self._reader("index").execute(_GET_EXTENTS, (incarnation, start, end))
            return [Extent(r[0], r[1], r[2], tuple(orjson.loads(r[3])), r[4]) for r in rows]

    def read(self, places: Sequence[tuple[int, int, int]]) -> Iterable[bytes]:
        reader = self._reader()
        found = []
        for lsn, at, size in places:
            try:
                with reader.blob_open("main", "frame", "body", lsn, False) as blob:
                    blob.seek(at)
                    piece = blob.read(size)
            except (apsw.Error, ValueError) as error:  # ValueError: seek past the end
                raise CorruptLog(f"{self._journal_path}: frame {lsn}: {error}") from error
            if len(piece) != size:
                raise CorruptLog(f"{self._journal_path}: frame {lsn} ends before byte {at + size}")
            found.append(piece)
        return found

    def close(self) -> None:
        for connection in self._opened:
            connection.close()
        for connection in (self._index, self._writer):
            try:
                self._checkpoint(connection, "TRUNCATE")
                connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)
            except apsw.Error as error:
                if not _is_full(error, connection):  # what has no room stays in the WAL
                    raise
            connection.close()
        os.close(self._lock)

    def _open(self, path: Path, schema: str, synchronous: str) -> apsw.Connection:
        try:
            connection = apsw.Connection(str(path), vfs=self._vfs)
            connection.set_busy_timeout(_BUSY_MS)
            # A start that is refused leaves the files as it found them. Closing would copy the WAL
            # up to the damage into the database and delete the rest: the next start would see none.
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            return self._prepare(connection, path, schema, synchronous)
        except apsw.Error as error:
            raise CorruptLog(f"{path}: {type(error).__name__}: {error}") from error

    def _prepare(
        self, connection: apsw.Connection, path: Path, schema: str, synchronous: str
    ) -> apsw.Connection:
        found = self._one(connection, "PRAGMA application_id")[0]
        tables = self._one(connection, "SELECT count(*) FROM sqlite_schema")[0]
        if tables and found != _APPLICATION_ID:
            raise CorruptLog(f"{path}: is not a Headwater database")
        if path == self._journal_path:
            valid_frames = max(self._checkpoint(connection, "NOOP"), 0)  # -1: no WAL yet
            last = self._one(connection, _LAST_FRAME)[0] if tables else 0
            wal.check(path, valid_frames, last)
        connection.pragma("journal_mode", "WAL")
        connection.pragma("synchronous", synchronous)
        # A checkpoint inside a commit could report its own failure as the commit's: they are kept
        # apart.
        connection.wal_autocheckpoint(0)
        if not tables:
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        connection.execute(schema)
        return connection

    def _reader(self, which: str = "journal") -> apsw.Connection:
        """Return this thread's own read connection."""
        connection: apsw.Connection | None = getattr(self._readers, which, None)
        if connection is None:
            path = self._journal_path if which == "journal" else self._index_path
            connection = apsw.Connection(str(path), vfs=self._vfs)
            connection.set_busy_timeout(_BUSY_MS)
            connection.wal_autocheckpoint(0)
            setattr(self._readers, which, connection)
            self._opened.append(connection)
        return connection

    def _wal_bytes(self) -> int:
        try:
            return os.stat(f"{self._journal_path}-wal").st_size
        except FileNotFoundError:
            return 0

    def _finish_checkpoint(self) -> bool:
        """Start the WAL anew, unless readers are using it or there is no room; return whether it
        was.

        Raises:
            JournalFailed: anything else went wrong. The commit before it is on disk all the same.
        """
        self._writer.set_busy_timeout(_RESTART_WAIT_MS)  # commits wait meanwhile
        try:
            self._checkpoint(self._writer, "TRUNCATE")
        except apsw.BusyError:
            return False
        except apsw.Error as error:
            if not _is_full(error, self._writer):
                raise JournalFailed(f"{self._journal_path}: {error}") from error
            return False
        finally:
            self._writer.set_busy_timeout(_BUSY_MS)
        return self._wal_bytes() == 0

    @staticmethod
    def _checkpoint(connection: apsw.Connection, mode: str) -> int:
        """Checkpoint and return how many frames of the WAL are valid."""
        row = SqliteJournal._one(connection, f"PRAGMA wal_checkpoint({mode})")
        return int(row[1])

    @staticmethod
    def _one(connection: apsw.Connection, sql: str) -> tuple[Any, ...]:
        row = connection.execute(sql).fetchone()
        assert row is not None
        return tuple(row)


_LAST_FRAME: Final = "SELECT coalesce(max(lsn), 0) FROM frame"
_PUT_STREAMS: Final = """
INSERT OR REPLACE INTO stream (incarnation, touched_ms, state)
SELECT value->>0, value->>1, value->2 FROM json_each(?)"""
_PUT_PRODUCERS: Final = """
INSERT OR REPLACE INTO producer (incarnation, id, epoch, last_seq)
SELECT value->>0, value->>1, value->>2, value->>3 FROM json_each(?)"""
_PUT_EXTENTS: Final = """
INSERT OR REPLACE INTO extent (incarnation, start, lsn, at, sizes, crc)
SELECT value->>0, value->>1, value->>2, value->>3, value->4, value->>5 FROM json_each(?)"""
_DELETES: Final = tuple(
    f"DELETE FROM {table} WHERE incarnation IN (SELECT value FROM json_each(?))"
    for table in ("stream", "producer", "extent")
)
_GET_EXTENTS: Final = """
SELECT start, lsn, at, sizes, crc FROM extent
WHERE incarnation = ?1 AND start < ?3 AND start >= coalesce(
    (SELECT max(start) FROM extent WHERE incarnation = ?1 AND start <= ?2), ?2)
ORDER BY start"""


def _is_full(error: apsw.Error, *connections: apsw.Connection) -> bool:
    """Tell whether there was no room for a write, so that SQLite goes on as if it had not been.

    SQLite says so of ENOSPC alone; a quota and a limit on a file's size are I/O errors to it.
    """
    if isinstance(error, apsw.FullError) or _is_index_full(error):
        return True
    extended = getattr(error, "extendedresult", 0)
    return extended == apsw.SQLITE_IOERR_WRITE and any(
        connection.system_errno in (errno.EDQUOT, errno.EFBIG) for connection in connections
    )


def _is_index_full(error: apsw.Error) -> bool:
    """Tell whether there was no room for the WAL index, in its file of shared memory."""
    return getattr(error, "extendedresult", 0) == apsw.SQLITE_IOERR_SHMSIZE


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Name the file, where what was read of it makes no sense."""
    try:
        yield
    except (apsw.Error, ValueError, TypeError, KeyError) as error:
        raise CorruptLog(f"{path}: {type(error).__name__}: {error}") from error


def _sync_what_is_there(folder: Path) -> None:
    """Make durable what a start takes for durable.

    A predecessor that was killed may have written a commit and not synced it, or created the WAL
    and not synced its name, which SQLite does only where it creates it. Readers are given what
    recovery finds, and commits are added behind it: so it is synced first.
    """
    try:
        for path in (*sorted(folder.glob("journal.db*")), folder, folder.parent):
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(file)
            finally:
                os.close(file)
    except OSError as error:
        raise JournalFailed(f"data folder {folder}: fsync: {error.strerror}") from error


def _lock_folder(folder: Path) -> int:
    """Take the folder for this process; the kernel gives it back, however the process ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise JournalFailed(f"data folder {folder}: {error.strerror}") from error
    give_up_s = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > give_up_s:
                os.close(lock)
                raise JournalFailed(f"data folder {folder} is in use by another process") from None
            time.sleep(0.05)
        else:
            return lock
