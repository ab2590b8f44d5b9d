"""Long-polls: when they are answered, with what, and with which cursor."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from tests.http.api import JSON, TEXT, Answer, Server, Stream, moved, token


async def parked(stream: Stream, offset: str) -> asyncio.Task[Answer]:
    """Start a long-poll, and give it time to get as far as waiting (it may be late, no harm)."""
    poll = asyncio.create_task(stream.poll(offset))
    await asyncio.sleep(0.05)
    return poll


@pytest.mark.parametrize("kind", [TEXT, JSON])
async def test_poll_in_vain_says_where_the_reader_is(server: Server, kind: str) -> None:
    stream = server.stream()
    tail = (await stream.put(b"1", kind)).next
    for offset in (tail, "now"):
        answer = await stream.poll(offset)
        assert (answer.status, answer.body) == (204, b"")
        assert (answer.next, answer.up_to_date, answer.closed) == (tail, True, False)
        assert answer.headers["Stream-Cursor"].isdigit()
        assert "Content-Type" not in answer.headers


async def test_follower_gets_every_byte_once_and_is_never_sent_past_any(server: Server) -> None:
    stream, count = server.stream(), 60
    offset = (await stream.put()).next

    async def write() -> None:
        for n in range(count):
            await stream.post(b"<%d>" % n)
            # Bursts and pauses: some appends meet a waiting reader, some a returning one.
            await asyncio.sleep(0.02 * (n % 4 == 0))
        await stream.close()

    async def follow(offset: str) -> bytes:
        got, cursor = b"", None
        while True:
            answer = await stream.poll(offset, cursor)
            if answer.status == 204:
                assert answer.next == offset
            else:
                assert answer.status == 200
                assert token(answer.next)[1] == token(offset)[1] + len(answer.body)
                got += answer.body
            if answer.closed:
                return got
            new = answer.headers["Stream-Cursor"]
            assert cursor is None or int(new) > int(cursor)
            offset, cursor = answer.next, new

    *followed, _ = await asyncio.gather(*(follow(offset) for _ in range(5)), write())
    assert set(followed) == {b"".join(b"<%d>" % n for n in range(count))}


@pytest.mark.parametrize("cursor", ["1", "999999999", "99999999999999"])
async def test_cursor_grows_strictly_with_data_and_without(server: Server, cursor: str) -> None:
    stream = server.stream()
    tail = (await stream.put(b"data")).next
    for offset in ("-1", "-1", tail):
        answer = await stream.poll(offset, cursor)
        assert int(answer.headers["Stream-Cursor"]) > int(cursor)
        cursor = answer.headers["Stream-Cursor"]


@pytest.mark.parametrize("cursor", ["999999999999999", "9999999999999999"])
async def test_huge_cursor_never_goes_backwards(server: Server, cursor: str) -> None:
    stream = server.stream()
    await stream.put(b"data")
    for _ in range(3):
        new = (await stream.poll("-1", cursor)).headers["Stream-Cursor"]
        assert int(new) > int(cursor)
        cursor = new


@pytest.mark.parametrize(
    "cursor",
    [
        *("", "abc", "-5", "+5", "1.5", "1e3", "0x10", "a/b", "%00", "%ff", "%EF%BC%91", "1%0a"),
        *("%20", "9" * 500, "c" * 3000),
    ],
    ids=lambda cursor: cursor[:16] or "empty",
)
async def test_cursor_of_another_server_is_tolerated(server: Server, cursor: str) -> None:
    stream = server.stream()
    await stream.put(b"data")
    answer = await stream.poll("-1", cursor)
    assert (answer.status, answer.body) == (200, b"data")
    assert answer.headers["Stream-Cursor"].isdigit()


async def test_cursor_is_the_same_for_everyone_who_asks_alike(server: Server) -> None:
    stream = server.stream()
    await stream.put(b"data")
    answers = await asyncio.gather(*(stream.poll("-1", "999999999") for _ in range(8)))
    assert len({answer.headers["Stream-Cursor"] for answer in answers}) == 1


async def test_data_that_is_there_is_not_waited_for(patient: Server) -> None:
    stream = patient.stream()
    await stream.put(b"a")
    middle = (await stream.post(b"b")).next
    await stream.post(b"c")
    for offset, body in (("-1", b"abc"), (middle, b"c"), (moved(middle, -1), b"bc")):
        answer = await stream.poll(offset)
        assert (answer.status, answer.body, answer.up_to_date) == (200, body, True)


async def test_end_that_is_there_is_not_waited_for(patient: Server) -> None:
    stream = patient.stream()
    await stream.put(b"data")
    tail = (await stream.close()).next
    for offset in (tail, "now", moved(tail, 1)):
        answer = await stream.poll(offset)
        assert (answer.status, answer.body) == (204, b"")
        assert (answer.next, answer.up_to_date, answer.closed) == (tail, True, True)
    last = await stream.poll("-1")
    assert (last.status, last.body, last.closed) == (200, b"data", True)


async def test_empty_closed_stream_is_not_waited_for(patient: Server) -> None:
    stream = patient.stream()
    created = await stream.put(headers={"Stream-Closed": "true"})
    for offset in ("-1", "now", created.next):
        answer = await stream.poll(offset)
        assert (answer.status, answer.closed, answer.next) == (204, True, created.next)


@pytest.mark.parametrize("offset", ["tail", "now", "behind"])
async def test_append_wakes_whoever_waits(patient: Server, offset: str) -> None:
    stream = patient.stream()
    tail = (await stream.put(b"old")).next
    where = {"tail": tail, "now": "now", "behind": moved(tail, 1)}[offset]
    polls = [await parked(stream, where) for _ in range(3)]
    appended = await stream.post(b"new")
    for answer in await asyncio.gather(*polls):
        assert (answer.status, answer.body, answer.next) == (200, b"new", appended.next)
        assert answer.up_to_date


async def test_append_wakes_a_crowd(patient: Server) -> None:
    stream = patient.stream()
    tail = (await stream.put()).next
    polls = [asyncio.create_task(stream.poll(tail)) for _ in range(200)]
    await asyncio.sleep(0.2)
    await stream.post(b"news")
    answers = await asyncio.gather(*polls)
    assert {(answer.status, answer.body) for answer in answers} == {(200, b"news")}


async def test_reader_who_leaves_takes_nobody_along(patient: Server) -> None:
    stream = patient.stream()
    tail = (await stream.put()).next
    leaving = [await parked(stream, tail) for _ in range(5)]
    staying = [await parked(stream, tail) for _ in range(5)]
    for poll in leaving:
        poll.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await poll
    await stream.post(b"news")
    answers = await asyncio.gather(*staying)
    assert {(answer.status, answer.body) for answer in answers} == {(200, b"news")}


async def test_close_wakes_whoever_waits(patient: Server) -> None:
    stream = patient.stream()
    tail = (await stream.put(b"data")).next
    polls = [await parked(stream, tail), await parked(stream, "now")]
    await stream.close()
    answers = await asyncio.gather(*polls)
    for answer in answers:
        assert (answer.status, answer.closed, answer.next) == (204, True, tail)
    # A cache tells all who wait at the same place by one answer; from `now` is no place.
    assert [answer.cache_control for answer in answers] == ["public, max-age=1", "no-store"]


async def test_live_read_has_all_that_was_acknowledged_before_it(server: Server) -> None:
    stream, count = server.stream(), 100
    offsets = [(await stream.put()).next]

    async def keep_warm() -> None:
        offset, ended = offsets[0], False
        while not ended:
            answer = await stream.poll(offset)
            offset, ended = answer.next, answer.closed

    warm = asyncio.create_task(keep_warm())
    for n in range(count):
        offsets.append((await stream.post(b"<%d>" % n)).next)
        for start in {0, max(0, n - 3), n}:
            answer = await stream.poll(offsets[start])
            assert (answer.status, answer.next) == (200, offsets[-1])
            assert answer.body == b"".join(b"<%d>" % m for m in range(start, n + 1))
    await stream.close()
    await warm


async def test_last_append_and_close_arrive_together(patient: Server) -> None:
    stream = patient.stream()
    tail = (await stream.put(b"data")).next
    poll = await parked(stream, tail)
    await stream.post(b" end", headers={"Stream-Closed": "true"})
    answer = await poll
    assert (answer.status, answer.body, answer.closed) == (200, b" end", True)


async def test_deletion_wakes_whoever_waits(patient: Server) -> None:
    stream = patient.stream()
    tail = (await stream.put(b"data")).next
    poll, from_now = [await parked(stream, offset) for offset in (tail, "now")]
    await stream.delete()
    for waiting, control in ((poll, "public, max-age=1"), (from_now, "no-store")):
        answer = await waiting
        assert answer.status in (404, 410)
        # That offset is refused for ever: a cache tells all who waited there by one answer.
        answer.refusal(control)
    (await stream.poll(tail)).refusal()


async def test_stream_that_is_made_anew_does_not_wake_readers_of_the_old_one_with_its_data(
    patient: Server,
) -> None:
    stream = patient.stream()
    tail = (await stream.put(b"data")).next
    poll = await parked(stream, tail)
    await stream.delete()
    await stream.put(b"another stream")
    answer = await poll
    assert answer.status in (404, 410)
    assert (await stream.poll(tail)).status == 410
