"""Writing: an idempotent producer that keeps books of what was acknowledged."""

from __future__ import annotations

import secrets
import time
from random import Random

import gevent

from loadtests.backoff import delay_s
from loadtests.ledger import Sent
from loadtests.locusts.lines import Failed, Line
from loadtests.locusts.notes import JSON, WRITER_CHARS, Note, encode
from loadtests.locusts.options import Run

_NEW, _AGAIN = 200, 204  # how the protocol answers a producer's first try, and a retry


class Producer:
    """Writes notes to one stream: each is sent until it is acknowledged, and is there once."""

    def __init__(self, run: Run, line: Line, path: str, name: str, *, last: int = 0) -> None:
        """
        Args:
            name: of the stream in the statistics.
            last: number of the last note of this writer that is there already.
        """
        self.writer = secrets.token_hex(WRITER_CHARS // 2)
        self.sent = Sent(last)
        self._first = last
        self._run = run
        self._line = line
        self._path = path
        self._name = name
        self._id = secrets.token_hex(8)  # of this life: a writer that goes on is another producer
        self._dice = Random()

    def write(self) -> Note:
        """Write the next note, for as long as it takes."""
        number = self.sent.count
        self.sent.count += 1
        self.sent.unknown.add(number)
        note = Note(self.writer, number + 1, time.time())
        body = encode(note, self._run.size)
        headers = {
            "Content-Type": JSON,
            "Producer-Id": self._id,
            "Producer-Epoch": "0",
            "Producer-Seq": str(number - self._first),
        }
        if self._dice.random() < self._run.lost_replies:
            self._line.ask_in_vain("POST", self._path, headers, body)
            self._send(f"{self._name} again", headers, body)
        else:
            self._send(self._name, headers, body)
        self.sent.unknown.discard(number)
        return note

    def _send(self, name: str, headers: dict[str, str], body: bytes) -> None:
        attempt = 0
        while True:
            try:
                self._line.ask("POST", self._path, name, headers, body, expect=(_NEW, _AGAIN))
            except Failed as failed:
                gevent.sleep(
                    delay_s(attempt, self._dice.random(), retry_after_s=failed.retry_after_s)
                )
                attempt += 1
                name = f"{self._name} again"
            else:
                return
