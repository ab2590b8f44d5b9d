"""Books: every promise that the server has made, and every answer held against them.

Only what a client can know is in them. An answer that comes is a promise for ever; an answer that
does not come, because the process died, leaves a doubt that the next audit settles.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Final

from shared.protocol.append import Accepted, Unchanged
from shared.protocol.chunk import Chunk
from shared.protocol.errors import (
    ContentTypeMismatch,
    Gone,
    NotFound,
    ProtocolError,
    SequenceRegression,
    StreamClosed,
)
from shared.protocol.expiry import NEVER
from shared.protocol.offset import parse_offset
from shared.protocol.stream import StreamState
from shared.wake import Wake
from tests.faults.simulator.known import Known, Moment, Op, Status, Violation, insist

JSON: Final = "application/json"
# How each write says which one it is, in text and in JSON.
_TAG: Final = re.compile(rb'<(\d+):|\["(\d+)",')


@dataclass(slots=True)
class Books:
    """What clients know."""

    now_ms: Callable[[], int]
    ops: dict[int, Op] = field(default_factory=dict)
    streams: dict[int, Known] = field(default_factory=dict)  # by incarnation
    here: dict[str, Known] = field(default_factory=dict)  # the last one at each path
    creating: Counter[str] = field(default_factory=Counter)  # creates that may have happened
    forking: Counter[str] = field(default_factory=Counter)  # forks of a path that may have
    busy: Counter[str] = field(default_factory=Counter)  # what may renew a window just now
    highest_seq: dict[str, str] = field(default_factory=dict)  # by path, of all that was sent
    events: Counter[str] = field(default_factory=Counter)
    _tick: int = 0

    def copy(self) -> Books:
        """Return books of their own, for a world that takes another turn."""
        kept = self.ops, self.streams, self.here, self.creating, self.forking, self.highest_seq
        ops, streams, here, creating, forking, highest_seq = deepcopy(kept)
        return replace(
            self,
            ops=ops,
            streams=streams,
            here=here,
            creating=creating,
            forking=forking,
            busy=Counter(),
            highest_seq=highest_seq,
        )

    def moment(self) -> Moment:
        """Return now: all that happens later comes after it."""
        self._tick += 1
        return Moment(self.now_ms(), self._tick)

    def op_at(self, content: bytes | bytearray, at: int) -> Op | None:
        """Return the write that some bytes say they are."""
        tag = _TAG.match(content, at)
        return None if tag is None else self.ops.get(int(tag[1] or tag[2]))

    # --- creates ---------------------------------------------------------------------------------

    def send_create(self, op: Op) -> None:
        self._send(op)
        self.creating[op.path] += 1
        if op.source is not None:
            self.forking[op.source] += 1

    def created(self, op: Op, state: StreamState, fresh: bool, since: Moment) -> Known:
        """Take in that a create was acknowledged."""
        known = self.meet(op.path, state, since)
        if fresh:
            insist(known.made_by in (None, op), f"{known} was made by another create")
            known.low_ms = known.durable_low_ms = max(known.low_ms, since.ms)
            self.claim(known, op)
        self._settle_create(op, Status.ACKNOWLEDGED)
        self.events["acknowledged: fork" if op.source else "acknowledged: create"] += 1
        return known

    def not_created(self, op: Op) -> None:
        self._settle_create(op, Status.REFUSED)

    def claim(self, known: Known, op: Op) -> None:
        """Take in that a stream is what a create has made."""
        state = known.state
        assert state is not None
        if state.fork is not None and state.fork.source == op.fork_of:
            least, most = op.fork_at
            insist(least <= state.base, f"{known} begins at {state.base}, before {least}")
            insist(most is None or state.base <= most, f"{known} begins at {state.base}")
        insist(state.content_type == op.content_type, f"{known} has type {state.content_type}")
        insist((state.fork.source_path if state.fork else None) == op.source, f"{known}: source")
        known.made_by, op.stream = op, known.number
        known.learn(state.base, op.stored, "create")
        known.ends |= {state.base, state.base + len(op.stored)}
        if op.close:
            self._is_closed(known)

    def _settle_create(self, op: Op, status: Status) -> None:
        op.status = status
        self.creating[op.path] -= 1
        if op.source is not None:
            self.forking[op.source] -= 1

    # --- appends and closes ----------------------------------------------------------------------

    def send_append(self, op: Op) -> None:
        self._send(op)
        self.busy[op.path] += 1
        op.within = self.here.get(op.path)
        if op.seq is not None:
            self.highest_seq[op.path] = max(op.seq, self.highest_seq.get(op.path, ""))

    def appended(self, op: Op, outcome: Accepted | Unchanged, since: Moment) -> None:
        """Take in that an append or a close was acknowledged."""
        known = self.meet(op.path, outcome.state, since)
        self._answered(op)
        known.low_ms = max(known.low_ms, since.ms)
        known.high_ms = max(known.high_ms, self.now_ms())
        if isinstance(outcome, Unchanged):
            if op.stored:
                insist(op.doubtful, f"write {op.number} is no duplicate, but {known} says so")
                op.repeated = True
            if op.close:
                insist(outcome.state.closed, f"{known} is still open")
            op.stream = known.number
            self.events["acknowledged: duplicate"] += 1
        else:
            there = op.status in (Status.ACKNOWLEDGED, Status.KEPT) and op.stream == known.number
            insist(not there, f"write {op.number} was taken twice into {known}")
            was_closed = known.closed_at is not None and known.closed_at < since.tick
            insist(not was_closed, f"{known} took data after its close")
            insist(outcome.stored == op.stored, f"write {op.number} was stored as something else")
            end = outcome.state.tail
            known.learn(end - len(op.stored), op.stored, f"write {op.number}")
            known.durable_low_ms = max(known.durable_low_ms, since.ms)
            known.ends |= {end - len(op.stored), end}
            op.stream = known.number
            self.events["acknowledged: append"] += 1
        op.status = Status.ACKNOWLEDGED

    def refused(self, op: Op, error: ProtocolError, since: Moment) -> None:
        """Take in that an append was refused; the client judges what only it can."""
        before = op.within
        after = self.here.get(op.path)
        moved = before is not after or self.creating[op.path] > 0
        match error:
            case NotFound() | Gone():
                self.absent(op.path, error, since)
            case StreamClosed() if after is not None and not moved:
                self._is_closed(after)
            case StreamClosed() | ContentTypeMismatch() if moved:
                pass
            case SequenceRegression():
                assert op.seq is not None
                insist(
                    op.doubtful or op.seq < self.highest_seq[op.path],
                    f"{after} refused the highest Stream-Seq",
                )
            case _:
                raise Violation(f"write {op.number} to {after}: {error!r}")
        self._answered(op)
        self._not_taken(op)

    def undone(self, op: Op) -> None:
        """Take in that there was no room for an append."""
        self._answered(op)
        self._not_taken(op)
        self.events["refused: no room"] += 1

    def out_of_order(self, op: Op) -> None:
        """Take in that a producer's append was refused for its number."""
        self._answered(op)
        self._not_taken(op)

    def _not_taken(self, op: Op) -> None:
        if op.status is Status.PENDING:
            op.status = Status.REFUSED

    def _send(self, op: Op) -> None:
        op.attempts += 1
        self.ops[op.number] = op
        if op.status is not Status.PENDING:
            # What was lost or refused is gone; only what happened, or is on its way, may be met.
            op.doubtful = op.status in (Status.ACKNOWLEDGED, Status.KEPT, Status.UNKNOWN)
        elif op.attempts > 1:
            op.doubtful = True
        if op.status in (Status.REFUSED, Status.LOST):
            op.status = Status.PENDING

    def _answered(self, op: Op) -> None:
        self.busy[op.path] -= 1
        if op.within is not None:
            op.within.high_ms = max(op.within.high_ms, self.now_ms())

    # --- deletions -------------------------------------------------------------------------------

    def send_delete(self, path: str) -> Known | None:
        known = self.here.get(path)
        if known is None or known.deleted:
            return None
        known.deleting += 1
        return known

    def deleted(self, known: Known | None, path: str, since: Moment) -> None:
        insist(known is not None, f"something was deleted at {path!r}")
        assert known is not None
        insist(not self._must_be_over(known, since.ms), f"{known} was deleted after its time")
        known.deleting -= 1
        self.is_deleted(known)
        self.events["acknowledged: delete"] += 1

    def not_deleted(self, known: Known | None) -> None:
        if known is not None:
            known.deleting -= 1

    # --- reads that renew windows ----------------------------------------------------------------

    def begin_read(self, path: str) -> None:
        self.busy[path] += 1

    def end_read(self, path: str, since: Moment | None) -> None:
        """Take in that a read is over.

        Args:
            since: when it was asked, if it was answered.
        """
        self.busy[path] -= 1
        known = self.here.get(path)
        if known is None:
            return
        known.high_ms = max(known.high_ms, self.now_ms())
        if since is not None and not known.deleted:
            known.low_ms = max(known.low_ms, since.ms)

    # --- what readers see ------------------------------------------------------------------------

    def meet(self, path: str, state: StreamState, since: Moment) -> Known:
        """Take in that a stream is there."""
        known = self._find(path, state.incarnation)
        was = known.deleted_at is not None and known.deleted_at < since.tick
        insist(not was, f"{known} is deleted, and there again")
        insist(not self._must_be_over(known, since.ms), f"{known} is there after its time")
        old = known.state
        if old is not None:
            same = (state.content_type, state.expiry, state.created_ms, state.fork, state.lineage)
            then = (old.content_type, old.expiry, old.created_ms, old.fork, old.lineage)
            insist(same == then, f"{known} has become another: {then}, now {same}")
        if old is None or state.tail >= old.tail:
            known.state = state
        if old is None:
            known.high_ms = max(known.high_ms, self.now_ms())
            known.low_ms = known.durable_low_ms = max(known.low_ms, state.created_ms)
        known.tail = max(known.tail, state.tail)
        if state.closed:
            self._is_closed(known)
        return known

    def absent(self, path: str, error: ProtocolError, since: Moment) -> None:
        """Take in that a stream is not there, or only for its forks."""
        known = self.here.get(path)
        soft = isinstance(error, Gone)
        if known is None:
            may = self.creating[path] > 0 or self.has_faded(path)
            insist(not soft or may, f"{path!r} never was, and is gone")
            return
        may = known.may_be_deleted() or known.may_be_over(self.now_ms())
        insist(may, f"{known} is not there: {error}")
        if soft:
            insist(self.may_have_forks(known), f"{known} is kept for forks that it does not have")
        elif known.deleted_at is not None and known.deleted_at < since.tick:
            insist(not self.must_have_forks(known), f"{known} is gone, and its forks are not")

    def saw(self, path: str, chunk: Chunk, expected: Known | None, tail: int, closed: bool) -> None:
        """Take in what a reader was given.

        Args:
            expected: the stream that it reads, if there can be but one.
            tail, closed: what was acknowledged before it asked.
        """
        stored = chunk.body
        if chunk.content_type == JSON:
            stored = b"" if chunk.empty else chunk.body[1:-1] + b","
        end = parse_offset(chunk.next)
        known = self.streams.get(end.incarnation)
        if known is None or known.path != path:
            known = expected  # at positions that a fork inherits, or of a stream just met
        if known is None:
            return
        self.events["read"] += 1
        known.learn(end.position - len(stored), stored, "read")
        if known is expected:
            if chunk.at_tail:
                insist(end.position >= tail, f"a read of {known} ends at {end}, before {tail}")
                insist(chunk.closed or not closed, f"a read of {known} ends without its close")
            else:
                insist(bool(stored), f"a read of {known} that is not at its tail is empty")
        if chunk.closed:
            self._is_closed(known)
            insist(known.tail == end.position, f"{known} is closed before its last byte")

    def announced(self, path: str, wake: Wake) -> None:
        """Take in what was announced to edges: a promise to every reader."""
        before, after = parse_offset(wake.before), parse_offset(wake.after)
        known = self.streams.get(wake.incarnation)
        if known is None and wake.deleted and self.has_faded(path):
            return  # what nobody had been told of has come to its end
        known = self._find(path, wake.incarnation)
        if wake.payload is not None:
            known.learn(before.position, wake.payload, "wake")
            insist(
                after.position - before.position == len(wake.payload), f"a wake of {known} lacks"
            )
        known.tail = max(known.tail, after.position)
        if wake.closed and not wake.deleted:
            self._is_closed(known)
        if wake.deleted:
            may = known.deleting > 0 or known.may_be_over(self.now_ms())
            insist(may or known.deleted, f"{known} is announced as deleted; nobody deleted it")
            self.is_deleted(known)
        self.events["wake"] += 1

    def _find(self, path: str, number: int) -> Known:
        known = self.streams.get(number)
        if known is None:
            insist(self.creating[path] > 0, f"{path!r} is there, and nobody creates it")
            known = self.streams[number] = Known(number, path)
            known.high_ms = self.now_ms()
            last = self.here.get(path)
            if last is not None:
                may = last.may_be_deleted() or last.may_be_over(self.now_ms())
                insist(may, f"{known} in the place of {last}")
                insist(number > last.number, f"{known} comes after {last}")
                self.is_deleted(last)
            self.here[path] = known
        insist(known.path == path, f"{known} is met at {path!r}")
        return known

    def is_deleted(self, known: Known) -> None:
        if known.deleted_at is None:
            known.deleted_at = self.moment().tick

    def _is_closed(self, known: Known) -> None:
        if known.closed_at is None:
            insist(self._may_be_closed(known), f"{known} is closed; nobody closed it")
            known.closed_at = self.moment().tick

    # --- deaths ----------------------------------------------------------------------------------

    def settle(self) -> None:
        """Take in that what is still unknown was not found."""
        self.creating.clear()
        self.forking.clear()
        for op in self.ops.values():
            if op.status is Status.UNKNOWN:
                op.status = Status.FADED if self._may_have_faded(op) else Status.LOST
                self.events["settled: not there"] += 1
            if op.status is Status.FADED and op.source is not None:
                self.forking[op.source] += 1
        for known in self.streams.values():
            known.deleting = 0

    def has_faded(self, path: str) -> bool:
        return any(op.status is Status.FADED and op.path == path for op in self.ops.values())

    def _may_have_faded(self, op: Op) -> bool:
        if op.expiry is None or op.source is None:
            return op.expiry not in (None, NEVER)
        sources = [known for known in self.streams.values() if known.path == op.source]
        return op.expiry != NEVER or any(s.state and s.state.expiry != NEVER for s in sources)

    def died(self, *, clean: bool) -> None:
        """Take in that the process is gone: what was not answered is unknown."""
        now_ms = self.now_ms()
        for op in self.ops.values():
            if op.status is Status.PENDING:
                op.status = Status.UNKNOWN
                self.events["unknown outcome"] += 1
        for known in self.streams.values():
            if self.busy[known.path] > 0:
                known.high_ms = now_ms
            if not clean:
                known.low_ms = known.durable_low_ms
        self.busy.clear()

    # --- what must be, and what may --------------------------------------------------------------

    def may_have_forks(self, known: Known) -> bool:
        if self.forking[known.path] > 0:
            return True
        return any(not self.is_gone_for_good(fork) for fork in self._forks(known))

    def is_gone_for_good(self, known: Known) -> bool:
        return known.deleted and not self.may_have_forks(known)

    def must_have_forks(self, known: Known) -> bool:
        return any(self._must_exist(fork) for fork in self._forks(known))

    def _must_exist(self, known: Known) -> bool:
        if not known.may_be_deleted() and not known.may_be_over(self.now_ms()):
            return True
        return self.must_have_forks(known)

    def _forks(self, known: Known) -> list[Known]:
        return [
            other
            for other in self.streams.values()
            if other.state is not None
            and other.state.fork is not None
            and other.state.fork.source == known.number
        ]

    def _must_be_over(self, known: Known, since_ms: int) -> bool:
        return self.busy[known.path] == 0 and known.must_be_over(since_ms)

    def _may_be_closed(self, known: Known) -> bool:
        doubtful = (Status.PENDING, Status.UNKNOWN)
        return any(
            op.close
            and op.path == known.path
            and (op.stream == known.number or op.status in doubtful)
            for op in self.ops.values()
        )
