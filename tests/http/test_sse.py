"""Event streams: what they carry, how they go on, and when they end."""

from __future__ import annotations

import asyncio
import base64
import json
import random

import pytest

from tests.http.api import BINARY, JSON, TEXT, Event, Server, Stream


async def follow_until_closed(stream: Stream, offset: str, chance: random.Random) -> list[Event]:
    """Read all data events over as many connections as it takes, some of them torn by us."""
    got: list[Event] = []
    cursor: str | None = None
    while True:
        patience = chance.choice((1, 2, 5, 1000))
        pending: list[Event] = []
        async with stream.sse(offset, cursor) as events:
            async for event in events:
                if event.kind == "data":
                    pending.append(event)
                elif event.kind == "control":
                    # Only with the offset that follows it, data counts as read.
                    got += pending
                    pending = []
                    control = event.control
                    offset = str(control["streamNextOffset"])
                    if control.get("streamClosed"):
                        return got
                    cursor = str(control["streamCursor"])
                    patience -= 1
                    if not patience:
                        break


async def test_resumption_loses_nothing_and_doubles_nothing(server: Server) -> None:
    stream, count = server.stream(), 80
    offset = (await stream.put(kind=JSON)).next

    async def write() -> None:
        for n in range(count):
            await stream.post(b"%d" % n, JSON)
            await asyncio.sleep(0.04 * (n % 3 == 0))
        await stream.close()

    readers = (follow_until_closed(stream, offset, random.Random(n)) for n in range(6))
    followed, _ = await asyncio.gather(asyncio.gather(*readers), write())
    for events in followed:
        assert [n for event in events for n in json.loads(event.data)] == list(range(count))


async def test_idle_event_stream_breathes_and_ends_by_itself(server: Server) -> None:
    stream = server.stream()
    tail = (await stream.put(b"data")).next
    async with stream.sse(tail) as events:
        seen = [event async for event in events]
    assert seen[0].control["streamNextOffset"] == tail
    assert seen[0].control["upToDate"] is True
    # It lasts for several heartbeats, and its end says nothing of the stream's.
    assert [event.kind for event in seen[1:]] == [":"] * len(seen[1:])
    assert len(seen) > 2


async def test_head_of_an_event_stream(server: Server) -> None:
    stream = server.stream()
    await stream.put(b"data", "text/markdown; charset=utf-8")
    async with stream.sse("-1") as events:
        headers = events.reply.headers
        assert headers.getall("Content-Type") == ["text/event-stream"]
        assert headers.getall("Cache-Control") == ["no-cache"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Access-Control-Allow-Origin"] == "*"
        for absent in ("Content-Length", "ETag", "Stream-SSE-Data-Encoding", "Content-Encoding"):
            assert absent not in headers
        assert (await events.event()).data == "data"


TEXTS = {
    "plain": "hello",
    "leading-space": " hello",
    "two-leading-spaces": "  hello\n  world",
    "lines": "a\nb\n\nc\n",
    "carriage-returns": "a\rb\r\rc",
    "crlf": "a\r\nb\r\n\r\nc",
    "mixed": "\n\r\n\r\r\n",
    "looks-like-events": 'x\n\nevent: control\ndata:{"streamClosed":true}\n\n',
    "looks-like-fields": "id: 7\nretry: 1\n: comment\ndata",
    "unicode": "\u00fc\u2713\U0001f30a \u2028 \u0085 end",
    "colon": ":",
    "nul": "a\x00b",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
async def test_no_text_breaks_out_of_its_event(server: Server, text: str) -> None:
    stream = server.stream()
    await stream.put()
    closed = await stream.post(text.encode(), headers={"Stream-Closed": "true"})
    data, control = await stream.events("-1")
    # Line ends of all kinds arrive as one; nothing else changes.
    assert data == Event("data", text.replace("\r\n", "\n").replace("\r", "\n"))
    assert control.kind == "control"
    assert control.control["streamNextOffset"] == closed.next
    assert control.control["streamClosed"] is True


@pytest.mark.parametrize(
    "kind", [BINARY, "image/png", "application/x-protobuf", "a/b;c=text/plain"]
)
async def test_other_types_come_in_base64(server: Server, kind: str) -> None:
    stream, body = server.stream(), bytes(range(256)) + b"\n\nevent: x\n\n"
    await stream.put(body, kind)
    await stream.close()
    async with stream.sse("-1") as events:
        assert events.reply.headers["Stream-SSE-Data-Encoding"] == "base64"
        data = await events.event()
        control = await events.event()
    assert base64.b64decode(data.data, validate=True) == body
    assert control.control["streamClosed"] is True


@pytest.mark.parametrize("kind", [TEXT, JSON, BINARY])
async def test_empty_stream_begins_with_a_control_event(server: Server, kind: str) -> None:
    stream = server.stream()
    created = await stream.put(kind=kind)
    for offset in ("-1", "now", created.next):
        async with stream.sse(offset) as events:
            first = await events.event()
        assert first.control["streamNextOffset"] == created.next
        assert first.control["upToDate"] is True
        assert str(first.control["streamCursor"]).isdigit()


async def test_long_catch_up_is_a_row_of_data_and_control_events(server: Server) -> None:
    stream = server.stream()
    await stream.put()
    pieces = [chr(ord("a") + n) * 200_000 for n in range(14)]
    for piece in pieces:
        await stream.post(piece.encode())
    final = await stream.close()
    events = await stream.events("-1")
    assert [event.kind for event in events] == ["data", "control"] * (len(events) // 2)
    assert len(events) >= 6
    assert "".join(event.data for event in events[::2]) == "".join(pieces)
    offsets = [str(event.control["streamNextOffset"]) for event in events[1::2]]
    assert offsets == sorted(set(offsets))
    assert offsets[-1] == final.next
    for event in events[1:-1:2]:
        assert "upToDate" not in event.control
        assert "streamClosed" not in event.control
        assert str(event.control["streamCursor"]).isdigit()
    assert events[-1].control.get("streamClosed") is True


@pytest.mark.parametrize("sent", ["1", "999999999"])
async def test_cursor_grows_strictly(server: Server, sent: str) -> None:
    stream = server.stream()
    await stream.put(b"data")
    async with stream.sse("now", sent) as events:
        assert int(str((await events.event()).control["streamCursor"])) > int(sent)


async def test_closed_stream_ends_at_once(patient: Server) -> None:
    stream = patient.stream()
    await stream.put(b"data")
    tail = (await stream.close()).next
    for offset, kinds in (("-1", ["data", "control"]), (tail, ["control"]), ("now", ["control"])):
        events = await stream.events(offset)
        assert [event.kind for event in events] == kinds
        control = events[-1].control
        assert (control["streamNextOffset"], control["streamClosed"]) == (tail, True)
        assert "streamCursor" not in control


async def test_close_ends_whoever_listens(patient: Server) -> None:
    stream = patient.stream()
    tail = (await stream.put(b"data")).next
    async with stream.sse(tail) as events:
        assert (await events.event()).control["upToDate"] is True
        await stream.close()
        last = await events.event()
        assert (last.control["streamNextOffset"], last.control["streamClosed"]) == (tail, True)
        assert [event async for event in events] == []


async def test_last_data_comes_before_the_end(patient: Server) -> None:
    stream = patient.stream()
    tail = (await stream.put(b"data")).next
    async with stream.sse(tail) as events:
        await events.event()
        final = await stream.post(b"last", headers={"Stream-Closed": "true"})
        rest = [event async for event in events]
    assert [event.kind for event in rest] == ["data", "control"]
    assert rest[0].data == "last"
    assert rest[1].control["streamNextOffset"] == final.next
    assert rest[1].control["streamClosed"] is True


async def test_appends_arrive_while_the_stream_is_open(patient: Server) -> None:
    stream = patient.stream()
    await stream.put(b"old", kind=TEXT)
    async with stream.sse("now") as events:
        await events.event()
        for n in range(10):
            appended = await stream.post(b"new %d" % n)
            assert await events.event() == Event("data", f"new {n}")
            control = (await events.event()).control
            assert control["streamNextOffset"] == appended.next
            assert control["upToDate"] is True


async def test_deletion_ends_whoever_listens(patient: Server) -> None:
    stream = patient.stream()
    await stream.put(b"data")
    async with stream.sse("-1") as events:
        await events.event()
        await events.event()
        await stream.delete()
        rest = [event async for event in events if event.kind != ":"]
    # The head is long sent: all it can say is that it ends, and not that the stream is closed.
    assert rest == []
    async with stream.sse("-1") as events:
        assert events.reply.status == 404


async def test_listener_of_a_deleted_stream_hears_nothing_of_the_next_one(patient: Server) -> None:
    stream = patient.stream()
    await stream.put(b"data")
    async with stream.sse("now") as events:
        await events.event()
        await stream.delete()
        await stream.put(b"another stream")
        assert [event async for event in events if event.kind == "data"] == []


async def test_listener_who_leaves_takes_nobody_along(patient: Server) -> None:
    stream = patient.stream()
    await stream.put(b"data")
    async with stream.sse("now") as staying:
        await staying.event()
        for _ in range(5):
            async with stream.sse("now") as leaving:
                await leaving.event()
        await stream.post(b"news")
        assert await staying.event() == Event("data", "news")
