"""What waits becomes the next frame; a frame that fails takes back all that built on it."""

import asyncio
import threading
from dataclasses import replace

import pytest

from origin import commit
from origin.commit import Change, Commit, Committer
from origin.frame import Appended, decode_frame
from origin.journal import DiskFull, JournalFailed
from shared.protocol.errors import Unavailable
from tests.fakes import FailingJournal, FakeClock
from tests.origin.wired import turn


class Book:
    """Notes what a committer tells, in order."""

    def __init__(self, journal: FailingJournal) -> None:
        self.told: list[str] = []
        self.stopped: list[BaseException] = []
        self.committer = Committer(journal, FakeClock(), self._on_commit, self.stopped.append)
        self.gate = threading.Event()  # the commit thread goes on while it is set
        self.gate.set()
        journal.before_append = lambda: self.gate.wait(20)

    def _on_commit(self, done: Commit) -> None:
        self.told.append(f"commit {done.lsn}")

    def submit(self, name: str, size: int = 1) -> None:
        record = Appended(1, b"x" * size, False, None, None)
        done, undo = (lambda: self.told.append(name)), (lambda: self.told.append(f"undo {name}"))
        self.committer.submit(Change(record, done, undo))


@pytest.fixture
def journal() -> FailingJournal:
    return FailingJournal()


@pytest.fixture
def book(journal: FailingJournal) -> Book:
    return Book(journal)


async def test_nothing_decided_is_settled_at_once(book: Book) -> None:
    book.committer.start(1)
    await book.committer.settled()
    await book.committer.close()


async def test_what_one_turn_decides_is_one_frame(journal: FailingJournal, book: Book) -> None:
    book.committer.start(1)
    for name in "abc":
        book.submit(name)
    await book.committer.settled()
    assert book.told == ["a", "b", "c", "commit 1"]
    (frame,) = journal.frames(0)
    assert len(decode_frame(frame[1], "").records) == 3
    await book.committer.close()


async def test_what_waits_during_a_commit_is_the_next_frame(
    journal: FailingJournal, book: Book
) -> None:
    book.committer.start(7)
    journal.inner._frames.update(dict.fromkeys(range(1, 7), b""))  # type: ignore[attr-defined]
    book.gate.clear()
    book.submit("a")
    await turn()
    for name in "bcd":
        book.submit(name)
        await turn()
    assert book.told == []
    book.gate.set()
    await book.committer.settled()
    assert book.told == ["a", "commit 7", "b", "c", "d", "commit 8"]
    await book.committer.close()


async def test_nobody_is_answered_before_the_frame_that_holds_it_is_durable(
    journal: FailingJournal, book: Book
) -> None:
    permits = threading.Semaphore(0)
    journal.before_append = lambda: permits.acquire(timeout=20)
    book.committer.start(1)
    book.submit("a")
    first = asyncio.create_task(book.committer.settled())
    await turn()
    book.submit("b")
    second = asyncio.create_task(book.committer.settled())
    await asyncio.sleep(0.02)
    assert not first.done()
    assert book.told == []
    permits.release()
    await first
    assert book.told == ["a", "commit 1"]
    await asyncio.sleep(0.02)
    assert not second.done()
    permits.release()
    await second
    assert book.told == ["a", "commit 1", "b", "commit 2"]
    await book.committer.close()


async def test_waiter_that_leaves_takes_nobody_along(book: Book) -> None:
    book.committer.start(1)
    book.gate.clear()
    book.submit("a")
    leaver, stayer = (asyncio.create_task(book.committer.settled()) for _ in range(2))
    await turn()
    leaver.cancel()
    await turn()
    book.gate.set()
    await stayer
    assert book.told == ["a", "commit 1"]
    await book.committer.close()


@pytest.mark.parametrize(
    ("bytes_each", "count", "frames"),
    [(1024 * 1024, 9, [4, 4, 1]), (5 * 1024 * 1024, 3, [1, 1, 1]), (1, 9000, [4096, 4096, 808])],
    ids=["by bytes", "each over the bound", "by records"],
)
async def test_frame_is_bounded(
    journal: FailingJournal, book: Book, bytes_each: int, count: int, frames: list[int]
) -> None:
    book.committer.start(1)
    for number in range(count):
        book.submit(str(number), bytes_each)
    await book.committer.settled()
    assert [len(decode_frame(body, "").records) for _, body in journal.frames(0)] == frames
    assert [name for name in book.told if name.isdigit()] == [str(n) for n in range(count)]
    await book.committer.close()


@pytest.mark.parametrize("bound", ["_QUEUE_BYTES_MAX", "_QUEUE_RECORDS_MAX"])
async def test_too_much_that_waits_is_refused_until_it_is_written(
    book: Book, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    monkeypatch.setattr(commit, bound, 10)
    book.committer.start(1)
    book.gate.clear()
    for _ in range(12):
        book.committer.check_room()
        book.submit("x")
        if not book.committer._flight:
            await turn()  # the first one is on its way, and waits no more
    with pytest.raises(Unavailable, match="too many appends"):
        book.committer.check_room()
    book.gate.set()
    await book.committer.settled()
    book.committer.check_room()
    await book.committer.close()


# --- failures ------------------------------------------------------------------------------------


async def test_disk_full_undoes_the_frame_and_all_decided_since_newest_first(
    journal: FailingJournal, book: Book
) -> None:
    journal.append_failures.append(DiskFull("no room"))
    book.committer.start(1)
    book.gate.clear()
    book.submit("a")
    book.submit("b")
    waiters = [asyncio.create_task(book.committer.settled())]
    await turn()
    book.submit("c")
    waiters.append(asyncio.create_task(book.committer.settled()))
    await turn()
    book.gate.set()
    told = await asyncio.gather(*waiters, return_exceptions=True)
    assert [type(error) for error in told] == [Unavailable] * 2
    assert "full" in str(told[0])
    assert book.told == ["undo c", "undo b", "undo a"]
    assert list(journal.frames(0)) == []
    assert book.stopped == []
    await book.committer.close()


async def test_after_a_full_disk_the_same_number_is_used(
    journal: FailingJournal, book: Book
) -> None:
    journal.append_failures.extend([None, DiskFull("no room"), DiskFull("still none")])
    book.committer.start(1)
    outcomes = []
    for name in "abcd":
        book.submit(name)
        try:
            await book.committer.settled()
        except Unavailable:
            outcomes.append("refused")
        else:
            outcomes.append("written")
    assert outcomes == ["written", "refused", "refused", "written"]
    assert book.told == ["a", "commit 1", "undo b", "undo c", "d", "commit 2"]
    assert [lsn for lsn, _ in journal.frames(0)] == [1, 2]
    await book.committer.close()


async def test_full_disk_is_said_once_in_a_while_however_often_it_is_met(
    journal: FailingJournal,
    book: Book,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    journal.append_failures.extend([DiskFull("no room")] * 4)
    book.committer.start(1)
    for name in "abcd":
        if name == "d":
            monkeypatch.setattr(book.committer, "_say_full_s", 0.0)  # the while is over
        book.submit(name)
        with pytest.raises(Unavailable):
            await book.committer.settled()
    said = [record.message for record in caplog.records if "disk full" in record.message]
    assert said == [f"disk full: undone={undone} error=no room" for undone in (1, 3)]
    await book.committer.close()


@pytest.mark.parametrize("error", [JournalFailed("fsync: EIO"), RuntimeError("a bug")], ids=str)
async def test_any_other_failure_stops_and_acknowledges_nothing(
    journal: FailingJournal, book: Book, error: Exception
) -> None:
    journal.append_failures.append(error)
    book.committer.start(1)
    book.gate.clear()
    book.submit("a")
    waiters = [asyncio.create_task(book.committer.settled())]
    await turn()
    book.submit("b")
    waiters.append(asyncio.create_task(book.committer.settled()))
    await turn()
    book.gate.set()
    told = await asyncio.gather(*waiters, return_exceptions=True)
    assert [type(error) for error in told] == [Unavailable] * 2
    assert book.stopped == [error]
    assert "a" not in book.told
    assert "b" not in book.told
    with pytest.raises(Unavailable, match="has failed"):
        book.committer.check_room()
    await book.committer.close()


async def test_failed_fsync_is_never_tried_again(journal: FailingJournal, book: Book) -> None:
    journal.append_failures.append(JournalFailed("fsync: EIO"))
    book.committer.start(1)
    book.submit("a")
    with pytest.raises(Unavailable):
        await book.committer.settled()
    # Whatever would be decided in the moment before the process ends is never written.
    book.submit("b")
    await turn()
    await asyncio.sleep(0.02)
    assert list(journal.frames(0)) == []
    assert book.told == ["undo a"]
    await book.committer.close()


async def test_close_writes_what_waits(journal: FailingJournal, book: Book) -> None:
    book.committer.start(1)
    for name in "abc":
        book.submit(name)
    await book.committer.close()
    assert book.told == ["a", "b", "c", "commit 1"]
    assert not book.committer._thread.is_alive()


async def test_close_on_a_full_disk_ends(journal: FailingJournal, book: Book) -> None:
    journal.append_failures.append(DiskFull("no room"))
    book.committer.start(1)
    book.submit("a")
    await asyncio.wait_for(book.committer.close(), 5)
    assert book.told == ["undo a"]


async def test_commit_returns_what_it_added_to_each_stream(journal: FailingJournal) -> None:
    commits: list[Commit] = []
    committer = Committer(journal, FakeClock(), commits.append, lambda error: None)
    committer.start(1)
    first = Appended(1, b"one", False, None, None)
    for record in (first, replace(first, incarnation=2, payload=b"two"), first):
        committer.submit(Change(record, lambda: None, lambda: None))
    await committer.settled()
    (done,) = commits
    frame = done.frame
    added = zip(frame.placements, frame.payloads, strict=True)
    assert {place.incarnation: data for place, data in added} == {1: b"oneone", 2: b"two"}
    await committer.close()


async def test_who_is_durable_is_told_however_much_waits_behind(
    journal: FailingJournal, book: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under load there is always something behind: nobody may wait until there is not."""
    monkeypatch.setattr(commit, "_FRAME_BYTES_MAX", 10)
    book.committer.start(1)
    told: list[str] = []

    async def append(name: str) -> None:
        book.submit(name, size=10)
        await book.committer.settled()
        told.append(name)

    first = [asyncio.create_task(append(name)) for name in "abc"]
    await first[0]
    book.gate.clear()  # a frame of what is left may be on its way, and no further
    assert told[0] == "a"
    assert "commit 1" in book.told
    assert told == [name for name in book.told if len(name) == 1][: len(told)]
    book.gate.set()
    await asyncio.gather(*first)
    assert told == ["a", "b", "c"]
    await book.committer.close()


async def test_one_decision_is_never_cut_in_two(
    journal: FailingJournal, book: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "_FRAME_BYTES_MAX", 10)
    book.committer.start(1)

    def change(size: int) -> Change:
        record = Appended(1, b"x" * size, False, None, None)
        return Change(record, lambda: None, lambda: None)

    book.committer.submit(change(4))
    book.committer.submit(change(9), change(9), change(9))
    book.committer.submit(change(4), change(5))
    await book.committer.settled()
    counts = [len(decode_frame(body, "").records) for _, body in journal.frames(0)]
    assert counts == [1, 3, 2]
    await book.committer.close()


@pytest.mark.parametrize("where", ["encode", "done", "announce"])
async def test_fault_of_our_own_stops_the_process(
    journal: FailingJournal, book: Book, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has been decided then is neither kept nor forgotten: only recovery can tell."""

    def fails(*_: object) -> None:
        raise MemoryError

    if where == "encode":
        monkeypatch.setattr(commit, "encode_frame", fails)
    if where == "announce":
        monkeypatch.setattr(book.committer, "_on_commit", fails)
    book.committer.start(1)
    record = Appended(1, b"x", False, None, None)
    book.committer.submit(Change(record, fails if where == "done" else lambda: None, lambda: None))
    with pytest.raises(Unavailable):
        await book.committer.settled()
    assert [type(error) for error in book.stopped] == [MemoryError]
    with pytest.raises(Unavailable):
        book.committer.check_room()
    await book.committer.close()
