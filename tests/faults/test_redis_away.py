"""Redis goes away under load and comes back: no reader misses a byte, or gets one late."""

import asyncio
import os
import re
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.faults.ledger import metrics, session
from tests.http.api import Server, Stream
from tests.service import Service, ValkeyServer, _free_port, valkey_server

# Three seconds are enough for everything to notice; HEADWATER_TEST_REDIS_DOWN_S=10 is what a person
# would call an outage.
DOWN_S = float(os.environ.get("HEADWATER_TEST_REDIS_DOWN_S", "3"))
# The promise while Redis is away. Nothing else in these tests is measured against a clock.
LATE_S_MAX = 2.0
STREAMS, LONG_POLLS, EVENT_STREAMS = 3, 8, 3
EVERY_S = 0.03  # between two appends to one stream
LIVE = ("--long-poll-timeout-s", "30", "--sse-timeout-s", "300", "--sse-heartbeat-s", "300")


@dataclass
class Writer:
    """Appends numbers, and notes when each was acknowledged."""

    stream: Stream
    acknowledged_s: list[float] = field(default_factory=list)

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            answer = await self.stream.post(b"<%d>" % len(self.acknowledged_s))
            assert answer.status == 204, answer
            self.acknowledged_s.append(time.monotonic())
            await asyncio.sleep(EVERY_S)


@dataclass
class Reader:
    """Follows one writer, and notes when each number came."""

    stream: Stream
    writer: Writer
    sse: bool
    numbers: list[int] = field(default_factory=list)
    came_s: list[float] = field(default_factory=list)

    async def run(self) -> None:
        if self.sse:
            async with self.stream.sse("-1") as events:
                async for event in events:
                    if event.kind == "data":
                        self.take(event.data)
            raise AssertionError("the event stream ended")
        offset = "-1"
        while True:
            answer = await self.stream.poll(offset)
            assert answer.status == 200, answer
            self.take(answer.body.decode())
            offset = answer.next

    def take(self, text: str) -> None:
        found = [int(number) for number in re.findall(r"<(\d+)>", text)]
        self.numbers += found
        self.came_s += [time.monotonic()] * len(found)

    def lateness_s(self) -> list[float]:
        pairs = zip(self.came_s, self.writer.acknowledged_s, strict=True)
        return [came_s - acknowledged_s for came_s, acknowledged_s in pairs]


@dataclass
class Readiness:
    """Asks an admin port again and again whether to send traffic."""

    server: Server
    answers: list[int] = field(default_factory=list)

    async def run(self) -> None:
        while True:
            self.answers.append((await self.server.ask("GET", "/readyz")).status)
            await asyncio.sleep(0.1)


@asynccontextmanager
async def away(valkey: ValkeyServer, how: str) -> AsyncIterator[None]:
    """Take the server away for the length of the block."""
    if how == "frozen":
        assert valkey._process is not None
        valkey._process.send_signal(signal.SIGSTOP)
        yield
        valkey._process.send_signal(signal.SIGCONT)
        return
    await asyncio.to_thread(valkey.kill if how == "killed" else valkey.stop)
    yield
    await asyncio.to_thread(valkey.start)


@pytest.mark.parametrize("how", ["stopped", "frozen"])
@pytest.mark.timeout(90)
async def test_live_readers_get_every_byte_in_time_though_redis_is_away(
    tmp_path: Path, how: str
) -> None:
    admin = {role: str(_free_port()) for role in ("origin", "edge")}
    with valkey_server() as valkey:
        common = ["--port", "0", "--redis", valkey.url, *LIVE, "--drain-s", "0.1"]
        async with (
            await asyncio.to_thread(
                Service.start,
                ["origin", *common, "--data-dir", str(tmp_path), "--admin-port", admin["origin"]],
            ) as origin,
            await asyncio.to_thread(
                Service.start,
                ["edge", *common, "--upstream", origin.url, "--admin-port", admin["edge"]],
            ) as edge,
            session() as client,
        ):
            direct, through = Server(origin.url, client), Server(edge.url, client)
            checks = [
                Readiness(Server(f"http://127.0.0.1:{port}", client)) for port in admin.values()
            ]
            writers: list[Writer] = []
            readers: list[Reader] = []
            for number in range(STREAMS):
                name = f"s{number}"
                assert (await direct.stream(name).put()).status == 201
                writers.append(Writer(direct.stream(name)))
                readers += [
                    Reader(through.stream(name), writers[-1], sse=place >= LONG_POLLS)
                    for place in range(LONG_POLLS + EVENT_STREAMS)
                ]
            stop = asyncio.Event()
            following = [asyncio.create_task(reader.run()) for reader in readers]
            following += [asyncio.create_task(check.run()) for check in checks]
            writing = [asyncio.create_task(writer.run(stop)) for writer in writers]
            await asyncio.sleep(1.0)
            async with away(valkey, how):
                await asyncio.sleep(DOWN_S)
            await asyncio.sleep(1.5)
            returned = await metrics(checks[1].server)
            await asyncio.sleep(0.5)
            stop.set()
            await asyncio.gather(*writing)
            await _all_arrived(readers, following)
            # By wakes again, and not by going on asking.
            assert returned["headwater_bus_up"] == 1
            taken = 'headwater_wakes_received_total{outcome="taken"}'
            assert (await metrics(checks[1].server))[taken] > returned[taken]
            for task in following:
                task.cancel()
            await asyncio.wait(following)
    for reader in readers:
        assert reader.numbers == list(range(len(reader.writer.acknowledged_s)))
    assert {status for check in checks for status in check.answers} == {200}
    assert max(late_s for reader in readers for late_s in reader.lateness_s()) <= LATE_S_MAX
    assert min(len(writer.acknowledged_s) for writer in writers) > 10 * DOWN_S


async def _all_arrived(readers: list[Reader], following: list[asyncio.Task[None]]) -> None:
    async with asyncio.timeout(15):
        while not all(len(r.numbers) >= len(r.writer.acknowledged_s) for r in readers):
            for task in following:
                if task.done():
                    task.result()
            await asyncio.sleep(0.01)
