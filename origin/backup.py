"""Backup: a consistent copy of a data folder while an origin writes to it.

The three databases are looked at in the order in which one may lack what another names: journal,
then packs, then index. The index is the newest look, so what it names is in the other two, unless
it is newer than they are by a commit or a pack; then all are looked at again. From then on each
look stays as it was, however long the copy takes: the origin goes on, its logs grow meanwhile.
Frames in files of their own never change; none is removed while they are copied.
"""

import os
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final

import apsw

from origin.database import BUSY_MS, one
from origin.frame import CorruptLog
from origin.large import FOLDER, LARGE_ROWS, kept
from origin.sqlite import FILES

_LOOKS: Final = 200
_LOOK_AGAIN_S: Final = 0.02
_PAGES_AT_ONCE: Final = 1024

Progress = Callable[[str, int, int], None]


class BackupFailed(Exception):
    """There is no copy; the message says why."""


def backup(folder: Path, target: Path, progress: Progress = lambda name, done, pages: None) -> None:
    """Copy a data folder.

    Args:
        target: where to; it must be empty, or not exist.
        progress: called with a file's name, and pages copied and in all.

    Raises:
        BackupFailed: there is nothing to copy, no place to copy it to, or no room.
    """
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise BackupFailed(f"{folder} is no data folder: {', '.join(missing)} missing")
    try:
        target.mkdir(parents=True, exist_ok=True)
        if any(target.iterdir()):
            raise BackupFailed(f"{target} is not empty")
        with ExitStack() as stack:
            stack.enter_context(kept(folder))
            sources = _look(folder, stack)
            for name, source in zip(FILES, sources, strict=True):
                _copy(source, target / f"{name}.part", partial(progress, name))
            _copy_frames(sources[0], folder / FOLDER, target / FOLDER)
        for name in FILES:
            (target / f"{name}.part").rename(target / name)
        _sync(target)
    except OSError as error:
        raise BackupFailed(f"{target}: {error.strerror}") from error
    except (apsw.Error, CorruptLog) as error:
        raise BackupFailed(f"{folder} to {target}: {error}") from error


def _look(folder: Path, stack: ExitStack) -> list[apsw.Connection]:
    """Return connections that see one moment, each in a transaction that stays open."""
    sources = []
    for name in FILES:
        source = apsw.Connection(str(folder / name), flags=apsw.SQLITE_OPEN_READONLY)
        stack.callback(source.close)
        source.set_busy_timeout(BUSY_MS)
        sources.append(source)
    journal, packs, index = sources
    for _ in range(_LOOKS):
        for source in sources:
            source.execute("BEGIN")
            one(source, "SELECT count(*) FROM sqlite_schema")  # the look begins with a read
        applied = one(index, "SELECT lsn FROM applied")[0]
        last = one(journal, "SELECT coalesce(max(lsn), 0) FROM frame")[0]
        newest = one(packs, "SELECT coalesce(max(number), 0) FROM pack")[0]
        named = one(index, "SELECT coalesce(-min(lsn), 0) FROM extent WHERE lsn < 0")[0]
        if applied <= last and named <= newest:
            return sources
        for source in sources:
            source.execute("ROLLBACK")
        time.sleep(_LOOK_AGAIN_S)
    raise BackupFailed(f"{folder}: its databases do not agree; `headwater check` may tell why")


def _copy(source: apsw.Connection, path: Path, progress: Callable[[int, int], None]) -> None:
    target = apsw.Connection(str(path))
    try:
        with target.backup("main", source, "main") as copy:
            while not copy.done:
                copy.step(_PAGES_AT_ONCE)
                progress(copy.page_count - copy.remaining, copy.page_count)
    finally:
        target.close()
    for leftover in (f"{path}-wal", f"{path}-shm"):
        Path(leftover).unlink(missing_ok=True)
    _sync(path)


def _copy_frames(journal: apsw.Connection, folder: Path, target: Path) -> None:
    """Copy the files that a look at the journal names."""
    target.mkdir()
    for (lsn,) in journal.execute(LARGE_ROWS):
        source, path = folder / str(lsn), target / str(lsn)
        try:
            shutil.copyfile(source, path)
        except FileNotFoundError as error:
            raise BackupFailed(f"{source}: {error.strerror}") from error
        _sync(path)
    _sync(target)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
