"""Wakes through a real Redis: what one costs it for each edge, and each edge for itself."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import uvloop
from redis import Redis

from loadtests.crew import Crew, Pipe
from loadtests.launch import Options
from loadtests.proc import Elsewhere, Tree
from loadtests.report import Result, machine
from loadtests.servers import Server, running
from shared.protocol.offset import Offset
from shared.redis_publisher import RedisPublisher
from shared.redis_subscriber import RedisSubscriber
from shared.wake import PAYLOAD_BYTES_MAX, Wake

COLUMNS: Final = {
    "wakes_per_s": "wakes/s",
    "deliveries_per_s": "deliveries/s",
    "redis_cpu_us": "Redis us/delivery",
    "redis_bytes": "bytes/delivery",
    "edge_cpu_us": "edge us/wake",
    "redis_busy": "Redis busy",
    "other_cores": "other cores",
    "lost": "lost",
}
AGAINST = ["redis"]
_READY_S: Final = 30.0
_DRAIN_S: Final = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define what can be varied."""
    parser.add_argument("--edges", type=int, default=8, help="processes that hear every wake")
    parser.add_argument("--streams", type=int, default=100, help="that take turns")
    parser.add_argument("--size", type=int, default=100, help="bytes that a wake carries")
    parser.add_argument("--rate", type=int, default=2000, help="wakes a second")
    parser.add_argument("--seconds", type=int, default=5)


@dataclass(frozen=True, slots=True)
class _Order:
    """What one edge, or the origin, does."""

    url: str
    paths: tuple[str, ...]
    wakes: int
    rate: int
    size: int


@dataclass(frozen=True, slots=True)
class _Ready:
    """Every stream is subscribed."""


@dataclass(frozen=True, slots=True)
class _Heard:
    """What an edge heard."""

    wakes: int
    cpu_s: float


def run(args: argparse.Namespace, argv: Sequence[str]) -> Result:
    """Publish at a rate to all edges."""
    if not 1 <= args.size <= PAYLOAD_BYTES_MAX:
        raise ValueError(f"expected a size of 1 to {PAYLOAD_BYTES_MAX}, received {args.size}")
    keys = ("edges", "streams", "size", "rate", "seconds")
    parameters = {key: getattr(args, key) for key in keys}
    result = Result("wakes", parameters, machine(args.folder, argv), COLUMNS)
    for name in args.against:
        with running(name, args.folder, Options()) as server:
            result.servers[name] = figures = _measure(server, args)
        if figures["lost"]:
            result.problems.append(f"{name}: lost {figures['lost']}")
    return result


def _measure(server: Server, args: argparse.Namespace) -> dict[str, Any]:
    url = server.url.replace("http:", "redis:")
    paths = tuple(f"wakes/{number}" for number in range(args.streams))
    order = _Order(url, paths, args.rate * args.seconds, args.rate, args.size)
    redis = Tree.of([server.pid])
    with Crew(_edge, [order] * args.edges) as edges, Crew(_origin, [order]) as origin:
        origin.hear(_Ready, _READY_S)
        edges.hear(_Ready, _READY_S)
        elsewhere, cpu_s, began = Elsewhere(), redis.cpu_s(), time.monotonic()
        sent_bytes = _sent_bytes(server)
        origin.tell("go")
        heard = edges.hear(_Heard, args.seconds + _DRAIN_S + _READY_S)
        took_s = time.monotonic() - began
        cpu_s = redis.cpu_s() - cpu_s
        deliveries = sum(one.wakes for one in heard)
        return {
            "wakes_per_s": order.wakes / took_s,
            "deliveries_per_s": deliveries / took_s,
            "redis_cpu_us": cpu_s * 1e6 / deliveries,
            "redis_bytes": (_sent_bytes(server) - sent_bytes) / deliveries,
            "redis_busy": cpu_s / took_s,
            "edge_cpu_us": sum(one.cpu_s for one in heard) * 1e6 / deliveries,
            "other_cores": elsewhere.cores(),
            "lost": order.wakes * args.edges - deliveries,
        }


def _sent_bytes(server: Server) -> int:
    with Redis.from_url(server.url.replace("http:", "redis:")) as client:
        return int(client.info("stats")["total_net_output_bytes"])


def _edge(pipe: Pipe, order: _Order) -> None:
    uvloop.run(_hear(pipe, order))


async def _hear(pipe: Pipe, order: _Order) -> None:
    count = 0
    all_heard = asyncio.Event()

    def on_wake(path: str, wake: Wake) -> None:
        nonlocal count
        count += 1
        if count == order.wakes:
            all_heard.set()

    changed = asyncio.Event()
    subscriber = RedisSubscriber(order.url)
    await subscriber.start(on_wake, changed.set)
    await asyncio.gather(*map(subscriber.subscribe, order.paths))
    while not subscriber.up:  # the origin is heard, too
        await changed.wait()
        changed.clear()
    count, cpu_s = 0, time.process_time()
    pipe.send(_Ready())
    with suppress(TimeoutError):  # what is missing is counted
        async with asyncio.timeout(order.wakes / order.rate + _READY_S + _DRAIN_S):
            await all_heard.wait()
    pipe.send(_Heard(count, time.process_time() - cpu_s))
    await subscriber.close()


def _origin(pipe: Pipe, order: _Order) -> None:
    uvloop.run(_publish(pipe, order))


async def _publish(pipe: Pipe, order: _Order) -> None:
    publisher = RedisPublisher(order.url)
    await publisher.start()
    pipe.send(_Ready())
    await asyncio.to_thread(pipe.recv)
    loop = asyncio.get_running_loop()
    began, payload, sent = loop.time(), bytes(order.size), 0
    while sent < order.wakes:
        due = min(order.wakes, int((loop.time() - began) * order.rate) + 1)
        for number in range(sent, due):
            at = number // len(order.paths) * order.size
            wake = Wake(
                1, Offset(1, at).token(), Offset(1, at + order.size).token(), payload=payload
            )
            publisher.publish(order.paths[number % len(order.paths)], wake)
        sent = due
        await asyncio.sleep(0.001)
    await publisher.close()
    await asyncio.to_thread(pipe.recv)  # until the parent ends this process
