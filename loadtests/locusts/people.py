"""People: each user is somebody who writes or reads, and looks at what comes."""

from __future__ import annotations

import secrets
import time
from random import Random
from typing import Final

import gevent
from locust import User, between, constant, task

from loadtests.backoff import delay_s
from loadtests.ledger import Audit
from loadtests.locusts.lines import Failed, Line
from loadtests.locusts.notes import settle
from loadtests.locusts.options import Run
from loadtests.locusts.reading import LONG_POLL, SSE, Reader
from loadtests.locusts.tally import count
from loadtests.locusts.writing import Producer

AUDIT: Final = "AUDIT"  # one for each user, when it ends
BROADCASTER: Final = "0" * 8  # the same whoever it is: who begins anew goes on counting


class Person(User):
    """What they have in common."""

    abstract = True
    lives_on = False  # a task goes on until the run ends
    line: Line
    run_: Run

    def on_start(self) -> None:
        """Look at the options, and get a line."""
        self.run_ = Run.of(self.environment)
        self.line = Line(self.environment)
        self.dice = Random()

    def on_stop(self) -> None:
        """Look once more at everything, and say whether all is well."""
        self.line.close()
        self.line = Line(self.environment)  # the old one was left in the middle of something
        began = time.perf_counter()
        try:
            error: Exception | None = self.audit()
        except Failed as failed:
            error = failed
        self.line.close()
        late_s = time.perf_counter() - began
        count(self.environment, AUDIT, type(self).__name__, late_s, error)

    def audit(self) -> Exception | None:
        """Return what is wrong, if anything."""
        raise NotImplementedError

    def create(self, path: str) -> None:
        """Make sure that a stream is there."""
        self.line.ask("PUT", path, "create", self.run_.creation, expect=(200, 201))

    def insist_on_creating(self, path: str) -> None:
        """Make sure that a stream is there, however long it takes."""
        attempt = 0
        while True:
            try:
                self.create(path)
            except Failed as failed:
                self.rest(attempt, failed)
                attempt += 1
            else:
                return

    def rest(self, attempt: int, failed: Failed) -> None:
        """Wait after a failure, longer each time."""
        gevent.sleep(delay_s(attempt, self.dice.random(), retry_after_s=failed.retry_after_s))

    def follow(self, reader: Reader, mode: str) -> None:
        """Follow a stream until the run ends, whatever happens to connections."""
        attempt = 0
        while True:
            try:
                for _ in reader.follow(self.line, mode):
                    attempt = 0
            except Failed as failed:
                self.rest(attempt, failed)
                attempt += 1


def verdict(audit: Audit) -> Exception | None:
    """Return what is wrong with a stream."""
    return None if audit.clean else AssertionError(str(audit))


class Writer(Person):
    """Writes one message a second to a stream of its own."""

    wait_time = constant(1)
    weight = 2

    def on_start(self) -> None:
        """Make the stream."""
        super().on_start()
        self.path = f"{self.run_.prefix}writer/{secrets.token_hex(8)}"
        self.insist_on_creating(self.path)
        self.producer = Producer(self.run_, self.line, self.path, "writer")

    @task
    def write(self) -> None:
        """Append."""
        self.producer.write()

    def audit(self) -> Exception | None:
        """Compare the stream with what was acknowledged."""
        stored = Reader(self.environment, self.path, "writer").catch_up(self.line)
        found = verdict(settle({self.producer.writer: self.producer.sent}, stored))
        self.line.ask("DELETE", self.path, "delete", expect=(204,))
        return found


class Broadcaster(Person):
    """Writes to the stream that everyone reads, `--rate` messages a second; there is one."""

    fixed_count = 1

    def on_start(self) -> None:
        """Make the stream, or go on where another one stopped."""
        super().on_start()
        self.insist_on_creating(self.run_.broadcast)
        last = last_number(Reader(self.environment, self.run_.broadcast, "broadcast"), self.line)
        self.producer = Producer(self.run_, self.line, self.run_.broadcast, "broadcast", last=last)
        self.producer.writer = BROADCASTER

    def wait_time(self) -> float:
        """Keep the rate, not the pause."""
        due_s = getattr(self, "_due_s", time.monotonic()) + 1 / self.run_.rate
        self._due_s = max(due_s, time.monotonic() - 1)
        return max(0.0, self._due_s - time.monotonic())

    @task
    def write(self) -> None:
        """Append."""
        self.producer.write()

    def audit(self) -> Exception | None:
        """Compare the stream with what was acknowledged."""
        stored = Reader(self.environment, self.run_.broadcast, "broadcast").catch_up(self.line)
        return verdict(settle({BROADCASTER: self.producer.sent}, stored))


def last_number(reader: Reader, line: Line) -> int:
    """Return the number of the last note of the broadcast, and leave the reader behind it."""
    notes = reader.catch_up(line)
    return notes[-1].number if notes else reader.account.last.get(BROADCASTER, 0)


class CatchUp(Person):
    """Reads the broadcast from its beginning, again and again."""

    wait_time = between(1, 3)

    def on_start(self) -> None:
        """Make sure that there is something."""
        super().on_start()
        self.insist_on_creating(self.run_.broadcast)

    @task
    def read(self) -> None:
        """Read it all, and check it."""
        try:
            Reader(self.environment, self.run_.broadcast, "broadcast").catch_up(self.line)
        except Failed as failed:
            self.rest(0, failed)

    def audit(self) -> Exception | None:
        """Read it once more."""
        Reader(self.environment, self.run_.broadcast, "broadcast").catch_up(self.line)
        return None


class _Follower(Person):
    abstract = True
    lives_on = True
    mode = ""

    def on_start(self) -> None:
        """Make sure that there is something."""
        super().on_start()
        self.insist_on_creating(self.run_.broadcast)
        self.reader = Reader(self.environment, self.run_.broadcast, "broadcast", offset="now")

    @task
    def listen(self) -> None:
        """Read on for as long as the run goes on."""
        self.follow(self.reader, self.mode)

    def audit(self) -> Exception | None:
        """Read on from where it was left: what was missed, would be missing now."""
        self.reader.catch_up(self.line)
        return None


class LongPollFollower(_Follower):
    """Follows the broadcast by long-polls."""

    weight = 2
    mode = LONG_POLL


class SseFollower(_Follower):
    """Follows the broadcast by server-sent events."""

    weight = 2
    mode = SSE


class _NotInTime(Exception):
    """Not an OSError, as `TimeoutError` is: that would be a connection that was lost."""


class Chat(Person):
    """Talks with a model: many short appends, and few readers, who go away and come back."""

    weight = 3
    wait_time = between(0.5, 2)
    tokens = 30  # of an answer
    tokens_per_s = 20.0
    break_share = 0.5  # of answers during which the reader goes away, and resumes elsewhere
    patience_s = 30.0  # for the last token, after it was written

    def on_start(self) -> None:
        """Begin a chat."""
        super().on_start()
        self.path = f"{self.run_.prefix}chat/{secrets.token_hex(8)}"
        self.insist_on_creating(self.path)
        self.question = Producer(self.run_, self.line, self.path, "chat")
        self.model_line = Line(self.environment)
        self.answer = Producer(self.run_, self.model_line, self.path, "chat")
        self.device = Reader(self.environment, self.path, "chat")
        self.model: gevent.Greenlet[None] | None = None

    @task
    def converse(self) -> None:
        """Ask, and read the answer as it comes."""
        self.question.write()
        written = self.answer.sent.count
        last = leaves_at = written + self.tokens
        if self.dice.random() < self.break_share:
            leaves_at = written + self.dice.randrange(1, self.tokens)
        modes = [LONG_POLL, SSE]
        self.dice.shuffle(modes)
        self.model = gevent.spawn(self.write_answer)
        try:
            with gevent.Timeout(self.tokens / self.tokens_per_s + self.patience_s, _NotInTime):
                self.read_until(leaves_at, modes[0])
                if leaves_at != last:
                    gevent.sleep(self.dice.uniform(0.1, 1))
                    self.read_until(last, modes[1])
                self.model.join()
        except _NotInTime:
            self.device.miss(AssertionError("the end of an answer did not come"))
            self.model.kill()

    def write_answer(self) -> None:
        """Be the model: one append a token."""
        for _ in range(self.tokens):
            self.answer.write()
            gevent.sleep(self.dice.uniform(0.5, 1.5) / self.tokens_per_s)

    def read_until(self, number: int, mode: str) -> None:
        """Read until this token of the model's was seen, then hang up."""
        attempt = 0
        line = Line(self.environment)
        try:
            while self.device.account.last.get(self.answer.writer, 0) < number:
                try:
                    for note in self.device.follow(line, mode):
                        attempt = 0
                        if (note.writer, note.number) == (self.answer.writer, number):
                            break
                except Failed as failed:
                    self.rest(attempt, failed)
                    attempt += 1
        finally:
            line.close()
            self.device.leave()

    def audit(self) -> Exception | None:
        """Read it on another device, from the beginning: both see the same, and all of it."""
        if self.model is not None:
            self.model.kill()
        self.model_line.close()
        self.device.catch_up(self.line)
        stored = Reader(self.environment, self.path, "chat").catch_up(self.line)
        books = {one.writer: one.sent for one in (self.question, self.answer)}
        found = verdict(settle(books, stored))
        if found is None and self.device.account.seen != len(stored):
            seen = self.device.account.seen
            found = AssertionError(f"one device saw {seen} of {len(stored)} messages")
        self.line.ask("DELETE", self.path, "delete", expect=(204,))
        return found
