"""Following a stream by long-polling."""

import pytest
from yarl import URL

from deploy.client.follow import read
from deploy.client.running import Exit
from deploy.client.wire import Wire
from shared.protocol.request import Live
from tests.deploy.client.running import Done, run_beside
from tests.deploy.client.script import (
    FakeTime,
    Serve,
    Step,
    control,
    cut,
    data_event,
    events,
    lost,
    nothing_at,
    part_of,
    refusal,
    reply,
    tail_of,
)


async def test_tail_follows_from_now_until_the_stream_is_closed(serve: Serve) -> None:
    script = await serve(
        tail_of(b"", "07"),
        nothing_at("07", Stream_Cursor="1"),
        tail_of(b"more\n", "12", Stream_Cursor="2"),
        nothing_at("12", Stream_Closed="true"),
    )
    done = await run_beside("tail", script.url, "-v")
    assert done == Done(Exit.OK, b"more\n", "headwater: next offset: 12\n")
    assert script.queries == [
        {"offset": "now"},
        {"offset": "07", "live": "long-poll"},
        {"offset": "07", "live": "long-poll", "cursor": "1"},
        {"offset": "12", "live": "long-poll", "cursor": "2"},
    ]


async def test_tail_of_a_closed_stream_ends_at_once(serve: Serve) -> None:
    script = await serve(tail_of(b"all of it", "09", Stream_Closed="true"))
    assert await run_beside("tail", script.url, "--offset", "-1") == Done(0, b"all of it", "")


async def test_tail_reads_what_is_there_before_it_waits(serve: Serve) -> None:
    script = await serve(
        part_of(b"a", "01"),
        tail_of(b"b", "02"),
        tail_of(b"c", "03", Stream_Closed="true"),
    )
    assert (await run_beside("tail", script.url, "--offset", "-1")).out == b"abc"
    assert [query.get("live") for query in script.queries] == [None, None, "long-poll"]


async def test_tail_does_not_skip_to_the_offset_of_an_empty_reply(serve: Serve) -> None:
    script = await serve(
        tail_of(b"", "07"),
        nothing_at("12"),
        tail_of(b"found", "12", Stream_Closed="true"),
    )
    assert (await run_beside("tail", script.url)).out == b"found"
    assert script.queries[2]["offset"] == "07"


async def test_tail_does_not_show_again_what_is_delivered_again(serve: Serve) -> None:
    script = await serve(
        tail_of(b"", "07"),
        tail_of(b"old", "07", Stream_Cursor="1"),
        tail_of(b"new", "09", Stream_Closed="true"),
    )
    assert (await run_beside("tail", script.url)).out == b"new"
    assert [query["offset"] for query in script.queries] == ["now", "07", "07"]


@pytest.mark.parametrize("how", [[], ["--sse"]], ids=["long-poll", "sse"])
async def test_tail_stops_when_the_server_goes_back(serve: Serve, how: list[str]) -> None:
    old = events(data_event("old"), control("03")) if how else tail_of(b"old", "03")
    script = await serve(tail_of(b"", "07"), old)
    done = await run_beside("tail", script.url, *how)
    assert (done.code, done.out) == (Exit.UNEXPECTED, b"")
    assert "went back from 07 to 03; to go on from there: --offset 07" in done.err


@pytest.mark.parametrize(("body", "kind"), [(b"", "text/plain"), (b"[]", "application/json")])
async def test_server_that_lags_behind_is_waited_for(serve: Serve, body: bytes, kind: str) -> None:
    script = await serve(
        tail_of(body, "07", kind), tail_of(body, "03", kind), nothing_at("07", Stream_Closed="true")
    )
    assert await run_beside("tail", script.url) == Done(Exit.OK, b"", "")
    assert script.queries[-1]["offset"] == "07"


@pytest.mark.parametrize("trouble", [lost, cut(b"mo"), reply(503), reply(429), reply(502)])
async def test_tail_goes_on_where_it_was(serve: Serve, trouble: Step) -> None:
    script = await serve(
        tail_of(b"", "07"),
        trouble,
        tail_of(b"more", "11"),
        tail_of(b"!", "12", Stream_Closed="true"),
    )
    done = await run_beside("tail", script.url)
    assert done == Done(Exit.OK, b"more!", "")
    assert [query["offset"] for query in script.queries] == ["now", "07", "07", "11"]


async def test_tail_says_once_that_the_server_stays_away(serve: Serve) -> None:
    script = await serve(
        tail_of(b"", "07"), *[reply(503)] * 4, tail_of(b"more", "11", Stream_Closed="true")
    )
    done = await run_beside("tail", script.url)
    assert done.out == b"more"
    assert done.err.count("trying again") == 1


async def test_tail_of_a_deleted_stream_ends(serve: Serve) -> None:
    script = await serve(tail_of(b"", "07"), refusal(404))
    assert (await run_beside("tail", script.url)).code == Exit.NOT_FOUND


async def test_replies_that_do_not_wait_are_not_asked_for_without_a_pause(serve: Serve) -> None:
    empty = nothing_at("07")
    script = await serve(
        tail_of(b"", "07"), *[empty] * 8, tail_of(b"more", "11", Stream_Closed="true")
    )
    time = FakeTime()
    async with Wire(URL(script.url), timing=time.timing(1)) as wire:
        bodies = [chunk.body async for chunk in read(wire, "now", Live.LONG_POLL)]
    assert bodies[-1] == b"more"
    assert time.pauses == [0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5]
