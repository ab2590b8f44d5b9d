"""One of two edges is told to stop, 5,000 live readers at both: none of them loses anything."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from loadtests.crew import Crew
from loadtests.crowd import add_up
from loadtests.dialect import DIALECTS, WAVE_BYTES_MIN, Place, wave_message
from loadtests.orders import PARK, TOTALS, Parked, SwarmOrder, Totals, Wave
from loadtests.servers import raise_descriptor_limit
from loadtests.swarm import swarm
from tests.drain.proxy import nginx
from tests.faults.ledger import insist, metrics, session
from tests.http.api import TEXT, Server, Stream
from tests.http.followers import BY_EVENTS, BY_POLL, Follower
from tests.service import Service, _free_port

READERS = 5000
BYTEWISE = 10  # more readers of each kind, who keep every byte
DRAIN_S = 3.0
DEADLINE_S = 60.0


class Writer:
    """Appends wave after wave, as a producer that asks again until it is told."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.waves = 0
        self.stop = asyncio.Event()

    async def run(self) -> None:
        while not self.stop.is_set():
            await self.write()
            await asyncio.sleep(0.2)

    async def write(self, *, close: bool = False) -> None:
        """Append the next wave: nothing but its number, so that no byte of it may be missing."""
        body = wave_message(self.waves + 1, WAVE_BYTES_MIN)
        answer = await insist(lambda: self.stream.produce(body, self.waves, close=close))
        assert answer.status in (200, 204), answer
        self.waves += 1


@pytest.mark.timeout(120)
def test_no_reader_loses_or_doubles_a_byte_while_an_edge_drains(tmp_path: Path) -> None:
    raise_descriptor_limit()
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 3 * READERS, "too few descriptors"
    lasting = ["--long-poll-timeout-s", "120", "--sse-timeout-s", "120"]
    bus = ["--bus-socket", str(tmp_path / "bus"), "--admin-port"]
    admins = [_free_port() for _ in range(2)]
    common = ["--port", "0", "--drain-s", str(DRAIN_S), *lasting, *bus]
    with (
        Service.start(["origin", *common, "0", "--data-dir", str(tmp_path / "data")]) as origin,
        Service.start(["edge", *common, str(admins[0]), "--upstream", origin.url]) as leaving,
        Service.start(["edge", *common, str(admins[1]), "--upstream", origin.url]) as staying,
        nginx(tmp_path / "nginx", _port(leaving.url), _port(staying.url)) as url,
    ):
        orders = [
            SwarmOrder(
                url, "/v1/stream/all", mode, DIALECTS[mode], Place("-1"), READERS // 2, source
            )
            for mode, source in (("lp", "127.1.0.1"), ("sse", "127.1.0.2"))
        ]
        with Crew(swarm, orders) as crew:
            asyncio.run(drain(crew, url, leaving, admins))


async def drain(crew: Crew, url: str, leaving: Service, admins: list[int]) -> None:
    async with session() as client:
        stream = Server(url, client).stream("all")
        gone, back = (Server(f"http://127.0.0.1:{port}", client) for port in admins)
        assert (await stream.put(b"", TEXT)).status == 201
        writer = Writer(stream)
        followers = [(Follower(stream), how) for how in [BY_POLL, BY_EVENTS] * BYTEWISE]
        following = [asyncio.create_task(follow(one)) for one, follow in followers]
        crew.tell(PARK)
        await asyncio.to_thread(crew.hear, Parked, DEADLINE_S)
        everybody = READERS + len(followers)
        await until(lambda: waiting(gone, back), everybody)
        before = await waiting(gone), await waiting(back)
        assert min(before) > READERS // 3  # both have their part

        # Who tells of each wave is not to wait until somebody listens.
        listening = asyncio.create_task(asyncio.to_thread(listen, crew, writer.stop))
        writing = asyncio.create_task(writer.run())
        began = time.monotonic()
        leaving.terminate()
        await until(lambda: status(gone, "/readyz"), 503)
        assert await status(gone, "/healthz") == 200  # to be ended by nobody else meanwhile
        code = await asyncio.to_thread(leaving.wait)
        ended_s = time.monotonic() - began
        assert code == 0
        writer.stop.set()
        await asyncio.gather(writing, listening)
        await until(lambda: waiting(back), everybody)  # as they ask again after each wave
        back_s = time.monotonic() - began

        await writer.write(close=True)
        await asyncio.gather(*following)
        whole = await stream.whole()
    totals = add_up(await asyncio.to_thread(last_seen, crew, writer.waves))
    print(
        f"{READERS} readers, {before} before; {writer.waves} waves; "
        f"the edge ended after {ended_s:.1f} s, all were back after {back_s:.1f} s"
    )
    assert whole == b"".join(wave_message(n + 1, WAVE_BYTES_MIN) for n in range(writer.waves))
    assert {one.seen() for one, _ in followers} == {whole}
    assert set(totals.last) == {writer.waves}
    assert len(totals.last) == READERS
    assert (totals.lost, totals.doubled) == (0, 0)
    # The proxy hides that their edge has gone: no connection of theirs was ended, or even refused.
    assert (totals.reconnects, totals.refused, totals.errors) == (0, 0, {})


def listen(crew: Crew, stop: asyncio.Event) -> None:
    while not stop.is_set():
        crew.listen(Wave, 0.1)


def last_seen(crew: Crew, waves: int) -> list[Totals]:
    deadline = time.monotonic() + DEADLINE_S
    while True:
        crew.tell(TOTALS)
        totals = crew.hear(Totals, DEADLINE_S)
        if all(min(one.last) == waves for one in totals) or time.monotonic() > deadline:
            return totals
        time.sleep(0.05)


async def waiting(*admins: Server) -> int:
    """Return how many live readers wait at edges."""
    found = [await metrics(admin) for admin in admins]
    return sum(
        int(value)
        for one in found
        for name, value in one.items()
        if name.startswith("headwater_live_readers")
    )


async def status(admin: Server, path: str) -> int:
    return (await admin.ask("GET", path)).status


async def until(look: Callable[[], Awaitable[int]], expected: int) -> None:
    """Look until it is as expected."""
    found = None
    try:
        async with asyncio.timeout(DEADLINE_S):
            while (found := await look()) != expected:  # noqa: ASYNC110  # of other processes
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"expected {expected}, at last {found}") from None


def _port(url: str) -> int:
    return int(url.rpartition(":")[2])
