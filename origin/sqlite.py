"""SqliteJournal: the journal, its index and its packs as three SQLite databases in one folder.

Beside them, large frames are files of their own (origin/large.py).

`journal.db` has one row per group commit, and one writer: the commit thread. One row, because each
row costs a turn of the interpreter lock beside a busy event loop (13 commits of 64 rows a second
against 673 of one). `index.db` is applied behind it in few large statements for the same reason;
`packs.db` holds what compaction has joined.
"""

import errno
import fcntl
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from threading import Lock
from typing import Final

import apsw

from origin import wal
from origin.cleaner import FRAMES_PAGES, PACKS_PAGES, PACKS_SCHEMA, Cleaner
from origin.database import (
    BUSY_MS,
    Database,
    checkpoint,
    empty_log,
    is_full,
    is_index_full,
    one,
    reading,
)
from origin.frame import CorruptLog, is_large
from origin.index import Index
from origin.journal import Batch, Deadline, DiskFull, Extent, JournalFailed, Overdue, Stored
from origin.large import NO_DESCRIPTORS, LargeFrames
from origin.store import Frames, Store
from origin.usage import Usage

# Past this the commit thread itself finishes the checkpoint; behind it, the applier keeps up alone.
_WAL_BYTES_MAX: Final = 64 * 1024 * 1024

_WAL_BYTES_STEP: Final = 16 * 1024 * 1024  # where readers were in the way, it is tried again
# A third less CPU for a commit of 400 KB than with pages of 4 KiB, which cost a system call each. A
# small commit writes 16 KiB for 4, in the same time.
_JOURNAL_PAGES: Final = f"PRAGMA page_size = 16384; {FRAMES_PAGES}"
_RESTART_WAIT_MS: Final = 20
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LOCK_WAIT_S: Final = 5.0  # a predecessor may still be draining

# In the order in which one may lack what another names: those before it are looked at first.
FILES: Final = ("journal.db", "packs.db", "index.db")
JOURNAL_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS frame (lsn INTEGER PRIMARY KEY, body BLOB NOT NULL);
"""
_LAST_FRAME: Final = "SELECT coalesce(max(lsn), 0) FROM frame"


class SqliteJournal:
    """The journal of one data folder, held by one process at a time."""

    def __init__(self, folder: Path, *, vfs: str | None = None) -> None:
        """Open or create the journal in a folder.

        Args:
            vfs: name of a registered SQLite VFS; None is the operating system's files. It must
                reach the one that sums pages.

        Raises:
            CorruptLog: a file is not ours, or is damaged.
            JournalFailed: the folder cannot be used, or another process holds it.
        """
        self._lock = lock_folder(folder)
        self._path = folder / "journal.db"
        self._large = LargeFrames(folder)
        try:
            _create(self._large)
            _sync_what_is_there(folder)
            look = partial(check_log, self._path)
            self._journal = Database(
                self._path, JOURNAL_SCHEMA, vfs=vfs, pages=_JOURNAL_PAGES, look=look
            )
            self._index = Index(folder / "index.db", vfs)
            packs = Database(folder / "packs.db", PACKS_SCHEMA, vfs=vfs, pages=PACKS_PAGES)
            # Held by whoever uses the writer: a commit waits for a removal, not for more.
            self._writing = Lock()
            self._frames = Frames(self._journal, self._large, self._writing)
            self._packs = Store(packs, "pack", "number", Lock())
            self._cleaner = Cleaner(self._index, self._frames, self._packs)
        except BaseException:
            self._large.close()
            os.close(self._lock)
            raise
        self._writer = self._journal.writer
        self._page_bytes: int = one(self._writer, "PRAGMA page_size")[0]
        # Of the WAL, at most: SQLite starts it anew by itself, if it can, behind the applier.
        self._wal_bytes = self._journal.wal_bytes()
        self._wal_bytes_due = _WAL_BYTES_MAX
        # It keeps its blocks, but for those that it took while readers were in the way.
        self._writer.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES_MAX + _WAL_BYTES_STEP}")

    def append(self, lsn: int, frame: Sequence[bytes]) -> None:
        row = self._put(lsn, frame) if is_large(sum(map(len, frame))) else b"".join(frame)
        with self._writing:
            try:
                self._writer.execute("INSERT INTO frame VALUES (?, ?)", (lsn, row))
            except apsw.Error as error:
                # The WAL index grows last: where it has no room, the commit is on disk already.
                if is_full(error, self._writer) and not is_index_full(error):
                    self._discard(lsn)
                    raise DiskFull(f"{self._path}: {error}") from error
                raise JournalFailed(f"{self._path}: {type(error).__name__}: {error}") from error
            # Told by SQLite's own count. To ask for the file's size would let go of the
            # interpreter, and wait for the next turn beside a busy event loop.
            pages, _ = self._writer.status(apsw.SQLITE_DBSTATUS_CACHE_WRITE, True)
            self._wal_bytes += pages * self._page_bytes
            if self._wal_bytes > self._wal_bytes_due:
                self._finish_checkpoint()

    def applied(self) -> tuple[int, int]:
        lsn, incarnation = self._index.applied()
        with reading(self._path):
            last = one(self._writer, _LAST_FRAME)[0]
        if lsn > last:
            raise CorruptLog(
                f"{self._path}: ends with frame {last}, but the index has applied {lsn}"
            )
        return lsn, incarnation

    def stored(self) -> Iterator[Stored]:
        return self._index.stored()

    def find(self, path: str) -> Stored | None:
        return self._index.find(path)

    def load(self, incarnation: int) -> Stored | None:
        return self._index.load(incarnation)

    def page(self, prefix: str, after: str, limit: int) -> list[Stored]:
        return self._index.page(prefix, after, limit)

    def due(self, now_ms: int, after: Deadline, limit: int) -> list[Deadline]:
        return self._index.due(now_ms, after, limit)

    def overdue(self, now_ms: int, after: Deadline, limit: int) -> list[Overdue]:
        return self._index.overdue(now_ms, after, limit)

    def usage(self, after: str, limit: int) -> tuple[int, list[tuple[str, Usage]]]:
        return self._index.usage(after, limit)

    def total(self) -> Usage:
        return self._index.total()

    def frames(self, after: int) -> Iterator[tuple[int, bytes]]:
        expected = after + 1
        rows = self._writer.cursor()
        try:
            rows.execute("SELECT lsn, body FROM frame WHERE lsn > ? ORDER BY lsn", (after,))
            for lsn, body in rows:
                if lsn != expected:
                    raise CorruptLog(f"{self._path}: frame {expected} is missing")
                yield lsn, self._frames.full(lsn, body)
                expected += 1
        except apsw.Error as error:
            raise CorruptLog(f"{self._path}: frame {expected}: {error}") from error
        finally:
            rows.close(True)  # what is half read would keep the log from being emptied

    def apply(self, batch: Batch) -> None:
        self._index.apply(batch)
        try:
            empty_log(self._journal.reader())
        except apsw.Error as error:
            raise JournalFailed(f"{self._path}: {type(error).__name__}: {error}") from error

    def extents(self, incarnation: int, start: int, end: int) -> list[Extent]:
        return self._index.extents(incarnation, start, end)

    def compact(self) -> bool:
        return self._cleaner.step()

    def read(self, places: Sequence[tuple[int, int, int]]) -> Iterable[bytes]:
        found: list[bytes] = []
        for packed, some in groupby(places, lambda place: place[0] < 0):
            store = self._packs if packed else self._frames
            found += store.read((abs(lsn), at, size) for lsn, at, size in some)
        return found

    def close(self) -> None:
        self._index.database.close()
        self._packs.database.close()
        self._journal.close()
        self._large.close()
        os.close(self._lock)

    def _put(self, lsn: int, frame: Sequence[bytes]) -> bytes:
        """Write a frame to a file of its own, if one can be opened, and return its row."""
        try:
            return self._large.put(lsn, frame)
        except OSError as error:
            if error.errno in NO_DESCRIPTORS:  # a row takes none
                return b"".join(frame)
            # Nobody was told of it, and no row names it: what of it is on disk is of no account.
            if error.errno in _NO_ROOM:
                self._discard(lsn)
                raise DiskFull(f"{self._large.path}: {error.strerror}") from error
            raise JournalFailed(f"{self._large.path}: {error.strerror}") from error

    def _discard(self, lsn: int) -> None:
        try:
            self._large.discard(lsn)
        except OSError as error:
            raise JournalFailed(f"{self._large.path}: {error.strerror}") from error

    def _finish_checkpoint(self) -> None:
        """Start the WAL anew, unless readers are using it or there is no room.

        Raises:
            JournalFailed: anything else went wrong. The commit before it is on disk all the same.
        """
        self._writer.set_busy_timeout(_RESTART_WAIT_MS)  # commits wait meanwhile
        try:
            # TRUNCATE would give back blocks that the next commits must get anew: a third more CPU.
            done = not one(self._writer, "PRAGMA wal_checkpoint(RESTART)")[0]
        except apsw.BusyError:
            done = False
        except apsw.Error as error:
            if not is_full(error, self._writer):
                raise JournalFailed(f"{self._path}: {error}") from error
            done = False
        finally:
            self._writer.set_busy_timeout(BUSY_MS)
        if done:
            self._wal_bytes = 0
        self._wal_bytes_due = _WAL_BYTES_MAX if done else self._wal_bytes + _WAL_BYTES_STEP


def check_log(path: Path, connection: apsw.Connection) -> None:
    """Refuse a log of the journal in which commits lie behind damage.

    Raises:
        CorruptLog: names file and frame.
    """
    valid_frames = max(checkpoint(connection, "NOOP"), 0)  # -1: no WAL yet
    tables = one(connection, "SELECT count(*) FROM sqlite_schema")[0]
    wal.check(path, valid_frames, one(connection, _LAST_FRAME)[0] if tables else 0)


def _create(large: LargeFrames) -> None:
    try:
        large.create()
    except OSError as error:
        raise JournalFailed(f"data folder {large.path}: {error.strerror}") from error


def _sync_what_is_there(folder: Path) -> None:
    """Make durable what a start takes for durable.

    A predecessor that was killed may have written a commit and not synced it, or created the WAL
    and not synced its name, which SQLite does only where it creates it. Readers are given what
    recovery finds, commits are added behind it, and frames are removed that the index does not
    need: so it is synced first.
    """
    try:
        for path in (*sorted(folder.glob("*.db*")), folder, folder.parent):
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(file)
            finally:
                os.close(file)
    except OSError as error:
        raise JournalFailed(f"data folder {folder}: fsync: {error.strerror}") from error


def lock_folder(folder: Path) -> int:
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
