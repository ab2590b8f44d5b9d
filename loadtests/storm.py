"""Every reader loses its connection at one moment: how soon are all back, with all the news?"""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections.abc import Sequence
from typing import Any, Final

from loadtests.client import Connection, Target
from loadtests.crowd import Crowd, Seats, broken
from loadtests.dialect import DIALECTS
from loadtests.exposition import Histograms, bucket_percentile, grown, histograms
from loadtests.kernel import listen_losses
from loadtests.launch import Options, check_room
from loadtests.layout import edges_for, live_s
from loadtests.orders import Parked, Storm, Totals
from loadtests.proc import Elsewhere, Tree
from loadtests.report import Result, machine
from loadtests.servers import Server, descriptor_limit, running
from loadtests.waves import Waves

NAME: Final = "storm"
COLUMNS: Final = {
    "connect_s": "connect s",
    "back_s": "back s",
    "reconnects": "reconnects",
    "refused": "503",
    "listen_overflows": "overflows",
    "listen_drops": "drops",
    "loop_delay_ms_p99": "loop p99 ms",
    "server_cpu_s": "server CPU s",
    "other_cores": "other cores",
    "missing": "missing",
    "doubled": "doubled",
    "errors_total": "errors",
}
AGAINST = ["headwater"]
_LOOP_DELAY: Final = "headwater_loop_delay_seconds"
_BACK_S: Final = 120.0
_AWAY_APPENDS: Final = 3  # while readers are away
_MANY: Final = 2_000  # readers from which on one client process would be in its own way


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define what can be varied."""
    parser.add_argument("--readers", type=int, default=20_000)
    parser.add_argument("--mode", choices=sorted(DIALECTS), default="lp", help="how they wait")
    parser.add_argument(
        "--spread", type=float, default=8.0, help="seconds within which a reader first tries again"
    )
    parser.add_argument(
        "--by",
        choices=("readers", "edges"),
        default="readers",
        help="who ends the connections: readers close them, or headwater's edges are killed",
    )
    parser.add_argument("--size", type=int, default=100, help="bytes of an append")
    parser.add_argument(
        "--edges", type=int, help="edge processes; none: as few as can hold the readers"
    )


def run(args: argparse.Namespace, argv: Sequence[str]) -> Result:
    """Measure one server after the other, each alone on the machine."""
    if args.edges is None:
        args.edges = edges_for(args.readers, descriptor_limit())
    check_room(args.against, args.readers, args.edges, descriptor_limit())
    keys = ("readers", "mode", "spread", "by", "size", "edges")
    parameters = {key: getattr(args, key) for key in keys}
    result = Result("storm", parameters, machine(args.folder, argv), COLUMNS)
    options = Options(live_s=live_s(args.readers), edges=args.edges)
    for name in args.against:
        with running(name, args.folder, options) as server:
            result.servers[name] = figures = _measure(server, args)
        if wrong := broken(figures):
            result.problems.append(f"{name}: {', '.join(wrong)}")
    return result


def _measure(server: Server, args: argparse.Namespace) -> dict[str, Any]:
    with Connection(Target.of(server.url)) as writer:
        place = server.speech.create(writer, NAME)
    clients = len(os.sched_getaffinity(0)) if args.readers > _MANY else 1
    seats = Seats(args.readers, args.mode, NAME, place, clients_at_least=clients)
    with Crowd(server, seats) as crowd:
        figures = crowd.park()
        waves = Waves(server, NAME, crowd, args.size, _BACK_S, again=False)
        waves.run()
        losses, delays = listen_losses(), _delays(server)
        elsewhere, cpu_s = Elsewhere(), crowd.tree.cpu_s_each()
        began = time.monotonic()
        crowd.crew.tell(Storm(args.spread, close=args.by == "readers"))
        if args.by == "edges":
            for pid in server.edges().named("hw-edge").pids:
                os.kill(pid, signal.SIGKILL)
        for at in range(1, _AWAY_APPENDS + 1):
            time.sleep(max(0.0, began + args.spread * at / 4 - time.monotonic()))
            _append(server, waves)
        parked = _all_parked(crowd, began)
        # A long-poll is sent when its reader counts as parked, but not read.
        tree = Tree(server.pid)  # there may be others than before
        settled = tree.settle()
        figures["server_cpu_s"] = sum(
            used - cpu_s.get(pid, 0.0) for pid, used in tree.cpu_s_each().items()
        )
        figures["other_cores"] = elsewhere.cores()
        figures["back_s"] = max(parked, settled or 0.0) - began
        lost = listen_losses() - losses
        figures["listen_overflows"], figures["listen_drops"] = lost.overflows, lost.drops
        figures["loop_delay_ms_p99"] = _loop_delay_ms(delays, _delays(server))
        _append(server, waves)
        _all_have(crowd, waves.last)
        return figures | waves.totals() | {"versions": server.launch.facts}


def _append(server: Server, waves: Waves) -> None:
    """Append once, as soon as somebody listens; what was sent is never sent again."""
    deadline = time.monotonic() + _BACK_S
    while True:
        try:
            writer = Connection(Target.of(server.url))
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
            continue
        with writer:
            waves.append(writer)
        return


def _all_parked(crowd: Crowd, since: float) -> float:
    """Wait until all are back; return when the last one was, on the monotonic clock."""
    deadline = since + _BACK_S
    totals = Totals()
    while time.monotonic() < deadline:
        totals = crowd.totals()
        if totals.parked == crowd.readers and totals.parked_at > since:
            return totals.parked_at
        crowd.crew.listen(Parked, 0.25)
    return time.monotonic()


def _all_have(crowd: Crowd, wave: int) -> None:
    deadline = time.monotonic() + _BACK_S
    while time.monotonic() < deadline and min(crowd.totals().last) < wave:
        time.sleep(0.1)


def _delays(server: Server) -> Histograms:
    """Return how late the loops of the edges have been, by process."""
    found = histograms(server.metrics() or "", _LOOP_DELAY)
    return {process: buckets for process, buckets in found.items() if process != "origin"}


def _loop_delay_ms(before: Histograms, after: Histograms) -> float | None:
    """Return the p99 of the process that was worst, as the bound of its bucket; None if unknown."""
    each = [
        bucket_percentile(grown(before.get(process, {}), buckets), 0.99)
        for process, buckets in after.items()
    ]
    known = [delay * 1e3 for delay in each if delay is not None]
    return max(known, default=None)
