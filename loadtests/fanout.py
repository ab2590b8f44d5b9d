"""One append to many waiting readers: how late, at what cost, and whether each saw it once."""

from __future__ import annotations

import argparse
import math
import statistics
import time
from array import array
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from loadtests.client import Connection, Target
from loadtests.crew import Crew, CrewSilent
from loadtests.dialect import CONTENT_TYPE, DIALECTS, WAVE_BYTES_MIN, wave_message
from loadtests.proc import Elsewhere, Memory, Tree
from loadtests.report import Result, machine, milliseconds
from loadtests.servers import Options, Server, descriptor_limit, running
from loadtests.swarm import AGAIN, PARK, TOTALS, Parked, SwarmOrder, Totals, Wave, swarm

PATH: Final = "/v1/stream/fanout"
COLUMNS: Final = {
    "connects_per_s": "connects/s",
    "user_bytes_per_reader": "user B/reader",
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
# Descriptors that a client process keeps for itself, beside its readers'.
_SPARE_DESCRIPTORS: Final = 200
_READERS_MAX: Final = 20_000  # of one process and one source address, which has ~28,000 ports
_SOURCES_MAX: Final = 250  # 127.0.0.1 and on
_CONNECT_S: Final = 600.0


AGAINST = ["headwater", "node"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define what can be varied."""
    parser.add_argument("--readers", type=int, default=1000)
    parser.add_argument("--mode", choices=sorted(DIALECTS), default="lp", help="how they wait")
    parser.add_argument("--appends", type=int, default=10)
    parser.add_argument("--warm-up", type=int, default=2, help="appends before that do not count")
    parser.add_argument("--size", type=int, default=100, help="bytes of an append")
    parser.add_argument(
        "--poll-at-once",
        action="store_true",
        help="a long-poll reader asks again at once, not when all have seen the append",
    )
    parser.add_argument("--wave-timeout", type=float, default=60.0, help="seconds")
    parser.add_argument("--edges", type=int, default=1, help="edge processes of headwater")


def run(args: argparse.Namespace, argv: Sequence[str]) -> Result:
    """Measure one server after the other, each alone on the machine."""
    if args.size < WAVE_BYTES_MIN:
        raise ValueError(f"expected a size of at least {WAVE_BYTES_MIN}, received {args.size}")
    keys = ("readers", "mode", "appends", "warm_up", "size", "poll_at_once", "edges")
    parameters = {key: getattr(args, key) for key in keys}
    result = Result("fanout", parameters, machine(args.folder, argv), COLUMNS)
    for name in args.against:
        with running(name, args.folder, Options(edges=args.edges)) as server:
            result.servers[name] = figures = _measure(server, args)
        wrong = [f"{key} {figures[key]}" for key in ("missing", "doubled") if figures[key]]
        if wrong:
            result.problems.append(f"{name}: {', '.join(wrong)}")
    result.compare("connects_per_s", "user_bytes_per_reader", "ms_p50", "ms_p99", "ms_last")
    return result


def _orders(server: Server, args: argparse.Namespace, offset: str) -> list[SwarmOrder]:
    most = min(descriptor_limit() - _SPARE_DESCRIPTORS, _READERS_MAX)
    processes = math.ceil(args.readers / most)
    if not 0 < processes <= _SOURCES_MAX:
        raise ValueError(f"expected 1 to {most * _SOURCES_MAX} readers, received {args.readers}")
    share, rest = divmod(args.readers, processes)
    return [
        SwarmOrder(
            server.url,
            PATH,
            args.mode,
            offset,
            share + (at < rest),
            processes,
            f"127.0.0.{at + 1}",
            hold=not args.poll_at_once,
        )
        for at in range(processes)
    ]


def _measure(server: Server, args: argparse.Namespace) -> dict[str, Any]:
    with Connection(Target.of(server.url)) as writer:
        offset = writer.create(PATH, CONTENT_TYPE)
        writer.ask("GET", f"{PATH}?offset=-1")  # what a server sets up at its first read, is there
    with Crew(swarm, _orders(server, args, offset)) as crew:
        tree = Tree(server.pid)
        tree.settle()
        before = tree.memory()
        began = time.monotonic()
        crew.tell(PARK)
        crew.hear(Parked, _CONNECT_S)
        connected_s = tree.settle() - began
        figures = _held(tree.memory(), before, args.readers)
        figures["connects_per_s"] = args.readers / connected_s
        waves = _Waves(server, args, crew, tree)
        for number in range(1, args.warm_up + 1):
            waves.run(number)
        return figures | waves.measure(args.warm_up + 1, args.appends)


def _held(after: Memory, before: Memory, readers: int) -> dict[str, Any]:
    return {
        "user_bytes_per_reader": (after.pss - before.pss) / readers,
        "user_bytes_per_reader_unshared": (after.uss - before.uss) / readers,
        "user_bytes_before": before.pss,
        "user_bytes_parked": after.pss,
    }


class _Waves:
    """Appends, one after the other, each when all readers wait again."""

    def __init__(self, server: Server, args: argparse.Namespace, crew: Crew, tree: Tree) -> None:
        self._server = server
        self._args = args
        self._crew = crew
        self._tree = tree
        self.last = 0

    def run(self, number: int) -> tuple[array[float], dict[str, float]] | None:
        """Append once and wait for all readers.

        Returns:
            How many seconds after it was sent each reader had it, and the wave's figures;
            None if some did not within the timeout.
        """
        body = wave_message(number, self._args.size)
        self.last = number
        # A connection of its own: servers end those that were idle while the readers parked.
        with Connection(Target.of(self._server.url)) as writer:
            cpu_s = self._tree.cpu_s()
            sent = time.monotonic()
            writer.ask("POST", PATH, f"Content-Type: {CONTENT_TYPE}", body=body, expect=204)
            acknowledged = time.monotonic()
        try:
            reports = self._crew.hear(Wave, self._args.wave_timeout)
        except CrewSilent:
            return None
        late = array("d")
        for report in reports:
            assert report.number == number
            late.extend(at - sent for at in report.at)
        self._tree.settle(quiet_s=0.1)
        delivered_cpu_s = self._tree.cpu_s()
        figures = {
            **milliseconds(late),
            "ms_acknowledged": (acknowledged - sent) * 1e3,
            "cpu_us_per_delivery": (delivered_cpu_s - cpu_s) * 1e6 / len(late),
        }
        if self._args.mode == "lp" and not self._args.poll_at_once:
            self._crew.tell(AGAIN)
            time.sleep(0.02)
            self._tree.settle()
            figures["cpu_us_per_park"] = (self._tree.cpu_s() - delivered_cpu_s) * 1e6 / len(late)
        return late, figures

    def measure(self, first: int, count: int) -> dict[str, Any]:
        """Append count times, and sum up; the readers' whole history is checked at the end."""
        late = array("d")
        waves: list[dict[str, float]] = []
        elsewhere = Elsewhere()
        reads = self._server.counter("headwater_origin_reads_total")
        for number in range(first, first + count):
            wave = self.run(number)
            if wave is None:
                break
            late.extend(wave[0])
            waves.append(wave[1])
        other_cores = elsewhere.cores()
        reads_after = self._server.counter("headwater_origin_reads_total")
        self._crew.tell(TOTALS)
        totals = self._crew.hear(Totals, timeout_s=60)
        errors: Counter[str] = Counter()
        for one in totals:
            errors.update(one.errors)
        behind = sum(
            (self.last - wave) * readers
            for one in totals
            for wave, readers in one.last_waves.items()
        )
        return {
            **milliseconds(late),
            "ms_last": _median(waves, "ms_max"),
            "ms_acknowledged": _median(waves, "ms_acknowledged"),
            "cpu_us_per_delivery": _median(waves, "cpu_us_per_delivery"),
            "cpu_us_per_park": _median(waves, "cpu_us_per_park"),
            "origin_reads_per_append": (
                (reads_after - (reads or 0.0)) / len(waves)
                if reads_after is not None and waves
                else None
            ),
            "other_cores": other_cores,
            "missing": behind + sum(one.lost for one in totals),
            "doubled": sum(one.doubled for one in totals),
            "empty_polls": sum(one.empty for one in totals),
            "reconnects": sum(one.reconnects for one in totals),
            "errors": dict(errors),
            "errors_total": errors.total(),
            "versions": self._server.launch.facts,
            "waves": waves,
        }


def _median(waves: Sequence[dict[str, float]], key: str) -> float | None:
    values = [wave[key] for wave in waves if key in wave]
    return statistics.median(values) if values else None
