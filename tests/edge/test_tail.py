"""What one tail believes: it only moves forward, and what it says of the end is whole."""

import asyncio
from dataclasses import replace

import pytest

from edge.recent import PIECE_BYTES_MAX, Recent
from edge.tail import Tail
from shared.protocol.chunk import Chunk
from shared.protocol.offset import ZERO_TOKEN
from shared.wake import Wake
from tests.fakes import ScriptedUpstream, token


def chunk(
    next_: str,
    body: bytes = b"",
    *,
    at_tail: bool = True,
    closed: bool = False,
    kind: str = "text/plain",
) -> Chunk:
    return Chunk(
        content_type=kind,
        next=next_,
        body=body,
        empty=body in (b"", b"[]"),
        at_tail=at_tail,
        closed=closed,
        etag=None,
        cache_control="no-store",
    )


def tail_at(position: int, kind: str = "text/plain") -> Tail:
    tail = Tail("s", Recent())
    assert tail.on_read("-1", chunk(token(position), b"x" * position, kind=kind)) is False
    return tail


def wake(before: int, payload: bytes | None, *, size: int = 0, closed: bool = False) -> Wake:
    after = before + (size if payload is None else len(payload))
    return Wake(1, token(before), token(after), closed=closed, payload=payload)


def said(tail: Tail, offset: str) -> tuple[bytes, str, bool, bool] | None:
    found = tail.after(offset)
    return None if found is None else (found.body, found.next, found.at_tail, found.closed)


def test_unknown_tail_says_nothing() -> None:
    tail = Tail("s", Recent())
    assert tail.after(token(0)) is None
    assert tail.on_read("-1", chunk(token(5), b"12345", at_tail=False)) is False
    assert tail.state is None


def test_empty_answer_is_the_tail_even_where_it_does_not_say_so() -> None:
    tail = Tail("s", Recent())
    tail.on_read(token(5), chunk(token(5), at_tail=False))
    assert said(tail, token(5)) == (b"", token(5), True, False)


def test_first_answer_is_there_for_others_who_ask_at_its_place() -> None:
    tail = Tail("s", Recent())
    whole = replace(chunk(token(5), b"45"), etag=f'"{token(3)}:{token(5)}"')
    tail.on_read(token(3), whole)
    assert said(tail, token(3)) == (b"45", token(5), True, False)


@pytest.mark.parametrize(
    "tag", [f'"{token(2)}:{token(5)}"', f'"{token(3)}:{token(5)}:t"', '"x"', None]
)
def test_first_answer_that_is_more_than_it_seems_is_asked_for_anew(tag: str | None) -> None:
    tail = Tail("s", Recent())
    tail.on_read(token(3), replace(chunk(token(5), b"45"), etag=tag))
    assert tail.after(token(3)) is None


@pytest.mark.parametrize("start", ["-1", "now", ZERO_TOKEN])
def test_start_that_is_no_place_of_its_own_is_asked_for_anew(start: str) -> None:
    tail = Tail("s", Recent())
    tail.on_read(start, chunk(token(5), b"12345"))
    assert tail.after(start) is None


def test_tail_says_what_came_since_an_offset_it_was_at() -> None:
    tail = tail_at(5)
    assert said(tail, token(5)) == (b"", token(5), True, False)
    assert tail.on_wake(wake(5, b"abc")) is False
    assert tail.on_wake(wake(8, b"de")) is False
    assert said(tail, token(5)) == (b"abcde", token(10), True, False)
    assert said(tail, token(8)) == (b"de", token(10), True, False)
    assert said(tail, token(10)) == (b"", token(10), True, False)
    assert said(tail, token(6)) is None
    assert said(tail, token(0)) is None


def test_json_is_an_array_however_many_wakes_brought_it() -> None:
    tail = tail_at(5, "application/json")
    tail.on_wake(wake(5, b'{"a":1},'))
    tail.on_wake(wake(13, b"2,3,"))
    assert said(tail, token(5)) == (b'[{"a":1},2,3]', token(17), True, False)
    assert said(tail, token(13)) == (b"[2,3]", token(17), True, False)


@pytest.mark.parametrize(
    ("told", "asks"),
    [
        (wake(5, b"abc"), False),
        (wake(5, None, size=3), True),
        (wake(6, b"abc"), True),
        (wake(2, b"abc"), False),
        (wake(5, b""), False),
        (wake(5, b"", closed=True), False),
        (wake(5, None, closed=True), True),
        (wake(3, b"", closed=True), False),
        (Wake(1, token(5), token(5), deleted=True), True),
        (Wake(2, token(0, 2), token(3, 2), payload=b"abc"), True),
    ],
    ids=[
        "next, with bytes",
        "next, without",
        "after a gap",
        "old",
        "nothing",
        "close",
        "close, without bytes",
        "old close",
        "deletion",
        "a later life",
    ],
)
def test_wake_is_believed_only_where_it_fits(told: Wake, asks: bool) -> None:
    assert tail_at(5).on_wake(told) is asks


def test_close_is_a_step_forward_that_nothing_takes_back() -> None:
    tail = tail_at(5)
    tail.on_wake(wake(5, b"abc", closed=True))
    assert said(tail, token(5)) == (b"abc", token(8), True, True)
    assert said(tail, token(8)) == (b"", token(8), True, True)
    tail.on_wake(wake(5, b"abc"))
    tail.on_read(token(8), chunk(token(8)))
    assert said(tail, token(8)) == (b"", token(8), True, True)


@pytest.mark.parametrize("position", [0, 4, 5])
def test_old_answer_does_not_move_it_back(position: int) -> None:
    tail = tail_at(5)
    assert tail.on_read(token(0), chunk(token(position), b"x" * position)) is False
    assert said(tail, token(5)) == (b"", token(5), True, False)


@pytest.mark.parametrize(
    ("hint", "asks"),
    [
        (wake(5, b"abc"), True),
        (wake(2, b"abc"), False),
        (wake(5, b"", closed=True), True),
        (Wake(1, token(2), token(2), deleted=True), True),
    ],
    ids=["beyond", "seen", "closed", "deleted"],
)
def test_wake_before_the_first_answer_is_remembered(hint: Wake, asks: bool) -> None:
    tail = Tail("s", Recent())
    assert tail.on_wake(hint) is False
    assert tail.on_read("-1", chunk(token(5), b"01234")) is asks
    assert tail.on_read(token(5), chunk(token(5))) is False


def test_answer_that_stops_before_the_tail_is_asked_on_until_it_is_there() -> None:
    upstream = ScriptedUpstream(b"x" * 5000, chunk_bytes=1024)
    tail = tail_at(10)
    reads = 0
    while True:
        assert tail.state is not None
        reads += 1
        if not tail.on_read(tail.state.offset, upstream.chunk(tail.state.offset)):
            break
    assert tail.state.offset == token(5000)
    assert reads == 5


def test_what_is_not_the_tail_yet_is_never_called_the_tail() -> None:
    tail = tail_at(10)
    assert tail.on_read(token(10), chunk(token(20), b"y" * 10, at_tail=False)) is True
    assert said(tail, token(10)) == (b"y" * 10, token(20), False, False)
    assert said(tail, token(20)) is None  # there is more, and nobody may wait as if there were not
    assert tail.on_read(token(20), chunk(token(25), b"z" * 5)) is False
    assert said(tail, token(20)) == (b"z" * 5, token(25), True, False)
    assert said(tail, token(10)) == (b"y" * 10 + b"z" * 5, token(25), True, False)


def test_more_that_turns_out_not_to_be_there_makes_it_the_tail_again() -> None:
    tail = tail_at(10)
    tail.on_read(token(10), chunk(token(20), b"y" * 10, at_tail=False))
    assert tail.on_read(token(20), chunk(token(20))) is False
    assert said(tail, token(20)) == (b"", token(20), True, False)


def test_answer_from_elsewhere_moves_it_without_bytes() -> None:
    tail = tail_at(5)
    assert tail.on_read(token(2), chunk(token(9), b"2345678")) is False
    assert said(tail, token(9)) == (b"", token(9), True, False)
    assert said(tail, token(5)) is None
    assert tail.on_read(token(2), chunk(token(12), b"2345", at_tail=False)) is False
    assert said(tail, token(12)) is None


def test_recent_data_is_joined_up_to_a_bound() -> None:
    tail = tail_at(0)
    for number in range(100):
        tail.on_wake(wake(number * 4000, b"a" * 4000))
    found = said(tail, token(0))
    assert found is not None
    assert len(found[0]) == PIECE_BYTES_MAX // 4000 * 4000
    assert found[1:] == (token(len(found[0])), False, False)


def test_data_larger_than_what_is_kept_is_read_by_those_who_wait() -> None:
    tail = tail_at(5)
    size = PIECE_BYTES_MAX + 1
    tail.on_read(token(5), chunk(token(5 + size), b"a" * size))
    assert said(tail, token(5)) is None
    assert said(tail, token(5 + size)) == (b"", token(5 + size), True, False)


def test_successor_sees_nothing_of_what_was_kept_before_it() -> None:
    """A stream that is forked anew at its path has the same offsets, and other data."""
    recent = Recent()
    first, second = Tail("s", recent), Tail("s", recent)
    for tail in (first, second):
        tail.on_read(token(0), chunk(token(0)))
    first.on_wake(wake(0, b"old"))
    assert said(first, token(0)) == (b"old", token(3), True, False)
    second.on_read(token(1), chunk(token(3), b"ew"))
    assert said(second, token(0)) is None


async def test_failure_wakes_whoever_waits() -> None:
    tail = tail_at(5)
    waiting = asyncio.create_task(tail.news())
    await asyncio.sleep(0)
    error = OSError("gone")
    tail.fail(error)
    await asyncio.wait_for(waiting, 5)
    assert tail.failed is error
