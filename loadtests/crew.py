"""Client processes: one Python process drives thousands of sockets, several fill the cores."""

from __future__ import annotations

import gc
import multiprocessing
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Self, TypeVar

# Forked, so that fifty of them share the interpreter's memory. Nothing here starts a thread first.
_FORK = multiprocessing.get_context("fork")

Pipe = Connection  # brings orders to a process and its reports back, pickled
Order = TypeVar("Order")
Report = TypeVar("Report")


class CrewFailed(Exception):
    """A client process ended with an error."""


class CrewSilent(Exception):
    """Some client processes did not report in time."""


def _run(job: Callable[[Pipe, Order], None], pipe: Pipe, order: Order) -> None:
    # Ctrl-C reaches the whole process group; the parent ends its crew in its own order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        job(pipe, order)
    except Exception:
        # The parent raises it.
        pipe.send(CrewFailed(traceback.format_exc()))


class Crew:
    """A process per order, each running `job(pipe, order)` until it returns."""

    def __init__(self, job: Callable[[Pipe, Order], None], orders: Sequence[Order]) -> None:
        """Start one process for each of the orders."""
        self._processes = []
        self._pipes: list[Pipe] = []
        gc.collect()
        gc.freeze()  # a collection in a child would copy every page that the fork shares
        for order in orders:
            ours, theirs = _FORK.Pipe()
            process = _FORK.Process(target=_run, args=(job, theirs, order), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._processes:
            process.terminate()
        for process, pipe in zip(self._processes, self._pipes, strict=True):
            process.join()
            pipe.close()
        gc.unfreeze()

    @property
    def size(self) -> int:
        """Return how many processes there are."""
        return len(self._pipes)

    def tell(self, message: object) -> None:
        """Send the same message to every process."""
        for pipe in self._pipes:
            pipe.send(message)

    def tell_in_turn(
        self, message: object, answer: type[Report], at_once: int, timeout_s: float
    ) -> list[Report]:
        """Send a message to at_once processes, and to the next one whenever one has answered.

        Raises:
            CrewFailed: a process failed.
            CrewSilent: one did not answer in time.
        """
        deadline = time.monotonic() + timeout_s
        reports: list[Report] = []
        untold = self._pipes[::-1]
        told: list[Pipe] = []
        while len(reports) < len(self._pipes):
            while untold and len(told) < at_once:
                told.append(untold.pop())
                told[-1].send(message)
            ready = wait(told, max(0.0, deadline - time.monotonic()))
            if not ready:
                raise CrewSilent(f"{len(told)} client processes silent for {timeout_s} s")
            for pipe in [pipe for pipe in told if pipe in ready]:
                if isinstance(report := _receive(pipe), answer):
                    told.remove(pipe)
                    reports.append(report)
        return reports

    def listen(self, kind: type[Report], timeout_s: float) -> list[Report]:
        """Return what reports of this kind arrive now, or the first ones within timeout_s.

        Raises:
            CrewFailed: a process failed.
        """
        reports = [_receive(pipe) for pipe in wait(self._pipes, timeout_s) if pipe in self._pipes]
        return [report for report in reports if isinstance(report, kind)]

    def hear(self, kind: type[Report], timeout_s: float) -> list[Report]:
        """Return the next report of this kind of each process, in the order of their orders.

        Reports of other kinds that come before it are dropped: they answer to a wait given up.

        Raises:
            CrewFailed: a process failed.
            CrewSilent: some did not report within timeout_s.
        """
        deadline = time.monotonic() + timeout_s
        reports: dict[int, Report] = {}
        while len(reports) < len(self._pipes):
            silent = {pipe: at for at, pipe in enumerate(self._pipes) if at not in reports}
            ready = wait(list(silent), max(0.0, deadline - time.monotonic()))
            if not ready:
                raise CrewSilent(f"{len(silent)} client processes silent for {timeout_s} s")
            for pipe, at in silent.items():
                if pipe in ready and isinstance(report := _receive(pipe), kind):
                    reports[at] = report
        return [reports[at] for at in range(len(self._pipes))]


def _receive(pipe: Pipe) -> object:
    try:
        report: object = pipe.recv()
    except EOFError:
        raise CrewFailed("a client process ended without a report") from None
    if isinstance(report, CrewFailed):
        raise report
    return report
