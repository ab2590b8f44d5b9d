"""Several edges and a shield: a node costs the origin what one reader costs it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

import pytest

from tests.deploy.up import admin_url, start
from tests.faults.ledger import metrics, session
from tests.http.api import Server, Stream
from tests.service import Service

EDGES, READERS, APPENDS = 3, 90, 8
FLAGS = ("--edges", str(EDGES), "--long-poll-timeout-s", "60", "--drain-s", "0.1")


class Node:
    """A service, by its public and its admin port."""

    def __init__(self, public: Server, admin: Server) -> None:
        self.public, self.admin = public, admin

    async def figures(self, name: str) -> dict[str, float]:
        """Return a figure by process, added up over its other labels."""
        found: dict[str, float] = {}
        for sample, value in (await metrics(self.admin)).items():
            if re.match(rf"{name}\b", sample):
                label = re.search(r'process="([^"]+)"', sample)
                assert label is not None
                found[label[1]] = found.get(label[1], 0.0) + value
        return found

    async def waiting(self) -> dict[str, float]:
        """Return how many readers wait at each edge; those of the shield are the edges."""
        found = await self.figures("headwater_live_readers")
        return {role: count for role, count in found.items() if role.startswith("edge-")}

    async def origin_reads(self) -> float:
        return (await self.figures("headwater_origin_reads_total")).get("origin", 0.0)

    async def upstream_reads(self, role: str) -> float:
        return (await self.figures("headwater_edge_upstream_reads_total")).get(role, 0.0)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with start(tmp_path_factory.mktemp("node"), *FLAGS) as running:
        yield running


@pytest.fixture
async def node(service: Service) -> AsyncIterator[Node]:
    async with session() as client:
        yield Node(Server(service.url, client), Server(admin_url(service), client))


Follow = Callable[[Stream, str, int, list[bytes]], Coroutine[None, None, None]]


async def by_poll(stream: Stream, offset: str, until: int, pieces: list[bytes]) -> None:
    size = 0
    while size < until:
        answer = await stream.poll(offset)
        assert answer.status == 200, answer
        pieces.append(answer.body)
        size += len(answer.body)
        offset = answer.next


async def by_events(stream: Stream, offset: str, until: int, pieces: list[bytes]) -> None:
    size = 0
    async with stream.sse(offset) as events:
        while size < until:
            event = await events.event()
            if event.kind == "data":
                pieces.append(event.data.encode())
                size += len(event.data)


@pytest.mark.parametrize("follow", [by_poll, by_events])
@pytest.mark.parametrize(
    ("size", "reads"), [(100, 0), (20_000, APPENDS)], ids=["carried", "not carried"]
)
async def test_append_costs_the_origin_one_read_a_node_or_none(
    node: Node, follow: Follow, size: int, reads: int
) -> None:
    stream = node.public.stream()
    offset = (await stream.put(b"start")).next
    got: list[list[bytes]] = [[] for _ in range(READERS)]

    async def read(pieces: list[bytes]) -> None:
        # A session, and so a connection of its own: a reader stays with an edge.
        async with session() as client:
            own = Server(node.public.url, client).stream(stream.path)
            await follow(own, offset, size * APPENDS, pieces)

    await wait(node, 0)  # figures are a little old: those of an earlier test go first
    readers = [asyncio.create_task(read(pieces)) for pieces in got]
    await wait(node, READERS)
    assert all((await node.waiting()).values())  # at every edge there are some
    before = await node.origin_reads()
    bodies = [b"%d" % n * size for n in range(APPENDS)]
    for number, body in enumerate(bodies):
        assert (await stream.post(body)).status == 204
        while any(len(pieces) <= number for pieces in got):
            assert not any(reader.done() and reader.exception() for reader in readers)
            await asyncio.sleep(0.01)
        if number < APPENDS - 1:
            await wait(node, READERS)
    await asyncio.wait_for(asyncio.gather(*readers), 60)
    assert all(b"".join(pieces) == b"".join(bodies) for pieces in got)
    assert await node.origin_reads() - before <= reads


async def wait(node: Node, count: int) -> None:
    """Return once so many readers wait for more."""
    async with asyncio.timeout(30):
        while sum((await node.waiting()).values()) != count:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
