"""One append to many waiting readers: how late, at what cost, and whether each saw it once."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, Final

from loadtests.client import Connection, Target
from loadtests.crowd import Crowd, Seats, broken
from loadtests.dialect import DIALECTS, WAVE_BYTES_MIN
from loadtests.launch import Options, check_room
from loadtests.layout import edges_for, live_s
from loadtests.report import Result, machine
from loadtests.servers import Server, descriptor_limit, running
from loadtests.waves import READS, Waves, reads_per_append

NAME: Final = "fanout"
COLUMNS: Final = {
    "connect_s": "connect s",
    "connects_per_s": "connects/s",
    "user_bytes_per_reader": "user B/reader",
    "kernel_bytes_per_reader": "kernel B/reader",
    "run_bytes": "run bytes",
    "ms_p50": "p50 ms",
    "ms_p99": "p99 ms",
    "ms_last": "last ms",
    "cpu_us_per_delivery": "CPU us/delivery",
    "cpu_us_per_park": "CPU us/re-park",
    "origin_reads_per_append": "origin reads",
    "other_cores": "other cores",
    "missing": "missing",
    "doubled": "doubled",
    "errors_total": "errors",
}


AGAINST = ["headwater", "node"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define what can be varied."""
    parser.add_argument("--readers", type=int, default=1000)
    parser.add_argument("--mode", choices=sorted(DIALECTS), default="lp", help="how they wait")
    parser.add_argument("--appends", type=int, default=10)
    parser.add_argument("--warm-up", type=int, default=2, help="appends before that do not count")
    parser.add_argument("--size", type=int, default=100, help="bytes of an append")
    parser.add_argument(
        "--rate",
        type=float,
        help="appends a second, whether or not readers are done; none: each when all wait again",
    )
    parser.add_argument(
        "--poll-at-once",
        action="store_true",
        help="a long-poll reader asks again at once, not when all have seen the append",
    )
    parser.add_argument(
        "--wave-timeout",
        type=float,
        help="seconds to the last reader; none: 60, and one more for each 5,000 readers",
    )
    parser.add_argument(
        "--edges",
        type=int,
        help="edge processes of headwater, workers of nchan; none: as few as can hold the readers",
    )
    parser.add_argument(
        "--clients", type=int, default=1, help="client processes, at least; one reads on one core"
    )


def run(args: argparse.Namespace, argv: Sequence[str]) -> Result:
    """Measure one server after the other, each alone on the machine."""
    if args.size < WAVE_BYTES_MIN:
        raise ValueError(f"expected a size of at least {WAVE_BYTES_MIN}, received {args.size}")
    if args.edges is None:
        args.edges = edges_for(args.readers, descriptor_limit())
    check_room(args.against, args.readers, args.edges, descriptor_limit())
    if args.wave_timeout is None:
        args.wave_timeout = 60 + args.readers / 5_000
    keys = (
        "readers",
        "mode",
        "appends",
        "warm_up",
        "size",
        "rate",
        "poll_at_once",
        "edges",
        "clients",
    )
    parameters = {key: getattr(args, key) for key in keys}
    result = Result("fanout", parameters, machine(args.folder, argv), COLUMNS)
    options = Options(live_s=live_s(args.readers), edges=args.edges)
    for name in args.against:
        with running(name, args.folder, options) as server:
            result.servers[name] = figures = _measure(server, args)
        if wrong := broken(figures):
            result.problems.append(f"{name}: {', '.join(wrong)}")
    result.compare(
        "connects_per_s", "user_bytes_per_reader", "ms_p50", "ms_p99", "ms_last",
        "cpu_us_per_delivery",
    )  # fmt: skip
    return result


def _measure(server: Server, args: argparse.Namespace) -> dict[str, Any]:
    with Connection(Target.of(server.url)) as writer:
        place = server.speech.create(writer, NAME)
    # Those that rest after each wave let it be seen what delivery costs, and what asking again.
    hold = args.mode == "lp" and not args.poll_at_once and args.rate is None
    seats = Seats(args.readers, args.mode, NAME, place, hold, clients_at_least=args.clients)
    with Crowd(server, seats) as crowd:
        figures = crowd.park()
        waves = Waves(server, NAME, crowd, args.size, args.wave_timeout, again=hold)
        for _ in range(args.warm_up):
            waves.run()
        reads = server.counter(READS)
        if args.rate is None:
            figures |= waves.in_turn(args.appends)
        else:
            figures |= waves.at_a_rate(args.appends, args.rate)
        appends = waves.last - args.warm_up
        figures["origin_reads_per_append"] = reads_per_append(reads, server.counter(READS), appends)
        return figures | waves.totals() | {"versions": server.launch.facts}
