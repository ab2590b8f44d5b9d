"""Fakes that a test turns by hand: a clock, an upstream, a journal and a disk that fail on cue."""

from __future__ import annotations

import asyncio
import errno
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import apsw

from origin.journal import Batch, Deadline, Extent, Journal, Overdue, Stored
from origin.memory import MemoryJournal
from origin.usage import Usage
from shared.protocol.chunk import Chunk
from shared.protocol.offset import Offset

NOON_MS: Final = 1_800_000_000_000  # some moment of 2027


class FakeClock:
    """Stands still until it is turned."""

    def __init__(self, now_ms: int = NOON_MS) -> None:
        self._now_ms = now_ms
        self._monotonic_s = 1000.0

    def now_ms(self) -> int:
        return self._now_ms

    def monotonic_s(self) -> float:
        return self._monotonic_s

    def turn(self, seconds: float) -> None:
        """Let time pass."""
        self._now_ms += int(seconds * 1000)
        self._monotonic_s += seconds


def token(position: int, incarnation: int = 1) -> str:
    """Return the offset of a position."""
    return Offset(incarnation, position).token()


class ScriptedUpstream:
    """An upstream with one text stream in memory, whose reads a test may hold back or fail.

    It cuts reads at `chunk_bytes`, as an origin does. `asked` has every read and wait.
    """

    def __init__(self, data: bytes = b"", *, chunk_bytes: int = 1024, incarnation: int = 1) -> None:
        self.data = bytearray(data)
        self.closed = False
        self.chunk_bytes = chunk_bytes
        self.incarnation = incarnation
        self.ttl_s: int | None = None
        self.says_up_to_date = True  # a careless foreign server may leave it out
        self.asked: list[tuple[str, str]] = []  # "read" or "wait", offset
        self.reads_at_once = self.reads_at_once_max = 0
        self.failures: deque[Exception] = deque()  # the next reads raise these
        self.gate = asyncio.Event()  # reads and waits answer while it is set
        self.gate.set()
        self.grown = asyncio.Event()  # set by whoever adds data: waits look again
        self.mark = ""  # what a foreign server's tags begin with
        self.stands = False  # waits end for nothing
        self.waits = asyncio.Semaphore(64)

    @property
    def tail(self) -> str:
        return token(len(self.data), self.incarnation)

    @property
    def reads(self) -> int:
        return sum(mode == "read" for mode, _ in self.asked)

    async def read(self, path: str, offset: str, held: Chunk | None = None) -> Chunk:
        """Answer as of now, once the gate lets it out; so the answer may be old by then."""
        self.asked.append(("read", offset))
        if self.failures:
            await asyncio.sleep(0)
            raise self.failures.popleft()
        chunk = self.chunk(offset)
        self.reads_at_once += 1
        self.reads_at_once_max = max(self.reads_at_once_max, self.reads_at_once)
        await asyncio.sleep(0)
        await self.gate.wait()
        self.reads_at_once -= 1
        return held if held is not None and held == chunk else chunk

    async def wait(self, path: str, offset: str, cursor: str | None, wait_s: float) -> Chunk:
        """Wait until there is something at an offset."""
        async with self.waits:
            self.asked.append(("wait", offset))
            if self.failures:
                raise self.failures.popleft()
            while self.stands or ((chunk := self.chunk(offset)).empty and not chunk.closed):
                self.grown.clear()
                await self.grown.wait()
            await self.gate.wait()
            return self.chunk(offset)

    def chunk(self, offset: str) -> Chunk:
        """Return what a server says at an offset."""
        named = {"-1": 0, "now": len(self.data)}
        start = named[offset] if offset in named else int(offset.partition("_")[2])
        end = min(len(self.data), (start // self.chunk_bytes + 1) * self.chunk_bytes)
        start = min(start, end)
        at_tail = end == len(self.data)
        first, last = token(start, self.incarnation), token(end, self.incarnation)
        full = end % self.chunk_bytes == 0 and start < end
        return Chunk(
            content_type="text/plain",
            next=last,
            body=bytes(self.data[start:end]),
            empty=start == end,
            at_tail=at_tail and self.says_up_to_date,
            closed=at_tail and self.closed,
            etag=f'"{self.mark}{first}:{last}{":c" if at_tail and self.closed else ""}"',
            cache_control="public, max-age=31536000, immutable" if full else "public, max-age=1",
            ttl_s=self.ttl_s,
        )

    def append(self, more: bytes) -> tuple[str, str]:
        """Add data; return the tail before and after."""
        before = self.tail
        self.data += more
        self.grown.set()
        return before, self.tail


class FailingJournal:
    """A journal in memory whose calls fail on cue, and whose appends can be held back."""

    def __init__(self, journal: Journal | None = None) -> None:
        self.inner = journal or MemoryJournal()
        self.append_failures: deque[BaseException | None] = deque()  # None: that one succeeds
        self.apply_failures: deque[BaseException | None] = deque()
        self.before_append: Callable[[], object] = lambda: None  # called on the commit thread
        self.closed = False

    def append(self, lsn: int, frame: Sequence[bytes]) -> None:
        self.before_append()
        _fail(self.append_failures)
        self.inner.append(lsn, frame)

    def apply(self, batch: Batch) -> None:
        _fail(self.apply_failures)
        self.inner.apply(batch)

    def applied(self) -> tuple[int, int]:
        return self.inner.applied()

    def stored(self) -> Iterator[Stored]:
        return self.inner.stored()

    def find(self, path: str) -> Stored | None:
        return self.inner.find(path)

    def load(self, incarnation: int) -> Stored | None:
        return self.inner.load(incarnation)

    def page(self, prefix: str, after: str, limit: int) -> list[Stored]:
        return self.inner.page(prefix, after, limit)

    def due(self, now_ms: int, after: Deadline, limit: int) -> list[Deadline]:
        return self.inner.due(now_ms, after, limit)

    def overdue(self, now_ms: int, after: Deadline, limit: int) -> list[Overdue]:
        return self.inner.overdue(now_ms, after, limit)

    def usage(self, after: str, limit: int) -> tuple[int, list[tuple[str, Usage]]]:
        return self.inner.usage(after, limit)

    def total(self) -> Usage:
        return self.inner.total()

    def frames(self, after: int) -> Iterator[tuple[int, bytes]]:
        return self.inner.frames(after)

    def extents(self, incarnation: int, start: int, end: int) -> list[Extent]:
        return self.inner.extents(incarnation, start, end)

    def compact(self) -> bool:
        return self.inner.compact()

    def read(self, places: Sequence[tuple[int, int, int]]) -> Iterable[bytes]:
        return self.inner.read(places)

    def close(self) -> None:
        self.closed = True


def _fail(failures: deque[BaseException | None]) -> None:
    if failures and (failure := failures.popleft()) is not None:
        raise failure


def failing_call(number: int) -> Callable[..., int]:
    """Return a system call that fails with an errno."""

    def fail(*arguments: object) -> int:
        del arguments  # else its error would hold on to them, as that of a real call does not
        raise OSError(number, os.strerror(number))

    return fail


class Disk:
    """What is wrong with a disk just now: for files whose name ends as a key says, an errno.

    Writes raise ENOSPC as SQLite's own files do, every other error as an I/O error of that call.
    """

    def __init__(self) -> None:
        self.on_write: dict[str, int] = {}
        self.on_sync: dict[str, int] = {}
        self.on_truncate: dict[str, int] = {}
        self.room_bytes: int | None = None  # what may still be written; None: plenty
        self.syncs: list[str] = []  # names of files, in the order in which they were synced

    def write(self, name: str, size: int) -> None:
        """Account for a write."""
        if self.room_bytes is not None:
            if size > self.room_bytes:
                raise apsw.FullError("no room")
            self.room_bytes -= size
        _refuse(self.on_write, name, apsw.SQLITE_IOERR_WRITE)

    def sync(self, name: str) -> None:
        """Account for an fsync."""
        _refuse(self.on_sync, name, apsw.SQLITE_IOERR_FSYNC)
        self.syncs.append(name)

    def truncate(self, name: str) -> None:
        """Account for a truncation."""
        _refuse(self.on_truncate, name, apsw.SQLITE_IOERR_TRUNCATE)


def _refuse(table: dict[str, int], name: str, extended: int) -> None:
    for ending, number in table.items():
        if name.endswith(ending):
            if number == errno.ENOSPC:
                raise apsw.FullError("no room")
            error = apsw.IOError(f"errno {number}")
            error.extendedresult = extended  # type: ignore[attr-defined]
            raise error


class _DiskFile(apsw.VFSFile):
    def __init__(self, disk: Disk, name: Any, flags: list[int]) -> None:
        self._disk = disk
        self._name = str(name.filename()) if isinstance(name, apsw.URIFilename) else str(name)
        super().__init__("", name, flags)

    def xWrite(self, data: Any, offset: int) -> None:
        self._disk.write(self._name, len(data))
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:
        self._disk.sync(self._name)
        super().xSync(flags)

    def xTruncate(self, newsize: int) -> None:
        self._disk.truncate(self._name)
        super().xTruncate(newsize)


class _DiskVFS(apsw.VFS):
    def __init__(self, name: str, disk: Disk) -> None:
        self._disk = disk
        super().__init__(name, "")

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:
        return _DiskFile(self._disk, name, flags)


@contextmanager
def failing_disk() -> Iterator[tuple[Disk, str]]:
    """Yield a disk that is in order so far, and the name of the SQLite VFS that writes to it."""
    disk = Disk()
    name = f"disk-{id(disk)}"
    vfs = _DiskVFS(name, disk)
    try:
        yield disk, name
    finally:
        vfs.unregister()
