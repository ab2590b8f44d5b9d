"""A crowd costs the origin what one reader costs; nobody reads less than was acknowledged."""

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.faults.ledger import metrics, session
from tests.http.api import Server, Stream
from tests.service import Service, _free_port

READERS, APPENDS = 1000, 10
CROWD = 900  # one client opens 1,000 connections, and some are for looking
LIVE = ("--port", "0", "--long-poll-timeout-s", "60", "--drain-s", "0.1")
PATIENT = ("--upstream-timeout-s", "60")  # with an origin that a test stops


class Pair:
    """An origin and two edges, on one bus."""

    def __init__(
        self, origin: Service, direct: Server, edges: list[Server], admins: list[Server]
    ) -> None:
        self.origin = origin
        self.direct, self.edges, self.admins = direct, edges, admins

    async def origin_reads(self) -> float:
        found = await metrics(self.admins[0])
        return sum(v for name, v in found.items() if name.startswith("headwater_origin_reads"))

    async def upstream_reads(self) -> float:
        found = await metrics(self.admins[1])
        return sum(v for k, v in found.items() if k.startswith("headwater_edge_upstream_reads"))

    async def coalesced(self) -> float:
        return (await metrics(self.admins[1])).get("headwater_edge_coalesced_reads_total", 0.0)

    async def waiting(self) -> float:
        found = await metrics(self.admins[1])
        return found.get('headwater_live_readers{mode="long-poll"}', 0.0)


@pytest.fixture(scope="module")
def services(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Service, list[str], list[str]]]:
    """Return an origin, its URL and its edges', and those of their admin ports."""
    folder = tmp_path_factory.mktemp("pair")
    ports = [_free_port() for _ in range(3)]
    common = [["--admin-port", str(p), "--bus-socket", str(folder / "bus"), *LIVE] for p in ports]
    with (
        Service.start(["origin", *common[0], "--data-dir", str(folder / "data")]) as origin,
        Service.start(["edge", *common[1], *PATIENT, "--upstream", origin.url]) as one,
        Service.start(["edge", *common[2], "--upstream", origin.url]) as other,
    ):
        admins = [f"http://127.0.0.1:{port}" for port in ports]
        yield origin, [origin.url, one.url, other.url], admins


@pytest.fixture
async def pair(services: tuple[Service, list[str], list[str]]) -> AsyncIterator[Pair]:
    process, urls, admins = services
    async with session() as client:
        origin, *edges = (Server(url, client) for url in urls)
        yield Pair(process, origin, edges, [Server(url, client) for url in admins])


async def follow(stream: Stream, offset: str, until: int, pieces: list[bytes]) -> None:
    size = 0
    while size < until:
        answer = await stream.poll(offset)
        assert answer.status == 200, answer
        pieces.append(answer.body)
        size += len(answer.body)
        offset = answer.next


@pytest.mark.parametrize(
    ("size", "reads_max"), [(100, 0), (20_000, 2 * APPENDS)], ids=["carried", "not carried"]
)
@pytest.mark.parametrize("wait", [True, False], ids=["all are back", "in a burst"])
async def test_thousand_readers_cost_the_origin_two_reads_an_append_at_most(
    pair: Pair, size: int, reads_max: int, wait: bool
) -> None:
    stream = pair.direct.stream()
    offset = (await stream.put(b"start")).next
    bodies = [b"%d" % (n % 10) * size for n in range(APPENDS)]
    got: list[list[bytes]] = [[] for _ in range(READERS)]
    readers = [
        asyncio.create_task(
            follow(pair.edges[0].stream(stream.path), offset, size * APPENDS, pieces)
        )
        for pieces in got
    ]
    await _all_wait(pair)
    before, upstream_before = await pair.origin_reads(), await pair.upstream_reads()
    for number, body in enumerate(bodies):
        assert (await stream.post(body)).status == 204
        if wait and number < APPENDS - 1:
            await _all_wait(pair, got, number + 1)
    await asyncio.wait_for(asyncio.gather(*readers), 60)
    for pieces in got:
        assert b"".join(pieces) == b"".join(bodies)
    assert await pair.origin_reads() - before <= reads_max
    assert await pair.upstream_reads() - upstream_before <= reads_max


async def _all_wait(pair: Pair, got: list[list[bytes]] | None = None, appends: int = 0) -> None:
    """Return once everyone has what was appended, and waits for more."""
    async with asyncio.timeout(30):
        while True:
            arrived = got is None or all(len(pieces) >= appends for pieces in got)
            if arrived and await pair.waiting() == READERS:
                return
            await asyncio.sleep(0.01)


async def test_crowd_that_arrives_at_once_shares_two_reads(pair: Pair) -> None:
    """Without a tail that is known: catch-up reads, and the first reads of live ones."""
    stream = pair.direct.stream()
    await stream.put(b"x" * 10_000)
    for query in ("offset=-1", "offset=-1&live=long-poll"):
        before, shared_before = await pair.origin_reads(), await pair.coalesced()
        path = pair.edges[0].stream(stream.path)
        # The origin answers nobody before all have come: so it is one moment, on any machine.
        pair.origin.send(signal.SIGSTOP)
        try:
            crowd = [asyncio.create_task(path.get(query)) for _ in range(CROWD)]
            async with asyncio.timeout(30):
                while await pair.coalesced() - shared_before < CROWD - 1:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        finally:
            pair.origin.send(signal.SIGCONT)
        answers = await asyncio.gather(*crowd)
        assert {answer.body for answer in answers} == {b"x" * 10_000}
        assert await pair.origin_reads() - before <= 2


async def test_read_after_an_acknowledgement_never_returns_less(pair: Pair) -> None:
    """Writers and readers by turns, each through any edge; they wait for answers alone."""
    random_ = random.Random(7)
    streams = [pair.direct.stream() for _ in range(3)]
    done = 0

    async def client(number: int) -> None:
        nonlocal done
        stream_name = streams[number % 3].path
        for turn in range(25):
            writer, reader = random_.choice(pair.edges), random_.choice(pair.edges)
            mark = b"<%d.%d>" % (number, turn)
            answer = await writer.stream(stream_name).post(mark)
            assert answer.status == 204
            acknowledged = answer.next
            read = reader.stream(stream_name)
            match random_.randrange(3):
                case 0:
                    found = await read.at("-1")
                    assert mark in found.body
                    assert found.next >= acknowledged
                case 1:
                    found = await read.at(acknowledged)
                    assert found.status == 200
                    assert mark not in found.body
                    assert found.next >= acknowledged
                case 2:
                    assert (await read.head()).next >= acknowledged
            done += 1

    for stream in streams:
        await stream.put()
    await asyncio.gather(*(client(number) for number in range(30)))
    assert done == 30 * 25


async def test_live_read_after_an_acknowledgement_begins_with_it(pair: Pair) -> None:
    """A long-poll from before an append that was acknowledged never waits, wherever it is asked."""
    stream = pair.direct.stream()
    offset = (await stream.put()).next
    random_ = random.Random(8)
    for turn in range(100):
        mark = b"<%d>" % turn
        after = (await random_.choice(pair.edges).stream(stream.path).post(mark)).next
        there = random_.choice(pair.edges).stream(stream.path)
        answer = await asyncio.wait_for(there.poll(offset), 20)
        assert (answer.status, answer.body, answer.next) == (200, mark, after)
        offset = after
