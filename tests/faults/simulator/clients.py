"""Clients: carry out the steps of a plan, and keep the books."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final

from origin.handlers import Handlers
from shared.protocol import names
from shared.protocol.append import Append
from shared.protocol.chunk import Chunk
from shared.protocol.errors import (
    BadRequest,
    Conflict,
    EpochStart,
    Gone,
    InvalidOffset,
    NotFound,
    ProtocolError,
    SequenceGap,
    StaleEpoch,
    StreamClosed,
    Unavailable,
)
from shared.protocol.expiry import NEVER, Expiry
from shared.protocol.producer import ProducerKey
from shared.protocol.stream import Create
from tests.faults.simulator.books import JSON, Books
from tests.faults.simulator.disk import Disk
from tests.faults.simulator.known import Known, Op, Violation, insist
from tests.faults.simulator.plan import Step

TEXT: Final = "text/plain"
# Most are small; some take pages, a few a chunk.
_SIZES: Final = (0, 1, 20, 20, 60, 200, 700, 5000, 12_000)
_FOLLOWS_S: Final = 5.0


class Died(Exception):
    """The process is gone, and the answer with it."""


@dataclass(slots=True)
class Writer:
    """A producer of one client on one stream, over all lives of the process."""

    epoch: int = 0
    next_seq: int = 0
    stream: int | None = None
    open: list[Op] = field(default_factory=list)  # sent and not acknowledged, by number
    done: list[Op] = field(default_factory=list)


@dataclass(slots=True)
class Clients:
    """What outlives the process on the side of its clients."""

    books: Books
    trace: Callable[[str], None]
    writers: dict[tuple[int, str], Writer] = field(default_factory=dict)
    numbers: count[int] = field(default_factory=count)
    seqs: count[int] = field(default_factory=count)


def path_of(number: int) -> str:
    return f"s/{number}"


class Session:
    """One client during one life of the process."""

    def __init__(self, clients: Clients, origin: Handlers, disk: Disk) -> None:
        self._clients = clients
        self._books = clients.books
        self._origin = origin
        self._disk = disk
        self._followers: set[asyncio.Task[None]] = set()

    async def run(self, steps: list[Step]) -> None:
        """Carry out steps one after another."""
        try:
            for step in steps:
                await asyncio.sleep(step.pause_s)
                await self._step(step)
        except Died:
            pass
        finally:
            for follower in self._followers:
                follower.cancel()
            ended = await asyncio.gather(*self._followers, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception):
                raise error

    async def _step(self, step: Step) -> None:
        self._clients.trace(f"step {step.number}: client {step.client} {step.kind} {step.path}")
        path, dice = path_of(step.path), step.dice
        known = self._there(path)
        match step.kind:
            case "create":
                await self._create(self._new_create(path, dice))
            case "fork":
                await self._fork(path, dice)
            case "append":
                body = self._append_op(path, known, dice, seq=dice[3] % 3 == 0)
                await self._append(body)
            case "produce":
                await self._produce(step.client, path, known, dice)
            case "again":
                await self._again(step.client, path, known, dice[0])
            case "stale":
                await self._stale(step.client, path, known, dice)
            case "close":
                data = dice[2] % 2 == 0
                await self._append(self._append_op(path, known, dice, close=True, data=data))
            case "delete":
                await self._delete(path)
            case "read":
                await self._read(path, known, dice)
            case "follow":
                follower = asyncio.create_task(self._follow(path))
                self._followers.add(follower)
            case "wait":
                await asyncio.sleep(dice[0] % 8)
            case "disk full":
                self._disk.room_bytes = dice[0] % 30_000
            case "room again":
                self._disk.room_bytes = None

    def _there(self, path: str) -> Known | None:
        known = self._books.here.get(path)
        return None if known is None or known.deleted else known

    async def _ask(self, call: Coroutine[Any, Any, Any]) -> Any:
        """Return the answer, if the process lives to give it.

        Raises:
            Died: it does not.
            NoRoom: it was refused for want of room.
        """
        try:
            answer = await call
        except Unavailable as error:
            self._alive()
            if "stopping" in str(error):
                raise Died from None
            raise
        except ProtocolError:
            self._alive()
            raise
        self._alive()
        return answer

    def _alive(self) -> None:
        if self._disk.over:
            raise Died

    # --- creates, forks, deletions ---------------------------------------------------------------

    def _new_create(self, path: str, dice: tuple[int, ...]) -> Op:
        kind = JSON if dice[0] % 3 == 0 else TEXT
        op = self._op(path, kind, dice, data=dice[2] % 2 == 0)
        op.close = dice[3] % 8 == 0
        op.expiry = self._expiry(dice)
        return op

    def _expiry(self, dice: tuple[int, ...]) -> Expiry:
        match dice[4] % 6:
            case 0:
                return Expiry(ttl_s=1 + dice[5] % 20)
            case 1:
                at_ms = self._books.now_ms() + dice[5] % 20_000
                return Expiry(None, f"at {at_ms}", at_ms)
            case _:
                return NEVER

    async def _create(self, op: Op, offset: str | None = None, sub: int = 0) -> None:
        books = self._books
        assert op.expiry is not None
        asked = Create(op.content_type, op.expiry, op.close, op.body, op.source, offset, sub)
        source = None if op.source is None else books.here.get(op.source)
        since = books.moment()
        in_use = self._in_use(op.path)
        books.send_create(op)
        try:
            state, fresh = await self._ask(self._origin.streams.create(op.path, asked))
        except Unavailable:
            books.events["refused: no room"] += 1
        except Conflict as error:
            in_use |= self._in_use(op.path)
            of_source = source is not None and source.may_be_deleted()
            insist(in_use or of_source, f"a create at {op.path!r} is a conflict: {error}")
        except NotFound as error:
            insist(op.source is not None, f"a create at {op.path!r}: {error}")
            assert op.source is not None
            if books.here.get(op.source) is source:
                books.absent(op.source, error, since)
        else:
            books.created(op, state, fresh, since)
            return
        books.not_created(op)

    def _in_use(self, path: str) -> bool:
        """Tell whether a path may be that of a stream, or be kept for the forks of one."""
        known = self._books.here.get(path)
        there = known is not None and not self._books.is_gone_for_good(known)
        return there or self._books.has_faded(path)

    async def _fork(self, path: str, dice: tuple[int, ...]) -> None:
        """Fork a stream at its tail, at a boundary, or within the append that begins there."""
        sources = [
            known
            for known in self._books.here.values()
            if known.path != path and known.state is not None and known.made_by is not None
        ]
        if not sources:
            return
        source = sources[dice[0] % len(sources)]
        state = source.state
        assert state is not None
        op = self._op(path, state.content_type, dice, data=dice[2] % 3 == 0)
        op.source, op.expiry = source.path, self._expiry(dice)
        op.fork_of, op.fork_at = source.number, (source.tail, None)
        offset, sub = None, 0
        ends = sorted(end for end in source.ends if end <= source.tail)
        if ends and dice[6] % 3:
            at = ends[dice[7] % len(ends)]
            offset = state.offset_at(at).token()
            position = at
            if dice[6] % 3 == 2:
                sub, position = self._within(source, at, dice[1])
            op.fork_at = (position, position)
        try:
            await self._create(op, offset, sub)
        except (BadRequest, InvalidOffset, Gone) as error:
            # It is another stream by now, at the same path.
            insist(self._books.here.get(source.path) is not source, f"fork of {source}: {error}")
            self._books.not_created(op)

    def _within(self, source: Known, at: int, die: int) -> tuple[int, int]:
        """Return a sub-offset into the append at a boundary, and the position that it means."""
        op = self._books.op_at(source.content, at)
        if op is None or source.state is None or source.stretch(at, at + len(op.stored)) is None:
            return 0, at
        stored = op.stored
        if source.state.content_type != JSON:
            sub = 1 + die % len(stored)
            return sub, at + sub
        # Messages are arrays of three, and the comma after the third ends them.
        lengths = [len(message) + 2 for message in stored.split(b"],")[:-1]]
        sub = 1 + die % len(lengths)
        return sub, at + sum(lengths[:sub])

    async def _delete(self, path: str) -> None:
        books = self._books
        since = books.moment()
        known = books.send_delete(path)
        try:
            await self._ask(self._origin.streams.delete(path))
        except Unavailable:
            books.not_deleted(known)
        except (NotFound, Gone) as error:
            books.not_deleted(known)
            books.absent(path, error, since)
        else:
            books.deleted(known, path, since)

    # --- appends ---------------------------------------------------------------------------------

    def _op(self, path: str, kind: str, dice: tuple[int, ...], *, data: bool = True) -> Op:
        number = next(self._clients.numbers)
        filler = b"." * (dice[1] % (_SIZES[dice[7] % len(_SIZES)] + 1))
        if not data:
            return Op(number, path, b"", b"", kind)
        if kind != JSON:
            body = b"<%d:%s>" % (number, filler)
            return Op(number, path, body, body, kind)
        # White space within a message is its own, and comes back as it came.
        items = [b'["%d",%d, "%s"]' % (number, n, filler) for n in range(1 + dice[6] % 4)]
        inner = b",".join(items)
        return Op(number, path, b" [ " + inner + b" ]\n", inner + b",", kind)

    def _append_op(
        self,
        path: str,
        known: Known | None,
        dice: tuple[int, ...],
        *,
        close: bool = False,
        data: bool = True,
        seq: bool = False,
    ) -> Op:
        kind = TEXT if known is None or known.state is None else known.state.content_type
        op = self._op(path, kind, dice, data=data)
        op.close = close
        if seq:
            op.seq = f"{next(self._clients.seqs):06d}"
        return op

    async def _append(self, op: Op) -> ProtocolError | Unavailable | None:
        """Send a write; return what it was refused with."""
        books = self._books
        since = books.moment()
        books.send_append(op)
        asked = Append(op.content_type if op.body else None, op.body, op.close, op.producer, op.seq)
        try:
            outcome = await self._ask(self._origin.streams.append(op.path, asked))
        except Unavailable as error:
            books.undone(op)
            return error
        except (SequenceGap, EpochStart, StaleEpoch) as error:
            books.out_of_order(op)
            return error
        except ProtocolError as error:
            books.refused(op, error, since)
            return error
        books.appended(op, outcome, since)
        return None

    async def _produce(
        self, client: int, path: str, known: Known | None, dice: tuple[int, ...]
    ) -> None:
        """Send what is open again, and more, without waiting for one before the next is sent."""
        if known is None or known.state is None:
            return
        writer = self._clients.writers.setdefault((client, path), Writer())
        if writer.stream != known.number or (dice[0] % 8 == 0 and writer.next_seq):
            # Of another stream, or a producer that has started anew.
            writer.epoch += 1
            writer.next_seq, writer.stream = 0, known.number
            writer.open.clear()
        for more in range(dice[5] % 4 + (not writer.open)):
            turned = (*dice[:1], dice[1] + more, *dice[2:])
            op = self._append_op(path, known, turned, seq=dice[3] % 5 == 0)
            op.producer = ProducerKey(f"p{client}", writer.epoch, writer.next_seq)
            op.close = dice[4] % 40 == 0 and more == 0
            writer.next_seq += 1
            writer.open.append(op)
        batch = list(writer.open)
        errors = await asyncio.gather(*(self._append(op) for op in batch), return_exceptions=True)
        for op, error in zip(batch, errors, strict=True):
            if error is None:
                writer.open.remove(op)
                writer.done.append(op)
            elif isinstance(error, StreamClosed | NotFound | Gone):
                writer.stream = None
            elif isinstance(error, StaleEpoch):
                raise Violation(f"{known} knows a later epoch than {op.producer}: {error}")
            elif isinstance(error, SequenceGap | EpochStart):  # one before it was refused
                another = self._books.here.get(path) is not known or self._books.creating[path] > 0
                insist(
                    another or op is not writer.open[0],
                    f"{known} lacks what was acknowledged before: {error}",
                )
            elif not isinstance(error, Unavailable | ProtocolError):
                raise error
            elif op.seq is not None:
                writer.stream = None  # a later Stream-Seq came first: this one never will

    async def _again(self, client: int, path: str, known: Known | None, die: int) -> None:
        """Send a write again that was acknowledged."""
        writer = self._writer(client, path, known)
        if writer is None:
            return
        done = [
            op
            for op in writer.done
            if op.producer is not None
            and (op.stream, op.producer.epoch) == (writer.stream, writer.epoch)
        ]
        if done:
            error = await self._append(done[die % len(done)])
            may = error is None or self._may_refuse_all(path, known, error)
            insist(may, f"{known} refuses what it has acknowledged: {error!r}")

    async def _stale(
        self, client: int, path: str, known: Known | None, dice: tuple[int, ...]
    ) -> None:
        """Send a write of an epoch that is over."""
        writer = self._writer(client, path, known)
        if writer is None or writer.epoch < 2:
            return
        if not any(op.producer and op.producer.epoch == writer.epoch for op in writer.done):
            return
        op = self._append_op(path, known, dice)
        op.producer = ProducerKey(f"p{client}", writer.epoch - 1, dice[1] % 3)
        error = await self._append(op)
        may = isinstance(error, StaleEpoch) or self._may_refuse_all(path, known, error)
        insist(may, f"{known} took {op.producer} of an epoch that is over: {error!r}")

    def _writer(self, client: int, path: str, known: Known | None) -> Writer | None:
        """Return what a client has written to a stream, if it has."""
        writer = self._clients.writers.get((client, path))
        return writer if writer and known and writer.stream == known.number else None

    def _may_refuse_all(self, path: str, known: Known | None, error: object) -> bool:
        """Tell whether a stream takes no more, or is another by now."""
        moved = self._books.here.get(path) is not known or self._books.creating[path] > 0
        return moved or isinstance(error, StreamClosed | NotFound | Gone | Unavailable)

    # --- reads -----------------------------------------------------------------------------------

    async def _read(self, path: str, known: Known | None, dice: tuple[int, ...]) -> None:
        """Read from anywhere on, for a few chunks."""
        offset = names.BEGINNING
        state = None if known is None else known.state
        if known is not None and state is not None and dice[0] % 3:
            position = dice[1] % (known.tail + 1)
            offset = names.NOW if dice[0] % 3 == 2 else state.offset_at(position).token()
        for _ in range(1 + dice[2] % 3):
            chunk = await self._chunk(path, known, self._origin.reads.read(path, offset))
            if chunk is None:
                return
            offset = chunk.next

    async def _chunk(
        self, path: str, known: Known | None, call: Coroutine[Any, Any, Chunk]
    ) -> Chunk | None:
        """Take in a chunk of a stream; None: it is not there, or is another by now."""
        books = self._books
        since = books.moment()
        settled = not books.creating[path]
        tail = 0 if known is None else known.tail
        closed = known is not None and known.closed
        books.begin_read(path)
        answered = None
        try:
            chunk: Chunk = await self._ask(call)
            answered = since
        except (NotFound, Gone, InvalidOffset) as error:
            same = known is not None and books.here.get(path) is known
            if isinstance(error, InvalidOffset) or "belongs to an earlier" in str(error):
                insist(not (same and settled), f"{known} forgot an offset: {error}")
            else:
                books.absent(path, error, since)
            return None
        except Unavailable:
            return None
        finally:
            books.end_read(path, answered)
        certain = known if settled and books.here.get(path) is known else None
        books.saw(path, chunk, certain, tail, closed)
        return chunk

    async def _follow(self, path: str) -> None:
        """Read on as data comes, for a while."""
        try:
            async with asyncio.timeout(_FOLLOWS_S):
                known = self._there(path)
                chunk = await self._chunk(path, known, self._origin.reads.join(path, "-1"))
                while chunk is not None and not chunk.closed:
                    known = self._there(path)
                    chunk = await self._chunk(path, known, self._on(path, chunk))
        except (TimeoutError, Died):
            pass

    def _on(self, path: str, chunk: Chunk) -> Coroutine[Any, Any, Chunk]:
        reads = self._origin.reads
        return reads.next(path, chunk) if chunk.at_tail else reads.join(path, chunk.next)
