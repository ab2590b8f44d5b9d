"""Durable appends: how many a second, how late, and whether every acknowledged one is there."""

from __future__ import annotations

import argparse
import statistics
from array import array
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Final

from loadtests.launch import Options
from loadtests.message import Shape
from loadtests.report import LARGE_BLOCK_BYTES, Result, disk, machine, milliseconds
from loadtests.rounds import Load, broken_promises, run_round
from loadtests.servers import running

COLUMNS: Final = {
    "appends_per_s": "appends/s",
    "messages_per_s": "messages/s",
    "bytes_per_s": "bytes/s",
    "of_disk": "of disk",
    "ms_p50": "p50 ms",
    "ms_p99": "p99 ms",
    "ms_max": "max ms",
    "server_cpu_us": "server CPU us",
    "resident_bytes_early": "early B",
    "resident_bytes_late": "late B",
    "client_busy": "client busy",
    "other_cores": "other cores",
    "errors_total": "errors",
    "lost": "lost",
    "doubled": "doubled",
}


_PARAMETERS: Final = (
    *("connections", "streams", "size", "batch", "seconds", "rounds", "clients", "rate"),
)
# From here on it is the disk's rate that counts, and no more how many writes it takes.
_LARGE_BYTES: Final = 10_000

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
    parser.add_argument(
        "--rate", type=float, default=0.0, help="appends a second; 0: as fast as they are answered"
    )
    parser.add_argument("--edges", type=int, default=1, help="edge processes of headwater")


def run(args: argparse.Namespace, argv: Sequence[str]) -> Result:
    """Measure each server in alternating rounds, so that noise of the machine hits all of them."""
    shape = Shape(args.size, args.batch)
    load = Load(shape, args.connections, args.streams, args.clients, args.rate)
    large = shape.size * shape.messages >= _LARGE_BYTES
    parameters = {key: getattr(args, key) for key in _PARAMETERS}
    result = Result("append", parameters, machine(args.folder, argv), COLUMNS)
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in args.against}
    latencies = {name: array("d") for name in args.against}
    if large:
        result.machine["disk_large"] = [disk(args.folder, block_bytes=LARGE_BLOCK_BYTES)]
    with ExitStack() as stack:
        servers = [
            stack.enter_context(running(name, args.folder, Options(edges=args.edges)))
            for name in args.against
        ]
        for server in servers:
            run_round(server, load, "warm-up", args.warm_up)
        for number in range(args.rounds):
            # Forwards, then backwards: a machine that slows down slows all servers alike.
            for server in servers if number % 2 == 0 else reversed(servers):
                figures, took = run_round(server, load, f"round-{number}", args.seconds)
                rounds[server.name].append(figures)
                latencies[server.name].extend(took)
        facts = {server.name: server.launch.facts for server in servers}
    if large:
        result.machine["disk_large"] += [disk(args.folder, block_bytes=LARGE_BLOCK_BYTES)]
    for name, each in rounds.items():
        result.servers[name] = _summary(each, latencies[name]) | {"versions": facts[name]}
        for number, one in enumerate(each):
            if broken := broken_promises(one):
                result.problems.append(f"{name}: round {number}: {broken}")
        if large:
            taken = statistics.mean(one["bytes_per_s"] for one in result.machine["disk_large"])
            result.servers[name]["of_disk"] = result.servers[name]["bytes_per_s"] / taken
    result.compare("appends_per_s", "ms_p50", "ms_p99")
    return result


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
        "resident_bytes_early": rounds[0]["resident_bytes_early"],
        "resident_bytes_late": rounds[-1]["resident_bytes_late"],
        "other_cores": max(one["other_cores"] for one in rounds),
        "errors": dict(errors),
        "errors_total": errors.total(),
        "rounds": list(rounds),
    }
