"""Cleaner: carries out what compaction decides, a short step at a time."""

import logging
import time
from collections.abc import Generator, Sequence
from contextlib import suppress
from typing import Any, Final

import apsw
import orjson

from origin import compact
from origin.compact import Joined, Pack, Part
from origin.database import one, reading
from origin.frame import CorruptLog
from origin.index import EXTENT, PUT_EXTENTS, Index, extent_of, extent_row
from origin.journal import DiskFull, JournalFailed
from origin.store import Frames, Store

_log = logging.getLogger(__name__)

PACKS_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS pack (number INTEGER PRIMARY KEY, body BLOB NOT NULL);
"""
# A pack fills many pages: large ones make chains of them short. Freed ones can be given back.
PACKS_PAGES: Final = "PRAGMA page_size = 16384; PRAGMA auto_vacuum = INCREMENTAL"
FRAMES_PAGES: Final = "PRAGMA auto_vacuum = INCREMENTAL"
# Less is left to wait for its neighbours, but not for ever; more at once stops the loop for longer.
_WORTH_BYTES: Final = 4 * 1024 * 1024
_WORTH_FRAMES: Final = 512
_WAIT_S: Final = 20.0
# Who starts over and over has better things to do. Until then frames alone rebuild the index.
_FIRST_S: Final = 10.0
# What one transaction removes: commits wait for it, about 5 ms.
_REMOVE_BYTES: Final = 4 * 1024 * 1024
_REMOVE_ROWS: Final = 256


class Cleaner:
    """Compacts one data folder; called by one thread at a time."""

    def __init__(self, index: Index, frames: Frames, packs: Store) -> None:
        """Prepare; removes packs that were written and not named, when a crash came in between."""
        self._index = index
        self._frames = frames
        self._packs = packs
        self._started_s = self._rested_s = time.monotonic()
        self._damaged: set[int] = set()  # blobs that are left alone, until the next start
        self._round: Generator[None, None, bool] | None = None  # at rest, between two steps
        with reading(index.path):
            self._next_pack: int = one(index.database.writer, "SELECT next_pack FROM applied")[0]
        with suppress(DiskFull):  # their numbers are used again, and so is their space
            packs.remove_from(self._next_pack)

    def step(self) -> bool:
        """Do some of what there is to do; return whether there is more.

        A whole round at once would keep the loop from the interpreter for too long: the caller
        rests between its steps.
        """
        going, self._round = self._round or self._go_round(), None
        try:
            next(going)
        except StopIteration as done:
            return bool(done.value)
        except apsw.Error as error:
            raise self._index.failure(error) from error
        self._round = going
        return True

    def _go_round(self) -> Generator[None, None, bool]:
        """Do all that a round does, with a yield where it may rest; return whether there is
        more."""
        more = self._sweep()
        if more:
            yield
        more = (yield from self._copy()) or more
        more = self._frames.tidy() or more
        return self._give_back() or more

    # --- copy and switch -------------------------------------------------------------------------

    def _copy(self) -> Generator[None, None, bool]:
        loose, compacted = self._loose()
        sparse = self._sparse(compacted) if len(loose) < compact.ROUND_EXTENTS else []
        if not (loose or sparse):
            return self._note(compacted)
        yield
        parts = sorted(
            {(p.incarnation, p.extent.start): p for p in (*loose, *sparse)}.items(),
        )
        moving = [part for _, part in parts]
        before = self._before(moving)
        yield
        joined = compact.join(moving, before, self._spans(moving))
        yield
        data = self._fetch(joined)
        yield
        # What is damaged stays where it is, for whoever can mend it; its frame lives on.
        whole = [
            stretch
            for stretch in joined
            if all((part.extent.lsn, part.extent.at) in data for part in stretch.parts)
        ]
        number = self._next_pack
        packs = list(compact.pack(whole, data, number))
        del data
        yield
        self._next_pack += len(packs)  # whatever comes of these
        self._packs.put([(number + n, pack.body) for n, pack in enumerate(packs)])
        yield
        for pack in packs:
            self._reread(pack)
        yield
        self._switch(packs, number, compacted)
        yield
        return True

    def _loose(self) -> tuple[list[Part], int]:
        """Return the small extents of the next frames, and up to which frame those are."""
        rows = self._rows(
            """SELECT blob.lsn, blob.size FROM applied, blob
            WHERE blob.lsn > applied.compacted ORDER BY blob.lsn LIMIT ?""",
            _WORTH_FRAMES,
        )
        compacted: int = self._rows("SELECT compacted FROM applied")[0][0]
        now_s = time.monotonic()
        worth = len(rows) == _WORTH_FRAMES or sum(row[1] for row in rows) >= _WORTH_BYTES
        worth = worth or now_s - self._rested_s > _WAIT_S
        if not rows or not worth or now_s - self._started_s < _FIRST_S:
            return [], compacted
        self._rested_s = now_s
        counts = dict(
            self._rows(
                "SELECT lsn, count(*) FROM extent WHERE lsn BETWEEN ? AND ? GROUP BY lsn",
                *(rows[0][0], rows[-1][0]),
            )
        )
        size = extents = 0
        for lsn, frame_bytes in rows:
            size += frame_bytes
            extents += counts.get(lsn, 0)
            if size > frame_bytes and (
                size > compact.ROUND_BYTES or extents > compact.ROUND_EXTENTS
            ):
                break
            compacted = lsn
        loose = self._parts(
            f"""SELECT incarnation, size, {EXTENT} FROM extent
            WHERE lsn BETWEEN ? AND ? AND size < ? ORDER BY incarnation, start""",
            *(rows[0][0], compacted, compact.LARGE_BYTES),
        )
        return loose, compacted

    def _sparse(self, compacted: int) -> list[Part]:
        """Return what is needed of frames and packs that are mostly not needed."""
        rows = self._rows(
            """SELECT lsn, live FROM blob
            WHERE live * 2 < size AND live > 0 AND lsn <= ? LIMIT ?""",
            *(compacted, 64 + len(self._damaged)),
        )
        chosen: list[int] = []
        size = 0
        for lsn, live in rows:
            if lsn in self._damaged:
                continue
            if chosen and size + live > compact.ROUND_BYTES // 2:
                break
            chosen.append(lsn)
            size += live
        return self._parts(
            f"""SELECT incarnation, size, {EXTENT} FROM extent
            WHERE lsn IN (SELECT value FROM json_each(?))""",
            orjson.dumps(chosen).decode(),
        )

    def _before(self, moving: Sequence[Part]) -> list[Part]:
        """Return the packed extents that come before those that move."""
        places = [(part.incarnation, part.extent.start) for part in moving]
        return self._parts(
            f"""SELECT DISTINCT incarnation, size, {EXTENT} FROM json_each(?) AS moving
            JOIN extent ON incarnation = moving.value->>0 AND start < moving.value->>1
                AND start >= coalesce((SELECT start FROM extent AS far
                    WHERE far.incarnation = moving.value->>0 AND far.start < moving.value->>1
                    ORDER BY far.start DESC LIMIT 1 OFFSET {compact.NEIGHBOURS - 1}), 0)
            WHERE lsn < 0 ORDER BY incarnation, start""",
            orjson.dumps(_firsts(places)).decode(),
        )

    def _spans(self, moving: Sequence[Part]) -> dict[int, int]:
        """Return how far apart joined appends may be, where data goes by age: an eighth of it."""
        rows = self._rows(
            """SELECT incarnation, state->'retention'->>'age_s' AS age_s FROM stream
            WHERE incarnation IN (SELECT value FROM json_each(?)) AND age_s IS NOT NULL""",
            orjson.dumps(list({part.incarnation for part in moving})).decode(),
        )
        return {incarnation: age_s * 1000 // 8 for incarnation, age_s in rows}

    def _fetch(self, joined: Sequence[Joined]) -> dict[tuple[int, int], bytes]:
        """Read and verify what moves; what is damaged is left out, and logged."""
        data: dict[tuple[int, int], bytes] = {}
        parts = [part for stretch in joined for part in stretch.parts]
        for store, sign in ((self._frames, 1), (self._packs, -1)):
            mine = sorted(
                (part for part in parts if part.extent.lsn * sign > 0),
                key=lambda part: (abs(part.extent.lsn), part.extent.at),
            )
            places = [(abs(p.extent.lsn), p.extent.at, p.size) for p in mine]
            try:
                pieces: list[bytes | None] = list(store.read(places))
            except CorruptLog:
                pieces = [_read_one(store, place) for place in places]
            for part, piece in zip(mine, pieces, strict=True):
                if piece is None:
                    self._damaged.add(part.extent.lsn)
                    continue
                try:
                    where = "frame" if sign > 0 else "pack"
                    compact.verify(part, piece, f"{store.name}: {where} {abs(part.extent.lsn)}")
                except CorruptLog as error:
                    _log.error("damaged, and left where it is: %s", error)
                    self._damaged.add(part.extent.lsn)
                    continue
                data[part.extent.lsn, part.extent.at] = piece
        return data

    def _reread(self, pack: Pack) -> None:
        """Verify a pack as it is on disk.

        Raises:
            JournalFailed: what was just written is not there.
        """
        made = [Part(joined.parts[0].incarnation, e, e.end - e.start) for joined, e in pack.moves]
        places = [(-part.extent.lsn, part.extent.at, part.size) for part in made]
        try:
            for part, piece in zip(made, self._packs.read(places), strict=True):
                compact.verify(part, piece, f"{self._packs.name}: pack {-part.extent.lsn}")
        except CorruptLog as error:
            raise JournalFailed(str(error)) from error

    def _switch(self, packs: Sequence[Pack], number: int, compacted: int) -> None:
        """Let the index name packs, for all extents that are still what they were."""
        index, moves = self._index, [move for pack in packs for move in pack.moves]
        writer = index.database.writer
        asked = [
            (n, part.incarnation, part.extent.start, part.extent.lsn, part.extent.at)
            for n, (stretch, _) in enumerate(moves)
            for part in stretch.parts
        ]
        with index.writing, writer:
            lost = {row[0] for row in writer.execute(_CHANGED, (orjson.dumps(asked).decode(),))}
            writer.execute(
                "INSERT INTO blob SELECT value->>0, value->>1, 0 FROM json_each(?)",
                (orjson.dumps([(-number - n, len(p.body)) for n, p in enumerate(packs)]).decode(),),
            )
            old = [row for row in asked if row[0] not in lost]
            new = [
                extent_row(stretch.parts[0].incarnation, extent)
                for n, (stretch, extent) in enumerate(moves)
                if n not in lost
            ]
            writer.execute(_REMOVE, (orjson.dumps(old).decode(),))
            writer.execute(PUT_EXTENTS, (orjson.dumps(new).decode(),))
            writer.execute(
                "UPDATE applied SET compacted = max(compacted, ?), next_pack = ?",
                (compacted, number + len(packs)),
            )

    def _note(self, compacted: int) -> bool:
        """Note that frames have nothing small in them; return whether there were any."""
        index = self._index
        with index.writing, index.database.writer as writer:
            before = one(writer, "SELECT compacted FROM applied")[0]
            if compacted > before:
                writer.execute("UPDATE applied SET compacted = ?", (compacted,))
        return bool(compacted > before)

    # --- space -----------------------------------------------------------------------------------

    def _sweep(self) -> bool:
        """Remove frames and packs of which nothing is needed; return whether there were many."""
        # The last frame stays: it tells where numbers go on, and that the journal is the index's.
        dead = self._rows(
            """SELECT blob.lsn, size FROM applied, blob
            WHERE live = 0 AND blob.lsn <= compacted AND blob.lsn < applied.lsn LIMIT ?""",
            _REMOVE_ROWS,
        )
        if not dead:
            return False
        for store, sign in ((self._frames, 1), (self._packs, -1)):
            numbers: list[int] = []
            size = 0
            for lsn, blob_bytes in dead:
                if lsn * sign > 0:
                    numbers.append(abs(lsn))
                    size += blob_bytes
                    if size > _REMOVE_BYTES:
                        store.remove(numbers)
                        numbers, size = [], 0
            if numbers:
                store.remove(numbers)
        index = self._index
        with index.writing, index.database.writer as writer:
            writer.execute(
                "DELETE FROM blob WHERE lsn IN (SELECT value FROM json_each(?))",
                (orjson.dumps([lsn for lsn, _ in dead]).decode(),),
            )
        return len(dead) == _REMOVE_ROWS

    def _give_back(self) -> bool:
        gave = [store.give_back() for store in (self._frames, self._packs)]
        return any(gave)

    def _parts(self, sql: str, *values: Any) -> list[Part]:
        return [Part(row[0], extent_of(row[2:]), row[1]) for row in self._rows(sql, *values)]

    def _rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        return self._index.database.reader().execute(sql, values).fetchall()


def _firsts(places: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the first place of each stream; one that follows another's end has no neighbours."""
    firsts: dict[int, int] = {}
    for incarnation, start in places:
        firsts.setdefault(incarnation, start)
    return list(firsts.items())


def _read_one(store: Store, place: tuple[int, int, int]) -> bytes | None:
    try:
        return store.read([place])[0]
    except CorruptLog as error:
        _log.error("damaged, and left where it is: %s", error)
        return None


_CHANGED: Final = """
SELECT DISTINCT moving.value->>0 FROM json_each(?) AS moving LEFT JOIN extent
    ON incarnation = moving.value->>1 AND start = moving.value->>2
    AND lsn = moving.value->>3 AND at = moving.value->>4
WHERE lsn IS NULL"""
_REMOVE: Final = """
DELETE FROM extent WHERE (incarnation, start) IN
    (SELECT value->>1, value->>2 FROM json_each(?))"""
