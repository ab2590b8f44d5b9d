"""Wakes may say anything, or nothing: every reader gets every byte once, and nothing spins."""

import asyncio
import random
from dataclasses import replace

import pytest

from edge import tails
from edge.upstream import Refused
from shared.protocol.errors import Unavailable
from shared.wake import ForeignWake, Wake, decode_wake, encode_wake
from tests.edge.following import PATH, Edge, Reader, edge, turn, until
from tests.fakes import token

DATA = b"0123456789"


async def start_readers(edge: Edge, count: int) -> list[Reader]:
    readers = [Reader(edge) for _ in range(count)]
    for reader in readers:
        await reader.has(edge.upstream.data)
    await turn()
    edge.upstream.asked.clear()
    return readers


async def all_have(readers: list[Reader], data: bytes | bytearray) -> None:
    for reader in readers:
        await reader.has(data)


# --- one wake, told in every wrong way -----------------------------------------------------------


async def test_wake_that_carries_the_bytes_costs_no_read() -> None:
    async with edge(DATA) as here:
        readers = await start_readers(here, 100)
        for more in (b"abc", b"d", b"e" * 500):
            here.wake(here.append(more))
            await all_have(readers, here.upstream.data)
        assert here.upstream.asked == []


async def test_wake_without_bytes_costs_one_read_whatever_the_readers() -> None:
    async with edge(DATA) as here:
        readers = await start_readers(here, 100)
        here.wake(replace(here.append(b"abc"), payload=None))
        await all_have(readers, here.upstream.data)
        assert here.upstream.asked == [("wait", token(10))]  # which a shield can answer by itself


async def test_wakes_without_bytes_that_come_during_a_read_are_answered_by_it() -> None:
    async with edge(DATA) as here:
        readers = await start_readers(here, 100)
        here.upstream.gate.clear()
        wakes = [replace(here.append(b"abc"), payload=None) for _ in range(5)]
        for wake in wakes:
            here.wake(wake)
            await turn()
        here.upstream.gate.set()
        await all_have(readers, here.upstream.data)
        assert here.upstream.asked == [("wait", token(10))]


async def test_wait_that_stays_without_an_answer_gives_way_to_a_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tails, "_LATE_S", 0.01)
    async with edge(DATA) as here:
        readers = await start_readers(here, 3)
        here.upstream.stands = True  # a shield that has not heard of it yet, and never will
        here.wake(replace(here.append(b"abc"), payload=None))
        await all_have(readers, here.upstream.data)
        assert here.upstream.asked == [("wait", token(10)), ("read", token(10))]


async def test_reader_who_has_it_from_elsewhere_waits_for_the_read_under_way() -> None:
    async with edge(DATA) as here:
        readers = await start_readers(here, 3)
        here.upstream.gate.clear()
        wake = replace(here.append(b"abc"), payload=None)
        here.wake(wake)
        await turn()
        quicker = Reader(here, wake.after)
        await turn()
        here.upstream.gate.set()
        await all_have(readers, here.upstream.data)
        here.wake(here.append(b"d"))
        await quicker.has(b"d")
        assert here.upstream.asked == [("wait", token(10))]


async def test_doubled_wake_changes_nothing() -> None:
    async with edge(DATA) as here:
        readers = await start_readers(here, 3)
        wake = here.append(b"abc")
        for _ in range(5):
            here.wake(wake)
        await all_have(readers, here.upstream.data)
        await turn()
        assert here.upstream.asked == []
        assert {reader.steps for reader in readers} == {2}


async def test_lost_wake_is_found_by_the_next() -> None:
    async with edge(DATA) as here:
        readers = await start_readers(here, 3)
        here.append(b"abc")
        here.wake(here.append(b"def"))
        await all_have(readers, here.upstream.data)
        assert here.upstream.asked == [("wait", token(10))]


async def test_last_wake_lost_is_found_once_nothing_was_heard_for_a_long_poll() -> None:
    async with edge(DATA) as here:
        readers = await start_readers(here, 3)
        here.append(b"abc")
        here.clock.turn(20.5)
        await all_have(readers, here.upstream.data)
        assert here.upstream.reads == 1


async def test_of_many_quiet_streams_only_some_are_looked_at_at_once() -> None:
    async with edge(DATA) as here:
        held = []
        for number in range(600):
            with here.tails.using(f"quiet-{number}") as tail:
                await here.tails.follow(tail)
                await here.tails.read(tail, "-1")
                here.tails.hold(tail.path)
                held.append(tail)
        here.upstream.asked.clear()
        here.clock.turn(20.5)
        await until(lambda: here.upstream.reads)
        await turn()
        assert here.upstream.reads <= tails._CONFIRMS_AT_ONCE
        await until(lambda: here.upstream.reads >= 3 * tails._CONFIRMS_AT_ONCE)
        assert here.upstream.reads < len(held)


async def test_reordered_wakes_end_in_the_same_bytes() -> None:
    async with edge(DATA) as here:
        readers = await start_readers(here, 3)
        wakes = [here.append(bytes([65 + n]) * (n + 1)) for n in range(5)]
        for number in (3, 0, 4, 1, 2):
            here.wake(wakes[number])
            await turn(3)
        await all_have(readers, here.upstream.data)


async def test_late_wake_of_what_was_read_changes_nothing() -> None:
    async with edge(DATA) as here:
        wake = here.append(b"abc")
        readers = await start_readers(here, 3)
        here.wake(wake)
        await turn()
        await all_have(readers, DATA + b"abc")
        assert here.upstream.asked == []


async def test_wake_during_the_first_read_is_not_lost() -> None:
    async with edge(DATA) as here:
        here.upstream.gate.clear()
        reader = Reader(here)
        await turn()
        assert here.upstream.asked == [("read", "-1")]
        here.wake(here.append(b"abc"))  # the read under way does not have it
        here.upstream.gate.set()
        await reader.has(DATA + b"abc")


async def test_wake_for_a_stream_nobody_reads_is_ignored() -> None:
    async with edge(DATA) as here:
        readers = await start_readers(here, 1)
        here.wake(here.append(b"abc"), path="other")
        await turn()
        assert here.upstream.asked == []
        assert readers[0].got == DATA


FOREIGN = [
    pytest.param(Wake(9, token(0, 9), token(5, 9), payload=b"lies!"), id="a later life"),
    pytest.param(Wake(0, token(0, 0), token(5, 0), payload=b"lies!"), id="an earlier life"),
    pytest.param(Wake(1, token(50), token(55), payload=b"lies!"), id="ahead"),
    pytest.param(Wake(1, token(0), token(5), payload=b"lies!"), id="behind"),
    pytest.param(Wake(1, token(5), token(5)), id="nowhere"),
    pytest.param(Wake(1, token(50), token(50), closed=True), id="closed ahead"),
    pytest.param(Wake(1, token(10), token(10), deleted=True), id="deleted, which it is not"),
    pytest.param(Wake(1, "", "zzz", payload=b"lies!"), id="no tokens"),
]


@pytest.mark.parametrize("lie", FOREIGN)
async def test_false_wake_costs_at_most_a_read_and_no_byte(lie: Wake) -> None:
    async with edge(DATA) as here:
        readers = await start_readers(here, 10)
        for _ in range(20):
            here.wake(lie)
            await turn(5)
        await turn()
        assert here.upstream.reads <= 40
        reads = here.upstream.reads
        await asyncio.sleep(0.05)
        assert here.upstream.reads == reads  # it does not go on asking
        here.wake(here.append(b"abc"))
        await all_have(readers, DATA + b"abc")
        assert not any(reader.closed for reader in readers)


def forged(moved: int, payload: bytes) -> bytes:
    """Return a wake on the wire whose bytes are not what its offsets say."""
    return encode_wake(Wake(1, token(10), token(10 + moved), payload=payload))


@pytest.mark.parametrize(
    "message",
    [forged(3, b"ab"), forged(3, b"abcd"), forged(0, b"a"), forged(3, b"")],
    ids=["too few", "too many", "without a move", "none"],
)
def test_wake_of_forged_length_is_foreign(message: bytes) -> None:
    with pytest.raises(ForeignWake, match="carries"):
        decode_wake(message)


# --- gaps that are larger than one read ----------------------------------------------------------


async def test_gap_of_many_chunks_is_closed_at_once() -> None:
    async with edge(DATA) as here:
        readers = await start_readers(here, 5)
        here.append(b"x" * 5000)  # five reads of at most 1024 bytes
        here.wake(here.append(b"end"))
        await all_have(readers, here.upstream.data)


async def test_tail_is_found_behind_many_chunks_though_nobody_reads_on() -> None:
    """A reader that waits at the real tail already, through another edge, say."""
    async with edge(DATA) as here:
        readers = await start_readers(here, 1)
        await readers[0].leave()
        with here.tails.using(PATH) as tail:
            here.append(b"x" * 5000)
            here.wake(replace(here.append(b"end"), payload=None))
            await until(lambda: tail.state is not None and tail.state.offset == here.upstream.tail)
        # 10 to 1024, four whole ones, the rest; one more finds the end.
        assert here.upstream.reads <= 7


# --- the bus comes and goes ----------------------------------------------------------------------


async def test_bus_that_falls_is_replaced_by_polling() -> None:
    async with edge(DATA) as here:
        assert here.line is not None
        readers = await start_readers(here, 10)
        here.line.fall()
        await turn()
        for more in (b"abc", b"def"):
            here.append(more)
            await all_have(readers, here.upstream.data)
        assert sum(mode == "wait" for mode, _ in here.upstream.asked) <= 4


async def test_bus_that_rises_ends_the_polling_and_is_looked_behind() -> None:
    async with edge(DATA) as here:
        assert here.line is not None
        readers = await start_readers(here, 10)
        here.line.fall()
        await turn()
        here.upstream.data += b"abc"  # without a word to those who poll
        here.line.rise()
        await all_have(readers, DATA + b"abc")
        assert not here.tails._polls
        here.upstream.asked.clear()
        here.wake(here.append(b"def"))
        await all_have(readers, DATA + b"abcdef")
        assert here.upstream.asked == []


@pytest.mark.parametrize("steps", range(4))
async def test_bus_that_flickers_leaves_no_stream_without_news(steps: int) -> None:
    """Up and down again, before anything could be done about the first."""
    async with edge(DATA) as here:
        assert here.line is not None
        readers = await start_readers(here, 3)
        here.line.fall()
        await turn()
        here.line.rise()
        await turn(steps)
        here.line.fall()
        await turn()
        here.append(b"abc")
        await all_have(readers, DATA + b"abc")
        here.line.rise()
        await turn()
        assert not here.tails._polls


@pytest.mark.parametrize("steps", range(5))
async def test_bus_that_falls_while_it_confirms_is_not_relied_on(steps: int) -> None:
    async with edge(DATA) as here:
        assert here.line is not None
        here.line.answer.clear()
        reader = Reader(here)
        await turn()
        here.line.answer.set()
        await turn(steps)
        here.line.fall()
        await reader.has(DATA)
        await turn()
        here.append(b"abc")
        await reader.has(DATA + b"abc")


async def test_bus_that_is_away_from_the_start_is_no_reason_to_wait() -> None:
    async with edge(DATA) as here:
        assert here.line is not None
        here.line.up = False
        readers = [Reader(here) for _ in range(3)]
        await all_have(readers, DATA)
        here.append(b"abc")
        await all_have(readers, DATA + b"abc")


async def test_no_bus_at_all_is_one_wait_for_all_readers_and_few_reads_an_append() -> None:
    async with edge(DATA, bus=False) as here:
        readers = await start_readers(here, 50)
        for more in (b"abc", b"def"):
            here.append(more)
            await all_have(readers, here.upstream.data)
        assert sum(mode == "wait" for mode, _ in here.upstream.asked) <= 3
        # Whoever comes back asks anew, for nobody would tell of what came meanwhile: those who come
        # during a read share the next one. How many that are depends on when they come.
        assert here.upstream.reads <= 10
        assert here.upstream.reads_at_once_max == 1


async def test_upstream_out_of_waits_is_read_once_in_a_while() -> None:
    async with edge(DATA, bus=False) as here:
        here.upstream.waits = asyncio.Semaphore(0)
        readers = await start_readers(here, 10)
        here.append(b"abc")
        await all_have(readers, DATA + b"abc")
        assert here.upstream.reads <= 3


# --- errors and ends -----------------------------------------------------------------------------


async def test_refusal_ends_all_readers_with_one_read() -> None:
    async with edge(DATA) as here:
        readers = await start_readers(here, 100)
        here.upstream.failures.append(Refused(410, "gone", "it is gone", {}))
        here.wake(Wake(1, token(10), token(10), deleted=True))
        for reader in readers:
            await asyncio.wait_for(reader.task, 5)
            assert isinstance(reader.error, Refused)
            assert reader.error.status == 410
        assert len(here.upstream.asked) == 1


async def test_upstream_that_fails_is_asked_again_by_and_by_and_no_reader_is_told() -> None:
    async with edge(DATA) as here:
        readers = await start_readers(here, 100)
        here.upstream.failures.extend(Unavailable("away") for _ in range(2))
        here.wake(replace(here.append(b"abc"), payload=None))
        await all_have(readers, DATA + b"abc")
        assert len(here.upstream.asked) == 3


@pytest.mark.parametrize("bus", [True, False], ids=["wakes", "polling"])
async def test_close_reaches_every_reader(bus: bool) -> None:
    async with edge(DATA, bus=bus) as here:
        readers = await start_readers(here, 20)
        here.upstream.closed = True
        if bus:
            here.wake(Wake(1, token(10), token(10), closed=True))
        here.upstream.grown.set()
        for reader in readers:
            await asyncio.wait_for(reader.task, 5)
        assert all(reader.closed and reader.got == DATA for reader in readers)


async def test_data_and_close_in_one_wake_reach_every_reader() -> None:
    async with edge(DATA) as here:
        readers = await start_readers(here, 20)
        wake = here.append(b"last")
        here.upstream.closed = True
        here.wake(replace(wake, closed=True))
        for reader in readers:
            await asyncio.wait_for(reader.task, 5)
        assert all(reader.closed and reader.got == DATA + b"last" for reader in readers)
        assert here.upstream.asked == []


async def test_stream_deleted_while_the_first_read_is_under_way_ends_its_readers() -> None:
    async with edge(DATA) as here:
        here.upstream.gate.clear()
        reader = Reader(here)
        await turn()
        here.wake(Wake(1, token(10), token(10), deleted=True))
        gone = Refused(404, "not_found", "no such stream", {})
        here.upstream.failures.extend([gone, gone])  # by the wake, and by the reader if it is later
        here.upstream.gate.set()
        await asyncio.wait_for(reader.task, 5)
        assert isinstance(reader.error, Refused)


async def test_stream_made_anew_at_once_has_readers_of_its_own() -> None:
    """The tail that failed leaves, and takes nothing of its successor's with it."""
    async with edge(DATA, bus=False) as here:
        readers = await start_readers(here, 3)
        here.upstream.failures.append(Refused(404, "not_found", "no such stream", {}))
        here.upstream.grown.set()
        here.upstream.data += b"!"  # what makes the wait end, so that it asks again and is refused
        for reader in readers:
            with pytest.raises(Refused):
                await reader.has(b"x" * 99)
        here.upstream.incarnation, here.upstream.data = 2, bytearray(b"new")
        fresh = Reader(here)
        await fresh.has(b"new")
        await turn()
        here.append(b"er")
        await fresh.has(b"newer")


async def test_foreign_upstream_that_never_says_up_to_date_is_not_asked_without_end() -> None:
    async with edge(DATA) as here:
        here.upstream.says_up_to_date = False
        reader = Reader(here, token(10))
        await asyncio.sleep(0.2)
        reads = len(here.upstream.asked)
        assert reads <= 10
        here.append(b"abc")
        here.clock.turn(21)
        await reader.has(b"abc")


async def test_stream_is_let_go_some_time_after_its_last_reader() -> None:
    async with edge(DATA) as here:
        assert here.line is not None
        readers = await start_readers(here, 3)
        for reader in readers:
            await reader.leave()
        assert here.line.wanted == [PATH]
        here.clock.turn(6)
        line = here.line
        await until(lambda: not line.wanted)
        assert not here.tails._tails


async def test_crowd_of_streams_is_let_go_a_part_at_a_time() -> None:
    async with edge(DATA) as here:
        assert here.line is not None
        for number in range(tails._LET_GO_AT_ONCE + 100):
            with here.tails.using(f"/{number}"):
                pass
        left = len(here.tails._tails)
        here.clock.turn(6)
        await until(lambda: len(here.tails._tails) < left)
        assert len(here.tails._tails) == 100
        await until(lambda: not here.tails._tails)


async def test_append_renews_a_sliding_window_as_a_read_does() -> None:
    async with edge(DATA) as here:
        here.upstream.ttl_s = 6
        readers = await start_readers(here, 3)
        here.upstream.asked.clear()
        for _ in range(8):
            here.clock.turn(0.9)
            here.wake(here.append(b"!"))
            await all_have(readers, here.upstream.data)
            late = Reader(here, here.upstream.tail)
            await turn()
            await late.leave()
        await asyncio.sleep(0.3)  # a sweep
        assert here.upstream.reads == 0


async def test_sliding_window_is_renewed_while_somebody_reads() -> None:
    async with edge(DATA) as here:
        here.upstream.ttl_s = 6
        await start_readers(here, 3)
        here.clock.turn(2.5)
        await until(lambda: here.upstream.reads)


# --- anything ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
async def test_readers_get_every_byte_once_whatever_the_bus_does(seed: int) -> None:
    random_ = random.Random(seed)
    async with edge(DATA, chunk_bytes=64) as here:
        assert here.line is not None
        readers = [Reader(here) for _ in range(5)]
        held: list[Wake] = []
        appends = 0
        for step in range(200):
            match random_.choice(
                ["append", "append", "wake", "wake", "lie", "line", "join", "turn"]
            ):
                case "append":
                    appends += 1
                    wake = here.append(b"<%d>" % step * random_.randrange(1, 30))
                    if here.line.up:
                        held += [wake] * random_.choice([0, 1, 1, 2])
                    if random_.random() < 0.2:
                        held = [replace(wake, payload=None) for wake in held]
                case "wake" if held:
                    here.wake(held.pop(random_.randrange(len(held))))
                case "lie":
                    here.wake(random_.choice(FOREIGN).values[0])  # type: ignore[arg-type]
                case "line":
                    if here.line.up:
                        held.clear()
                    random_.choice([here.line.fall, here.line.rise, here.line.rise])()
                case "join":
                    await readers.pop(0).leave()
                    readers.append(Reader(here))
                case _:
                    await turn(random_.randrange(6))
        here.line.rise()
        await all_have(readers, here.upstream.data)
        await turn()
        reads = len(here.upstream.asked)
        await asyncio.sleep(0.02)
        assert len(here.upstream.asked) == reads
        for reader in readers:
            await reader.leave()
