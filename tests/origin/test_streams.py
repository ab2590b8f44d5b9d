"""Every write against the pending state: what is answered, what a full disk takes back."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from origin.journal import DiskFull
from shared.protocol.append import Accepted, Unchanged
from shared.protocol.errors import (
    Conflict,
    Gone,
    MethodNotAllowed,
    NotFound,
    SequenceGap,
    SequenceRegression,
    StreamClosed,
    Unavailable,
)
from shared.protocol.offset import parse_offset
from shared.protocol.producer import ProducerState
from tests.fakes import FailingJournal, FakeClock
from tests.origin.wired import Wired, turn, wired

Write = Callable[[Wired], Awaitable[object]]


def hold(journal: FailingJournal) -> threading.Event:
    """Keep the commit thread from writing until the event is set."""
    gate = threading.Event()
    journal.before_append = lambda: gate.wait(20)
    return gate


async def fill(origin: Wired) -> None:
    """Make one stream of each kind that a write may meet."""
    await origin.create("open", b"one")
    await origin.append("open", b"two", producer=("p", 1, 0), seq="b")
    await origin.create("source", b"source")
    await origin.create("fork", b"+", kind=None, source="source")
    await origin.create("kept", b"kept")
    await origin.create("keeper", kind=None, source="kept")
    await origin.streams.delete("kept")


WRITES: dict[str, Write] = {
    "create": lambda o: o.create("new", b"body"),
    "create closed": lambda o: o.create("new", b"body", closed=True),
    "create with a window": lambda o: o.create("new", ttl_s=60),
    "fork": lambda o: o.create("new", b"more", kind=None, source="open"),
    "fork of a fork": lambda o: o.create("new", kind=None, source="fork"),
    "append": lambda o: o.append("open", b"three"),
    "append with Stream-Seq": lambda o: o.append("open", b"three", seq="c"),
    "producer's next": lambda o: o.append("open", b"three", producer=("p", 1, 1)),
    "producer's new epoch": lambda o: o.append("open", b"three", producer=("p", 2, 0)),
    "new producer": lambda o: o.append("open", b"three", producer=("q", 0, 0)),
    "close": lambda o: o.append("open", b"", close=True),
    "append and close": lambda o: o.append("open", b"three", close=True, producer=("p", 1, 1)),
    "delete": lambda o: o.streams.delete("open"),
    "delete a fork": lambda o: o.streams.delete("fork"),
    "delete a source": lambda o: o.streams.delete("source"),
    "delete the last fork of a deleted source": lambda o: o.streams.delete("keeper"),
}


def watched(origin: Wired) -> set[int]:
    """Return the streams whose end the reaper will come by for."""
    there = origin.catalog.by_incarnation
    return {incarnation for _, incarnation in origin.catalog._due if incarnation in there}


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("cold", [False, True])
async def test_write_that_finds_the_disk_full_never_was(name: str, cold: bool) -> None:
    """Refused, it leaves no trace; repeated, it has its effect as if it were the first time."""
    journal = FailingJournal()
    async with wired(journal, registry=True, hot_streams=1 if cold else 1000) as origin:
        await fill(origin)
        if cold:
            origin.index()
        listed, before = await origin.listed(), origin.shape()
        expiring, incarnations = watched(origin), set(origin.catalog.by_incarnation)
        frames, wakes = len(list(journal.frames(0))), len(origin.wakes)

        journal.append_failures.append(DiskFull("no room"))
        with pytest.raises(Unavailable, match="full") as refusal:
            await WRITES[name](origin)
        assert refusal.value.headers()["Retry-After"]
        assert origin.shape() == before
        assert watched(origin) == expiring
        assert set(origin.catalog.by_incarnation) == incarnations
        assert len(list(journal.frames(0))) == frames
        assert len(origin.wakes) == wakes
        assert await origin.content("open") == b"onetwo"
        assert await origin.listed() == listed

        await WRITES[name](origin)
        after = origin.shape()
        assert after != before
        assert len(list(journal.frames(0))) == frames + 1
    async with wired(journal) as again:
        assert _without_durable(again.shape()) == _without_durable(after)


def _without_durable(shape: dict[str, Any]) -> dict[str, Any]:
    return {path: (entry[0], *entry[2:]) for path, entry in shape.items()}


async def test_all_that_built_on_a_refused_write_is_refused_with_it() -> None:
    journal = FailingJournal()
    async with wired(journal, registry=True) as origin:
        await fill(origin)
        before = origin.shape()
        gate = hold(journal)
        journal.append_failures.append(DiskFull("no room"))
        writes: list[Awaitable[object]] = [
            origin.create("new", b"body"),
            origin.append("new", b"more", producer=("p", 0, 0)),
            origin.append("new", b"more", producer=("p", 0, 0)),
            origin.append("new", b"last", producer=("p", 0, 1), close=True),
            origin.create("new fork", kind=None, source="new"),
            origin.streams.delete("new"),
            origin.streams.delete("open"),
            origin.create("open", b"another"),
            origin.append("open", b"!"),
            origin.streams.delete("keeper"),
            origin.create("kept", b"free again"),
        ]
        tasks = []
        for write in writes:
            tasks.append(asyncio.ensure_future(write))
            await turn()
        gate.set()
        told = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(error) for error in told] == [Unavailable] * len(tasks)
        assert origin.shape() == before
        # And all of it again, one by one, as clients would.
        await origin.create("new", b"body")
        assert isinstance(await origin.append("new", b"more", producer=("p", 0, 0)), Accepted)
        assert isinstance(await origin.append("new", b"more", producer=("p", 0, 0)), Unchanged)
        assert await origin.content("new") == b"bodymore"


async def test_retry_during_a_commit_is_answered_only_once_the_first_is_durable() -> None:
    journal = FailingJournal()
    async with wired(journal) as origin:
        await origin.create("s")
        gate = hold(journal)
        first = asyncio.create_task(origin.append("s", b"a", producer=("p", 0, 0)))
        await turn()
        retry = asyncio.create_task(origin.append("s", b"a", producer=("p", 0, 0)))
        await asyncio.sleep(0.02)
        assert not retry.done()
        gate.set()
        assert isinstance(await first, Accepted)
        assert isinstance(await retry, Unchanged)
        assert await origin.content("s") == b"a"


@pytest.mark.parametrize(
    ("then", "error"),
    [
        (lambda o: o.append("s", b"b", producer=("p", 0, 2)), SequenceGap),
        (lambda o: o.append("s", b"b", seq="a"), SequenceRegression),
        (lambda o: o.create("s", kind="text/html"), Conflict),
    ],
    ids=["gap", "regression", "conflict"],
)
async def test_refusal_that_builds_on_a_pending_write_waits_for_it(
    then: Write, error: type[Exception]
) -> None:
    """A refusal tells of state too: none that might turn out never to have been."""
    journal = FailingJournal()
    async with wired(journal) as origin:
        await origin.create("s")
        gate = hold(journal)
        first = asyncio.create_task(origin.append("s", b"a", producer=("p", 0, 0), seq="a"))
        await turn()
        second = asyncio.ensure_future(then(origin))
        await asyncio.sleep(0.02)
        assert not second.done()
        gate.set()
        await first
        with pytest.raises(error):
            await second


async def test_writers_at_once_never_lose_or_repeat_one() -> None:
    async with wired(FailingJournal()) as origin:
        await origin.create("s")
        await asyncio.gather(*(origin.append("s", b"<%d>" % n) for n in range(500)))
        assert await origin.content("s") == b"".join(b"<%d>" % n for n in range(500))


async def test_close_and_append_at_once_have_one_order() -> None:
    async with wired(FailingJournal()) as origin:
        await origin.create("s")
        told = await asyncio.gather(
            origin.append("s", b"before"),
            origin.append("s", b"last", close=True),
            origin.append("s", b"after"),
            return_exceptions=True,
        )
        assert isinstance(told[2], StreamClosed)
        assert await origin.content("s") == b"beforelast"


# --- what readers see ----------------------------------------------------------------------------


async def test_reader_sees_only_what_is_durable() -> None:
    journal = FailingJournal()
    async with wired(journal) as origin:
        await origin.create("s", b"one")
        gate = hold(journal)
        pending = asyncio.create_task(origin.append("s", b"two", close=True))
        await turn()
        assert await origin.content("s") == b"one"
        assert not (await origin.reads.head("s")).closed
        gate.set()
        await pending
        assert await origin.content("s") == b"onetwo"
        assert (await origin.reads.head("s")).closed


async def test_reader_of_a_stream_that_is_being_created_waits_for_it() -> None:
    journal = FailingJournal()
    async with wired(journal) as origin:
        gate = hold(journal)
        creating = asyncio.create_task(origin.create("s", b"one"))
        await turn()
        reading = asyncio.create_task(origin.content("s"))
        await asyncio.sleep(0.02)
        assert not reading.done()
        gate.set()
        await creating
        assert await reading == b"one"


async def test_reader_is_not_told_of_a_deletion_that_may_never_have_been() -> None:
    journal = FailingJournal()
    async with wired(journal) as origin:
        await origin.create("s", b"one")
        gate = hold(journal)
        journal.append_failures.append(DiskFull("no room"))
        deleting = asyncio.create_task(origin.streams.delete("s"))
        await turn()
        reading = asyncio.create_task(origin.content("s"))
        await asyncio.sleep(0.02)
        gate.set()
        with pytest.raises(Unavailable):
            await deleting
        # Data, or a 503: anything but "there is no such stream".
        (told,) = await asyncio.gather(reading, return_exceptions=True)
        assert told == b"one" or isinstance(told, Unavailable)


async def test_waiting_reader_is_woken_by_what_is_durable() -> None:
    journal = FailingJournal()
    async with wired(journal) as origin:
        await origin.create("s", b"one")
        at_tail = await origin.reads.read("s", "now")
        waiting = asyncio.create_task(origin.reads.next("s", at_tail))
        await turn()
        gate = hold(journal)
        appending = asyncio.create_task(origin.append("s", b"two"))
        await asyncio.sleep(0.02)
        assert not waiting.done()
        gate.set()
        await appending
        assert (await waiting).body == b"two"


async def test_waiting_reader_learns_of_close_and_deletion() -> None:
    async with wired(FailingJournal()) as origin:
        for path in ("closed", "deleted"):
            await origin.create(path, b"one")
        tails = {path: await origin.reads.read(path, "now") for path in ("closed", "deleted")}
        waits = {p: asyncio.create_task(origin.reads.next(p, tail)) for p, tail in tails.items()}
        await turn()
        await origin.append("closed", b"", close=True)
        await origin.streams.delete("deleted")
        ended = await asyncio.wait_for(waits["closed"], 5)
        assert (ended.body, ended.closed) == (b"", True)
        with pytest.raises(NotFound):
            await asyncio.wait_for(waits["deleted"], 5)


# --- wakes ---------------------------------------------------------------------------------------


async def test_one_wake_for_each_stream_that_a_commit_moves() -> None:
    journal = FailingJournal()
    async with wired(journal) as origin:
        await origin.create("a", b"0")
        await origin.create("b")
        origin.wakes.clear()
        gate = hold(journal)
        first = asyncio.create_task(origin.append("a", b"1"))
        await turn()
        rest = asyncio.gather(
            origin.append("a", b"22"), origin.append("b", b"x"), origin.append("a", b"333")
        )
        await turn()
        assert origin.wakes == []
        gate.set()
        await asyncio.gather(first, rest)
        told = [
            (
                path,
                parse_offset(wake.before).position,
                parse_offset(wake.after).position,
                wake.payload,
            )
            for path, wake in origin.wakes
        ]
        assert told[0] == ("a", 1, 2, b"1")
        assert sorted(told[1:]) == [("a", 2, 7, b"22333"), ("b", 0, 1, b"x")]


async def test_much_data_does_not_wait_to_be_indexed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("origin.ledger._BATCH_BYTES", 10)
    async with wired(FailingJournal()) as origin:
        await origin.create("s")
        for _ in range(2):
            await origin.append("s", b"x" * 9)
            assert not origin.ledger.enough.is_set()
            await origin.append("s", b"x")
            assert origin.ledger.enough.is_set()
            origin.index()
            assert not origin.ledger.enough.is_set()


async def test_many_streams_with_an_append_each_are_worth_indexing_a_part_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("origin.ledger._SCATTERED_STREAMS", 10)
    async with wired(FailingJournal()) as origin:
        scattered = []

        async def append(*paths: str) -> None:
            for path in paths:
                await origin.append(path, b"x")
                scattered.append(origin.ledger.scattered)

        paths = [str(number) for number in range(10)]
        for path in paths:
            await origin.create(path)
        assert origin.ledger.scattered
        origin.index()
        await append(*paths, "0", "0")  # what goes where it went before is better applied together
        assert scattered == [False] * 9 + [True] * 2 + [False]


@pytest.mark.parametrize(("size", "carried"), [(4096, True), (4097, False), (300_000, False)])
async def test_wake_carries_little_data_only(size: int, carried: bool) -> None:
    async with wired(FailingJournal()) as origin:
        await origin.create("s")
        await asyncio.gather(*(origin.append("s", b"x" * (size // 2)) for _ in range(2)))
        if size % 2:
            await origin.append("s", b"x")
        origin.wakes.clear()
        await asyncio.gather(*(origin.append("s", b"x" * n) for n in (size // 2, size - size // 2)))
        ((_, wake),) = origin.wakes
        assert wake.payload == (b"x" * size if carried else None)


async def test_wake_of_many_extents_carries_nothing() -> None:
    """A frame may hold so much of a stream that it is cut; its last piece alone would be a lie."""
    async with wired(FailingJournal()) as origin:
        await origin.create("s")
        origin.wakes.clear()
        await asyncio.gather(*(origin.append("s", b"x" * 90_000) for _ in range(4)))
        await origin.append("s", b"tail")
        assert [wake.payload for _, wake in origin.wakes][-1] == b"tail"
        assert all(wake.payload is None for _, wake in origin.wakes[:-1])


# --- forks, deletion, expiry ---------------------------------------------------------------------


async def test_deleted_source_goes_with_its_last_fork() -> None:
    async with wired(FailingJournal(), registry=True) as origin:
        await origin.create("a", b"one")
        await origin.create("b", b"two", kind=None, source="a")
        await origin.create("c", b"three", kind=None, source="b")
        await origin.streams.delete("a")
        await origin.streams.delete("b")
        with pytest.raises(Gone):
            await origin.content("a")
        with pytest.raises(Gone):
            await origin.append("b", b"x")
        assert await origin.content("c") == b"onetwothree"
        await origin.streams.delete("c")
        for path in "abc":
            with pytest.raises(NotFound):
                await origin.content(path)
        assert list(origin.catalog.by_path) == ["__registry__"]
        assert len(origin.catalog.by_incarnation) == 1
        assert [entry for entry in await origin.listed() if entry[0] == "delete"] == [
            ("delete", path) for path in "abc"
        ]


async def test_path_is_never_the_same_stream_again() -> None:
    async with wired(FailingJournal()) as origin:
        first = await origin.create("s", b"one")
        await origin.streams.delete("s")
        second = await origin.create("s", b"two")
        assert second.incarnation > first.incarnation
        with pytest.raises(Gone):
            await origin.content("s", first.tail_offset().token())


async def test_fork_of_a_source_replaced_meanwhile_is_refused() -> None:
    """Finding the fork point may take a read, and another stream may be there after it."""
    journal = FailingJournal()
    async with wired(journal) as origin:
        state = await origin.create("s", b"one")
        await origin.append("s", b"two")
        gate = hold(journal)
        appending = asyncio.create_task(origin.append("s", b"three"))
        await turn()
        at = state.tail_offset().token()
        forking = asyncio.create_task(origin.create("f", kind=None, source="s", at=at))
        await turn()
        deleting = asyncio.create_task(origin.streams.delete("s"))
        await turn()
        creating = asyncio.create_task(origin.create("s", b"another"))
        await turn()
        gate.set()
        await asyncio.gather(appending, deleting, creating)
        with pytest.raises(NotFound):
            await forking
        assert {p: s.forks for p, s in origin.catalog.by_path.items()} == {"s": 0}


async def test_expired_stream_gives_way_to_a_new_one() -> None:
    clock = FakeClock()
    async with wired(FailingJournal(), clock) as origin:
        first = await origin.create("s", b"one", ttl_s=60)
        clock.turn(59)
        await origin.append("s", b"two")  # renews
        clock.turn(59)
        assert await origin.content("s") == b"onetwo"  # renews
        clock.turn(60)
        with pytest.raises(NotFound):
            await origin.content("s")
        with pytest.raises(NotFound):
            await origin.append("s", b"three")
        second = await origin.create("s", b"new", ttl_s=60)
        assert second.incarnation > first.incarnation
        assert await origin.content("s") == b"new"
        assert len(origin.catalog.by_incarnation) == 1


async def test_expiry_that_finds_the_disk_full_is_tried_again() -> None:
    clock, journal = FakeClock(), FailingJournal()
    async with wired(journal, clock) as origin:
        await origin.create("s", b"one", ttl_s=60)
        stream = origin.catalog.by_path["s"]
        clock.turn(61)
        journal.append_failures.append(DiskFull("no room"))
        assert origin.streams.expire(stream)
        with pytest.raises(Unavailable):
            await origin.committer.settled()
        assert watched(origin) == {stream.state.incarnation}
        assert origin.streams.expire(stream)
        await origin.committer.settled()
        assert not origin.catalog.by_path
        clock.turn(10)
        assert list(origin.catalog.due()) == []


async def test_expiring_stream_is_deleted_once() -> None:
    """The reaper comes by again before the deletion is durable."""
    clock, journal = FakeClock(), FailingJournal()
    async with wired(journal, clock) as origin:
        await origin.create("s", b"one", ttl_s=60)
        stream = origin.catalog.by_path["s"]
        clock.turn(61)
        gate = hold(journal)
        assert origin.streams.expire(stream)
        await turn()
        assert not origin.streams.expire(stream)
        gate.set()
        await origin.committer.settled()
    async with wired(journal, clock) as again:
        assert not again.catalog.by_path


@pytest.mark.parametrize("method", ["create", "append", "delete"])
async def test_registry_is_nobodys_to_write(method: str) -> None:
    async with wired(FailingJournal(), registry=True) as origin:
        writes: dict[str, Write] = {
            "create": lambda o: o.create("__registry__", kind="application/json"),
            "append": lambda o: o.append("__registry__", b"{}", kind="application/json"),
            "delete": lambda o: o.streams.delete("__registry__"),
        }
        with pytest.raises(MethodNotAllowed):
            await writes[method](origin)


async def test_registry_tells_of_a_stream_in_the_frame_that_makes_it() -> None:
    journal = FailingJournal()
    async with wired(journal, registry=True) as origin:
        before = len(list(journal.frames(0)))
        await origin.create("a/b")
        assert len(list(journal.frames(0))) == before + 1
        await origin.streams.delete("a/b")
        assert len(list(journal.frames(0))) == before + 2
        assert await origin.listed() == [("insert", "a/b"), ("delete", "a/b")]


async def test_producer_state_of_a_new_epoch_goes_back_to_the_old_one() -> None:
    journal = FailingJournal()
    async with wired(journal) as origin:
        await origin.create("s")
        for seq in range(3):
            await origin.append("s", b"x", producer=("p", 1, seq))
        journal.append_failures.append(DiskFull("no room"))
        with pytest.raises(Unavailable):
            await origin.append("s", b"x", producer=("p", 2, 0))
        assert origin.catalog.by_path["s"].producers == {"p": ProducerState(1, 2)}
        assert isinstance(await origin.append("s", b"x", producer=("p", 1, 3)), Accepted)
