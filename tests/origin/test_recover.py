"""What a start finds is what was acknowledged, wherever between journal and index it stopped."""

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace

import pytest

from origin.frame import (
    Appended,
    CorruptLog,
    Created,
    Deleted,
    Record,
    decode_frame,
    encode_frame,
)
from origin.journal import Batch, DiskFull, Journal, JournalFailed
from origin.memory import MemoryJournal
from origin.recover import recover
from origin.upkeep import Indexer
from origin.usage import Usage
from shared import metrics
from shared.protocol.errors import ProtocolError
from shared.protocol.expiry import NEVER
from shared.protocol.producer import ProducerKey
from shared.protocol.stream import Ancestor, ForkPoint, StreamState
from tests.fakes import FailingJournal, FakeClock
from tests.origin.wired import Wired, wired


@dataclass
class Step:
    """One write of a random history."""

    what: str
    path: str
    size: int
    producer: tuple[str, int, int] | None
    close: bool


def history(seed: int, steps: int) -> Iterator[Step]:
    random_ = random.Random(seed)
    paths = [f"s{n}" for n in range(8)]
    for _ in range(steps):
        producer = (random_.choice("pq"), random_.randrange(2), random_.randrange(4))
        yield Step(
            random_.choice(["create", "fork", "append", "append", "append", "delete"]),
            random_.choice(paths),
            random_.choice([1, 10, 1000, 300_000 if random_.random() < 0.05 else 5]),
            producer if random_.random() < 0.5 else None,
            random_.random() < 0.05,
        )


async def take(origin: Wired, step: Step, source: str) -> None:
    """Do one step; what the protocol refuses is part of history too."""
    body = (step.what[0].encode() + step.path.encode()) * step.size
    try:
        match step.what:
            case "create":
                await origin.create(step.path, body[: step.size % 50])
            case "fork":
                await origin.create(step.path, body[: step.size % 50], kind=None, source=source)
            case "append":
                await origin.append(step.path, body, producer=step.producer, close=step.close)
            case "delete":
                await origin.streams.delete(step.path)
    except ProtocolError:
        pass


async def contents(origin: Wired) -> dict[str, bytes]:
    found = {}
    origin.load()
    for path, stream in list(origin.catalog.by_path.items()):
        if not stream.state.deleted:
            found[path] = await origin.content(path)
    return found


def state_of(origin: Wired) -> dict[str, object]:
    """Return what decides the future of each stream; what only fills memory is left out."""
    origin.load()
    return {
        path: (
            stream.state,
            stream.durable,
            dict(stream.producers),
            stream.forks,
        )
        for path, stream in sorted(origin.catalog.by_path.items())
    }


def counted(origin: Wired) -> dict[str, Usage]:
    """Return what services have used, with what the index has yet to learn."""
    lsn, rows = origin.journal.usage("", 1000)
    found = {service: replace(usage) for service, usage in rows}
    for service, usage in origin.ledger.uncounted(lsn):
        found.setdefault(service, Usage()).add(usage)
    return found


def recounted(journal: Journal) -> dict[str, Usage]:
    """Return the same, from every frame that there ever was."""
    found: dict[str, Usage] = {}
    services, kept = {}, {}
    for lsn, body in journal.frames(0):
        for record in decode_frame(body, str(lsn)).records:
            match record:
                case Created(state, payload):
                    incarnation = state.incarnation
                    services[incarnation] = state.path.partition("/")[0]
                    kept[incarnation] = len(payload)
                    more = Usage(streams=1, stored=len(payload))
                    appended = bool(payload)
                case Appended(incarnation, payload):
                    kept[incarnation] += len(payload)
                    more, appended = Usage(stored=len(payload)), True
                case Deleted(incarnation, soft):
                    gone = not soft
                    more, appended = Usage(streams=-gone, stored=-gone * kept[incarnation]), False
            if appended:
                more.appends, more.bytes = 1, len(payload)
                more.units = max(1, math.ceil(len(payload) / 10240))
            found.setdefault(services[incarnation], Usage()).add(more)
    return found


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("hot_streams", [1, 4, 1000])
async def test_start_after_any_history_finds_the_same_streams(seed: int, hot_streams: int) -> None:
    """The index is brought up now and then, and a start comes now and then."""
    journal, clock, random_ = MemoryJournal(), FakeClock(), random.Random(seed)
    steps = history(seed, 400)
    for _ in range(8):
        async with wired(journal, clock, registry=True, hot_streams=hot_streams) as origin:
            for step, _ in zip(steps, range(50), strict=False):
                clock.turn(0.01)
                await take(origin, step, source=f"s{random_.randrange(8)}")
                if random_.random() < 0.05:
                    origin.index()
            before, texts = state_of(origin), await contents(origin)
            assert counted(origin) == recounted(journal)
            incarnation = origin.catalog.next_incarnation
            lsn = origin.ledger.lsn
        async with wired(journal, clock) as again:
            assert counted(again) == recounted(journal)
            assert state_of(again) == before
            assert await contents(again) == texts
            assert again.catalog.next_incarnation == incarnation
            assert again.ledger.lsn == lsn
            again.index()
            assert await contents(again) == texts
            assert not any(stream.extents for stream in again.catalog.by_path.values())


async def test_start_without_the_index_finds_the_same() -> None:
    journal, clock = MemoryJournal(), FakeClock()
    async with wired(journal, clock, registry=True) as origin:
        for step in history(99, 300):
            await take(origin, step, source="s1")
            origin.index()
        before, texts = state_of(origin), await contents(origin)
    bare = MemoryJournal()
    for lsn, frame in journal.frames(0):
        bare.append(lsn, [frame])
    async with wired(bare, clock) as again:
        assert state_of(again) == before
        assert await contents(again) == texts


async def test_index_that_lags_gets_each_extent_once() -> None:
    """Replayed frames are applied again: the same bytes must not be there twice."""
    journal = MemoryJournal()
    async with wired(journal) as origin:
        await origin.create("s", b"one")
        origin.index()
        await origin.append("s", b"two", producer=("p", 0, 0))
    for _ in range(3):
        async with wired(journal) as again:
            assert await again.content("s") == b"onetwo"
            again.index()
            assert await again.content("s") == b"onetwo"
    assert [extent.start for extent in journal.extents(1, 0, 100)] == [0, 3]


CHANGES: dict[str, Callable[[Wired], Awaitable[object]]] = {
    "empty create": lambda o: o.create("new"),
    "empty fork": lambda o: o.create("new", kind=None, source="s"),
    "close": lambda o: o.append("s", b"", close=True),
    "soft deletion": lambda o: o.streams.delete("s"),
    "deletion": lambda o: o.streams.delete("f"),
    "append": lambda o: o.append("s", b"x", seq="1", producer=("p", 1, 0)),
}


@pytest.mark.parametrize("name", CHANGES)
async def test_replayed_change_reaches_the_index_though_it_has_no_data(name: str) -> None:
    """Else it would be lost for good once the index has gone past its frame."""
    journal = MemoryJournal()
    async with wired(journal) as origin:
        await origin.create("s", b"one")
        await origin.create("f", kind=None, source="s")
        await origin.create("other")
        origin.index()
        await CHANGES[name](origin)
        before = state_of(origin)
    async with wired(journal) as again:
        assert state_of(again) == before
        await again.append("other", b"what follows")
        again.index()
        before = state_of(again)
    async with wired(journal) as third:
        assert state_of(third) == before


async def test_number_of_a_deleted_stream_is_not_used_again() -> None:
    journal = MemoryJournal()
    async with wired(journal) as origin:
        first = await origin.create("s")
        await origin.streams.delete("s")
        origin.index()
    async with wired(journal) as again:
        second = await again.create("s")
    assert second.incarnation > first.incarnation


async def test_touch_that_only_the_index_knows_is_kept() -> None:
    journal, clock = MemoryJournal(), FakeClock()
    async with wired(journal, clock) as origin:
        await origin.create("s", b"one", ttl_s=60)
        clock.turn(50)
        await origin.content("s")
        origin.index()
    clock.turn(50)
    async with wired(journal, clock) as again:
        assert await again.content("s") == b"one"


async def test_index_that_finds_the_disk_full_learns_it_later() -> None:
    journal = FailingJournal()
    async with wired(journal) as origin:
        await origin.create("s", b"one")
        await origin.append("s", b"two", producer=("p", 0, 0))
        await origin.create("gone")
        origin.index()
        await origin.append("s", b"three", producer=("p", 0, 1))
        await origin.append("s", b"!", producer=("q", 0, 0))
        await origin.streams.delete("gone")
        journal.apply_failures.append(DiskFull("no room"))
        indexer = Indexer(origin.ledger, journal, origin.stopped.append)
        await indexer.apply()
        assert metrics.INDEX_LAG._value.get() == 3  # else nobody would see that it waits
        await origin.append("s", b"four", producer=("p", 0, 2))
        assert await origin.content("s") == b"onetwothree!four"
        before = state_of(origin)
        await indexer.apply()
        assert metrics.INDEX_LAG._value.get() == 0
        assert not origin.catalog.by_path["s"].extents
    assert journal.applied()[0] == len(list(journal.frames(0)))
    async with wired(journal) as again:
        assert state_of(again) == before
        assert await again.content("s") == b"onetwothree!four"


async def test_index_learns_of_many_streams_before_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("origin.upkeep._APPLY_EVERY_S", 3600)
    monkeypatch.setattr("origin.upkeep._APPLY_PART_S", 0.001)
    monkeypatch.setattr("origin.ledger._SCATTERED_STREAMS", 3)
    journal = FailingJournal()
    async with wired(journal) as origin:
        done, applied = asyncio.Event(), origin.ledger.applied

        def note(batch: Batch) -> None:
            applied(batch)
            done.set()

        monkeypatch.setattr(origin.ledger, "applied", note)
        keeping = asyncio.create_task(Indexer(origin.ledger, journal, origin.stopped.append).keep())
        for number in range(2):
            await origin.create(str(number))
        await asyncio.sleep(0.02)
        assert not done.is_set()
        await origin.create("2")
        await asyncio.wait_for(done.wait(), 5)
        assert journal.applied()[0] == 3
        keeping.cancel()


async def test_index_that_waits_for_room_is_not_tried_any_sooner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("origin.ledger._SCATTERED_STREAMS", 3)
    journal = FailingJournal()
    async with wired(journal) as origin:
        for number in range(3):
            await origin.create(str(number), b"x")
        assert origin.ledger.scattered
        journal.apply_failures.append(DiskFull("no room"))
        await Indexer(origin.ledger, journal, origin.stopped.append).apply()
        assert origin.ledger.behind == 3
        assert not origin.ledger.scattered


async def test_index_that_fails_stops_the_process() -> None:
    journal = FailingJournal()
    error = JournalFailed("index.db: I/O error")
    async with wired(journal) as origin:
        await origin.create("s", b"one")
        journal.apply_failures.append(error)
        await Indexer(origin.ledger, journal, origin.stopped.append).apply()
        assert origin.stopped == [error]


# --- what must not be there ----------------------------------------------------------------------

STATE = StreamState("s", 1, "text/plain", NEVER, 0)


def frame_of(lsn: int, records: list[Record]) -> bytes:
    return b"".join(encode_frame(lsn, 0, records).pieces)


def journal_of(*frames: list[Record] | bytes) -> MemoryJournal:
    journal = MemoryJournal()
    for lsn, frame in enumerate(frames, 1):
        journal.append(lsn, [frame if isinstance(frame, bytes) else frame_of(lsn, frame)])
    return journal


def append(incarnation: int, payload: bytes = b"x") -> Appended:
    return Appended(incarnation, payload, False, None, None)


FORK = StreamState("f", 2, "text/plain", NEVER, 0, ForkPoint("s", 1, 0, None, 0), (Ancestor(1, 0),))


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([[Created(STATE, b"")], [append(9)]], "frame 2: names stream 9"),
        ([[append(1)]], "frame 1: names stream 1"),
        ([[Deleted(1, False)]], "frame 1: names stream 1"),
        ([[Created(STATE, b"")], [Deleted(1, False)], [append(1)]], "frame 3: names stream 1"),
        ([[Created(STATE, b"")], b"HWF1"], "frame 2: 4 bytes are too few"),
        ([[Created(STATE, b"")], b"\0" * 100], "frame 2: begins with"),
        ([[Created(STATE, b"")], frame_of(7, [append(1)])], "frame 2: .* frame 7"),
        ([[Created(FORK, b"")]], "'f' lacks its fork source"),
    ],
    ids=[
        "append to nothing",
        "append before creation",
        "deletion of nothing",
        "append after deletion",
        "cut off",
        "zeroes",
        "another frame",
        "fork of nothing",
    ],
)
def test_journal_that_contradicts_itself_is_refused_by_name(
    frames: list[list[Record] | bytes], message: str
) -> None:
    with pytest.raises(CorruptLog, match=f"/data/journal.db: .*{message}|{message}"):
        recover(journal_of(*frames), "/data/journal.db")


def test_flipped_bit_anywhere_in_a_frame_is_refused() -> None:
    records: list[Record] = [
        Created(STATE, b""),
        append(1, b"payload"),
        Appended(1, b"more", True, ProducerKey("p", 1, 2), "seq"),
    ]
    frame = frame_of(1, records)
    for at in range(len(frame)):
        broken = bytearray(frame)
        broken[at] ^= 1 << at % 8
        with pytest.raises(CorruptLog, match="frame 1"):
            recover(journal_of(bytes(broken)), "journal")


def test_frame_of_another_length_is_refused() -> None:
    frame = frame_of(1, [Created(STATE, b"abc")])
    for broken in (frame[:-1], frame + b"\0", frame[:20]):
        with pytest.raises(CorruptLog, match="frame 1"):
            recover(journal_of(broken), "journal")
