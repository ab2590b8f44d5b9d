"""Edges that nothing tells of appends: before another edge, and before a server of someone
else's."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from loadtests import launch, servers
from tests.faults.ledger import metrics
from tests.http.api import Server
from tests.http.conftest import PATIENT, PORTS
from tests.http.followers import BY_EVENTS, BY_POLL, Follow, Follower
from tests.service import Service, _free_port

FOLLOWERS = 10
# Some are more than a wake would carry, and one is more than an edge keeps of the newest data.
SIZES = [1, 30, 5_000, 30, 1, 70_000, 300_000, 30, 30, 5_000]
DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True)
class Chain:
    """Where the data are, and the edge that is the furthest from there."""

    first: Server
    last: Server
    admin: Server  # of the last

    async def followed_by(self, count: int) -> None:
        """Wait until so many readers wait for news at the last edge."""
        while True:
            found = await metrics(self.admin)
            if sum(v for k, v in found.items() if k.startswith("headwater_live_readers")) == count:
                return
            await asyncio.sleep(0.02)


def start_edge(stack: ExitStack, upstream: str) -> tuple[str, str]:
    """Return the URLs of an edge: the public one, and that of its admin port."""
    admin_port = _free_port()
    flags = [*PORTS, *PATIENT, "--admin-port", str(admin_port), "--upstream", upstream]
    edge = stack.enter_context(Service.start(["edge", *flags]))
    return edge.url, f"http://127.0.0.1:{admin_port}"


def two_edges(stack: ExitStack, folder: Path) -> tuple[str, str, str]:
    data = ["--data-dir", str(folder)]
    origin = stack.enter_context(Service.start(["origin", *PORTS, *PATIENT, *data]))
    middle, _ = start_edge(stack, origin.url)
    return origin.url, *start_edge(stack, middle)


def node_reference_server(stack: ExitStack, folder: Path) -> tuple[str, str, str]:
    # Its long-polls end often, so the edge often asks again just as something is appended.
    options = launch.Options(live_s=1)
    url = stack.enter_context(servers.running("node", folder, options)).url
    return url, *start_edge(stack, url)


@pytest.fixture(scope="module", params=[two_edges, node_reference_server])
def urls(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str, str]]:
    with ExitStack() as stack:
        yield request.param(stack, tmp_path_factory.mktemp("chain"))


@pytest.fixture
def chain(urls: tuple[str, str, str], session: aiohttp.ClientSession) -> Chain:
    return Chain(*(Server(url, session) for url in urls))


@pytest.mark.parametrize("follow", [BY_POLL, BY_EVENTS])
async def test_followers_at_the_end_of_a_chain_see_every_append_once(
    chain: Chain, follow: Follow
) -> None:
    there = chain.last.stream()
    here = chain.first.stream(there.path)
    offset = (await there.put(b"start ")).next
    followers = [Follower(there, at) for at in ("-1", "now", offset) for _ in range(FOLLOWERS)]
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        for follower in followers:
            tasks.create_task(follow(follower))
        # Before anything comes, or "now" would be later for some.
        await chain.followed_by(len(followers))
        bodies = [b"<%d:%s>" % (number, b"." * size) for number, size in enumerate(SIZES)]
        for number, body in enumerate(bodies):
            # Written at one end and at the other, quickly one after another or slowly.
            assert (await (there, here)[number % 2].post(body)).status == 204
            await asyncio.sleep(0.1 * (number % 3))
        assert (await here.close()).status == 204
    content = b"".join(bodies)
    for follower in followers:
        before = b"start " if follower in followers[:FOLLOWERS] else b""
        assert follower.seen() == before + content


@pytest.mark.parametrize("follow", [BY_POLL, BY_EVENTS])
async def test_follower_of_a_closed_stream_gets_the_rest_and_the_end(
    chain: Chain, follow: Follow
) -> None:
    there = chain.last.stream()
    await there.put(b"all of it")
    await there.close()
    follower = Follower(there)
    async with asyncio.timeout(DEADLINE_S):
        await follow(follower)
    assert follower.seen() == b"all of it"


async def test_followers_hear_that_their_stream_is_deleted(chain: Chain) -> None:
    there = chain.last.stream()
    offset = (await there.put(b"x")).next
    polls = [asyncio.create_task(there.poll(offset)) for _ in range(FOLLOWERS)]
    await asyncio.sleep(0.3)
    assert (await chain.first.stream(there.path).delete()).status == 204
    async with asyncio.timeout(DEADLINE_S):
        assert {answer.status for answer in await asyncio.gather(*polls)} == {404}


async def test_append_is_read_at_once_at_the_other_end(chain: Chain) -> None:
    there = chain.last.stream()
    here = chain.first.stream(there.path)
    await there.put()
    for number in range(20):
        assert (await (there, here)[number % 2].post(b"<%d>" % number)).status == 204
        content = b"".join(b"<%d>" % n for n in range(number + 1))
        assert (await there.at("-1")).body == (await here.at("-1")).body == content
