"""Writers and readers that keep books: what was acknowledged, what may have been, what was seen."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

import aiohttp
import orjson

from tests.http.api import JSON, TEXT, Answer, Server, Stream
from tests.session import quiet_session

PAUSE_S = 0.01  # between attempts, while nobody answers
GONE = (aiohttp.ClientError, ConnectionError, asyncio.TimeoutError)


async def attempt(call: Callable[[], Awaitable[Answer]]) -> Answer | None:
    """Return the answer; None: nobody knows what came of it."""
    try:
        answer = await call()
    except GONE:
        return None
    return None if answer.status in (502, 503, 504) else answer


async def insist(call: Callable[[], Awaitable[Answer]]) -> Answer:
    """Ask until somebody answers."""
    while True:
        answer = await attempt(call)
        if answer is not None:
            return answer
        await asyncio.sleep(PAUSE_S)


def session() -> AbstractAsyncContextManager[aiohttp.ClientSession]:
    """Return a client that gives up on what takes half a minute."""
    return quiet_session(aiohttp.ClientTimeout(total=30))


async def metrics(admin: Server) -> dict[str, float]:
    """Return the samples of an admin port, by name and labels as they are written there."""
    answer = await admin.ask("GET", "/metrics")
    assert answer.status == 200
    lines = answer.body.decode().splitlines()
    return {
        name: float(value)
        for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")
    }


@dataclass
class Plain:
    """Appends without a producer: an answer that is lost is not asked for again."""

    name: str
    stream: Stream
    stop: asyncio.Event
    acknowledged: list[int] = field(default_factory=list)
    sent: int = 0

    async def run(self) -> None:
        while not self.stop.is_set():
            number, self.sent = self.sent, self.sent + 1
            answer = await attempt(lambda n=number: self.stream.post(self.message(n)))  # type: ignore[misc]
            if answer is None:
                await asyncio.sleep(PAUSE_S)
                continue
            assert answer.status == 204, answer
            self.acknowledged.append(number)

    def message(self, number: int) -> bytes:
        return b"<%s:%d>" % (self.name.encode(), number)

    def check(self, content: bytes) -> None:
        found = [int(n) for n in re.findall(rb"<%s:(\d+)>" % self.name.encode(), content)]
        assert found == sorted(set(found)), f"{self.name}: doubled, or out of order"
        assert set(found) >= set(self.acknowledged), f"{self.name}: acknowledged, and not there"
        assert set(found) <= set(range(self.sent)), f"{self.name}: there, and never sent"


@dataclass
class Producer:
    """Appends by an idempotent producer, each batch again and again until it is acknowledged."""

    name: str
    stream: Stream
    stop: asyncio.Event
    random_: random.Random
    json: bool = False
    acknowledged: int = 0
    duplicates: int = 0
    in_flight = 1

    async def run(self) -> None:
        while not self.stop.is_set():
            answer = await insist(lambda: self.send(self.acknowledged))
            self.take(answer)

    async def send(self, number: int) -> Answer:
        headers = {
            "Producer-Id": self.name,
            "Producer-Epoch": "0",
            "Producer-Seq": str(number),
        }
        kind = JSON if self.json else TEXT
        return await self.stream.post(self.batch(number), kind, headers)

    def take(self, answer: Answer) -> None:
        assert answer.status in (200, 204), answer
        self.duplicates += answer.status == 204
        self.acknowledged += 1

    def batch(self, number: int) -> bytes:
        if self.json:
            count = 1 + number % 4
            return orjson.dumps([[self.name, number, item] for item in range(count)])
        # Most are small; some take many pages, one in a while a frame of its own, in a file.
        filler = b"." * self.sizes(number)
        return b"<%s:%d%s>" % (self.name.encode(), number, filler)

    def sizes(self, number: int) -> int:
        return 300_000 if number % 31 == 30 else 9_000 if number % 13 == 12 else number % 60

    def check(self, content: bytes) -> None:
        if self.json:
            items = [item for item in orjson.loads(content) if item[0] == self.name]
            batches = max((item[1] for item in items), default=-1) + 1
            expected = [[self.name, n, i] for n in range(batches) for i in range(1 + n % 4)]
            assert items == expected, f"{self.name}: a batch is doubled, missing or cut"
        else:
            found = re.findall(rb"<%s:(\d+)(\.*)>" % self.name.encode(), content)
            batches = len(found)
            expected_ = [(n, self.sizes(n)) for n in range(batches)]
            assert [(int(n), len(dots)) for n, dots in found] == expected_, self.name
        # Those that were under way at the end may be there, and nobody was told.
        assert self.acknowledged <= batches <= self.acknowledged + self.in_flight, self.name


class Pipelined(Producer):
    """Sends the next batches before it knows of the first; all that follow one in doubt, again."""

    in_flight = 4

    async def run(self) -> None:
        while not self.stop.is_set():
            numbers = range(self.acknowledged, self.acknowledged + self.in_flight)
            answers = await asyncio.gather(
                *(attempt(lambda n=n: self.send(n)) for n in numbers)  # type: ignore[misc]
            )
            for answer in answers:
                # 409: one that overtook it on the way is missing.
                if answer is None or answer.status == 409:
                    await asyncio.sleep(PAUSE_S)
                    break
                self.take(answer)


@dataclass
class Keeper:
    """Creates, forks, closes and deletes streams; each until it is acknowledged."""

    name: str
    server: Server
    stop: asyncio.Event
    random_: random.Random
    there: dict[str, tuple[bytes, bool]] = field(default_factory=dict)  # content, closed
    deleted: set[str] = field(default_factory=set)

    async def run(self) -> None:
        number = 0
        while not self.stop.is_set():
            await self.step(f"{self.name}-{number}", number)
            number += 1
            await asyncio.sleep(0.005)

    async def step(self, path: str, number: int) -> None:
        stream = self.server.stream(path)
        sources = sorted(self.there)
        if number % 3 == 2 and sources:
            source = self.random_.choice(sources)
            answer = await insist(lambda: stream.fork(self.server.stream(source)))
            content = self.there[source][0]
        else:
            content = b"" if number % 2 else b"(%d)" % number
            answer = await insist(lambda: stream.put(content))
        assert answer.status in (200, 201), answer
        self.there[path] = (content, False)
        match self.random_.randrange(4):
            case 0:
                answer = await insist(lambda: stream.produce(b"end", 0, close=True))
                assert answer.status in (200, 204), answer
                self.there[path] = (content + b"end", True)
            case 1:
                answer = await insist(stream.close)
                assert answer.status == 204, answer
                self.there[path] = (content, True)
            case 2:
                answer = await insist(stream.delete)
                assert answer.status in (204, 404, 410), answer  # the last two: to a retry
                del self.there[path]
                self.deleted.add(path)
            case _:
                pass

    async def check(self) -> None:
        for path, (content, closed) in self.there.items():
            stream = self.server.stream(path)
            answer = await stream.at("-1")
            assert (answer.status, answer.body, answer.closed) == (200, content, closed), path
        for path in self.deleted:
            answer = await self.server.stream(path).head()
            # 410 is for one that its forks keep.
            assert answer.status in (404, 410), f"{path}: deleted, and there again"


@dataclass
class Follower:
    """Reads on by long-poll, and remembers all that it was ever given."""

    stream: Stream
    stop: asyncio.Event
    json: bool = False
    pieces: list[bytes] = field(default_factory=list)
    errors: int = 0

    async def run(self) -> None:
        offset = "-1"
        while not self.stop.is_set():
            at = offset
            answer = await attempt(lambda: self.stream.poll(at))  # noqa: B023
            if answer is None:
                self.errors += 1
                await asyncio.sleep(PAUSE_S)
                continue
            # Above all: never 400 or 410, which would be an offset that was given and is gone.
            assert answer.status in (200, 204), answer
            if answer.status == 200:
                self.pieces.append(answer.body)
            offset = answer.next

    def seen(self) -> bytes:
        if not self.json:
            return b"".join(self.pieces)
        return b"".join(piece[1:-1] + b"," for piece in self.pieces)

    def check(self, content: bytes) -> None:
        whole = content[1:-1] + b"," if self.json else content
        assert whole.startswith(self.seen()), "a reader saw what is not there"
        assert self.pieces, "a reader that saw nothing proves nothing"
