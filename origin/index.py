"""Index: where each stream stands as of one frame, in `index.db`; a cold stream lives here alone.

Rows enter as JSON texts, which SQLite takes apart without the interpreter: a row at a time would
cost a turn of the interpreter lock each, beside a busy event loop. A stream is looked up on the
loop itself: 10 µs for its row and its producers, a seventh of what a hop to a thread takes, and no
await between a look and a decision. All that one transaction adds is of one frame; what follows
from other rows (deadlines, counts) is kept in columns, so that nothing is ever counted by going
through all streams.

Pages have checksums, not rows: a row that cannot be found is an answer here, so what leads to rows
must be right as well. Whoever needs a damaged page gets an error; what lies elsewhere is served.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any, Final

import apsw
import orjson

from origin import wal
from origin.database import (
    Database,
    add_sums,
    checkpoint,
    empty_log,
    is_full,
    is_index_full,
    one,
    reading,
    told,
)
from origin.frame import decode_state, encode_state
from origin.journal import CUTS, Batch, Deadline, DiskFull, Extent, JournalFailed, Overdue, Stored
from origin.usage import Usage
from shared.protocol.producer import ProducerState
from shared.protocol.retention import Stretch
from shared.protocol.stream import StreamState

_log = logging.getLogger(__name__)

_FORMAT: Final = 5
_UNSUMMED_FORMAT: Final = 4  # the same in pages without checksums
# Rows that one statement takes: its text is made and taken apart while nobody else runs.
_ROWS_AT_ONCE: Final = 256
# Streams that are appended to by turns are on pages all over the file, which would be read and
# verified again for each batch: with 2 MB, a quarter of its work where there are 100,000 of them.
_CACHE_BYTES: Final = 16 * 1024 * 1024

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS applied (
    one INTEGER PRIMARY KEY CHECK (one = 1), lsn INTEGER NOT NULL, next_incarnation INTEGER NOT
    NULL, compacted INTEGER NOT NULL, next_pack INTEGER NOT NULL);
INSERT OR IGNORE INTO applied VALUES (1, 0, 1, 0, 1);
CREATE TABLE IF NOT EXISTS stream (
    incarnation INTEGER PRIMARY KEY, path TEXT NOT NULL, touched_ms INTEGER NOT NULL,
    deadline_ms INTEGER, forks INTEGER NOT NULL DEFAULT 0, state TEXT NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS stream_path ON stream (path);
CREATE INDEX IF NOT EXISTS stream_deadline ON stream (deadline_ms) WHERE deadline_ms IS NOT NULL;
CREATE TABLE IF NOT EXISTS producer (
    incarnation INTEGER NOT NULL, id TEXT NOT NULL, epoch INTEGER NOT NULL, last_seq INTEGER NOT
    NULL, PRIMARY KEY (incarnation, id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS extent (
    incarnation INTEGER NOT NULL, start INTEGER NOT NULL, lsn INTEGER NOT NULL, at INTEGER NOT NULL,
    size INTEGER NOT NULL, sizes TEXT NOT NULL, crc INTEGER NOT NULL, at_ms INTEGER NOT NULL,
    PRIMARY KEY (incarnation, start)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS extent_blob ON extent (lsn);
-- What a frame (or a pack, by its negated number) holds, and how much of that is still needed.
CREATE TABLE IF NOT EXISTS blob (
    lsn INTEGER PRIMARY KEY, size INTEGER NOT NULL, live INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS blob_sparse ON blob (lsn) WHERE live = 0 OR live * 2 < size;
CREATE TRIGGER IF NOT EXISTS extent_put AFTER INSERT ON extent BEGIN
    UPDATE blob SET live = live + new.size WHERE lsn = new.lsn; END;
CREATE TRIGGER IF NOT EXISTS extent_gone AFTER DELETE ON extent BEGIN
    UPDATE blob SET live = live - old.size WHERE lsn = old.lsn; END;
-- When there may be something to trim.
CREATE TABLE IF NOT EXISTS look (incarnation INTEGER PRIMARY KEY, due_ms INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS look_due ON look (due_ms);
CREATE TABLE IF NOT EXISTS usage (
    service TEXT PRIMARY KEY, appends INTEGER NOT NULL, bytes INTEGER NOT NULL, units INTEGER NOT
    NULL, stored INTEGER NOT NULL, streams INTEGER NOT NULL) WITHOUT ROWID;
"""


class Index:
    """The index of one data folder: one writer at a time, and any number of readers."""

    def __init__(self, path: Path, vfs: str | None, *, upgrade: bool = True) -> None:
        """Open or create it.

        Args:
            upgrade: whether a file of an earlier format is rewritten, and not refused.

        Raises:
            CorruptLog: the file is not ours, is damaged, or has another format.
        """
        self.path = path
        self.database = Database(
            path,
            _SCHEMA,
            vfs=vfs,
            version=_FORMAT,
            remedy=f"; a start brings format {_UNSUMMED_FORMAT} there",
            summed=True,
            cache_bytes=_CACHE_BYTES,
            look=partial(_look, path, upgrade),
        )
        self.writing = Lock()  # held by whoever uses the writer

    def applied(self) -> tuple[int, int]:
        """Return the last lsn that it holds, and the next incarnation as of then."""
        with reading(self.path):
            lsn, incarnation = one(
                self.database.reader(), "SELECT lsn, next_incarnation FROM applied"
            )
            return lsn, incarnation

    def apply(self, batch: Batch) -> None:
        """Take in a batch, in one transaction."""
        writer = self.database.writer
        try:
            with self.writing:
                with writer:
                    if one(writer, "SELECT lsn FROM applied")[0] >= batch.lsn:
                        batch.usage = {}  # it was counted with that frame
                    for sql, rows in _statements(batch):
                        for text in _texts(rows):
                            writer.execute(sql, (text,))
                    writer.execute(
                        "UPDATE applied SET lsn = ?, next_incarnation = ?",
                        (batch.lsn, batch.next_incarnation),
                    )
                empty_log(writer)
        except apsw.Error as error:
            raise self.failure(error) from error

    def failure(self, error: apsw.Error) -> Exception:
        """Return what an error of the writer means to callers."""
        # The WAL index grows last: where it has no room, the batch is on disk already.
        if is_full(error, self.database.writer) and not is_index_full(error):
            return DiskFull(f"{self.path}: {error}")
        return JournalFailed(f"{self.path}: {told(error)}")

    def stored(self) -> Iterator[Stored]:
        """Yield every stream."""
        with reading(self.path):
            producers: dict[int, dict[str, ProducerState]] = {}
            for row in self._rows("SELECT * FROM producer"):
                producers.setdefault(row[0], {})[row[1]] = ProducerState(row[2], row[3])
            for row in self._rows(f"{_STREAM} ORDER BY incarnation"):
                yield _stored(row, producers.get(row[0], {}))

    def find(self, path: str) -> Stored | None:
        """Return the stream at a path."""
        return self._one_of(f"{_STREAM} WHERE path = ?", path)

    def load(self, incarnation: int) -> Stored | None:
        """Return one stream."""
        return self._one_of(f"{_STREAM} WHERE incarnation = ?", incarnation)

    def page(self, prefix: str, after: str, limit: int) -> list[Stored]:
        """Return what of a prefix follows a path."""
        with reading(self.path):
            rows = self._rows(
                f"{_STREAM} WHERE path >= ? AND path > ? ORDER BY path LIMIT ?",
                (prefix, after, limit),
            )
            return [_stored(row, {}) for row in rows if row[1].startswith(prefix)]

    def due(self, now_ms: int, after: Deadline, limit: int) -> list[Deadline]:
        """Return whose time is over."""
        with reading(self.path):
            return [(row[0], row[1]) for row in self._rows(_DUE, (now_ms, *after, limit))]

    def overdue(self, now_ms: int, after: Deadline, limit: int) -> list[Overdue]:
        """Return where there may be something to trim."""
        with reading(self.path):
            return [
                Overdue((row[0], row[1]), [Stretch(*cut) for cut in self._rows(_CUTS, (row[1],))])
                for row in self._rows(_OVERDUE, (now_ms, *after, limit))
            ]

    def usage(self, after: str, limit: int) -> tuple[int, list[tuple[str, Usage]]]:
        """Return counts by service, and the lsn up to which they count."""
        with reading(self.path):
            rows = self._rows(_USAGE, (after, limit))  # one statement: one look at both
            return rows[0][0], [(row[1], Usage(*row[2:])) for row in rows if row[1] is not None]

    def total(self) -> Usage:
        """Return the counts of all services."""
        with reading(self.path):
            return Usage(*one(self.database.reader(), _TOTAL))

    def extents(self, incarnation: int, start: int, end: int) -> list[Extent]:
        """Return the extents that hold any of the positions [start, end)."""
        with reading(self.path):
            rows = self._rows(_GET_EXTENTS, (incarnation, start, end))
            return [extent_of(row) for row in rows]

    def _one_of(self, sql: str, key: str | int) -> Stored | None:
        with reading(self.path):
            rows = self._rows(sql, (key,))
            if not rows:
                return None
            producers = self._rows(
                "SELECT id, epoch, last_seq FROM producer WHERE incarnation = ?", (rows[0][0],)
            )
            return _stored(rows[0], {row[0]: ProducerState(row[1], row[2]) for row in producers})

    def _rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        # All of them: a statement that is not at its end would keep the log from starting anew.
        return self.database.reader().execute(sql, values).fetchall()


def _look(path: Path, upgrade: bool, connection: apsw.Connection) -> None:
    """Refuse a log in which transactions lie behind damage; add checksums to a file without."""
    wal.check(path, max(checkpoint(connection, "NOOP"), 0))  # -1: no WAL yet
    if upgrade and one(connection, "PRAGMA user_version")[0] == _UNSUMMED_FORMAT:
        _log.info("adding checksums to the pages of the index, once: %s", path)
        add_sums(connection)
        connection.execute(f"PRAGMA user_version = {_FORMAT}")


def _statements(batch: Batch) -> Iterator[tuple[str, Iterable[Any]]]:
    for sql in _DELETES:  # first: another stream may have its path by now
        yield sql, batch.deleted
    yield _PUT_STREAMS, (_row(state, touched_ms) for state, touched_ms in batch.streams)
    yield _PUT_FORKS, batch.forks.items()
    yield _PUT_PRODUCERS, ((inc, key, p.epoch, p.last_seq) for inc, key, p in batch.producers)
    yield _PUT_BLOBS, batch.frames
    yield PUT_EXTENTS, (extent_row(*entry) for entry in batch.extents)
    yield _TRIM, batch.trims.items()  # after those extents may have come
    yield _PUT_LOOKS, ((n, due_ms) for n, due_ms in batch.looks.items() if due_ms is not None)
    yield _DROP_LOOKS, (n for n, due_ms in batch.looks.items() if due_ms is None)
    yield _ADD_USAGE, ((service, *astuple(usage)) for service, usage in batch.usage.items())


def _texts(rows: Iterable[Any]) -> Iterator[str]:
    """Yield rows as JSON, as many at once as a statement takes."""
    left = iter(rows)
    while some := list(islice(left, _ROWS_AT_ONCE)):
        yield orjson.dumps(some).decode()


def _row(state: StreamState, touched_ms: int) -> tuple[Any, ...]:
    deadline = None if state.deleted else state.expiry.deadline_ms(touched_ms)
    document = encode_state(state)
    del document["incarnation"], document["path"]  # columns of their own
    return state.incarnation, state.path, touched_ms, deadline, document


def _stored(row: tuple[Any, ...], producers: dict[str, ProducerState]) -> Stored:
    incarnation, path, touched_ms, forks, text = row
    document = orjson.loads(text)
    document["incarnation"], document["path"] = incarnation, path
    return Stored(decode_state(document), touched_ms, producers, forks)


def extent_row(incarnation: int, extent: Extent) -> tuple[Any, ...]:
    """Return an extent as `PUT_EXTENTS` takes it."""
    size = extent.end - extent.start
    return (
        *(incarnation, extent.start, extent.lsn, extent.at, size),
        *(extent.sizes, extent.crc, extent.at_ms),
    )


def extent_of(row: Sequence[Any]) -> Extent:
    """Return an extent from the columns of `EXTENT`."""
    start, lsn, at, sizes, crc, at_ms = row
    return Extent(start, lsn, at, tuple(orjson.loads(sizes)), crc, at_ms)


_STREAM: Final = "SELECT incarnation, path, touched_ms, forks, state FROM stream"
_PUT_STREAMS: Final = """
INSERT INTO stream (incarnation, path, touched_ms, deadline_ms, state)
SELECT value->>0, value->>1, value->>2, value->>3, value->4 FROM json_each(?) WHERE true
ON CONFLICT (incarnation) DO UPDATE SET
    touched_ms = excluded.touched_ms, deadline_ms = excluded.deadline_ms, state = excluded.state"""
_PUT_FORKS: Final = """
UPDATE stream SET forks = changed.value->>1 FROM json_each(?) AS changed
WHERE incarnation = changed.value->>0"""
_PUT_PRODUCERS: Final = """
INSERT OR REPLACE INTO producer (incarnation, id, epoch, last_seq)
SELECT value->>0, value->>1, value->>2, value->>3 FROM json_each(?)"""
_PUT_BLOBS: Final = """
INSERT INTO blob SELECT value->>0, value->>1, 0 FROM json_each(?) WHERE true
ON CONFLICT DO NOTHING"""
PUT_EXTENTS: Final = """
INSERT INTO extent SELECT value->>0, value->>1, value->>2, value->>3, value->>4, value->5,
    value->>6, value->>7 FROM json_each(?) WHERE true
ON CONFLICT DO NOTHING"""
_DELETES: Final = tuple(
    f"DELETE FROM {table} WHERE incarnation IN (SELECT value FROM json_each(?))"
    for table in ("stream", "producer", "extent", "look")
)
# Whole extents: compaction may have joined one across the position.
_TRIM: Final = """
DELETE FROM extent WHERE (incarnation, start) IN (
    SELECT old.incarnation, old.start FROM json_each(?) AS trimmed JOIN extent AS old
        ON old.incarnation = trimmed.value->>0 AND old.start < trimmed.value->>1
    WHERE old.start + old.size <= trimmed.value->>1)"""
_PUT_LOOKS: Final = """
INSERT OR REPLACE INTO look SELECT value->>0, value->>1 FROM json_each(?)"""
_DROP_LOOKS: Final = "DELETE FROM look WHERE incarnation IN (SELECT value FROM json_each(?))"
_OVERDUE: Final = """
SELECT due_ms, incarnation FROM look
WHERE due_ms <= ?1 AND (due_ms, incarnation) > (?2, ?3) ORDER BY due_ms, incarnation LIMIT ?4"""
# More of them are trimmed at the next look.
_CUTS: Final = f"""
SELECT start + size, at_ms FROM extent WHERE incarnation = ?1 AND start >= coalesce(
    (SELECT state->>'low' FROM stream WHERE incarnation = ?1), 0) ORDER BY start LIMIT {CUTS}"""
_ADD_USAGE: Final = """
INSERT INTO usage SELECT value->>0, value->>1, value->>2, value->>3, value->>4, value->>5
FROM json_each(?) WHERE true
ON CONFLICT (service) DO UPDATE SET
    appends = appends + excluded.appends, bytes = bytes + excluded.bytes,
    units = units + excluded.units, stored = stored + excluded.stored,
    streams = streams + excluded.streams"""
_USAGE: Final = """
SELECT lsn, some.* FROM applied LEFT JOIN (
    SELECT service, appends, bytes, units, stored, streams FROM usage WHERE service > ?
    ORDER BY service LIMIT ?) AS some ORDER BY service"""
_TOTAL: Final = """
SELECT coalesce(sum(appends), 0), coalesce(sum(bytes), 0), coalesce(sum(units), 0),
    coalesce(sum(stored), 0), coalesce(sum(streams), 0) FROM usage"""
_DUE: Final = """
SELECT deadline_ms, incarnation FROM stream
WHERE deadline_ms <= ?1 AND (deadline_ms, incarnation) > (?2, ?3)
ORDER BY deadline_ms, incarnation LIMIT ?4"""
EXTENT: Final = "start, lsn, at, sizes, crc, at_ms"
_GET_EXTENTS: Final = f"""
SELECT {EXTENT} FROM extent
WHERE incarnation = ?1 AND start < ?3 AND start >= coalesce(
    (SELECT max(start) FROM extent WHERE incarnation = ?1 AND start <= ?2), ?2)
ORDER BY start"""
