"""Traces: one append is one trace, from whoever sent it to the last reader who has it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp
import pytest
import uvloop
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from edge.app import open_edge
from origin.app import drain as drain_origin
from origin.app import open_origin
from origin.memory import MemoryJournal
from shared.config import BadSetting, Settings
from shared.sockets import listen_tcp, listen_unix
from shared.tracing import open_tracer
from shared.unix_bus import UnixPublisher, UnixSubscriber
from shared.wake import Wake
from tests.edge.served import until
from tests.http.api import Server, Stream

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SENT = ("traceparent", f"00-{TRACE}-{PARENT}-01")
UNSAMPLED = ("traceparent", f"00-{TRACE}-{PARENT}-00")


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


class Recorder:
    """What one process would send to a collector."""

    def __init__(self) -> None:
        self._kept = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._kept))
        self.tracer = provider.get_tracer("test")

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._kept.get_finished_spans() if span.name == name]

    def __len__(self) -> int:
        return len(self._kept.get_finished_spans())


def trace_of(span: ReadableSpan) -> str:
    context = span.get_span_context()
    assert context is not None
    return f"{context.trace_id:032x}"


def parent_of(span: ReadableSpan) -> str | None:
    return None if span.parent is None else f"{span.parent.span_id:016x}"


def id_of(span: ReadableSpan) -> str:
    context = span.get_span_context()
    assert context is not None
    return f"{context.span_id:016x}"


@dataclass(frozen=True, slots=True)
class Traced:
    """An origin and an edge, each with a recorder."""

    origin: Recorder
    edge: Recorder
    server: Server
    wakes: list[Wake]
    waiting: Callable[[], int]


class Heard:
    """A bus that keeps what it is given."""

    def __init__(self) -> None:
        self.wakes: list[Wake] = []

    async def start(self) -> None:
        pass

    def publish(self, path: str, wake: Wake) -> None:
        self.wakes.append(wake)

    async def close(self) -> None:
        pass


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Traced]:
    settings = replace(
        Settings(), socket=folder / "origin", upstream_socket=folder / "origin", drain_s=0.0
    )
    ours, theirs = Recorder(), Recorder()
    bus, heard = folder / "bus", Heard()
    async with open_origin(
        settings, MemoryJournal(), [UnixPublisher(bus), heard], tracer=ours.tracer
    ) as origin:
        await origin.lane.listen(listen_unix(folder / "origin"))
        async with open_edge(settings, UnixSubscriber(bus), tracer=theirs.tracer) as edge:
            sock = listen_tcp("127.0.0.1", 0)
            edge.lane.listen(sock)
            url = f"http://127.0.0.1:{sock.getsockname()[1]}"
            connector = aiohttp.TCPConnector(limit=0)
            async with aiohttp.ClientSession(connector=connector) as client:
                server, parked = Server(url, client), edge.lane._parked
                yield Traced(
                    ours, theirs, server, heard.wakes, lambda: parked.polls + parked.streams
                )
            await edge.handlers.listener.drain(0)
        origin.handlers.reading.release(0)
        await drain_origin(origin, 0.0)


@pytest.fixture
async def traced(tmp_path: Path) -> AsyncIterator[Traced]:
    async with serving(tmp_path) as running:
        yield running


async def new_stream(traced: Traced) -> tuple[Stream, str]:
    stream = traced.server.stream()
    return stream, (await stream.put(b"start")).next


@pytest.mark.parametrize("size", [100, 20_000], ids=["carried by the wake", "read by the edge"])
async def test_append_is_one_trace_from_its_writer_to_its_readers(
    traced: Traced, size: int
) -> None:
    stream, tail = await new_stream(traced)
    body = b"x" * size
    polls = [asyncio.create_task(stream.poll(tail)) for _ in range(3)]
    async with stream.sse(tail) as events:
        await events.event()  # where it begins
        await until(lambda: traced.waiting() == 4)
        assert (await stream.post(body, headers=[SENT])).status == 204
        assert [answer.body for answer in await asyncio.gather(*polls)] == [body] * 3
        assert (await events.event()).data.encode() == body
    await until(lambda: len(traced.edge.spans("fan-out")) == 2)

    (append,) = traced.origin.spans("append")
    assert (trace_of(append), parent_of(append)) == (TRACE, PARENT)
    assert append.attributes is not None
    assert append.attributes["headwater.bytes"] == size
    assert append.attributes["headwater.outcome"] == "accepted"
    for name in ("decide", "commit"):
        (part,) = traced.origin.spans(name)
        assert (trace_of(part), parent_of(part)) == (TRACE, id_of(append))
    readers = {}
    for span in traced.edge.spans("fan-out"):
        assert (trace_of(span), parent_of(span)) == (TRACE, id_of(append))
        assert span.attributes is not None
        readers[span.attributes["headwater.mode"]] = span.attributes["headwater.readers"]
    assert readers == {"long-poll": 3, "sse": 1}
    assert len(traced.edge) == 2


async def test_body_that_the_lane_does_not_take_is_traced_as_well(traced: Traced) -> None:
    stream, _ = await new_stream(traced)
    assert (await stream.post(b"x" * 100_000, headers=[SENT])).status == 204
    (append,) = traced.origin.spans("append")
    assert (trace_of(append), parent_of(append)) == (TRACE, PARENT)
    assert traced.edge.spans("fan-out") == []  # nobody waited


@pytest.mark.parametrize(
    "sent",
    [
        [],
        [("traceparent", "")],
        [("traceparent", "00-zz-b7ad6b7169203331-01")],
        [("traceparent", f"00-{'0' * 32}-{PARENT}-01")],
        [("traceparent", f"ff-{TRACE}-{PARENT}-01")],
        [("traceparent", "x" * 4000)],
        [SENT, SENT],
    ],
    ids=["none", "empty", "no hex", "zero", "version", "long", "twice"],
)
async def test_trace_that_nobody_can_read_is_one_of_our_own(
    traced: Traced, sent: list[tuple[str, str]]
) -> None:
    stream, tail = await new_stream(traced)
    poll = asyncio.create_task(stream.poll(tail))
    await until(lambda: traced.waiting() == 1)
    assert (await stream.post(b"news", headers=sent)).status == 204
    assert (await poll).body == b"news"
    await until(lambda: traced.edge.spans("fan-out"))
    (append,) = traced.origin.spans("append")
    (fan_out,) = traced.edge.spans("fan-out")
    assert append.parent is None
    assert trace_of(append) != TRACE
    assert (trace_of(fan_out), parent_of(fan_out)) == (trace_of(append), id_of(append))


async def test_append_that_its_writer_does_not_sample_costs_no_span(traced: Traced) -> None:
    stream, tail = await new_stream(traced)
    poll = asyncio.create_task(stream.poll(tail))
    await until(lambda: traced.waiting() == 1)
    assert (await stream.post(b"news", headers=[UNSAMPLED])).status == 204
    assert (await poll).body == b"news"
    assert len(traced.origin) == len(traced.edge) == 0
    assert {wake.trace for wake in traced.wakes} == {None}


async def test_append_that_is_not_traced_is_not_taken_for_the_one_before(traced: Traced) -> None:
    stream, tail = await new_stream(traced)
    for sent in (SENT, UNSAMPLED, UNSAMPLED):
        poll = asyncio.create_task(stream.poll(tail))
        await until(lambda: traced.waiting() == 1)
        assert (await stream.post(b"news", headers=[sent])).status == 204
        tail = (await poll).next
    assert len(traced.edge.spans("fan-out")) == 1


async def test_refusal_is_a_span_that_names_it(traced: Traced) -> None:
    stream = traced.server.stream()
    assert (await stream.post(b"to nobody", headers=[SENT])).status == 404
    (append,) = traced.origin.spans("append")
    assert append.attributes is not None
    assert append.attributes["error.type"] == "NotFound"
    assert append.status.status_code is StatusCode.UNSET  # the server is in order
    assert trace_of(append) == TRACE


async def test_groups_that_clients_make_do_not_make_spans_without_bound(traced: Traced) -> None:
    stream, tail = await new_stream(traced)
    # A cursor of a far future is its reader's alone, and so is the reply to it.
    ahead = [str(10**12 + number) for number in range(20)]
    polls = [asyncio.create_task(stream.poll(tail, cursor)) for cursor in ahead]
    await until(lambda: traced.waiting() == len(ahead))
    assert (await stream.post(b"news", headers=[SENT])).status == 204
    assert [answer.body for answer in await asyncio.gather(*polls)] == [b"news"] * len(ahead)
    await until(lambda: len(traced.edge.spans("fan-out")) == 16)


# --- off ----------------------------------------------------------------------------------------


def test_nothing_of_it_is_imported_where_nobody_asks() -> None:
    program = (
        "import sys, asyncio\n"
        # Any import of it fails. The Redis client has a use of its own for it, and does without.
        "sys.modules['opentelemetry'] = None\n"
        "import deploy.cli, deploy.standalone, origin.app, edge.app\n"
        "from shared.config import Settings\n"
        "from shared.tracing import open_tracer\n"
        "async def main():\n"
        "    async with open_tracer(Settings()) as tracer:\n"
        "        print(tracer)\n"
        "asyncio.run(main())\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60
    )
    assert said.stdout.strip() == "None"


async def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(BadSetting, match=r"--traces: 'http://h:1' needs .*headwater\[otel\]"):
        async with open_tracer(replace(Settings(), traces="http://h:1")):
            pass
