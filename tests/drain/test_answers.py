"""What an edge says while it drains: readiness, long-polls, events, reads and writes.

The times of `deploy/kubernetes` rest on this: readiness fails at once, whoever comes is still
answered for as long as the drain lasts, and is told to come back on another connection.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp

from tests.drain.test_drain import status, until
from tests.faults.ledger import metrics, session
from tests.http.api import TEXT, Answer, Server, Stream
from tests.service import Service, _free_port

DRAIN_S = "1.5"


async def test_what_an_edge_answers_while_it_drains(tmp_path: Path) -> None:
    admin_port = _free_port()
    common = ["--port", "0", "--drain-s", DRAIN_S, "--bus-socket", str(tmp_path / "bus")]
    origin = ["origin", *common, "--admin-port", "0", "--data-dir", str(tmp_path / "data")]
    edge = ["edge", *common, "--admin-port", str(admin_port), "--upstream"]
    with Service.start(origin) as behind, Service.start([*edge, behind.url]) as service:
        async with session() as client:
            admin = Server(f"http://127.0.0.1:{admin_port}", client)
            stream = Server(service.url, client).stream("s")
            tail = (await stream.put(b"data", TEXT)).next
            assert await status(admin, "/readyz") == 200
            poll = asyncio.create_task(stream.poll(tail))
            events = asyncio.create_task(stream.events(tail))
            await until(lambda: live(admin), 2)

            service.terminate()
            await until(lambda: status(admin, "/readyz"), 503)
            assert await status(admin, "/healthz") == 200
            read, written, late = await asyncio.gather(
                stream.at("-1"), stream.produce(b"more", 0), stream.poll("now")
            )
            for answer in (read, written, late):
                assert goes_elsewhere(answer)
            assert (read.status, read.body) == (200, b"data")
            assert written.status == 200
            assert late.status in (200, 204)
            # The write of a moment ago frees them, or the drain does: either way with a place.
            answer = await poll
            assert goes_elsewhere(answer)
            assert (answer.status, answer.body) in ((200, b"more"), (204, b""))
            assert answer.next == (written.next if answer.status == 200 else tail)
            told = await events  # to its end: a reset, or half an event, would raise
            assert told[-1].kind == "control"
            assert told[-1].control["upToDate"] is True

            assert await asyncio.to_thread(service.wait) == 0
            assert await refused(stream)
            direct = Server(behind.url, client).stream("s")
            assert await direct.whole() == b"datamore"


def goes_elsewhere(answer: Answer) -> bool:
    return answer.headers.get("Connection") == "close"


async def live(admin: Server) -> int:
    found = await metrics(admin)
    return sum(int(v) for name, v in found.items() if name.startswith("headwater_live_readers"))


async def refused(stream: Stream) -> bool:
    try:
        await stream.head()
    except aiohttp.ClientConnectorError:
        return True
    return False
