"""A disk that forgets: what was written is not what was synced, and a crash tells the difference.

The process's own view is real files; this keeps, beside them, what the platters hold. A write, a
truncation, a creation or a deletion is pending until it is synced. When the power fails, any of
what is pending may be there or not, in any order, torn between sectors; what is done to the names
of one folder is kept in its order, as file systems keep theirs. When only the process dies, all of
it is still on its way.

Two things are left out. A kernel that goes on showing what it failed to write: no log that is read
through the kernel's cache survives that. And a full disk that keeps the first half of what was to
be written over something else: the old second half may be just what was missing.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Final, Literal

SECTOR_BYTES: Final = 512  # what a disk writes whole, or not at all

Call = Literal["read", "write", "sync", "truncate"]
How = Literal["kill", "power"]
Counted = Literal["any", "sync"]


class NoRoom(Exception):
    """ENOSPC."""


class BadDisk(Exception):
    """EIO."""

    def __init__(self, call: Call) -> None:
        super().__init__(f"input/output error: {call}")
        self.call: Call = call


@dataclass(frozen=True, slots=True)
class Write:
    offset: int
    data: bytes

    def apply(self, content: bytearray) -> None:
        if len(content) < self.offset:
            content.extend(bytes(self.offset - len(content)))
        content[self.offset : self.offset + len(self.data)] = self.data

    def sectors(self) -> Iterator[Write]:
        """Cut it where a disk may tear it."""
        at, end = self.offset, self.offset + len(self.data)
        while at < end:
            until = min(end, (at // SECTOR_BYTES + 1) * SECTOR_BYTES)
            yield Write(at, self.data[at - self.offset : until - self.offset])
            at = until


@dataclass(frozen=True, slots=True)
class Cut:
    """A truncation."""

    size: int

    def apply(self, content: bytearray) -> None:
        del content[self.size :]
        content.extend(bytes(self.size - len(content)))


@dataclass(slots=True, eq=False)
class Inode:
    """One file, whatever its name."""

    durable: bytearray = field(default_factory=bytearray)
    pending: list[Write | Cut] = field(default_factory=list)
    size: int = 0  # as processes see it
    failures: int = 0  # of syncs: each open file is told of each, once

    def content(self) -> bytearray:
        """Return what a process sees of it that opens it now."""
        seen = bytearray(self.durable)
        for change in self.pending:
            change.apply(seen)
        return seen

    def copy(self) -> Inode:
        return Inode(bytearray(self.durable), list(self.pending), len(self.content()))


def folder_of(name: str) -> str:
    """Return in which folder a name is; the data folder is ""."""
    return name.rpartition("/")[0]


@dataclass(slots=True)
class Files:
    """What is in the data folder: as processes see it, and as the disk has it.

    A folder in it is an empty file, and what is in that has both names: "frames/17".
    """

    live: dict[str, Inode] = field(default_factory=dict)
    durable: dict[str, Inode] = field(default_factory=dict)
    pending: list[tuple[str, Inode | None]] = field(default_factory=list)  # None: deleted

    def put(self, name: str, inode: Inode | None) -> None:
        """Create or delete."""
        if inode is None:
            del self.live[name]
        else:
            self.live[name] = inode
        self.pending.append((name, inode))

    def sync(self, folder: str) -> None:
        """Make the names in one folder durable, as they are now."""
        others = {name: i for name, i in self.durable.items() if folder_of(name) != folder}
        here = {name: i for name, i in self.live.items() if folder_of(name) == folder}
        self.durable = others | here
        self.pending = [change for change in self.pending if folder_of(change[0]) != folder]

    def fail(self, random_: random.Random) -> list[str]:
        """Let chance decide which of the pending names are on disk; return those that are not."""
        lost: list[str] = []
        for folder in dict.fromkeys(folder_of(name) for name, _ in self.pending):
            pending = [change for change in self.pending if folder_of(change[0]) == folder]
            kept = random_.randint(0, len(pending))
            for name, inode in pending[:kept]:
                if inode is None:
                    del self.durable[name]
                else:
                    self.durable[name] = inode
            lost += [name for name, _ in pending[kept:]]
        for name in [n for n in self.durable if (folder_of(n) or n) not in self.durable]:
            del self.durable[name]  # with the folder that it was in
        self.live, self.pending = dict(self.durable), []
        return lost

    def copy(self) -> Files:
        """Copy it whole: two names of one file stay so."""
        inodes = [*self.live.values(), *self.durable.values(), *(i for _, i in self.pending if i)]
        new = {id(inode): inode.copy() for inode in inodes}
        return Files(
            {name: new[id(inode)] for name, inode in self.live.items()},
            {name: new[id(inode)] for name, inode in self.durable.items()},
            [(name, inode and new[id(inode)]) for name, inode in self.pending],
        )


@dataclass(slots=True)
class Fault:
    """The call that fails with EIO: the nth of its kind."""

    call: Call
    nth: int
    met: bool = False


class Disk:
    """The disk under one life of a process."""

    def __init__(
        self,
        files: Files,
        random_: random.Random,
        events: Counter[str],
        turn: Callable[[], None],
    ) -> None:
        """Take over what an earlier life left.

        Args:
            turn: called at each call: other threads may run before it.
        """
        self._files = files
        self._random = random_
        self.events = events
        self._turn = turn
        self.calls = {"any": 0, "sync": 0}  # that change something
        self.crash_at: tuple[Counted, int, How] | None = None  # before which of them
        self.how: How | None = None  # it did
        self.lost = ""  # what of it
        self.on_crash: Callable[[], None] = lambda: None
        self.left: Files | None = None  # what the next life finds; None: this one goes on
        self.fault: Fault | None = None
        self.room_bytes: int | None = None  # None: plenty
        self.forgets_syncs_of: str | None = None  # a pattern: the broken disk of a mutation check
        self.failed_syncs: list[str] = []

    @property
    def over(self) -> bool:
        """Whether the process has died: what it still does happens nowhere."""
        return self.left is not None

    def crash(self, how: How) -> None:
        """End the life of the process, or of the whole machine."""
        if self.over:
            return
        self.events["crash: " + how] += 1
        self.how = how
        self.left = self._files.copy() if how == "kill" else self._lose_power(self._files.copy())
        self.on_crash()

    def leave(self) -> Files:
        """Return what the next life finds; an orderly end leaves what is not synced on its way."""
        if self.left is None:
            self.left = self._files.copy()
        return self.left

    # --- what SQLite and the product call --------------------------------------------------------

    def open(self, name: str) -> tuple[Inode, bool]:
        """Return a file or a folder, and whether it is new."""
        self._step()
        there = self._files.live.get(name)
        if there is not None:
            return there, False
        made = Inode()
        if not self.over:
            self._files.put(name, made)
        return made, True

    def delete(self, name: str, sync: bool) -> None:
        self._step()
        if self.over or name not in self._files.live:
            return
        self._files.put(name, None)
        if sync:
            self._files.sync(folder_of(name))

    def read(self) -> None:
        self._turn()
        if not self.over and self._fails("read"):
            raise BadDisk("read")

    def write(self, inode: Inode, offset: int, data: bytes, put: Callable[[bytes], None]) -> None:
        """Write, or write a part and fail.

        Args:
            put: does it for the process's own view.
        """
        self._step()
        error: Exception | None = None
        if not self.over:
            if self.room_bytes is not None:
                if len(data) > self.room_bytes:
                    # A part of it is there if the file was to grow; in its place lies no other.
                    part = self.room_bytes if offset >= inode.size else 0
                    data, error = data[:part], NoRoom()
                    self.events["disk full"] += 1
                self.room_bytes -= len(data)
            if self._fails("write"):
                sectors = [piece.data for piece in Write(offset, data).sectors()]
                done = self._random.randrange(len(sectors) + 1)
                data, error = b"".join(sectors[:done]), BadDisk("write")
            if data:
                inode.pending.append(Write(offset, data))
                inode.size = max(inode.size, offset + len(data))
        if data:
            put(data)
        if error is not None:
            raise error

    def truncate(self, inode: Inode, size: int) -> None:
        self._step()
        if self.over:
            return
        if self._fails("truncate"):
            raise BadDisk("truncate")
        inode.pending.append(Cut(size))
        inode.size = size

    def sync(self, inode: Inode, name: str, told: int, *, folder: bool) -> int:
        """Make a file durable; return how many failures whoever opened it has been told of.

        Args:
            told: of how many it was told before.
            folder: whether its name is made durable with it.
        """
        self._step("sync")
        if self.over or self._forgets(name):
            return told
        self.events["sync"] += 1
        if self._fails("sync"):
            inode.failures += 1
            self._settle(inode)
        if told < inode.failures:
            self.failed_syncs.append(name)
            raise BadDisk("sync")
        for change in inode.pending:
            change.apply(inode.durable)
        inode.pending.clear()
        if folder:
            self._files.sync(folder_of(name))
        return told

    def sync_folder(self, name: str) -> None:
        """Make durable which names are in a folder: not what is in those files, nor its own."""
        self._step("sync")
        if self.over or self._forgets(name):
            return
        if self._fails("sync"):
            self.failed_syncs.append(name)
            raise BadDisk("sync")
        self._files.sync(name)

    def inode(self, name: str) -> Inode:
        return self._files.live[name]

    def _forgets(self, name: str) -> bool:
        return self.forgets_syncs_of is not None and fnmatchcase(name, self.forgets_syncs_of)

    # --- chance ----------------------------------------------------------------------------------

    def _step(self, call: Counted = "any") -> None:
        self._turn()
        if self.over:
            return
        self.calls["any"] += 1
        self.calls["sync"] += call == "sync"
        if self.crash_at is not None:
            counted, calls, how = self.crash_at
            if self.calls[counted] >= calls:
                self.crash(how)

    def _fails(self, call: Call) -> bool:
        fault = self.fault
        if fault is None or fault.call != call or fault.met:
            return False
        fault.nth -= 1
        if fault.nth > 0:
            return False
        fault.met = True
        self.events["input/output error: " + call] += 1
        return True

    def _lose_power(self, files: Files) -> Files:
        lost = files.fail(self._random)
        self.events["lost name"] += len(lost)
        pending = {name: len(i.pending) for name, i in files.live.items() if i.pending}
        self.lost = f"names lost: {lost}, changes in doubt: {pending}"
        for inode in files.live.values():
            self._settle(inode)
            inode.size = len(inode.durable)
        return files

    def _settle(self, inode: Inode) -> None:
        """Let chance decide what of the pending changes is on disk; nothing is pending then."""
        pending, random_ = inode.pending, self._random
        inode.pending = []
        if not pending:
            return
        self.events["unsynced changes"] += len(pending)
        match random_.randrange(5):
            case 0:
                kept: list[Write | Cut] = []
            case 1:
                kept = pending
            case 2:
                kept = pending[: random_.randrange(len(pending) + 1)]
            case _:  # in any order, so any of them
                share = random_.choice([0.1, 0.5, 0.9])
                kept = [change for change in pending if random_.random() < share]
        self.events["lost write"] += len(pending) - len(kept)
        torn = random_.randrange(len(kept)) if kept and random_.random() < 0.6 else None
        for number, change in enumerate(kept):
            pieces: list[Write | Cut] = [change]
            if isinstance(change, Write) and (number == torn or random_.random() < 0.1):
                sectors = list(change.sectors())
                cut = random_.randrange(len(sectors) + 1)
                picked = random_.sample(range(len(sectors)), cut)
                whole = random_.random() < 0.5
                pieces = [*sectors[:cut]] if whole else [sectors[n] for n in sorted(picked)]
                self.events["torn write"] += len(pieces) < len(sectors)
            for piece in pieces:
                piece.apply(inode.durable)
