"""LargeFrames: frames of many bytes, each in a file of its own, so that they are written once.

SQLite writes each byte of a row to its log and then to its file, and sums it on the way: a commit
of 800 KB costs it three times the processor, and twice the bytes to the disk, of a file. Below
256 KiB the name of a file costs more than that saves.

A file is on disk, and its name, before the row that names it is committed: the row has the frame's
head and size alone. So a file without a row is what a crash left, and nobody was told of it. Files
never change; one goes away after its row.

They pass by the page cache (O_DIRECT), where the file system can. Who follows a stream is given
what was just written out of memory, and a cache that grows by all that is written costs up to ten
times the processor where the machine is virtual and its host must find those pages first.
"""

import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, Final

from origin.frame import HEAD_BYTES, CorruptLog
from shared.protocol.errors import Unavailable

FOLDER: Final = "frames"
NO_DESCRIPTORS: Final = (errno.EMFILE, errno.ENFILE)
_SIZE: Final = struct.Struct(">Q")
ROW_BYTES: Final = HEAD_BYTES + _SIZE.size  # no other row is as short
LARGE_ROWS: Final = f"SELECT lsn FROM frame WHERE length(body) = {ROW_BYTES}"
_BLOCK_BYTES: Final = 4096  # what direct writes are made of: file systems want 512 or this
# A frame and a bit; what is larger is written in turns.
_BUFFER_BYTES: Final = 4 * 1024 * 1024 + 64 * 1024


class LargeFrames:
    """The files of one data folder; safe to use from any thread."""

    def __init__(self, folder: Path) -> None:
        """Look into a data folder; nothing is written before `create`."""
        self.path = folder / FOLDER
        self._folder = -1
        self._entries: Any = None  # of os.scandir, half read

    def create(self) -> None:
        """Create the folder, if it is not there; whoever syncs the data folder makes it last.

        Raises:
            OSError: it is not there.
        """
        self.path.mkdir(exist_ok=True)
        self._folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._buffer = mmap.mmap(-1, _BUFFER_BYTES)  # begins with a page

    def put(self, lsn: int, pieces: Sequence[bytes]) -> bytes:
        """Write a frame, durably, and return its row; called by one thread at a time.

        What a crash left under its name is written over.

        Raises:
            OSError: it is not there, or a part of it: `discard` it.
        """
        direct = getattr(os, "O_DIRECT", 0)
        try:
            self._write(lsn, pieces, direct)
        except OSError as error:
            # A file system that can't, as one in memory; or the rest of a write that met a limit.
            if error.errno != errno.EINVAL or not direct:
                raise
            self._write(lsn, pieces, 0)
        os.fsync(self._folder)
        return pieces[0][:HEAD_BYTES] + _SIZE.pack(sum(map(len, pieces)))

    def _write(self, lsn: int, pieces: Sequence[bytes], direct: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_DSYNC | os.O_CLOEXEC
        file = os.open(self._path(lsn), flags | direct, 0o644)
        try:
            at = used = 0
            for piece in pieces:
                rest = memoryview(piece)
                while rest:
                    part = rest[: _BUFFER_BYTES - used]
                    self._buffer[used : used + len(part)] = part
                    used += len(part)
                    rest = rest[len(part) :]
                    if used == _BUFFER_BYTES:
                        self._flush(file, at, used)
                        at, used = at + used, 0
            if used:
                padding = bytes(-used % _BLOCK_BYTES)
                self._buffer[used : used + len(padding)] = padding
                self._flush(file, at, used + len(padding))
        finally:
            os.close(file)

    def _flush(self, file: int, at: int, size: int) -> None:
        with memoryview(self._buffer) as buffer:
            done = 0
            while done < size:  # a second time only for a signal, or a limit
                done += os.pwrite(file, buffer[done:size], at + done)

    def read(self, lsn: int, places: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes of a frame at (at, size) each.

        Raises:
            CorruptLog: it is not there, or shorter.
            Unavailable: there are no descriptors.
        """
        first, end = min(at for at, _ in places), max(at + size for at, size in places)
        try:
            file = os.open(self._path(lsn), os.O_RDONLY | os.O_CLOEXEC)
            try:
                if end > os.fstat(file).st_size:
                    raise CorruptLog(f"{self._path(lsn)}: frame {lsn} ends before byte {end}")
                if end - first <= 2 * sum(size for _, size in places):  # as what is one stream's
                    data = os.pread(file, end - first, first)
                    return [data[at - first : at - first + size] for at, size in places]
                return [os.pread(file, size, at) for at, size in places]
            finally:
                os.close(file)
        except OSError as error:
            if error.errno in NO_DESCRIPTORS:
                raise Unavailable("too many files are open") from error
            raise CorruptLog(f"{self._path(lsn)}: frame {lsn}: {error.strerror}") from error

    def whole(self, lsn: int, row: bytes) -> bytes:
        """Return all of a frame.

        Raises:
            CorruptLog: it is not there, or shorter, or another.
        """
        (size,) = _SIZE.unpack(row[HEAD_BYTES:])
        (frame,) = self.read(lsn, [(0, size)])
        if not frame.startswith(row[:HEAD_BYTES]):
            raise CorruptLog(f"{self._path(lsn)}: frame {lsn} is not the one that was committed")
        return frame

    def remove(self, lsns: Sequence[int]) -> bool:
        """Remove frames that no row names any more, where they are.

        Returns:
            Whether it was done: not while a backup copies them.

        Raises:
            OSError: some are still there.
        """
        try:
            fcntl.flock(self._folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        try:
            for lsn in lsns:
                self.discard(lsn)
        finally:
            fcntl.flock(self._folder, fcntl.LOCK_UN)
        return True

    def discard(self, lsn: int) -> None:
        """Remove a frame that no row names, if it is there.

        Raises:
            OSError: it still is.
        """
        with suppress(FileNotFoundError):
            os.unlink(self._path(lsn))

    def some(self, limit: int) -> list[int]:
        """Return which frames there are, some more with each call; none once those were all."""
        if self._entries is None:
            self._entries = os.scandir(self.path)
        names = (entry.name for entry in self._entries)
        lsns = [int(name) for name in islice(filter(str.isdecimal, names), limit)]
        if not lsns:
            self._entries.close()
            self._entries = None
        return lsns

    def close(self) -> None:
        """Let go of the folder."""
        if self._entries is not None:
            self._entries.close()
        if self._folder >= 0:
            os.close(self._folder)

    def _path(self, lsn: int) -> Path:
        return self.path / str(lsn)


@contextmanager
def kept(folder: Path) -> Iterator[None]:
    """Let no frame of a data folder be removed meanwhile, by whichever process uses it."""
    try:
        path = os.open(folder / FOLDER, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:  # of an earlier version, which has no such frames
        yield
        return
    try:
        fcntl.flock(path, fcntl.LOCK_SH)
        yield
    finally:
        os.close(path)
