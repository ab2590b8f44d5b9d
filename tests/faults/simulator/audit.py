"""Audit: while nobody else acts, all that is there is held against all that is known.

It settles what was in doubt: a write whose answer a crash has cut off is there, whole and once, or
it is not, and then it never comes by itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

from origin.handlers import Handlers
from shared.protocol import names
from shared.protocol.append import Append, Unchanged
from shared.protocol.errors import Gone, NotFound, ProtocolError
from shared.protocol.producer import ProducerKey, ProducerState
from shared.protocol.stream import StreamState
from tests.faults.simulator.books import Books
from tests.faults.simulator.known import Known, Op, Status, Violation, insist

T = TypeVar("T")


async def audit(
    books: Books, origin: Handlers, paths: list[str], alive: Callable[[], None]
) -> None:
    """Hold everything that is there against the books.

    Args:
        alive: raises if the process has died: what it says then, nobody hears.

    Raises:
        Violation: a promise was broken.
    """
    missing: list[str] = []
    for path in paths:
        since = books.moment()
        try:
            state = await _heard(origin.reads.head(path), alive)
        except (NotFound, Gone) as error:
            books.absent(path, error, since)
            known = books.here.get(path)
            if known is not None and not known.may_be_over(books.now_ms()):
                books.is_deleted(known)
            missing.append(path)
            continue
        known = books.meet(path, state, since)
        known.deleting = 0
        await _audit_stream(books, origin, known, state, alive)
    books.settle()
    for path in missing:  # once more, now that no doubt is left
        since = books.moment()
        try:
            state = await _heard(origin.reads.head(path), alive)
        except (NotFound, Gone) as error:
            books.absent(path, error, since)
        else:
            insist(False, f"{path!r} is there again: {state}")
    books.events["audit"] += 1


async def _audit_stream(
    books: Books, origin: Handlers, known: Known, state: StreamState, alive: Callable[[], None]
) -> None:
    insist(state.tail >= known.tail, f"{known} ends at {state.tail}, before {known.tail}")
    insist(state.closed or not known.closed, f"{known} is open again")
    if not await _read_whole(books, origin, known, state, alive):
        return
    content = known.stretch(0, state.tail)
    assert content is not None
    if known.made_by is None:
        _find_maker(books, known, state, content)
    for ancestor in state.lineage:
        source = books.streams.get(ancestor.incarnation)
        insist(source is not None, f"{known} is a fork of what never was")
        assert source is not None
        known.agree(source, ancestor.until)
    found = list(_tiles(books, known, content, state.base))
    for op in found:
        _settle(books, known, op)
    for op in books.ops.values():
        there = op.status is Status.ACKNOWLEDGED and op.stream == known.number and op.stored
        insist(not there or op in found, f"write {op.number} is missing from {known}")
    insist(len(set(map(id, found))) == len(found), f"{known} has a write twice")
    sequence = [op.seq for op in found if op.seq is not None]
    insist(sequence == sorted(sequence), f"{known} has Stream-Seq in the order {sequence}")
    last = sequence[-1] if sequence else None
    insist(state.last_seq == last, f"{known} has Stream-Seq {state.last_seq}, its data {last}")
    await _audit_producers(books, origin, known, state, found, alive)


async def _heard(call: Awaitable[T], alive: Callable[[], None]) -> T:
    """Return an answer, or its refusal, if anybody lives to give it."""
    try:
        return await call
    finally:
        alive()


async def _read_whole(
    books: Books, origin: Handlers, known: Known, state: StreamState, alive: Callable[[], None]
) -> bool:
    """Read a stream to its end; return False if its time ran out meanwhile."""
    offset = names.BEGINNING
    tail, closed = max(known.tail, state.tail), known.closed or state.closed
    while True:
        since = books.moment()
        books.begin_read(known.path)
        try:
            chunk = await _heard(origin.reads.read(known.path, offset), alive)
        except (NotFound, Gone) as error:
            books.end_read(known.path, None)
            books.absent(known.path, error, since)
            return False
        books.end_read(known.path, since)
        books.saw(known.path, chunk, known, tail, closed)
        offset = chunk.next
        if chunk.at_tail:
            insist(known.tail == state.tail, f"{known} has {known.tail} bytes, not {state.tail}")
            return True


def _find_maker(books: Books, known: Known, state: StreamState, content: bytes) -> None:
    """Find the create that made a stream, of those that nobody was told of."""
    source = state.fork.source_path if state.fork else None
    for op in books.ops.values():
        if (
            op.status is Status.UNKNOWN
            and op.expiry is not None
            and (op.path, op.source) == (known.path, source)
            and content.startswith(op.stored, state.base)
        ):
            books.claim(known, op)
            return
    insist(False, f"{known} is there, and no create that was sent has made it")


def _tiles(books: Books, known: Known, content: bytes, at: int) -> Iterator[Op]:
    """Yield the writes that a stream's own data consists of."""
    while at < len(content):
        op = books.op_at(content, at)
        insist(op is not None, f"{known} has at {at} what nobody wrote: {content[at:]!r:.80}")
        assert op is not None
        whole = content.startswith(op.stored, at)
        insist(whole, f"{known} has write {op.number} cut or changed: {content[at:]!r:.80}")
        insist(op.path == known.path, f"{known} has write {op.number}, sent to {op.path!r}")
        known.ends.add(at)
        at += len(op.stored)
        known.ends.add(at)
        yield op


def _settle(books: Books, known: Known, op: Op) -> None:
    """Take in that a write is there."""
    if op.status is Status.UNKNOWN:
        op.status, op.stream = Status.KEPT, known.number
        books.events["settled: there"] += 1
        if op.close:
            insist(known.closed, f"{known} has the last write, and is not closed")
    told = op.status.name.lower()
    may = op.status in (Status.ACKNOWLEDGED, Status.KEPT)
    insist(may, f"{known} has write {op.number}, which was {told}")
    insist(op.stream == known.number, f"{known} has write {op.number} of stream {op.stream}")


async def _audit_producers(
    books: Books,
    origin: Handlers,
    known: Known,
    state: StreamState,
    found: list[Op],
    alive: Callable[[], None],
) -> None:
    """Hold what the server knows of producers against the data, by asking with old numbers."""
    last: dict[str, Op] = {}
    for op in found:
        key = op.producer
        if key is None:
            continue
        old = last.get(key.producer_id)
        follows = (
            key.seq == 0
            if old is None or old.producer is None or old.producer.epoch != key.epoch
            else key.seq == old.producer.seq + 1
        )
        insist(follows, f"{known} has {key} after {old and old.producer}")
        last[key.producer_id] = op
    for op in last.values():
        key = op.producer
        assert key is not None
        if state.closed:
            if op.close:
                insist(state.closed_by == key, f"{known} was closed by {state.closed_by}")
            continue
        await _ask_again(books, origin, known, op, key, alive)


async def _ask_again(
    books: Books,
    origin: Handlers,
    known: Known,
    op: Op,
    key: ProducerKey,
    alive: Callable[[], None],
) -> None:
    since = books.moment()
    books.begin_read(known.path)
    asked = Append(op.content_type, op.body, op.close, key, op.seq)
    try:
        outcome = await _heard(origin.streams.append(known.path, asked), alive)
    except (NotFound, Gone) as error:
        books.end_read(known.path, None)
        books.absent(known.path, error, since)
        return
    except ProtocolError as error:
        raise Violation(f"{known} does not know {key}, which its data has: {error}") from error
    books.end_read(known.path, since)
    insist(isinstance(outcome, Unchanged), f"{known} takes {key} once more")
    expected = ProducerState(key.epoch, key.seq)
    insist(outcome.producer == expected, f"{known} knows {outcome.producer}, its data {expected}")
    books.events["producer asked again"] += 1
