"""Durable appends: how many a second, how late, and whether every acknowledged one is there."""

from __future__ import annotations

import argparse
import statistics
from array import array
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Final

from loadtests.client import Connection, Target, required
from loadtests.crew import Crew
from loadtests.launch import Options
from loadtests.ledger import NOTHING, Audit, Sent, audit
from loadtests.message import Damaged, Shape, names
from loadtests.proc import Elsewhere, Tree
from loadtests.report import Result, machine, milliseconds
from loadtests.servers import Server, running
from loadtests.writers import GO, Ready, WriteOrder, WriteReport, write

COLUMNS: Final = {
    "appends_per_s": "appends/s",
    "messages_per_s": "messages/s",
    "bytes_per_s": "bytes/s",
    "ms_p50": "p50 ms",
    "ms_p99": "p99 ms",
    "ms_max": "max ms",
    "server_cpu_us": "server CPU us",
    "client_busy": "client busy",
    "other_cores": "other cores",
    "errors_total": "errors",
    "lost": "lost",
    "doubled": "doubled",
}


AGAINST = ["headwater-origin", "headwater", "node"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define what can be varied."""
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--streams", type=int, default=1, help="appended to in turn")
    parser.add_argument("--size", type=int, default=100, help="bytes of a message")
    parser.add_argument(
        "--batch", type=int, default=0, help="JSON messages an append; 0: plain bytes, one message"
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=3, help="of each server, in alternation")
    parser.add_argument("--warm-up", type=float, default=1.0, help="seconds that do not count")
    parser.add_argument(
        "--clients", type=int, default=1, help="processes that share the connections"
    )
    parser.add_argument("--edges", type=int, default=1, help="edge processes of headwater")


def run(args: argparse.Namespace, argv: Sequence[str]) -> Result:
    """Measure each server in alternating rounds, so that noise of the machine hits all of them."""
    shape = Shape(args.size, args.batch)
    parameters = {
        key: getattr(args, key)
        for key in ("connections", "streams", "size", "batch", "seconds", "rounds", "clients")
    }
    result = Result("append", parameters, machine(args.folder, argv), COLUMNS)
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in args.against}
    latencies = {name: array("d") for name in args.against}
    with ExitStack() as stack:
        servers = [
            stack.enter_context(running(name, args.folder, Options(edges=args.edges)))
            for name in args.against
        ]
        for server in servers:
            _round(server, args, shape, "warm-up", args.warm_up)
        for number in range(args.rounds):
            # Forwards, then backwards: a machine that slows down slows all servers alike.
            for server in servers if number % 2 == 0 else reversed(servers):
                figures, took = _round(server, args, shape, f"round-{number}", args.seconds)
                rounds[server.name].append(figures)
                latencies[server.name].extend(took)
        facts = {server.name: server.launch.facts for server in servers}
    for name, each in rounds.items():
        result.servers[name] = _summary(each, latencies[name]) | {"versions": facts[name]}
        result.problems += [f"{name}: {problem}" for problem in _problems(each)]
    result.compare("appends_per_s", "ms_p50", "ms_p99")
    return result


def _round(
    server: Server, args: argparse.Namespace, shape: Shape, name: str, seconds: float
) -> tuple[dict[str, Any], array[float]]:
    paths = tuple(f"/v1/stream/append/{name}/{at}" for at in range(args.streams))
    with Connection(Target.of(server.url)) as connection:
        for path in paths:
            connection.create(path, shape.content_type)
    orders = [
        WriteOrder(
            server.url,
            paths,
            tuple(range(client, args.connections, args.clients)),
            args.connections,
            shape,
            seconds,
        )
        for client in range(args.clients)
    ]
    tree = Tree(server.pid)
    with Crew(write, orders) as crew:
        crew.hear(Ready, timeout_s=60)
        elsewhere = Elsewhere()
        cpu_s = tree.cpu_s()
        crew.tell(GO)
        reports = crew.hear(WriteReport, timeout_s=seconds + 60)
        cpu_s = tree.cpu_s() - cpu_s
        other_cores = elsewhere.cores()
    took = array("d")
    errors: Counter[str] = Counter()
    for report in reports:
        took.extend(report.latencies_s)
        errors.update(report.errors)
    elapsed_s = max(report.ended for report in reports) - min(report.began for report in reports)
    rate = len(took) / elapsed_s if took else 0.0
    figures: dict[str, Any] = {
        "appends": len(took),
        "appends_per_s": rate,
        "messages_per_s": rate * shape.messages,
        "bytes_per_s": rate * shape.messages * shape.size,
        **milliseconds(took),
        "server_cpu_us": cpu_s * 1e6 / len(took) if took else None,  # of one append
        "client_busy": max(report.cpu_s for report in reports) / elapsed_s if took else None,
        "other_cores": other_cores,
        "errors": dict(errors),
    }
    try:
        checked = _verify(server, paths, shape, reports)
    except Damaged as damage:
        return figures | {"damaged": str(damage)}, took
    return figures | {
        "acknowledged": checked.acknowledged,
        "stored": checked.stored,
        "lost": checked.lost,
        "doubled": checked.doubled,
        "reordered": checked.reordered,
        "foreign": checked.foreign,
    }, took


def _verify(
    server: Server, paths: Sequence[str], shape: Shape, reports: Sequence[WriteReport]
) -> Audit:
    """Read every stream back, and compare it with what was acknowledged."""
    total = NOTHING
    with Connection(Target.of(server.url)) as connection:
        for at, path in enumerate(paths):
            sent: dict[int, Sent] = {}
            for report in reports:
                sent |= report.sent.get(at, {})
            stored = b"".join(map(shape.decode, _read(connection, path)))
            total += audit(sent, names(shape, stored))
    return total


def _read(connection: Connection, path: str) -> list[bytes]:
    """Return the bodies of the reads that make up a stream, from its beginning to its tail."""
    bodies = []
    offset = "-1"
    while True:
        reply = connection.ask("GET", f"{path}?offset={offset}")
        bodies.append(reply.body)
        if reply.head.field("Stream-Up-To-Date") == "true":
            return bodies
        offset = required(reply.head, "Stream-Next-Offset")


def _summary(rounds: Sequence[dict[str, Any]], took: array[float]) -> dict[str, Any]:
    """Return medians over the rounds, percentiles over all appends, and sums of what went wrong."""
    medians = ("appends_per_s", "messages_per_s", "bytes_per_s", "server_cpu_us", "client_busy")
    sums = ("appends", "acknowledged", "stored", "lost", "doubled", "reordered", "foreign")
    errors: Counter[str] = Counter()
    for one in rounds:
        errors.update(one["errors"])
    return {
        **{key: statistics.median([one[key] or 0.0 for one in rounds]) for key in medians},
        **milliseconds(took),
        **{key: sum(one.get(key, 0) for one in rounds) for key in sums},
        "other_cores": max(one["other_cores"] for one in rounds),
        "errors": dict(errors),
        "errors_total": errors.total(),
        "rounds": list(rounds),
    }


def _problems(rounds: Sequence[dict[str, Any]]) -> list[str]:
    """Say what no run may show. Errors alone may be refusals, which are figures."""
    found = []
    for number, one in enumerate(rounds):
        if "damaged" in one:
            found.append(f"round {number}: {one['damaged']}")
        wrong = [
            f"{key} {one[key]}"
            for key in ("lost", "doubled", "reordered", "foreign")
            if one.get(key)
        ]
        if wrong:
            found.append(
                f"round {number}: {', '.join(wrong)} of {one['acknowledged']} acknowledged"
            )
        if not one["appends"]:
            found.append(f"round {number}: no append was acknowledged")
    return found
