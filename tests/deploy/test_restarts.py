"""A process of the service is killed, and comes back; readers and writers lose and double
nothing."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path

import aiohttp
import pytest

from tests.deploy.up import DEADLINE_S, admin_url, answered, fork_server, roles, start, until
from tests.faults.ledger import Producer, insist, session
from tests.http.api import Server
from tests.http.followers import Follower
from tests.service import Service

READERS = 8
LASTING = ("--sse-timeout-s", "600", "--drain-s", "0.1")


class Writer(Producer):
    """Its appends are never so large that a reader on a busy machine falls too far behind."""

    def sizes(self, number: int) -> int:
        return 9_000 if number % 13 == 12 else number % 60


def kill(service: Service, role: str) -> int:
    pid = roles(service)[role]
    os.kill(pid, signal.SIGKILL)
    return pid


async def is_back(service: Service, role: str, killed: int) -> None:
    await until(lambda: roles(service).get(role, killed) != killed)
    async with aiohttp.ClientSession() as client:
        await answered(client, "GET", f"{admin_url(service)}/readyz", 200)


@pytest.mark.parametrize(
    ("edges", "role"),
    [(1, "origin"), (1, "edge-0"), (2, "origin"), (2, "shield"), (2, "edge-1")],
)
async def test_process_that_is_killed_comes_back_with_everything(
    tmp_path: Path, edges: int, role: str
) -> None:
    with start(tmp_path, "--edges", str(edges)) as service:
        async with session() as client:
            stream = Server(service.url, client).stream()
            assert (await stream.put(b"before ")).status == 201
            killed = kill(service, role)
            await is_back(service, role, killed)
        async with session() as client:
            stream = Server(service.url, client).stream(stream.path)
            assert (await stream.post(b"after")).status == 204
            assert (await stream.at("-1")).body == b"before after"


@pytest.mark.parametrize("role", ["origin", "shield", "edge-0"])
async def test_readers_of_events_see_everything_once_whoever_is_killed(
    tmp_path: Path, role: str
) -> None:
    with start(tmp_path, "--edges", "2", *LASTING) as service:
        async with session() as client:
            stream, stop = Server(service.url, client).stream(), asyncio.Event()
            assert (await stream.put()).status == 201
            producer = Writer("p", stream, stop, random.Random(3))
            watchers = [Follower(stream) for _ in range(READERS)]
            writing = asyncio.create_task(producer.run())
            watching = [asyncio.create_task(watcher.by_events()) for watcher in watchers]
            await until(lambda: all(watcher.pieces for watcher in watchers))
            for _ in range(2):
                written = producer.acknowledged
                await until(lambda: producer.acknowledged > written + 100)  # noqa: B023
                killed = kill(service, role)
                await is_back(service, role, killed)
            written = producer.acknowledged
            await until(lambda: producer.acknowledged > written + 100)
            stop.set()
            await writing
            await insist(stream.close)
            async with asyncio.timeout(DEADLINE_S):
                await asyncio.gather(*watching)
                content = await stream.whole()
            producer.check(content)
            for watcher in watchers:
                assert watcher.seen() == content
            if role != "edge-0":
                # Only who holds their connections can break them off.
                assert [watcher.connections for watcher in watchers] == [1] * READERS


async def test_service_outlives_the_process_that_it_is_forked_from(tmp_path: Path) -> None:
    with start(tmp_path, "--edges", "2", *LASTING) as service:
        async with session() as client:
            stream = Server(service.url, client).stream()
            assert (await stream.put(b"0")).status == 201
            async with stream.sse("-1") as events:
                assert (await events.event()).data == "0"
                assert (await events.event()).kind == "control"
                before, parent = roles(service), fork_server(service)
                os.kill(parent, signal.SIGKILL)
                await until(lambda: roles(service) == before)
                # The next start needs a new one.
                killed = kill(service, "shield")
                await is_back(service, "shield", killed)
                assert fork_server(service) != parent
                after = roles(service)
                assert {role for role in before if before[role] != after[role]} == {"shield"}
                assert (await stream.post(b"1")).status == 204
                assert (await events.event()).data == "1"
