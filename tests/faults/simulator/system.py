"""The simulated disk in the place of the operating system, for what the product does beside SQLite.

That is what origin/large.py does with the files of large frames, and whatever syncs by `os.fsync`.
As for SQLite, the process sees real files; the disk is told of what is done to them, and may fail.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

from origin.large import FOLDER
from tests.faults.simulator.disk import BadDisk, Disk, Inode, NoRoom


@contextmanager
def system(disk: Disk, folder: Path) -> Iterator[None]:
    """Let the product use the disk while the block runs."""
    mkdir, fsync = os.mkdir, os.fsync

    def simulated_mkdir(path: Any, *args: Any, **kwargs: Any) -> None:
        if Path(path) == folder / FOLDER:
            disk.open(FOLDER)
        mkdir(path, *args, **kwargs)

    def simulated_fsync(fd: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        with _as_system():
            if path == folder:
                disk.sync_folder("")
            elif path == folder / FOLDER:
                disk.sync_folder(FOLDER)
            elif path.parent == folder:
                inode = disk.inode(path.name)
                disk.sync(inode, path.name, inode.failures, folder=False)
            else:
                fsync(fd)

    calls = _Calls(disk, folder)
    try:
        with (
            patch("os.mkdir", simulated_mkdir),
            patch("os.fsync", simulated_fsync),
            patch("origin.large.os", calls),
        ):
            yield
    finally:
        calls.end()


@contextmanager
def _as_system() -> Iterator[None]:
    try:
        yield
    except NoRoom:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
    except BadDisk as error:
        raise OSError(errno.EIO, str(error)) from None


@dataclass(slots=True)
class _Open:
    """A file that is open for writing."""

    inode: Inode
    name: str
    synced: bool  # with each write
    told: int  # of how many failures


class _Calls:
    """In the place of the module `os` in origin/large.py."""

    O_DIRECT: Final = 0  # no cache is passed by here: there are buffers of any address and size

    def __init__(self, disk: Disk, folder: Path) -> None:
        self._disk = disk
        self._folder = folder
        self._open: dict[int, _Open | None] = {}  # None: not for writing

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        opened = self._open_written(path, flags) if flags & os.O_CREAT else None
        file = os.open(path, flags, mode)
        self._open[file] = opened
        return file

    def _open_written(self, path: Path, flags: int) -> _Open:
        name = self._name(path)
        with _as_system():
            inode, new = self._disk.open(name)
            if flags & os.O_TRUNC and not new:
                self._disk.truncate(inode, 0)
        if not self._disk.over:
            self._disk.events["large frame" if new else "large frame: written over"] += 1
        return _Open(inode, name, bool(flags & os.O_DSYNC), inode.failures)

    def pwrite(self, file: int, data: memoryview, at: int) -> int:
        opened, done = self._open[file], 0
        assert opened is not None

        def put(piece: bytes) -> None:
            nonlocal done
            done = os.pwrite(file, piece, at)
            assert done == len(piece)

        with _as_system():
            try:
                self._disk.write(opened.inode, at, bytes(data), put)
            except NoRoom:
                self._disk.events["large frame: no room"] += 1
                if not done:  # else it is told with the next one, as the kernel does
                    raise
            if opened.synced:
                self._sync(opened)
        return done

    def _sync(self, opened: _Open) -> None:
        try:
            opened.told = self._disk.sync(opened.inode, opened.name, opened.told, folder=False)
        except BadDisk:
            opened.told = opened.inode.failures
            raise

    def pread(self, file: int, size: int, at: int) -> bytes:
        with _as_system():
            self._disk.read()
        if not self._disk.over:
            self._disk.events["large frame: read"] += 1
        return os.pread(file, size, at)

    def unlink(self, path: Path) -> None:
        self._disk.delete(self._name(path), sync=False)
        os.unlink(path)
        if not self._disk.over:
            self._disk.events["large frame: removed"] += 1

    def scandir(self, path: Path) -> Generator[os.DirEntry[str]]:
        """Yield what is there in an order that is the same on any file system."""
        with os.scandir(path) as entries:
            yield from sorted(entries, key=lambda entry: entry.name)

    def close(self, file: int) -> None:
        del self._open[file]
        os.close(file)

    def end(self) -> None:
        """Close what the process has left open, as its end does."""
        for file in self._open:
            os.close(file)

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self._folder))
