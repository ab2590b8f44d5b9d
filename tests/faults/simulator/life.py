"""One life of the origin on the simulated disk: start, serve, end in whatever way is planned."""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from unittest.mock import patch

import apsw

from origin.app import open_origin
from origin.frame import CorruptLog
from origin.handlers import Handlers
from origin.journal import Journal, JournalFailed
from origin.large import FOLDER, LARGE_ROWS
from origin.sqlite import FILES, SqliteJournal
from shared.config import Settings
from shared.protocol.errors import Unavailable
from shared.wake import Wake
from tests.fakes import NOON_MS
from tests.faults.simulator.audit import audit
from tests.faults.simulator.clients import Clients, Died, Session, path_of
from tests.faults.simulator.disk import Disk, Files
from tests.faults.simulator.known import Violation, insist
from tests.faults.simulator.plan import CLIENTS, PATHS, Life, Plan
from tests.faults.simulator.turns import Loop, Turns, instead_of_threads
from tests.faults.simulator.vfs import mounted

# Some large frames are written in more than one turn, and some listings are read so.
_BUFFER_BYTES: Final = 8192
_FILES_AT_ONCE: Final = 3


class _Clock:
    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def now_ms(self) -> int:
        return NOON_MS + int(self._turns.now_s * 1000)

    def monotonic_s(self) -> float:
        return self._turns.now_s


class _Bus:
    """Takes down what is announced."""

    def __init__(self, take: Callable[[str, Wake], None]) -> None:
        self.publish = take

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        pass


@dataclass(slots=True)
class World:
    """What goes on from one life to the next."""

    plan: Plan
    random_: random.Random
    folder: Path
    clients: Clients
    events: Counter[str]
    trace: Callable[[str], None]
    files: Files
    forgets_syncs_of: str | None = None
    now_s: float = 0.0
    lives: int = 0


def live(world: World, life: Life, *, audited: bool = False, damaged: str | None = None) -> None:
    """Go through one life, on what earlier ones left.

    Args:
        audited: whether it ends with an audit.
        damaged: a file of which what it finds may be refused, if it is said what and where.

    Raises:
        Violation: the server broke a promise.
    """
    world.lives += 1
    folder = world.folder / str(world.lives)
    folder.mkdir()
    for name, inode in sorted(world.files.live.items()):  # folders come before what is in them
        if name == FOLDER:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(inode.content())
    turns = Turns(world.random_, world.now_s)
    disk = Disk(world.files, world.random_, world.events, turns.maybe_switch)
    disk.forgets_syncs_of = world.forgets_syncs_of
    disk.fault, disk.room_bytes = life.fault, life.room_bytes
    if life.fault is not None:
        life.fault.met = False
    world.clients.books.now_ms = _Clock(turns).now_ms
    one = _Life(world, life, turns, disk, folder, audited, damaged)
    loop = Loop(turns)
    try:
        with (
            mounted(disk, folder, world.random_, turns.sleep) as vfs,
            instead_of_threads(turns),
            _small(world.plan),
        ):
            try:
                loop.run_until_complete(one.run(vfs))
            finally:
                loop.end()
    finally:
        world.now_s = turns.now_s + life.end.down_s
    world.files = disk.leave()


class _Life:
    def __init__(
        self,
        world: World,
        life: Life,
        turns: Turns,
        disk: Disk,
        folder: Path,
        audited: bool,
        damaged: str | None,
    ) -> None:
        self._world = world
        self._life = life
        self._turns = turns
        self._disk = disk
        self._folder = folder
        self._audited = audited
        self._damaged = damaged
        self._books = world.clients.books
        self._ended = asyncio.Event()
        self._broken: Violation | None = None
        self._may_stay: set[int] = set()  # files of large frames that had no row at the start

    async def run(self, vfs: str) -> None:
        loop = asyncio.get_running_loop()
        disk, end, events = self._disk, self._life.end, self._world.events

        def on_crash() -> None:
            self._world.trace(
                f"{disk.how}: after {disk.calls['any']} calls of the disk; {disk.lost}"
            )
            loop.call_soon_threadsafe(self._ended.set)
            self._turns.give_way()

        disk.on_crash = on_crash
        if end.how != "stop" and end.calls is not None and not end.while_stopping:
            disk.crash_at = (end.at, end.calls, end.how)
        try:
            journal = SqliteJournal(self._folder, vfs=vfs)
        except (CorruptLog, JournalFailed) as error:
            self._refused(error)
            return
        if self._damaged is None and not disk.over:
            strays, last = self._strays()
            events["large frame: a file without a row"] += len(strays)
            # The next frame's: it is written over, or its file is left for the start after this.
            self._may_stay = {lsn for lsn in strays if lsn >= last}
        try:
            await self._serve(journal)
        except CorruptLog as error:
            self._refused(error)
            disk.leave()  # the process ends, and closes nothing
            with suppress(apsw.Error):
                journal.close()
        except (apsw.IOError, Unavailable):
            if not disk.over:
                if not self._fault_met() and self._life.room_bytes is None:
                    raise
                events["stop failed"] += 1
                disk.crash("kill")
        if disk.over:
            self._books.died(clean=False)
        else:
            self._books.died(clean=True)
            events["stop"] += 1
            if self._life.rests:
                left = self._strays()[0] - self._may_stay
                insist(not left, f"the files of frames {left} are still there, and no rows")
        if self._broken is not None:
            raise self._broken

    def _strays(self) -> tuple[set[int], int]:
        """Return which large frames have no row, and the last frame; looks past the disk.

        Raises:
            Violation: some have a row, and no file.
        """
        there = {int(path.name) for path in (self._folder / FOLDER).iterdir()}
        path = str(self._folder / FILES[0])
        journal = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY, vfs="unix")
        named = {lsn for (lsn,) in journal.execute(LARGE_ROWS)}
        ((last,),) = journal.execute("SELECT coalesce(max(lsn), 0) FROM frame")
        journal.close()
        insist(named <= there, f"large frames {named - there} have rows, and no files")
        return there - named, last

    def _refused(self, error: Exception) -> None:
        """A start may be refused for what befell it, and for nothing else."""
        self._world.trace(f"refused to start: {error}")
        if self._damaged is not None:
            self._reported(error)
            return
        excused = self._fault_met() or self._life.room_bytes is not None
        if not self._disk.over and not excused:
            raise Violation(f"the origin does not start: {error}") from error
        self._world.events["start refused"] += 1

    async def _serve(self, journal: Journal) -> None:
        disk, life, world = self._disk, self._life, self._world
        plan = world.plan
        settings = Settings(
            data_dir=self._folder,
            registry=plan.registry,
            chunk_bytes=plan.chunk_bytes,
            hot_streams=plan.hot_streams,
        )
        clock = _Clock(self._turns)
        bus = _Bus(self._announced)
        async with open_origin(settings, journal, [bus], clock, self._fail_stop) as origin:
            if not disk.over:
                world.events["start"] += 1
                world.trace("serving")
            working = asyncio.create_task(self._work(origin.handlers))
            ended = asyncio.create_task(self._ended.wait())
            await asyncio.wait((working, ended), return_when=asyncio.FIRST_COMPLETED)
            ended.cancel()
            working.cancel()
            try:
                await working
            except asyncio.CancelledError:
                pass
            except Violation as error:
                if not disk.over:
                    raise
                self._broken = error
            except CorruptLog as error:
                if self._damaged is not None:
                    self._reported(error)
                elif not disk.over and not self._fault_met():
                    raise Violation(f"a read: {error}") from error
            disk.room_bytes = None
            if life.end.how != "stop":
                if life.end.while_stopping and life.end.calls is not None:
                    at = life.end.at
                    disk.crash_at = (at, disk.calls[at] + life.end.calls, life.end.how)
                else:
                    disk.crash(life.end.how)

    async def _work(self, origin: Handlers) -> None:
        paths = [path_of(number) for number in range(PATHS)]
        try:
            await audit(self._books, origin, paths, self._alive)
        except Died:
            return
        self._world.trace("audited")
        sessions = [
            Session(self._world.clients, origin, self._disk).run(
                [step for step in self._life.steps if step.client == client]
            )
            for client in range(CLIENTS)
        ]
        tasks = [asyncio.create_task(session) for session in sessions]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._audited:
            with suppress(Died):
                await audit(self._books, origin, paths, self._alive)

    def _reported(self, error: BaseException) -> None:
        assert self._damaged is not None
        folder, _, lsn = self._damaged.rpartition("/")
        if folder:
            named = re.search(rf"\bframe {lsn}\b", str(error)) is not None
        else:
            named = any(name in str(error) for name in (*FILES, "frame", "pack"))
        if not isinstance(error, CorruptLog | JournalFailed) or not named:
            raise Violation(f"damage is not named: {error!r}") from error
        self._world.events["flipped bit reported" + (": large frame" if folder else "")] += 1

    def _fault_met(self) -> bool:
        return self._life.fault is not None and self._life.fault.met

    def _alive(self) -> None:
        if self._disk.over:
            raise Died

    def _announced(self, path: str, wake: Wake) -> None:
        if not self._disk.over and path.startswith("s/"):
            try:
                self._books.announced(path, wake)
            except Violation as error:
                self._broken = error
                self._ended.set()

    def _fail_stop(self, error: BaseException) -> None:
        """End the process at once, as the product would."""
        if self._disk.over:
            return
        self._world.trace(f"stopped itself: {error}")
        if self._damaged is not None:
            self._reported(error)
        elif not self._fault_met():
            self._broken = Violation(f"the origin stopped itself: {error!r}")
        self._world.events["stopped itself"] += 1
        self._disk.crash("kill")


@contextmanager
def _small(plan: Plan) -> Iterator[None]:
    """Let what is rare with the product's own bounds be common."""
    with (
        patch("origin.sqlite._WAL_BYTES_MAX", plan.wal_bytes_max),
        patch("origin.sqlite._WAL_BYTES_STEP", plan.wal_bytes_max // 4),
        patch("origin.frame.LARGE_BYTES", plan.large_bytes),
        patch("origin.large._BUFFER_BYTES", _BUFFER_BYTES),
        patch("origin.store._FILES_AT_ONCE", _FILES_AT_ONCE),
        patch("origin.commit._FRAME_BYTES_MAX", plan.frame_bytes_max),
        patch("origin.reader._RECENT_BYTES_MAX", plan.recent_bytes_max),
        patch("origin.cleaner._WORTH_BYTES", 0 if plan.compacts else 1 << 60),
        patch("origin.cleaner._FIRST_S", 0 if plan.compacts else 1 << 60),
        _silent(),
    ):
        yield


@contextmanager
def _silent() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
