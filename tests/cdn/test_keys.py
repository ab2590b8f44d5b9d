"""What a cache takes for the same, and what it leaves alone."""

from __future__ import annotations

from tests.cdn.behind import Behind
from tests.http.api import TEXT, Answer, Stream

PASSED = ("BYPASS", "PASS", None)


def cached(answer: Answer) -> str | None:
    return answer.headers.get("X-Cache")


async def three_parts(stream: Stream) -> list[str]:
    """Make a stream, and return the offsets between its three appends."""
    offsets = [(await stream.put(kind=TEXT)).next]
    for part in (b"one ", b"two ", b"three"):
        offsets.append((await stream.post(part)).next)
    return offsets


async def test_same_place_is_the_same_however_it_is_asked_for(behind: Behind) -> None:
    stream = behind.through.stream()
    start, one, *_ = await three_parts(stream)
    before = await behind.answered()
    asked = [
        await stream.get(query, headers)
        for query, headers in (
            (f"offset={one}&live=long-poll&cursor=7", {}),
            (f"cursor=7&live=long-poll&offset={one}", {}),
            (f"live=long-poll&mine=1&offset={one}&cursor=7&", {"Accept-Encoding": "gzip"}),
            (f"offset={one}&live=long-poll&cursor=7", {"Cookie": "a=b", "User-Agent": "x"}),
            (f"offset={one}&live=long-poll&cursor=7", {"Range": "bytes=0-1"}),
        )
    ]
    assert {(answer.status, answer.body) for answer in asked} == {(200, b"two three")}
    assert {cached(answer) for answer in asked[1:]} == {"HIT"}
    assert await behind.answered() - before == {200: 1}
    other = await stream.get(f"offset={start}&live=long-poll&cursor=7")
    assert (other.body, cached(other)) == (b"one two three", "MISS")


async def test_no_way_to_ask_puts_an_answer_where_others_find_it(behind: Behind) -> None:
    """An answer may be kept only under what the edge, and not only the cache, made of a query."""
    stream = behind.through.stream()
    _, one, two, _ = await three_parts(stream)
    direct = Stream(behind.past, stream.target)
    for query in (
        f"Offset={one}",
        f"%6Fffset={one}",
        f"offset=%2D1&x=offset={one}",
        f"x=1;offset={one}",
        f"offset={one}&offset={two}",
        f"offset={one}&%6Fffset={two}",
        f"xoffset={two}&offset={one}",
        f"offset={two}&Offset={one}",
        "offset",
        "offset=",
        f"offset={one}&live",
        f"offset={one}&live=",
        f"offset={one}&live=LONG-POLL",
        f"offset={one}&cursor=1",
        f"offset={two}?offset={one}",
    ):
        expected = await direct.get(query)
        for kept in ("", f"offset={one}", f"offset={two}", f"offset={one}&live=long-poll"):
            assert (await stream.get(kept)).status == 200  # so that it could be found
        for _ in range(2):
            answer = await stream.get(query)
            assert (answer.status, answer.body) == (expected.status, expected.body), query
    for query, body in (
        ("", b"one two three"),
        (f"offset={one}", b"two three"),
        (f"offset={two}", b"three"),
    ):
        assert (await stream.get(query)).body == body


async def test_path_is_taken_as_it_was_sent(behind: Behind) -> None:
    stream = behind.through.stream()
    await stream.put(b"data")
    nested = behind.through.stream(f"{stream.path}/deeper")
    await nested.put(b"deeper")
    assert (await nested.get()).body == b"deeper"
    for spelling in ("%2Fdeeper", "//deeper", "/./deeper", "/x/../deeper"):
        answer = await behind.through.ask("GET", stream.target + spelling)
        assert answer.status == 400, spelling


async def test_what_is_each_ones_own_is_passed(behind: Behind) -> None:
    stream = behind.through.stream()
    await stream.put(b"data")
    for _ in range(2):
        whole = await stream.get()
    assert cached(whole) == "HIT"
    for _ in range(2):
        for now in ("offset=now", "offset=n%6Fw", "x=1&offset=now"):
            assert cached(await stream.get(now)) in PASSED
        private = await stream.get("", {"Authorization": "Bearer mine"})
        assert (private.body, cached(private) in PASSED) == (b"data", True)
    # A HEAD is not answered by what a GET has brought: it tells the tail as it is.
    tail = (await stream.post(b" more")).next
    head = await stream.head()
    assert (head.next, cached(head) in PASSED) == (tail, True)
    refused = await stream.post(b"x", headers={"If-Match": '"other"'})
    assert (refused.status, refused.next) == (412, tail)
    made = await behind.through.stream().put()
    assert made.headers["Location"].startswith(f"{behind.url}/v1/stream/")


async def test_tag_is_answered_from_the_cache(behind: Behind) -> None:
    stream = behind.through.stream()
    await stream.put(b"data")
    tag = (await stream.get()).headers["ETag"]
    answer = await stream.get("", {"If-None-Match": tag})
    assert (answer.status, answer.body) == (304, b"")
    assert answer.headers["Stream-Next-Offset"]
    assert (await stream.get("", {"If-None-Match": '"other"'})).body == b"data"


async def test_events_come_as_they_happen(behind: Behind) -> None:
    stream = behind.through.stream()
    await stream.put(b"first")
    async with stream.sse("-1") as events:
        assert events.reply.headers["Content-Type"] == "text/event-stream"
        assert (await events.event()).data == "first"
        assert (await events.event()).kind == "control"
        for part in (b"second", b"third"):
            await stream.post(part)
            assert (await events.event()).data == part.decode()
            assert (await events.event()).kind == "control"
