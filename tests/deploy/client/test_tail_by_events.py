"""Following a stream by server-sent events."""

import base64

import pytest
from aiohttp import web
from yarl import URL

from deploy.client.follow import read
from deploy.client.running import Exit
from deploy.client.wire import Wire
from shared.protocol.request import Live
from tests.deploy.client.running import run_beside
from tests.deploy.client.script import FakeTime, Serve, Step, control, data_event, events, tail_of


async def test_tail_by_events_does_not_show_again_what_is_delivered_again(serve: Serve) -> None:
    new = data_event("new") + control("09")
    script = await serve(
        tail_of(b"", "07"),
        events(data_event("old"), control("07"), new, new),
        events(new, control("09", streamClosed=True)),
    )
    assert (await run_beside("tail", script.url, "--sse")).out == b"new"


async def test_tail_by_events_shows_only_what_is_complete(serve: Serve) -> None:
    script = await serve(
        tail_of(b"", "07"),
        events(control("07", streamCursor="1", upToDate=True), data_event("a\nb"), control("10")),
        events(data_event("lost with its control event")),
        events(data_event("c"), control("11"), data_event("never to come again")),
        events(control("11", streamClosed=True)),
    )
    done = await run_beside("tail", script.url, "--sse", "-v")
    assert (done.code, done.out) == (Exit.OK, b"a\nbc")
    assert done.err.endswith("headwater: next offset: 11\n")
    assert [(query["offset"], query.get("cursor")) for query in script.queries] == [
        ("now", None),
        ("07", None),
        ("10", None),
        ("10", None),
        ("11", None),
    ]


async def test_tail_by_events_decodes_binary(serve: Serve) -> None:
    body = bytes(range(256))
    text = base64.b64encode(body).decode()
    script = await serve(
        tail_of(b"", "07", "application/octet-stream"),
        events(
            data_event(text[:40] + "\n" + text[40:]),
            control("63", streamClosed=True),
            Stream_SSE_Data_Encoding="base64",
        ),
    )
    assert (await run_beside("tail", script.url, "--sse")).out == body


async def test_tail_by_events_shows_json_messages_one_a_line(serve: Serve) -> None:
    script = await serve(
        tail_of(b"[]", "07", "application/json"),
        events(
            data_event('[\n{"b":1,"a":2.0},\n3\n]'),
            data_event("[4]"),
            control("08", streamClosed=True),
        ),
    )
    assert (await run_beside("tail", script.url, "--sse")).out == b'{"b":1,"a":2.0}\n3\n4\n'


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(tail_of(b"x", "08"), id="no event stream"),
        pytest.param(events("event: control\ndata: {}\n\n"), id="no offset"),
        pytest.param(events("event: control\ndata: [\n\n"), id="no JSON"),
        pytest.param(
            events(data_event("?"), control("08"), Stream_SSE_Data_Encoding="base64"),
            id="no base64",
        ),
    ],
)
async def test_tail_by_events_stops_at_what_it_does_not_know(serve: Serve, step: Step) -> None:
    script = await serve(tail_of(b"", "07"), step)
    done = await run_beside("tail", script.url, "--sse")
    assert done.code == Exit.UNEXPECTED
    assert done.out == b""


async def test_event_streams_that_end_at_once_are_not_opened_without_a_pause(serve: Serve) -> None:
    ends = events(control("07", upToDate=True))
    script = await serve(tail_of(b"", "07"), *[ends] * 3, events(control("07", streamClosed=True)))
    time = FakeTime()
    async with Wire(URL(script.url), timing=time.timing(1)) as wire:
        assert [chunk.next_offset async for chunk in read(wire, "now", Live.SSE)] == ["07"]
    assert script.steps == []
    assert time.pauses == [0.1, 0.2, 0.4]


async def test_event_streams_that_brought_something_are_no_outage(serve: Serve) -> None:
    script = await serve(
        tail_of(b"", "07"),
        events(data_event("a"), control("08")),
        events(data_event("b"), control("09")),
        events(control("09", streamClosed=True)),
    )
    time = FakeTime()
    async with Wire(URL(script.url), timing=time.timing(1)) as wire:
        bodies = [chunk.body async for chunk in read(wire, "now", Live.SSE)]
    assert bodies == [b"", b"a", b"b"]
    assert time.pauses == [0.1, 0.1]


async def test_event_streams_that_lasted_are_no_outage(serve: Serve) -> None:
    time = FakeTime()

    async def lasts(request: web.Request) -> web.StreamResponse:
        time.now += 60
        return await events(control("07", upToDate=True))(request)

    ends = events(control("07", streamClosed=True))
    script = await serve(tail_of(b"", "07"), lasts, lasts, ends)
    async with Wire(URL(script.url), timing=time.timing(1)) as wire:
        assert [chunk.next_offset async for chunk in read(wire, "now", Live.SSE)] == ["07"]
    assert time.pauses == [0.1, 0.1]


@pytest.mark.parametrize("how", [["read"], ["tail", "--sse"]], ids=["read", "sse"])
async def test_chunk_without_end_is_refused(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, how: list[str]
) -> None:
    monkeypatch.setattr("deploy.client.follow.CHUNK_BYTES_MAX", 10)
    endless = events(data_event("six by"), data_event("six is more"), control("9"))
    script = (
        await serve(tail_of(b"", "07"), endless)
        if how[1:]
        else await serve(tail_of(b"x" * 11, "07"))
    )
    done = await run_beside(*how[:1], script.url, *how[1:])
    assert (done.code, done.out) == (Exit.UNEXPECTED, b"")
    assert "more than 10 bytes at once" in done.err
