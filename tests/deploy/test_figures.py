"""Figures of many edges of one node: each is there, and together they are exact, also after one has
died."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from tests.deploy.test_observe import _NAME, EXPRESSIONS
from tests.deploy.up import admin_url, answered, roles, start, until
from tests.faults.ledger import session
from tests.http.api import Server, Stream
from tests.service import Service

EDGES, READERS = 3, 24
FLAGS = ("--edges", str(EDGES), "--long-poll-timeout-s", "60", "--drain-s", "0.1")

Series = tuple[str, frozenset[tuple[str, str]]]
Scrape = Mapping[Series, float]


class Scraper:
    """Adds up what a service counts, as Prometheus would."""

    def __init__(self, url: str, client: aiohttp.ClientSession) -> None:
        self._url = f"{url}/metrics"
        self._client = client
        self._before: Scrape = {}
        self.total: defaultdict[Series, float] = defaultdict(float)
        self.families: set[str] = set()

    async def scrape(self) -> Scrape:
        """Take a page; what has become less has begun anew, from zero."""
        async with self._client.get(self._url) as answer:
            text = await answer.text()
        found: dict[Series, float] = {}
        for family in text_string_to_metric_families(text):
            counter = family.type == "counter"
            self.families.add(family.name + ("_total" if counter else ""))
            for sample in family.samples:
                series = sample.name, frozenset(sample.labels.items())
                assert series not in found
                found[series] = sample.value
                if counter or family.type == "histogram":
                    self.families.add(sample.name)
                    before = self._before.get(series, 0.0)
                    self.total[series] += sample.value - (before if sample.value >= before else 0)
        self._before = found
        return found

    def counted(self, name: str, **labels: str) -> float:
        """Return the sum over all edges since the first scrape."""
        return added(self.total, name, **labels)


def added(found: Mapping[Series, float], name: str, **labels: str) -> float:
    return sum(
        value
        for (own, series), value in found.items()
        if own == name
        and labels.items() <= dict(series).items()
        and dict(series)["process"].startswith("edge-")
    )


async def read_often(service: Service, stream: Stream, times: int) -> None:
    """Read over a connection of its own each time, so that each edge has some."""

    async def once() -> None:
        async with session() as client:
            own = Server(service.url, client).stream(stream.path)
            assert (await own.at("-1")).status == 200

    await asyncio.gather(*(once() for _ in range(times)))


async def until_figure(scraper: Scraper, name: str, value: float) -> Scrape:
    """Scrape until a gauge, which is a little old, has a value in all."""
    async with asyncio.timeout(20):
        while added(page := await scraper.scrape(), name) != value:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return page


async def test_figures_of_all_edges_are_exact_also_when_one_has_died(tmp_path: Path) -> None:
    service = await asyncio.to_thread(start, tmp_path, *FLAGS)
    async with service, session() as client:
        scraper = Scraper(admin_url(service), client)
        stream = Server(service.url, client).stream()
        tail = (await stream.put(b"start")).next
        first = await scraper.scrape()
        scraper.total.clear()
        await read_often(service, stream, 60)
        page = await scraper.scrape()
        by_edge = [
            added(page, "headwater_requests_total", method="GET", status="200", process=f"edge-{n}")
            - added(
                first, "headwater_requests_total", method="GET", status="200", process=f"edge-{n}"
            )
            for n in range(EDGES)
        ]
        assert all(by_edge)
        assert sum(by_edge) == scraper.counted("headwater_requests_total", method="GET") == 60

        # Readers who wait, and one append for all of them.
        async def poll() -> bytes:
            async with session() as own:
                return (await Server(service.url, own).stream(stream.path).poll(tail)).body

        polls = [asyncio.create_task(poll()) for _ in range(READERS)]
        page = await until_figure(scraper, "headwater_live_readers", READERS)
        assert added(page, "headwater_edge_connections") >= READERS
        edges = sum(
            added(page, "headwater_live_readers", process=f"edge-{n}") > 0 for n in range(EDGES)
        )
        assert (await stream.post(b"news")).status == 204
        assert await asyncio.gather(*polls) == [b"news"] * READERS
        await until_figure(scraper, "headwater_live_readers", 0)
        assert scraper.counted("headwater_requests_total", method="GET") == 60 + READERS
        assert scraper.counted("headwater_edge_relayed_total", method="POST") == 1
        passes = scraper.counted("headwater_edge_fanout_seconds_count")
        assert passes == scraper.counted("headwater_edge_fanout_seconds_bucket", le="+Inf")
        assert passes >= edges

        # One dies: what it had counted stays counted, and its successor begins at zero.
        victim = roles(service)["edge-0"]
        os.kill(victim, signal.SIGKILL)
        await until(lambda: roles(service).get("edge-0") not in (None, victim))
        await answered(client, "GET", f"{admin_url(service)}/readyz", 200)
        page = await scraper.scrape()
        assert added(page, "headwater_requests_total", method="GET", process="edge-0") == 0
        await read_often(service, stream, 60)
        page = await scraper.scrape()
        assert added(page, "headwater_requests_total", method="GET", process="edge-0") > 0
        assert scraper.counted("headwater_requests_total", method="GET") == 120 + READERS
        assert scraper.counted("headwater_edge_relayed_total", method="POST") == 1

        # Whatever alerts and the dashboard ask for is there.
        asked = {asker: set(_NAME.findall(text)) for asker, text in EXPRESSIONS.items()}
        assert {asker for asker, names in asked.items() if not names} == {"HeadwaterTargetDown"}
        missing = {asker: names - scraper.families for asker, names in asked.items()}
        assert {asker: names for asker, names in missing.items() if names} == {}
