"""Small reads, over and over: how many a second one process answers, how late, and at what cost."""

from __future__ import annotations

import argparse
import statistics
from array import array
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final

from loadtests.client import STREAMS, Connection, Target
from loadtests.crew import Crew
from loadtests.getters import WRONG_BODY, Get, GetOrder, GetReport, Ready, get
from loadtests.launch import Options
from loadtests.proc import Elsewhere, Tree
from loadtests.report import Result, machine, milliseconds
from loadtests.servers import Server, running

PATH: Final = STREAMS + "reads"
COLUMNS: Final = {
    "reads_per_s": "reads/s",
    "ms_p50": "p50 ms",
    "ms_p99": "p99 ms",
    "server_cpu_us": "server CPU us",
    "start_reads_per_s": "at -1 reads/s",
    "start_ms_p50": "p50 ms",
    "start_ms_p99": "p99 ms",
    "start_server_cpu_us": "server CPU us",
    "client_busy": "client busy",
    "other_cores": "other cores",
    "errors_total": "errors",
}
AGAINST = ["headwater", "headwater-origin", "node"]
_START: Final = "start_"  # before the figures of reads at -1; the others are at an explicit offset


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define what can be varied."""
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--clients", type=int, default=1, help="processes that share them")
    parser.add_argument("--size", type=int, default=1000, help="bytes of the stream, all read")
    parser.add_argument(
        "--open", action="store_true", help="the stream is not closed: a read ends at a tail"
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=3, help="of each server, in alternation")
    parser.add_argument("--edges", type=int, default=1, help="edge processes of headwater")


@dataclass(slots=True)
class _Seen:
    """What one server showed so far, of one kind of read."""

    rounds: list[dict[str, Any]] = field(default_factory=list)
    latencies_s: array[float] = field(default_factory=lambda: array("f"))
    errors: Counter[str] = field(default_factory=Counter)


def run(args: argparse.Namespace, argv: Sequence[str]) -> Result:
    """Measure each server in alternating rounds, so that noise of the machine hits all of them."""
    keys = ("connections", "clients", "size", "open", "seconds", "rounds", "edges")
    parameters = {key: getattr(args, key) for key in keys}
    result = Result("reads", parameters, machine(args.folder, argv), COLUMNS)
    body = bytes(65 + at % 26 for at in range(args.size))
    seen = {(name, kind): _Seen() for name in args.against for kind in ("", _START)}
    with ExitStack() as stack:
        servers = [
            stack.enter_context(running(name, args.folder, Options(edges=args.edges)))
            for name in args.against
        ]
        offsets = {server.name: _prepare(server, body, closed=not args.open) for server in servers}
        for number in range(args.rounds + 1):
            for server in servers if number % 2 == 0 else reversed(servers):
                for kind, offset in (("", offsets[server.name]), (_START, "-1")):
                    # The first round is short, and only warms what reads it.
                    seconds = args.seconds if number else min(0.5, args.seconds)
                    order = Get(f"{PATH}?offset={offset}", body, seconds)
                    _round(server, args, order, seen[server.name, kind] if number else _Seen())
        facts = {server.name: server.launch.facts for server in servers}
    for name in args.against:
        figures = result.servers[name] = _summary(seen[name, ""], seen[name, _START])
        figures["versions"] = facts[name]
        if wrong := figures["errors"].get(WRONG_BODY):
            result.problems.append(f"{name}: {wrong} reads of another body than was appended")
    result.compare("reads_per_s", "ms_p99", "start_reads_per_s", "start_ms_p99")
    return result


def _prepare(server: Server, body: bytes, *, closed: bool) -> str:
    """Make the stream; return the explicit offset of its beginning."""
    content_type = "application/octet-stream"
    fields = [f"Content-Type: {content_type}", *(["Stream-Closed: true"] if closed else [])]
    with Connection(Target.of(server.url)) as connection:
        offset = connection.create(PATH, content_type)
        connection.ask("POST", PATH, *fields, body=body, expect=204)
    return offset


def _round(server: Server, args: argparse.Namespace, order: Get, seen: _Seen) -> None:
    orders = [
        GetOrder(server.url, len(range(at, args.connections, args.clients)))
        for at in range(args.clients)
    ]
    tree = Tree(server.pid)
    with Crew(get, orders) as crew:
        crew.hear(Ready, timeout_s=60)
        elsewhere, cpu_s = Elsewhere(), tree.cpu_s()
        crew.tell(order)
        reports = crew.hear(GetReport, timeout_s=order.seconds + 60)
        cpu_s, other_cores = tree.cpu_s() - cpu_s, elsewhere.cores()
    reads = sum(len(report.latencies_s) for report in reports)
    elapsed_s = max(report.ended for report in reports) - min(report.began for report in reports)
    for report in reports:
        seen.latencies_s.extend(report.latencies_s)
        seen.errors.update(report.errors)
    seen.rounds.append(
        {
            "reads_per_s": reads / elapsed_s,
            "server_cpu_us": cpu_s * 1e6 / reads if reads else 0.0,
            "client_busy": max(report.cpu_s for report in reports) / elapsed_s,
            "other_cores": other_cores,
        }
    )


def _summary(explicit: _Seen, start: _Seen) -> dict[str, Any]:
    """Return medians over the rounds, and percentiles over all reads."""
    figures: dict[str, Any] = {}
    for kind, seen in (("", explicit), (_START, start)):
        for key in ("reads_per_s", "server_cpu_us"):
            figures[kind + key] = statistics.median([one[key] for one in seen.rounds])
        took = milliseconds(seen.latencies_s)
        figures |= {kind + key: value for key, value in took.items()}
        figures[kind + "rounds"] = seen.rounds
    errors = explicit.errors + start.errors
    every = explicit.rounds + start.rounds
    return figures | {
        "client_busy": max(one["client_busy"] for one in every),
        "other_cores": max(one["other_cores"] for one in every),
        "errors": dict(errors),
        "errors_total": errors.total(),
    }
