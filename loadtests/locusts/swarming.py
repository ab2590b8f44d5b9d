"""Swarm: a user that is thousands of readers of the broadcast, held by a process of its own."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections import Counter
from multiprocessing.connection import Pipe
from typing import Final

import gevent
from gevent.socket import wait_read
from locust import task

from loadtests.client import Target
from loadtests.dialect import DIALECTS, Place
from loadtests.launch import ROOT
from loadtests.locusts.lines import Failed, Line
from loadtests.locusts.notes import Doubled, Gap
from loadtests.locusts.options import swarms
from loadtests.locusts.people import Person, last_number
from loadtests.locusts.reading import Reader
from loadtests.locusts.tally import DELIVERY, count, tally
from loadtests.orders import LATEST, PARK, TOTALS, SwarmOrder, Totals
from loadtests.servers import descriptor_limit

_EVERY_S: Final = 1.0  # how often statistics learn what came
_SILENT_S: Final = 60.0  # a process that connects 20,000 readers is busy, but not so long
_LAST_S: Final = 20.0  # for the last message to reach the last reader, once the run ends


class Swarm(Person):
    """Holds its share of `--readers` over plain HTTP; locust starts as many as are needed."""

    fixed_count = 1
    lives_on = True

    def on_start(self) -> None:
        """Find where the broadcast stands, and let everyone connect."""
        super().on_start()
        self.name = f"broadcast swarm {self.run_.reader_mode}"
        assert self.environment.host is not None
        target = Target.of(self.environment.host)
        share = math.ceil(self.run_.readers / swarms(self.run_.readers, descriptor_limit()))
        self.insist_on_creating(self.run_.broadcast)
        reader = Reader(self.environment, self.run_.broadcast, "broadcast")
        seen = last_number(reader, self.line)
        self.counted: Counter[str] = Counter()
        self.pipe, theirs = Pipe()
        for end in (self.pipe, theirs):
            os.set_blocking(end.fileno(), True)  # gevent makes its sockets otherwise
        self.process = subprocess.Popen(
            [sys.executable, "-m", "loadtests.locusts.held", str(theirs.fileno())],
            cwd=ROOT,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        self.pipe.send(
            SwarmOrder(
                self.environment.host,
                self.run_.broadcast,
                self.run_.reader_mode,
                DIALECTS[self.run_.reader_mode],
                Place(reader.offset),
                share,
                _source(target.host, self.process.pid),
                os.cpu_count() or 1,
                seen=seen,
                clock=time.time,
            )
        )
        self.pipe.send(PARK)

    @task
    def hold(self) -> None:
        """Report what came."""
        while True:
            gevent.sleep(_EVERY_S)
            self.report(self.hear(LATEST))

    def hear(self, question: str) -> Totals:
        """Ask the process, and let everybody else go on until it answers."""
        self.pipe.send(question)
        while True:
            wait_read(self.pipe.fileno(), timeout=_SILENT_S)
            said = self.pipe.recv()
            if isinstance(said, Totals):
                return said

    def report(self, totals: Totals) -> None:
        """Put what is new into the statistics."""
        tally(self.environment.stats, self.name, [max(0.0, s) * 1000 for s in totals.late_s])
        now = Counter(
            {
                "lost": totals.lost,
                "doubled": totals.doubled,
                "answered 503": totals.refused,
                "connection lost": totals.reconnects,
                **totals.errors,
            }
        )
        for what, times in (now - self.counted).items():
            error = {"lost": Gap, "doubled": Doubled}.get(what, Failed)(what)
            method = DELIVERY if what in ("lost", "doubled") else self.run_.reader_mode.upper()
            for _ in range(times):
                count(self.environment, method, self.name, 0.0, error)
        self.counted = now

    def audit(self) -> Exception | None:
        """See that the last message reaches every reader."""
        try:
            last = last_number(
                Reader(self.environment, self.run_.broadcast, "broadcast"), Line(self.environment)
            )
            deadline = time.monotonic() + _LAST_S
            while True:
                behind = [wave for wave in self.hear(TOTALS).last if wave < last]
                if not behind or time.monotonic() > deadline:
                    break
                gevent.sleep(0.2)
            self.report(self.hear(LATEST))
        finally:
            self.pipe.close()
            self.process.wait()
        if not behind:
            return None
        return AssertionError(f"{len(behind)} readers did not get message {last}")


def _source(host: str, pid: int) -> str:
    """Return the address that readers come from: one has ports for 60,000 connections.

    Over loopback each process has one of its own, by its number; elsewhere it is the machine's.
    """
    if not host.startswith("127."):
        return ""
    return f"127.{1 + (pid >> 16)}.{pid >> 8 & 255}.{pid & 255}"
