"""A crowd of live readers before one server: as many client processes as it takes, and its cost."""

from __future__ import annotations

import os
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from loadtests.crew import Crew
from loadtests.dialect import Place
from loadtests.kernel import ENDS, KernelMemory, kernel_memory
from loadtests.layout import client_shares
from loadtests.orders import LATEST, PARK, TOTALS, Parked, SwarmOrder, Totals
from loadtests.proc import Memory, Tree
from loadtests.servers import Server, descriptor_limit
from loadtests.swarm import swarm

_CONNECT_S: Final = 900.0
_TOTALS_S: Final = 120.0
# What it may take a server to have parked those who have asked: where each comes to a stream of its
# own, a first read for each, and measuring what follows beside them would tell of both.
_SETTLE_S: Final = 30.0
_SETTLE_READER_S: Final = 0.001


@dataclass(frozen=True, slots=True)
class Seats:
    """Where a crowd sits."""

    readers: int
    mode: str
    name: str  # of the stream, or of the folder of their streams
    place: Place
    hold: bool = False
    own_streams: bool = False  # one for each reader, numbered from 0
    clients_at_least: int = 1


class Crowd:
    """The readers, in client processes; `crew` takes orders to all of them."""

    def __init__(self, server: Server, seats: Seats) -> None:
        """Start the client processes; nobody connects yet."""
        self.readers = seats.readers
        self.tree = Tree(server.pid)
        self._ramps = len(os.sched_getaffinity(0))
        self.crew = Crew(swarm, self._orders(server, seats))

    def _orders(self, server: Server, seats: Seats) -> list[SwarmOrder]:
        shares = client_shares(seats.readers, descriptor_limit(), seats.clients_at_least)
        self._ramps = min(self._ramps, len(shares))
        return [
            SwarmOrder(
                server.url,
                server.speech.path(seats.name),
                seats.mode,
                server.speech.dialects[seats.mode],
                seats.place,
                share,
                f"127.1.0.{at + 1}",
                self._ramps,
                seats.hold,
                sum(shares[:at]) if seats.own_streams else None,
            )
            for at, share in enumerate(shares)
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.crew.__exit__(kind, error, trace)

    def park(self) -> dict[str, Any]:
        """Connect all and let them wait; return what that took, and what they hold while idle."""
        self.tree.settle()
        memory, kernel, cpu_s = self.tree.memory(), kernel_memory(), self.tree.cpu_s()
        began = time.monotonic()
        reports = self.crew.tell_in_turn(PARK, Parked, self._ramps, _CONNECT_S)
        # Idle, it has taken in what was sent. One that never is, has at least all connections.
        idle = self._rest()
        cpu_s = self.tree.cpu_s() - cpu_s
        connect_s = (max(one.at for one in reports) if idle is None else idle) - began
        figures = held(self.readers, self.tree.memory(), memory, kernel_memory(), kernel)
        clients = Tree(os.getpid()).without(self.tree)
        client_bytes = clients.memory().pss
        return {
            "server_processes": len(self.tree.pids),
            "connect_s": connect_s,
            "settled": idle is not None,
            "connects_per_s": self.readers / connect_s,
            "cpu_us_per_join": cpu_s * 1e6 / self.readers,
            **figures,
            "client_processes": len(clients.pids) - 1,  # but for this one
            "client_bytes": client_bytes,
            "run_bytes": (
                figures["user_bytes_parked"] + client_bytes + figures["kernel_bytes_both_ends"]
            ),
        }

    def _rest(self) -> float | None:
        """Wait until the server is idle and nobody is about to ask again, who was sent away;
        return since when it is, if so."""
        deadline = time.monotonic() + _SETTLE_S + self.readers * _SETTLE_READER_S
        while (left_s := deadline - time.monotonic()) > 0:
            idle = self.tree.settle(limit_s=left_s)
            self.crew.tell(LATEST)
            totals = add_up(self.crew.hear(Totals, _TOTALS_S))
            if totals.parked == self.readers:
                return idle if idle is None else max(idle, totals.parked_at)
        return None

    def totals(self) -> Totals:
        """Return what the readers of all processes saw, added up."""
        self.crew.tell(TOTALS)
        return add_up(self.crew.hear(Totals, _TOTALS_S))


def held(
    readers: int, after: Memory, before: Memory, kernel: KernelMemory, kernel_before: KernelMemory
) -> dict[str, Any]:
    """Return what a reader costs the server's processes, and what the kernel."""
    sockets = kernel.held - kernel_before.held
    caches = kernel.growth(kernel_before)
    return {
        "user_bytes_per_reader": (after.pss - before.pss) / readers,
        "user_bytes_per_reader_unshared": (after.uss - before.uss) / readers,
        "user_bytes_before": before.pss,
        "user_bytes_parked": after.pss,
        "kernel_source": kernel.source,
        "kernel_bytes_both_ends": sockets,
        "kernel_bytes_per_reader": sockets / ENDS / readers,
        # Of both ends, where they are some bytes at all.
        "kernel_bytes_by_cache": {
            name: grown / readers for name, grown in caches.items() if abs(grown) > 4 * readers
        },
    }


def add_up(parts: Sequence[Totals]) -> Totals:
    """Return the sums; readers stay in the order of their orders."""
    total = Totals(late_s=array("f"))
    for one in parts:
        total.last.extend(one.last)
        total.late_s.extend(one.late_s)
        total.errors.update(one.errors)
        total.lost += one.lost
        total.doubled += one.doubled
        total.empty += one.empty
        total.reconnects += one.reconnects
        total.refused += one.refused
        total.parked += one.parked
        total.parked_at = max(total.parked_at, one.parked_at)
        total.cpu_s = max(total.cpu_s, one.cpu_s)
    return total


def seen(totals: Totals, expected: Sequence[int]) -> dict[str, Any]:
    """Return the figures of the promise: every reader sees every wave, once.

    Args:
        expected: by reader, the last wave that was appended to its stream.
    """
    behind = sum(wave - last for wave, last in zip(expected, totals.last, strict=True))
    return {
        "missing": behind + totals.lost,
        "doubled": totals.doubled,
        "empty_polls": totals.empty,
        "reconnects": totals.reconnects,
        "refused": totals.refused,
        "errors": dict(totals.errors),
        "errors_total": totals.errors.total(),
    }


def broken(figures: dict[str, Any]) -> list[str]:
    """Say what no run may show."""
    return [f"{key} {figures[key]}" for key in ("missing", "doubled") if figures[key]]
