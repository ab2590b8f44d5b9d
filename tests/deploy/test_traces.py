"""Traces of a whole service reach a collector; one that is away holds nobody up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.deploy.up import admin_url, start
from tests.faults.ledger import metrics, session
from tests.http.api import Server
from tests.service import Service, _free_port

TRACE = "0af7651916cd43dd8448eb211c80319c"
SENT = ("traceparent", f"00-{TRACE}-b7ad6b7169203331-01")


class Collector:
    """Takes what exporters send, as OTLP over HTTP."""

    def __init__(self) -> None:
        self.spans: dict[str, list[Span]] = {}  # by the process that sent them
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        assert request.content_type == "application/x-protobuf"
        sent = ExportTraceServiceRequest.FromString(await request.read())
        for part in sent.resource_spans:
            named = {one.key: one.value.string_value for one in part.resource.attributes}
            assert named["service.name"] == "headwater"
            spans = self.spans.setdefault(named["service.instance.id"], [])
            for scope in part.scope_spans:
                spans += scope.spans
        return web.Response()


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    collector = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", collector.take)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        collector.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield collector
    finally:
        await runner.cleanup()


async def follow(service: Service) -> None:
    """Let one reader get one append."""
    async with session() as client:
        admin, stream = Server(admin_url(service), client), Server(service.url, client).stream()
        tail = (await stream.put(b"start")).next
        poll = asyncio.create_task(stream.poll(tail))
        waiting = 'headwater_live_readers{process="edge-0",mode="long-poll"}'
        async with asyncio.timeout(20):
            while (await metrics(admin)).get(waiting) != 1:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert (await stream.post(b"news", headers=[SENT])).status == 204
        assert (await poll).body == b"news"


async def test_spans_of_all_processes_are_sent_when_the_service_stops(tmp_path: Path) -> None:
    async with collecting() as collector:
        service = await asyncio.to_thread(start, tmp_path, "--traces", collector.url)
        async with service:
            await follow(service)
    names = {
        role: sorted(span.name for span in spans if span.trace_id.hex() == TRACE)
        for role, spans in collector.spans.items()
    }
    assert names == {"origin": ["append", "commit", "decide"], "edge-0": ["fan-out"]}


async def test_collector_that_is_away_holds_up_neither_appends_nor_the_stop(
    tmp_path: Path,
) -> None:
    nobody = f"http://127.0.0.1:{_free_port()}"
    async with await asyncio.to_thread(start, tmp_path, "--traces", nobody) as service:
        await follow(service)
    # It has ended with 0, in time.
