"""Many streams go, by DELETE and by expiry, while others are appended to: what do those notice?"""

from __future__ import annotations

import argparse
import time
from array import array
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from loadtests.client import Connection, Target
from loadtests.crew import Crew
from loadtests.errands import Errand, ErrandReport, path_of, run_errand
from loadtests.launch import CannotStart, Options
from loadtests.message import Shape
from loadtests.proc import Tree
from loadtests.report import Result, machine, milliseconds
from loadtests.rounds import Load, broken_promises, run_round
from loadtests.servers import Server, running
from loadtests.writers import GO, Ready

COLUMNS: Final = {
    "created_per_s": "created/s",
    "before_ms_p99": "p99 ms before",
    "deleting_ms_p99": "deleting",
    "deleting_ratio": "ratio",
    "deleted_per_s": "deleted/s",
    "between_ms_p99": "p99 ms before",
    "expiring_ms_p99": "expiring",
    "expiring_ratio": "ratio",
    "expired_per_s": "expired/s",
    "other_cores": "other cores",
    "errors_total": "errors",
}
AGAINST = ["headwater-origin"]

_STREAMS: Final = "headwater_origin_streams"
_WITHIN_S: Final = 600.0  # all must be gone; 100,000 in ten minutes are fewer than come in one
_CONNECTIONS: Final = 8  # that create and delete
_LOOKED_AT: Final = 200  # of the streams that are gone, spread over all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define what can be varied."""
    parser.add_argument("--streams", type=int, default=100_000, help="that are deleted, and expire")
    parser.add_argument("--rate", type=float, default=2000.0, help="appends a second meanwhile")
    parser.add_argument("--connections", type=int, default=32, help="that append")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each round of appends")
    parser.add_argument(
        "--delete-rate", type=float, default=2000.0, help="a second; 0: as they are answered"
    )


def run(args: argparse.Namespace, argv: Sequence[str]) -> Result:
    """Measure each server by itself."""
    parameters = {
        key: getattr(args, key)
        for key in ("streams", "rate", "connections", "seconds", "delete_rate")
    }
    result = Result("forget", parameters, machine(args.folder, argv), COLUMNS)
    for name in args.against:
        with running(name, args.folder, Options()) as server:
            if server.counter(_STREAMS) is None:
                raise CannotStart(f"{name} does not count its streams")
            run_ = _Run(server, args)
            result.servers[name] = run_.measure()
            result.problems += [f"{name}: {problem}" for problem in run_.problems]
    return result


class _Run:
    def __init__(self, server: Server, args: argparse.Namespace) -> None:
        self._server = server
        self._args = args
        self._load = Load(Shape(100), args.connections, per_s=args.rate)
        self._rounds = 0
        self._other_cores: dict[str, float] = {}  # the worst round of each phase
        self._errors = 0
        self.problems: list[str] = []

    def measure(self) -> dict[str, Any]:
        args, url = self._args, self._server.url
        self._append_until("warm-up", lambda: True)
        made = self._send(Errand(url, "PUT", "forget/deleted", *self._crowd()), "201")
        Tree(self._server.pid).settle()
        before = self._append_until("before", self._after(2))
        delete = Errand(
            url, "DELETE", "forget/deleted", args.streams, _CONNECTIONS, per_s=args.delete_rate
        )
        with Crew(run_errand, [delete]) as crew:
            crew.hear(Ready, timeout_s=60)
            reports: list[ErrandReport] = []
            crew.tell(GO)

            def deleted() -> bool:
                reports.extend(crew.listen(ErrandReport, 0.0))
                return bool(reports)

            deleting = self._append_until("deleting", deleted)
        self._check(reports, "204")
        self._check_gone("forget/deleted")
        between = self._append_until("between", self._after(2))
        stay = self._count() - self._rounds  # and one that each round appends to
        # Made again at the pace seen, with time to spare: none may be due before all are there.
        due_s = time.time() + 2 * made.elapsed_s + 2
        due = datetime.fromtimestamp(due_s, UTC).isoformat(timespec="milliseconds")
        expires = f"Stream-Expires-At: {due.replace('+00:00', 'Z')}"
        self._send(Errand(url, "PUT", "forget/expired", *self._crowd(expires)), "201")
        if time.time() > due_s:
            self.problems.append("the streams were due before all of them were there")
        Tree(self._server.pid).settle()
        time.sleep(max(0.0, due_s - time.time()))
        began = time.monotonic()
        expiring = self._append_until("expiring", lambda: self._count() <= stay + self._rounds)
        expired_s = time.monotonic() - began
        self._check_gone("forget/expired")
        return {
            "created_per_s": args.streams / made.elapsed_s,
            "deleted_per_s": args.streams / sum(report.elapsed_s for report in reports),
            "expired_per_s": args.streams / expired_s,
            **_named("before", before),
            **_named("deleting", deleting),
            "deleting_ratio": _p99(deleting) / _p99(before),
            **_named("between", between),
            **_named("expiring", expiring),
            "expiring_ratio": _p99(expiring) / _p99(between),
            "other_cores": max(self._other_cores.values()),
            "other_cores_by_phase": self._other_cores,
            "errors_total": self._errors,
        }

    def _crowd(self, *fields: str) -> tuple[int, int, tuple[str, ...], bytes]:
        return self._args.streams, _CONNECTIONS, ("Content-Type: text/plain", *fields), b"x" * 100

    def _after(self, rounds: int) -> Callable[[], bool]:
        until = self._rounds + rounds
        return lambda: self._rounds >= until

    def _append_until(self, name: str, is_over: Callable[[], bool]) -> array[float]:
        """Append, a round after the other, until something is over; return how long each took."""
        took = array("d")
        began = time.monotonic()
        while True:
            self._rounds += 1
            figures, some = run_round(
                self._server, self._load, f"{name}-{self._rounds}", self._args.seconds
            )
            took.extend(some)
            busy = max(self._other_cores.get(name, 0.0), figures["other_cores"])
            self._other_cores[name] = busy
            self._errors += sum(figures["errors"].values())
            if broken := broken_promises(figures):
                self.problems.append(f"{name}: {broken}")
            if is_over():
                return took
            if time.monotonic() - began > _WITHIN_S:
                self.problems.append(f"{name}: not over within {_WITHIN_S:g} s")
                return took

    def _send(self, errand: Errand, expected: str) -> ErrandReport:
        with Crew(run_errand, [errand]) as crew:
            crew.hear(Ready, timeout_s=60)
            crew.tell(GO)
            reports = crew.hear(ErrandReport, timeout_s=_WITHIN_S)
        self._check(reports, expected)
        return reports[0]

    def _check(self, reports: Sequence[ErrandReport], expected: str) -> None:
        for report in reports:
            if set(report.statuses) != {expected}:
                self.problems.append(f"expected {expected} alone: {dict(report.statuses)}")

    def _count(self) -> float:
        return self._server.counter(_STREAMS) or 0.0

    def _check_gone(self, folder: str) -> None:
        """Look at some of the streams: none may be there."""
        step = max(1, self._args.streams // _LOOKED_AT)
        with Connection(Target.of(self._server.url)) as connection:
            for number in range(0, self._args.streams, step):
                path = path_of(folder, number)
                status = connection.exchange(connection.target.request("GET", path)).head.status
                if status != 404:
                    self.problems.append(f"{path} is there: {status}")


def _named(name: str, took: array[float]) -> dict[str, float]:
    return {f"{name}_{key}": value for key, value in milliseconds(took).items()}


def _p99(took: array[float]) -> float:
    return milliseconds(took)["ms_p99"]
