"""Many live streams with one reader each: what one costs an edge, and how late its news is."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from typing import Any, Final

from loadtests.crew import Crew
from loadtests.crowd import Crowd, Seats, broken, seen
from loadtests.dialect import DIALECTS, STAMPED_BYTES_MIN
from loadtests.launch import Options, check_room
from loadtests.layout import edges_for, live_s
from loadtests.orders import Totals
from loadtests.pacer import CREATE, Created, Pace, PaceOrder, PaceReport, pace
from loadtests.proc import Elsewhere
from loadtests.report import Result, machine, milliseconds
from loadtests.servers import Server, descriptor_limit, running
from loadtests.waves import READS, reads_per_append

NAME: Final = "streams"
COLUMNS: Final = {
    "connect_s": "connect s",
    "cpu_us_per_join": "CPU us/join",
    "user_bytes_per_stream": "user B/stream",
    "user_bytes_per_stream_after": "after appends",
    "kernel_bytes_per_reader": "kernel B/reader",
    "origin_reads_per_stream": "origin reads/stream",
    "appends_per_s": "appends/s",
    "ms_p50": "p50 ms",
    "ms_p99": "p99 ms",
    "ms_max": "max ms",
    "ms_behind_max": "sent late ms",
    "cpu_us_per_append": "CPU us/append",
    "origin_reads_per_append": "origin reads/append",
    "other_cores": "other cores",
    "missing": "missing",
    "doubled": "doubled",
    "errors_total": "errors",
}
AGAINST = ["headwater"]
_CREATE_S: Final = 900.0
_ARRIVE_S: Final = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define what can be varied."""
    parser.add_argument("--streams", type=int, default=10_000, help="and as many readers")
    parser.add_argument("--mode", choices=sorted(DIALECTS), default="lp", help="how they wait")
    parser.add_argument("--rate", type=float, default=2000.0, help="appends a second, over all")
    parser.add_argument("--seconds", type=float, default=10.0, help="of appends")
    parser.add_argument("--size", type=int, default=100, help="bytes of an append")
    parser.add_argument("--connections", type=int, default=64, help="that append")
    parser.add_argument(
        "--edges", type=int, help="edge processes; none: as few as can hold the readers"
    )


def run(args: argparse.Namespace, argv: Sequence[str]) -> Result:
    """Measure one server after the other, each alone on the machine."""
    if args.size < STAMPED_BYTES_MIN:
        raise ValueError(f"expected a size of at least {STAMPED_BYTES_MIN}, received {args.size}")
    if args.edges is None:
        args.edges = edges_for(args.streams, descriptor_limit())
    check_room(args.against, args.streams, args.edges, descriptor_limit())
    keys = ("streams", "mode", "rate", "seconds", "size", "connections", "edges")
    parameters = {key: getattr(args, key) for key in keys}
    result = Result("streams", parameters, machine(args.folder, argv), COLUMNS)
    options = Options(live_s=live_s(args.streams) + math.ceil(args.seconds), edges=args.edges)
    for name in args.against:
        with running(name, args.folder, options) as server:
            result.servers[name] = figures = _measure(server, args)
        if wrong := broken(figures):
            result.problems.append(f"{name}: {', '.join(wrong)}")
    return result


def _measure(server: Server, args: argparse.Namespace) -> dict[str, Any]:
    order = PaceOrder(
        server.url,
        server.speech,
        NAME,
        args.streams,
        min(args.connections, args.streams),
        args.size,
    )
    seats = Seats(args.streams, args.mode, NAME, server.speech.beginning, own_streams=True)
    with Crew(pace, [order]) as pacer, Crowd(server, seats) as crowd:
        pacer.tell(CREATE)
        pacer.hear(Created, _CREATE_S)
        edges = server.edges()
        crowd.tree.settle()
        memory, reads = edges.memory(), server.counter(READS)
        figures = crowd.park()
        parked, parked_reads = edges.memory(), server.counter(READS)
        figures["user_bytes_per_stream"] = (parked.pss - memory.pss) / args.streams
        figures["origin_reads_per_stream"] = reads_per_append(reads, parked_reads, args.streams)
        elsewhere, cpu_s, began = Elsewhere(), crowd.tree.cpu_s(), time.monotonic()
        pacer.tell(Pace(args.rate, args.seconds))
        (report,) = pacer.hear(PaceReport, args.seconds + _CREATE_S)
        ended = time.monotonic()
        totals = _all_arrived(crowd, report)
        crowd.tree.settle(quiet_s=0.1)
        appends = sum(report.appended)
        cpu_s = crowd.tree.cpu_s() - cpu_s
        figures |= {
            "other_cores": elsewhere.cores(),
            "appends": appends,
            "acknowledged": report.acknowledged,
            "appends_per_s": appends / (ended - began),
            "ms_behind_max": report.behind_s * 1e3,
            "cpu_us_per_append": cpu_s * 1e6 / appends,
            "origin_reads_per_append": reads_per_append(
                parked_reads, server.counter(READS), appends
            ),
            "user_bytes_per_stream_after": (edges.memory().pss - memory.pss) / args.streams,
            **milliseconds(totals.late_s),
            **seen(totals, report.appended),
            "versions": server.launch.facts,
        }
        # An append that was not acknowledged may be there or not; nobody is to blame for either.
        figures["missing"] = max(0, figures["missing"] - report.errors.total())
        figures["errors"] |= {f"append: {what}": n for what, n in report.errors.items()}
        figures["errors_total"] += report.errors.total()
        return figures


def _all_arrived(crowd: Crowd, report: PaceReport) -> Totals:
    """Wait until each reader has what was appended to its stream; then, or at the end, count."""
    deadline = time.monotonic() + _ARRIVE_S
    while True:
        totals = crowd.totals()
        if totals.last == report.appended or time.monotonic() > deadline:
            return totals
        time.sleep(0.2)
