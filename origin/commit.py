"""Group commit: what waits becomes the next frame."""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Final

from origin.frame import Encoded, Record, encode_frame
from origin.journal import DiskFull, Journal
from shared import metrics
from shared.clock import Clock
from shared.protocol.errors import Unavailable

_log = logging.getLogger(__name__)

# A frame is one write and one fsync: beyond a few MiB it only makes the next ones wait.
_FRAME_BYTES_MAX: Final = 4 * 1024 * 1024
_FRAME_RECORDS_MAX: Final = 4096
# What may wait for its frame. At 80 MB/s this is under a second of disk; more would be memory, not
# speed.
_QUEUE_BYTES_MAX: Final = 64 * 1024 * 1024
_QUEUE_RECORDS_MAX: Final = 20_000
_SAY_FULL_EVERY_S: Final = 10.0  # writers may try a thousand times a second


@dataclass(slots=True)
class Change:
    """One decided record, how to make it visible, and how to take it back."""

    record: Record
    done: Callable[[], None]  # called once it is durable, in the order of submission
    undo: Callable[[], None]  # called if it never will be, newest first


@dataclass(frozen=True, slots=True)
class Commit:
    """One durable frame."""

    lsn: int
    at_ms: int  # when it was made, Unix milliseconds
    frame: Encoded


@dataclass(slots=True)
class _Flight:
    """A frame on its way to disk."""

    lsn: int
    at_ms: int
    frame: Encoded
    changes: list[Change]


class Committer:
    """Orders decisions into frames; runs the one thread that makes them durable.

    Decisions go on against the pending state while a frame is on its way. If that frame finds the
    disk full, it and everything decided since is undone: nobody was told of any of it.
    """

    def __init__(
        self,
        journal: Journal,
        clock: Clock,
        on_commit: Callable[[Commit], None],
        fail_stop: Callable[[BaseException], None],
    ) -> None:
        """Prepare; nothing runs before `start`.

        Args:
            on_commit: called after each frame's changes are done, before anybody is told: announces
                them. fail_stop: called when it is unknown what is on disk; must end the process.
        """
        self._journal = journal
        self._clock = clock
        self._on_commit = on_commit
        self._fail_stop = fail_stop
        self._queue: deque[tuple[int, tuple[Change, ...]]] = deque()  # with bytes of payload
        self._queue_bytes = 0
        self._submitted = self._landed_count = 0  # changes so far
        # Who waits for how many of them, in that order.
        self._waiters: deque[tuple[int, Callable[[Unavailable | None], None]]] = deque()
        self._flight: _Flight | None = None
        self._next_lsn = 1
        self._pump_due = False
        self._failed = False
        self._undone = 0  # changes, for a full disk, since the log said so
        self._say_full_s = 0.0  # not before
        self._jobs: SimpleQueue[tuple[int, Sequence[bytes]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="commit", daemon=True)

    def start(self, next_lsn: int) -> None:
        """Begin to commit."""
        self._loop = asyncio.get_running_loop()
        self._next_lsn = next_lsn
        self._thread.start()

    def check_room(self) -> None:
        """Refuse before anything is decided, if what waits is too much already.

        Raises:
            Unavailable: the disk is behind, or the journal has failed.
        """
        if self._failed:
            raise Unavailable("the journal has failed, the server is stopping", retry_after_s=5)
        if self._queue_bytes > _QUEUE_BYTES_MAX or len(self._queue) > _QUEUE_RECORDS_MAX:
            raise Unavailable("too many appends wait for the disk")

    def submit(self, *changes: Change) -> None:
        """Add one decision to the next frame: all of it, or none; `check_room` comes before."""
        size = 0
        for change in changes:
            size += len(change.record.payload)
        self._queue.append((size, changes))
        self._queue_bytes += size
        self._submitted += len(changes)
        if not self._pump_due and self._flight is None:
            # Not at once: whatever else this turn of the loop decides joins the same frame.
            self._pump_due = True
            self._loop.call_soon(self._pump)

    async def settled(self) -> None:
        """Return when everything decided so far is durable: at once, if it is.

        Raises:
            Unavailable: it was undone, because the disk is full.
        """
        if self._submitted == self._landed_count:
            return
        waiter: asyncio.Future[None] = self._loop.create_future()

        def settle(error: Unavailable | None) -> None:
            if waiter.done():
                return
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(error)

        self.when_settled(settle)
        await waiter

    def when_settled(self, settle: Callable[[Unavailable | None], None]) -> None:
        """Call back when everything decided so far is durable: at once, if it is; in the order in
        which it was asked for.

        Args:
            settle: gets the error if it was undone; must not raise.
        """
        if self._submitted == self._landed_count:
            settle(None)
        elif self._failed:
            settle(Unavailable("the journal has failed, the server is stopping", retry_after_s=5))
        else:
            self._waiters.append((self._submitted, settle))

    async def close(self) -> None:
        """Commit what waits, and end the thread."""
        while (self._queue or self._flight is not None) and not self._failed:
            with suppress(Unavailable):  # the disk is full: whoever asked has been told
                await self.settled()
        self._jobs.put(None)
        if not self._failed:
            await self._loop.run_in_executor(None, self._thread.join)

    def _pump(self) -> None:
        """Make the next frame of what waits, if none is on its way."""
        self._pump_due = False
        if self._flight is not None or not self._queue or self._failed:
            return
        changes = self._take()
        at_ms = self._clock.now_ms()
        try:
            records = [change.record for change in changes]
            frame = encode_frame(self._next_lsn, at_ms, records)
        except BaseException as error:
            self._fail(error)
            return
        self._flight = _Flight(self._next_lsn, at_ms, frame, changes)
        metrics.COMMIT_RECORDS.observe(len(records))
        self._jobs.put((self._next_lsn, frame.pieces))

    def _take(self) -> list[Change]:
        """Take as many whole decisions as a frame holds; a single larger one comes alone."""
        changes: list[Change] = []
        size = 0
        while self._queue:
            group_bytes, group = self._queue[0]
            if changes and (
                size + group_bytes > _FRAME_BYTES_MAX
                or len(changes) + len(group) > _FRAME_RECORDS_MAX
            ):
                break
            self._queue.popleft()
            changes += group
            size += group_bytes
        self._queue_bytes -= size
        return changes

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            lsn, frame = job
            error: BaseException | None = None
            with metrics.COMMIT_SECONDS.time():
                try:
                    self._journal.append(lsn, frame)
                except BaseException as raised:  # whatever it is, the loop must learn of it
                    error = raised
            self._loop.call_soon_threadsafe(self._landed, error)

    def _landed(self, error: BaseException | None) -> None:
        flight, self._flight = self._flight, None
        assert flight is not None
        if error is not None:
            self._undone += self._take_back(flight)
            if not isinstance(error, DiskFull):
                self._fail(error)
                return
            self._log_full(error)
            self._refuse("the disk is full")
        else:
            try:
                self._finish(flight)
            except BaseException as raised:  # half of it is visible: what holds is on disk alone
                self._fail(raised)

    def _finish(self, flight: _Flight) -> None:
        self._next_lsn = flight.lsn + 1
        for change in flight.changes:
            change.done()
        self._on_commit(Commit(flight.lsn, flight.at_ms, flight.frame))
        metrics.COMMITTED.inc(len(flight.changes))
        metrics.COMMITTED_BYTES.inc(flight.frame.size)
        self._pump()
        self._landed_count += len(flight.changes)
        while self._waiters and self._waiters[0][0] <= self._landed_count:
            self._waiters.popleft()[1](None)

    def _log_full(self, error: DiskFull) -> None:
        now_s = self._loop.time()
        if now_s >= self._say_full_s:
            self._say_full_s = now_s + _SAY_FULL_EVERY_S
            _log.error("disk full: undone=%d error=%s", self._undone, error)
            self._undone = 0

    def _take_back(self, flight: _Flight) -> int:
        """Undo a frame that was not kept, and all that was decided since; return how many
        changes."""
        undone = [*flight.changes, *(change for _, group in self._queue for change in group)]
        self._queue.clear()
        self._queue_bytes = 0
        self._landed_count = self._submitted
        for change in reversed(undone):
            change.undo()
        return len(undone)

    def _fail(self, error: BaseException) -> None:
        self._failed = True
        _log.critical("commit failed, stopping: lsn=%d error=%r", self._next_lsn, error)
        self._refuse("the journal has failed, the server is stopping")
        self._fail_stop(error)

    def _refuse(self, reason: str) -> None:
        waiters = [settle for _, settle in self._waiters]
        self._waiters.clear()
        for settle in waiters:
            settle(Unavailable(reason))
