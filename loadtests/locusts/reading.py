"""Reading: how a person reads a stream, checks it, and says how late each message was."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlencode

import orjson
from locust.env import Environment

from loadtests.locusts.lines import Answer, Line
from loadtests.locusts.notes import Account, Foreign, Note, Wrong, decode
from loadtests.locusts.tally import DELIVERY, count

LONG_POLL: Final = "long-poll"
SSE: Final = "sse"


class Reader:
    """A place in a stream, kept over connections and breaks."""

    def __init__(
        self, environment: Environment, path: str, name: str, *, offset: str = "-1"
    ) -> None:
        """
        Args:
            name: of the stream in the statistics.
            offset: the beginning, or `now`.
        """
        self._environment = environment
        self._path = path
        self._name = name
        self._delivery = name
        self.account = Account(from_start=offset == "-1")
        self.offset = offset
        self._cursor = ""
        self._attached_s = float("inf")

    def catch_up(self, line: Line) -> list[Note]:
        """Read all that is there; none of it counts as delivered."""
        self.leave()
        found: list[Note] = []
        while True:
            answer = line.ask("GET", self._target({}), f"{self._name} catch-up")
            found += self._take(answer.body)
            self.offset = answer.next
            if answer.headers.get("Stream-Up-To-Date") == "true":
                return found

    def follow(self, line: Line, mode: str) -> Iterator[Note]:
        """Read on for ever.

        What was written before this reader came, or came back, is checked, but not called
        delivered. A connection that was lost is no leave: what came meanwhile is late.
        """
        self._attached_s = min(self._attached_s, time.time())
        self._delivery = f"{self._name} {mode}"
        while True:
            yield from (self._poll(line) if mode == LONG_POLL else self._watch(line))

    def leave(self) -> None:
        """Be away until it follows again."""
        self._attached_s = float("inf")

    def _poll(self, line: Line) -> Iterator[Note]:
        answer = line.ask(
            "GET", self._target({"live": "long-poll"}), f"{self._name} long-poll", expect=(200, 204)
        )
        notes = self._take(answer.body) if answer.status == 200 else []
        self._move(answer)
        yield from notes

    def _watch(self, line: Line) -> Iterator[Note]:
        data = b"[]"
        for kind, value in line.events(self._target({"live": "sse"}), self._name):
            if kind == "data":
                data = value
            elif kind == "control":
                # Data count with the place behind them: a reader that is cut off in between is
                # given them again.
                told = orjson.loads(value)
                notes, data = self._take(data), b"[]"
                self.offset = told["streamNextOffset"]
                self._cursor = told.get("streamCursor", "")
                yield from notes

    def _move(self, answer: Answer) -> None:
        self.offset = answer.next
        self._cursor = answer.headers.get("Stream-Cursor", "")

    def _target(self, query: dict[str, str]) -> str:
        query = {"offset": self.offset, **query}
        if self._cursor and "live" in query:
            query["cursor"] = self._cursor
        return f"{self._path}?{urlencode(sorted(query.items()))}"

    def _take(self, body: bytes) -> list[Note]:
        now_s = time.time()
        try:
            notes = decode(body)
        except Foreign as error:
            self._report(0.0, error)
            return []
        for note in notes:
            wrong: Wrong | None = None
            try:
                self.account.take(note)
            except Wrong as error:
                wrong = error
            if wrong is not None or note.at_s >= self._attached_s:
                self._report(max(0.0, now_s - note.at_s), wrong)
        return notes

    def miss(self, error: Exception) -> None:
        """Count a message that did not come."""
        self._report(0.0, error)

    def _report(self, late_s: float, wrong: Exception | None) -> None:
        count(self._environment, DELIVERY, self._delivery, late_s, wrong)
