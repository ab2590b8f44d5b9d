"""Appends that a parked crowd must see: one after the other, or at a steady rate."""

from __future__ import annotations

import statistics
import time
from array import array
from collections.abc import Sequence
from typing import Any, Final

from loadtests.client import Connection, Target
from loadtests.crew import CrewSilent
from loadtests.crowd import Crowd, seen
from loadtests.dialect import wave_message
from loadtests.orders import AGAIN, Wave
from loadtests.proc import Elsewhere
from loadtests.report import milliseconds
from loadtests.servers import Server

READS: Final = "headwater_origin_reads_total"
_POLL_ROUNDING_S: Final = 0.002  # a wait on pipes is cut to milliseconds; sleep is not


class Waves:
    """Appends to one stream, numbered from 1, and when each reader had each of them."""

    def __init__(
        self, server: Server, name: str, crowd: Crowd, size: int, timeout_s: float, *, again: bool
    ) -> None:
        """Append to one stream.

        Args:
            size: bytes of an append.
            timeout_s: how long the last reader may take.
            again: readers rest when they have a wave, and are to be told to ask again.
        """
        self._server = server
        self._name = name
        self._crowd = crowd
        self._size = size
        self._timeout_s = timeout_s
        self._again = again
        self.last = 0

    def append(self, writer: Connection) -> None:
        """Append the next wave, and wait for the answer."""
        self.last += 1
        body = wave_message(self.last, self._size)
        writer.send_append(self._server.speech.append_request(writer.target, self._name, body))

    def run(self) -> tuple[array[float], dict[str, float]] | None:
        """Append once and wait for all readers.

        Returns:
            How many seconds after it was sent each reader had it, and the wave's figures;
            None if some did not within the timeout.
        """
        tree = self._crowd.tree
        # A connection of its own: servers end those that were idle while the readers parked.
        with Connection(Target.of(self._server.url)) as writer:
            cpu_s = tree.cpu_s()
            sent = time.monotonic()
            self.append(writer)
            acknowledged = time.monotonic()
        try:
            reports = self._crowd.crew.hear(Wave, self._timeout_s)
        except CrewSilent:
            return None
        late = array("d")
        for report in reports:
            assert report.number == self.last
            late.extend(at - sent for at in report.at)
        tree.settle(quiet_s=0.1)
        delivered_cpu_s = tree.cpu_s()
        figures = {
            **milliseconds(late),
            "ms_acknowledged": (acknowledged - sent) * 1e3,
            "cpu_us_per_delivery": (delivered_cpu_s - cpu_s) * 1e6 / len(late),
        }
        if self._again:
            self._crowd.crew.tell(AGAIN)
            time.sleep(0.02)
            tree.settle()
            figures["cpu_us_per_park"] = (tree.cpu_s() - delivered_cpu_s) * 1e6 / len(late)
        return late, figures

    def in_turn(self, count: int) -> dict[str, Any]:
        """Append count times, each when all readers wait again, and sum up."""
        late = array("d")
        waves: list[dict[str, float]] = []
        elsewhere = Elsewhere()
        for _ in range(count):
            wave = self.run()
            if wave is None:
                break
            late.extend(wave[0])
            waves.append(wave[1])
        other_cores = elsewhere.cores()
        medians = ("ms_acknowledged", "cpu_us_per_delivery", "cpu_us_per_park")
        return {
            **milliseconds(late),
            "ms_last": _median(waves, "ms_max"),
            **{key: _median(waves, key) for key in medians},
            "other_cores": other_cores,
            "waves": waves,
        }

    def at_a_rate(self, count: int, per_s: float) -> dict[str, Any]:
        """Append count times at a rate, whether or not the readers are done with those before.

        A time is from when an append was due: if the one before it was answered late, that counts.
        """
        tree = self._crowd.tree
        elsewhere = Elsewhere()
        cpu_s = tree.cpu_s()
        first, began = self.last + 1, time.monotonic() + 0.1
        due = {first + at: began + at / per_s for at in range(count)}
        arrived: list[Wave] = []
        behind_s = 0.0
        acknowledged = array("d")
        with Connection(Target.of(self._server.url)) as writer:
            for moment in due.values():
                while (left_s := moment - time.monotonic()) > 2 * _POLL_ROUNDING_S:
                    arrived += self._crowd.crew.listen(Wave, left_s - _POLL_ROUNDING_S)
                time.sleep(max(0.0, moment - time.monotonic()))
                sent = time.monotonic()
                behind_s = max(behind_s, sent - moment)
                self.append(writer)
                acknowledged.append(time.monotonic() - sent)
        expected = count * self._crowd.crew.size
        deadline = time.monotonic() + self._timeout_s
        while len(arrived) < expected and (left_s := deadline - time.monotonic()) > 0:
            arrived += self._crowd.crew.listen(Wave, left_s)
        tree.settle(quiet_s=0.1)
        late = array("d")
        last = dict.fromkeys(due, 0.0)
        for wave in arrived:
            took = [at - due[wave.number] for at in wave.at]
            last[wave.number] = max(last[wave.number], *took)
            late.extend(took)
        return {
            **milliseconds(late),
            "ms_last": statistics.median(last.values()) * 1e3,
            "ms_acknowledged": statistics.median(acknowledged) * 1e3,
            "cpu_us_per_delivery": (tree.cpu_s() - cpu_s) * 1e6 / len(late) if late else None,
            "ms_behind_max": behind_s * 1e3,
            "other_cores": elsewhere.cores(),
        }

    def totals(self) -> dict[str, Any]:
        """Return whether every reader saw every wave, once."""
        return seen(self._crowd.totals(), [self.last] * self._crowd.readers)


def _median(waves: Sequence[dict[str, float]], key: str) -> float | None:
    values = [wave[key] for wave in waves if key in wave]
    return statistics.median(values) if values else None


def reads_per_append(before: float | None, after: float | None, appends: int) -> float | None:
    """Return what each append cost the origin in reads; None where nobody counts them."""
    if before is None or after is None or not appends:
        return None
    return (after - before) / appends
