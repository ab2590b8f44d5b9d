"""Check: every fault of a data folder that no origin is using, by file and record.

It reads all there is and changes nothing: pages, checksums of frames and extents, the index against
journal and packs, append boundaries, forks, and what the index counts.
"""

import os
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final, cast

import apsw

from origin.cleaner import PACKS_SCHEMA
from origin.database import Database, is_summed, told, wrong_pages
from origin.frame import CorruptLog, decode_frame
from origin.index import EXTENT, Index, extent_of
from origin.journal import Batch, DiskFull, Extent, Journal, Stored
from origin.large import LargeFrames
from origin.recover import recover
from origin.sqlite import FILES, JOURNAL_SCHEMA, check_log, lock_folder
from origin.store import Frames, Store
from origin.usage import Usage, service_of
from shared.protocol.stream import StreamState

_PAGE_FAULTS: Final = 20  # of one file; more of them tell nothing more


class NoFolder(Exception):
    """It is no data folder."""


def check(folder: Path) -> Iterator[str]:
    """Yield every fault, as `file: record: what`.

    Raises:
        NoFolder: there is nothing to check.
        JournalFailed: an origin is using it.
    """
    missing = [name for name in FILES if not (folder / name).is_file()]
    if len(missing) == len(FILES):
        raise NoFolder(f"{folder} is no data folder: {', '.join(missing)} missing")
    lock = lock_folder(folder)
    try:
        for name in missing:
            yield f"{folder / name}: is missing"
        if not missing:
            yield from _check(folder)
    finally:
        os.close(lock)


def _check(folder: Path) -> Iterator[str]:
    """Yield the faults of a folder that has all of its files."""
    journal_path, packs_path, index_path = (folder / name for name in FILES)
    with ExitStack() as stack:
        try:
            journal = Database(
                journal_path, JOURNAL_SCHEMA, vfs=None, look=partial(check_log, journal_path)
            )
            stack.callback(journal.let_go)
            packs = Database(packs_path, PACKS_SCHEMA, vfs=None)
            stack.callback(packs.let_go)
            index = Index(index_path, None, upgrade=False)
            stack.callback(index.database.let_go)
        except CorruptLog as error:
            yield str(error)
            return
        faults = [
            f"{database.path}: {fault}"
            for database in (journal, packs, index.database)
            for fault in _pages(database)
        ]
        yield from faults
        if not faults:
            yield from _Folder(journal, packs, index).faults()


def _pages(database: Database) -> list[str]:
    try:
        rows = database.writer.execute(f"PRAGMA integrity_check({_PAGE_FAULTS})").fetchall()
        faults = [str(row[0]) for row in rows if row != ("ok",)]
    except apsw.Error as error:
        faults = [told(error)]
    if not (faults and is_summed(database.writer)):
        return faults
    # Those are the cause, and all else is what follows from it.
    numbers = islice(wrong_pages(database.path), _PAGE_FAULTS)
    return [f"page {number}: the checksum is wrong" for number in numbers] or faults


class _Folder:
    """A folder whose databases are whole in themselves."""

    def __init__(self, journal: Database, packs: Database, index: Index) -> None:
        self._journal = journal
        self._frames = Frames(journal, LargeFrames(journal.path.parent), index.writing)
        self._packs = Store(packs, "pack", "number", index.writing)
        self._index = index
        self._applied, self._next_incarnation = index.applied()
        self._counts: dict[str, Usage] = {}
        self._forks: Counter[int] = Counter()
        self._tails: dict[int, int] = {}  # by incarnation, softly deleted ones too

    def faults(self) -> Iterator[str]:
        """Yield all of them."""
        yield from self._each_frame()
        yield from self._bytes()
        yield from self._blobs()
        yield from self._streams()
        yield from self._forked()
        yield from self._usage()
        yield from self._replay()

    def _each_frame(self) -> Iterator[str]:
        """Look at each frame by itself, and for gaps among those that the index lacks."""
        name, expected = self._journal.path, self._applied + 1
        last = 0
        for lsn, body in self._journal.writer.execute("SELECT lsn, body FROM frame ORDER BY lsn"):
            last = lsn
            try:
                frame = decode_frame(self._frames.full(lsn, body), f"{name}: frame {lsn}")
            except CorruptLog as error:
                yield str(error)
            else:
                if frame.lsn != lsn:
                    yield f"{name}: frame {lsn}: says that it is frame {frame.lsn}"
            if lsn > self._applied:
                for missing in range(expected, lsn):
                    yield f"{name}: frame {missing}: is missing"
                expected = lsn + 1
        if last < self._applied:
            yield f"{name}: ends with frame {last}, but the index has applied {self._applied}"

    def _bytes(self) -> Iterator[str]:
        """Read what every extent names."""
        rows = self._rows(f"SELECT incarnation, size, {EXTENT} FROM extent ORDER BY lsn, at")
        for incarnation, size, *columns in rows:
            extent = extent_of(columns)
            where = self._where(incarnation, extent)
            if extent.end - extent.start != size or min(extent.sizes, default=0) < 1:
                yield f"{where}: sizes of appends do not add up to {size}"
                continue
            store = self._frames if extent.lsn > 0 else self._packs
            try:
                (data,) = store.read([(abs(extent.lsn), extent.at, size)])
            except CorruptLog as error:
                yield f"{error} ({where})"
                continue
            if (found := zlib.crc32(data)) != extent.crc:
                kind = "frame" if extent.lsn > 0 else "pack"
                yield (
                    f"{store.name}: {kind} {abs(extent.lsn)}: byte {extent.at}: checksum"
                    f" {found:08x}, expected {extent.crc:08x} ({where})"
                )

    def _blobs(self) -> Iterator[str]:
        """Look at what the index counts of each frame and pack."""
        for lsn, live, held in self._rows(
            """SELECT lsn, live, coalesce((SELECT sum(size) FROM extent
                WHERE extent.lsn = blob.lsn), 0) AS held FROM blob WHERE live != held"""
        ):
            yield f"{self._index.path}: blob {lsn}: counts {live} bytes, extents hold {held}"
        for (lsn,) in self._rows(
            "SELECT DISTINCT lsn FROM extent WHERE lsn NOT IN (SELECT lsn FROM blob)"
        ):
            yield f"{self._index.path}: blob {lsn}: is not counted"

    def _streams(self) -> Iterator[str]:
        """Look at each stream: its row, and whether its extents leave no gap."""
        for stored in self._index.stored():
            state = stored.state
            self._tails[state.incarnation] = state.tail
            if state.fork is not None:
                self._forks[state.fork.source] += 1
            where = f"{self._index.path}: stream {state.incarnation} ({state.path!r})"
            if state.incarnation >= self._next_incarnation:
                yield f"{where}: the next one is to be {self._next_incarnation}"
            usage = self._counts.setdefault(service_of(state.path), Usage())
            usage.add(Usage(stored=state.kept, streams=1))
            yield from self._gaps(state, where)
        for (incarnation,) in self._rows("SELECT DISTINCT incarnation FROM extent"):
            if incarnation not in self._tails:
                yield f"{self._index.path}: extents of stream {incarnation}, which does not exist"

    def _gaps(self, state: StreamState, where: str) -> Iterator[str]:
        position: int | None = None
        for start, size in self._rows(
            "SELECT start, size FROM extent WHERE incarnation = ? ORDER BY start",
            state.incarnation,
        ):
            if position is None:
                position = start  # more may be there than is kept: whole extents, and for forks
                if start > first_kept(state):
                    yield f"{where}: bytes {first_kept(state)} to {start} are in no extent"
            elif start != position:
                yield f"{where}: an extent ends at {position}, the next begins at {start}"
            position = start + size
        position = first_kept(state) if position is None else position
        if position != state.tail:
            yield f"{where}: extents end at {position}, its tail is {state.tail}"

    def _forked(self) -> Iterator[str]:
        """Look for what forks inherit."""
        for stored in self._index.stored():
            state = stored.state
            where = f"{self._index.path}: stream {state.incarnation} ({state.path!r})"
            if stored.forks != self._forks[state.incarnation]:
                yield f"{where}: counts {stored.forks} forks, has {self._forks[state.incarnation]}"
            if state.fork is not None and state.fork.source not in self._tails:
                yield f"{where}: lacks its fork source {state.fork.source}"
            for ancestor in state.lineage:
                if self._tails.get(ancestor.incarnation, -1) < ancestor.until:
                    yield (
                        f"{where}: inherits up to {ancestor.until} of stream"
                        f" {ancestor.incarnation}, which does not reach there"
                    )

    def _usage(self) -> Iterator[str]:
        """Look at what services are said to keep."""
        for service, stored, streams in self._rows("SELECT service, stored, streams FROM usage"):
            found = self._counts.pop(service, Usage())
            if (stored, streams) != (found.stored, found.streams):
                yield (
                    f"{self._index.path}: usage of {service!r}: says {stored} bytes of {streams}"
                    f" streams, there are {found.stored} of {found.streams}"
                )
        for service in self._counts:
            yield f"{self._index.path}: usage of {service!r}: is missing"

    def _replay(self) -> Iterator[str]:
        """Replay what the index lacks, as a start would."""
        try:
            recover(cast("Journal", _Look(self._frames, self._index)), str(self._journal.path))
        except CorruptLog as error:
            yield str(error)

    def _where(self, incarnation: int, extent: Extent) -> str:
        return f"{self._index.path}: stream {incarnation}, extent {extent.start}"

    def _rows(self, sql: str, *values: Any) -> apsw.Cursor:
        return self._index.database.writer.execute(sql, values)


class _Look:
    """As much of a journal as recovery asks, and no writes."""

    def __init__(self, frames: Frames, index: Index) -> None:
        self._frames = frames
        self._index = index

    def applied(self) -> tuple[int, int]:
        return self._index.applied()

    def load(self, incarnation: int) -> Stored | None:
        return self._index.load(incarnation)

    def frames(self, after: int) -> Iterator[tuple[int, bytes]]:
        for lsn, body in self._frames.database.writer.execute(
            "SELECT lsn, body FROM frame WHERE lsn > ? ORDER BY lsn", (after,)
        ):
            yield lsn, self._frames.full(lsn, body)

    def apply(self, batch: Batch) -> None:
        raise DiskFull("nothing is written")


def first_kept(state: StreamState) -> int:
    """Return where the first of a stream's own bytes must be."""
    return max(state.base, state.low)
