"""The simulated disk as a file system for SQLite."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import apsw

from origin.database import load_sums
from tests.faults.simulator.disk import BadDisk, Disk, NoRoom
from tests.faults.simulator.system import system

# SQLite's own files, whose creation its first sync of them makes durable (os_unix.c).
_SYNCED_WITH_FOLDER: Final = apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_MAIN_JOURNAL
_SUMS: Final = "cksmvfs"
_EXTENDED: Final = {
    "read": apsw.SQLITE_IOERR_READ,
    "write": apsw.SQLITE_IOERR_WRITE,
    "sync": apsw.SQLITE_IOERR_FSYNC,
    "truncate": apsw.SQLITE_IOERR_TRUNCATE,
}
# Waiting for a lock inside the kernel would stop the one thread that runs: SQLite asks again
# instead, after a sleep that the simulator can see.
_LOCK_TIMEOUT: Final = 34  # SQLITE_FCNTL_LOCK_TIMEOUT


@contextmanager
def _as_sqlite() -> Iterator[None]:
    try:
        yield
    except NoRoom:
        raise apsw.FullError("no room") from None
    except BadDisk as error:
        failed = apsw.IOError(str(error))
        failed.extendedresult = _EXTENDED[error.call]  # type: ignore[attr-defined]
        raise failed from None


class _File(apsw.VFSFile):
    def __init__(self, disk: Disk, path: Any, flags: list[int]) -> None:
        name = path.filename() if isinstance(path, apsw.URIFilename) else path
        self._name = os.path.basename(str(name))
        self._disk = disk
        self._inode, new = disk.open(self._name)
        self._with_folder = new and bool(flags[0] & _SYNCED_WITH_FOLDER)
        self._told = self._inode.failures
        super().__init__("unix", path, flags)

    def xRead(self, amount: int, offset: int) -> bytes:
        with _as_sqlite():
            self._disk.read()
        return super().xRead(amount, offset)

    def xWrite(self, data: Any, offset: int) -> None:
        put: Callable[[bytes], None] = lambda piece: super(_File, self).xWrite(piece, offset)  # noqa: E731
        with _as_sqlite():
            self._disk.write(self._inode, offset, bytes(data), put)

    def xTruncate(self, newsize: int) -> None:
        with _as_sqlite():
            self._disk.truncate(self._inode, newsize)
        super().xTruncate(newsize)

    def xSync(self, flags: int) -> None:
        with _as_sqlite():
            try:
                self._told = self._disk.sync(
                    self._inode, self._name, self._told, folder=self._with_folder
                )
            except BadDisk:
                self._told = self._inode.failures
                raise
        self._with_folder = False

    def xFileControl(self, op: int, ptr: int) -> bool:
        return op != _LOCK_TIMEOUT and super().xFileControl(op, ptr)


class _Vfs(apsw.VFS):
    def __init__(
        self, name: str, disk: Disk, random_: random.Random, sleep: Callable[[float], None]
    ) -> None:
        self._disk = disk
        self._random = random_
        self._sleep = sleep
        # The default one: SQLite takes its randomness from there, for all of its files.
        super().__init__(name, "unix", makedefault=True)

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:
        if name is None:  # a temporary one, which no crash leaves
            return apsw.VFSFile("unix", name, flags)
        return _File(self._disk, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        self._disk.delete(os.path.basename(filename), syncdir)
        super().xDelete(filename, syncdir)

    def xRandomness(self, numbytes: int) -> bytes:
        return self._random.randbytes(numbytes)

    def xSleep(self, microseconds: int) -> int:
        self._sleep(microseconds / 1e6)
        return microseconds


@contextmanager
def mounted(
    disk: Disk, folder: Path, random_: random.Random, sleep: Callable[[float], None]
) -> Iterator[str]:
    """Let SQLite and the product use the disk while the block runs; yield the name of a VFS.

    That is the one that sums pages, on top of the disk: what a crash leaves has sums as well.
    """
    apsw.unregister_vfs(_SUMS)
    vfs = _Vfs(f"simulated-{id(disk)}", disk, random_, sleep)
    apsw.randomness(0)  # begins anew, from ours
    load_sums()
    try:
        with system(disk, folder):
            yield _SUMS
    finally:
        apsw.unregister_vfs(_SUMS)
        vfs.unregister()
        load_sums()
        apsw.randomness(0)
