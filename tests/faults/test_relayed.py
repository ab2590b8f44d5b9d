"""SIGKILL of an origin under appends that an edge passes on: every answer says what is true.

204 and 200: it is there, once. 502: nobody knows. 503: it is not there, and may be sent again.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import pytest

from tests.faults.ledger import session
from tests.faults.lives import Origin
from tests.http.api import TEXT, Answer, Server
from tests.http.raw import connect
from tests.service import Service

KILLS, WRITERS, TOGETHER = 4, 36, 8
EDGE = ("edge", "--port", "0", "--admin-port", "0", "--drain-s", "0.1", "--log-level", "warning")
TARGET = "/v1/stream/shared"


@dataclass
class Writer:
    """Sends appends, some at once and without waiting for the replies of others, over one
    connection."""

    name: str
    together: int
    producer: bool
    kept: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)
    in_doubt: set[int] = field(default_factory=set)
    statuses: Counter[int] = field(default_factory=Counter)

    async def run(self, url: str, stop: asyncio.Event) -> None:
        async with connect(url) as line:
            number = 0
            while not stop.is_set():
                batch = range(number, number + self.together)
                for one in batch:
                    await line.send(self.request(one))
                answers = [await line.reply() for _ in batch]
                for one, answer in zip(batch, answers, strict=True):
                    self.note(one, answer)
                if self.producer:
                    # What comes after a gap is refused by the gap; the first is asked again.
                    number += len(self.kept & set(batch))
                else:
                    number += self.together
                if max(answer.status for answer in answers) >= 500:
                    await asyncio.sleep(0.01)

    def request(self, number: int) -> bytes:
        body = b"<%s:%d>" % (self.name.encode(), number)
        fields = f"Host: x\r\nContent-Type: {TEXT}\r\nContent-Length: {len(body)}\r\n"
        if self.producer:
            fields += f"Producer-Id: {self.name}\r\nProducer-Epoch: 0\r\nProducer-Seq: {number}\r\n"
        return f"POST {TARGET} HTTP/1.1\r\n{fields}\r\n".encode() + body

    def note(self, number: int, answer: Answer) -> None:
        self.statuses[answer.status] += 1
        match answer.status:
            case 200 | 204:
                self.kept.add(number)
            case 502:
                assert orjson.loads(answer.body)["error"]["code"] == "outcome_unknown"
                assert "Retry-After" not in answer.headers
                self.in_doubt.add(number)
            case 503:
                assert answer.headers["Retry-After"]
                self.refused.add(number)
            case status:
                assert (status, self.producer) == (409, True), answer

    def check(self, content: bytes) -> None:
        found = [int(n) for n in re.findall(rb"<%s:(\d+)>" % self.name.encode(), content)]
        assert found == sorted(set(found)), f"{self.name}: doubled, or out of order"
        there = set(found)
        assert self.kept <= there, f"{self.name}: acknowledged, and not there"
        assert there <= self.kept | self.in_doubt, f"{self.name}: there, and never promised"
        if not self.producer:
            assert not there & self.refused, f"{self.name}: refused, and there"


def connections_to(port: int) -> int:
    """Return how many clients are connected to a port of this machine."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return sum(
        line.split()[2].endswith(f":{port:04X}") and line.split()[3] == "01" for line in lines
    )


@asynccontextmanager
async def edge(upstream: str) -> AsyncIterator[str]:
    async with await asyncio.to_thread(Service.start, [*EDGE, "--upstream", upstream]) as service:
        yield service.url


@pytest.mark.timeout(120)
async def test_every_answer_of_an_edge_is_true_though_its_origin_is_killed(tmp_path: Path) -> None:
    random_ = random.Random(20_261_125)
    stop = asyncio.Event()
    writers = [
        Writer(f"w{n}", together=1 if n % 3 else TOGETHER, producer=n % 2 == 0)
        for n in range(WRITERS)
    ]
    async with Origin(tmp_path) as origin, session() as client, edge(origin.url) as url:
        direct = Server(origin.url, client)
        assert (await direct.stream("shared").put(b"", TEXT)).status == 201
        async with asyncio.TaskGroup() as group:
            for writer in writers:
                group.create_task(writer.run(url, stop))
            for _ in range(KILLS):
                await origin.prepare()
                await asyncio.sleep(random_.uniform(0.1, 0.3))
                # All of them share few connections: what is tested here is tested.
                assert connections_to(origin.port) < WRITERS / 4
                await origin.kill()
                await origin.start()
            await asyncio.sleep(0.2)
            stop.set()
        content = await direct.stream("shared").whole()
    for writer in writers:
        writer.check(content)
    statuses = sum((writer.statuses for writer in writers), Counter[int]())
    assert min(statuses[status] for status in (200, 204, 502, 503)) > 0, statuses
