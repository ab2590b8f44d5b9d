"""Streams: decides every write, and submits what it changes as one record."""

from dataclasses import replace
from typing import Final

import orjson

from origin.catalog import Catalog, soft_deleted
from origin.commit import Change, Committer
from origin.frame import Appended, Created, Deleted, Trimmed
from origin.ledger import Ledger
from origin.reader import Reader
from origin.stream import Stream
from origin.usage import NOTHING, on_append, on_create, on_delete
from shared import metrics
from shared.clock import Clock
from shared.protocol import fork, jsonmode, media, names, retention
from shared.protocol.append import Accepted, Append, Unchanged, decide_append
from shared.protocol.errors import (
    BadRequest,
    Conflict,
    ContentTypeMismatch,
    InvalidOffset,
    MethodNotAllowed,
    NotFound,
)
from shared.protocol.expiry import NEVER, inherit_expiry
from shared.protocol.offset import Offset, Start, parse_start
from shared.protocol.retention import KEEP_ALL, Retention
from shared.protocol.stream import Ancestor, Create, ForkPoint, StreamState, ensure_same

_REGISTRY_METHODS: Final = "GET, HEAD"


class Streams:
    """The writing side of an origin.

    A decision looks at `Stream.state` and is submitted without an await in between. Every answer,
    refusals too, waits until all that it was decided against is durable.
    """

    def __init__(
        self,
        catalog: Catalog,
        committer: Committer,
        ledger: Ledger,
        reader: Reader,
        clock: Clock,
        retention: Retention = KEEP_ALL,
    ) -> None:
        """Prepare.

        Args:
            retention: of streams whose creation asks for none; forks keep all that they inherit.
        """
        self._catalog = catalog
        self._committer = committer
        self._ledger = ledger
        self._reader = reader
        self._clock = clock
        self._retention = retention

    def check_room(self) -> None:
        """Refuse a write before its body is read, if what waits is too much already.

        Raises:
            Unavailable: the disk is behind, or the journal has failed.
        """
        self._committer.check_room()

    async def open_registry(self) -> None:
        """See to it that the registry stream exists."""
        if self._catalog.at(names.REGISTRY) is None:
            asked = Create(names.JSON, NEVER, closed=False, body=b"")
            self._committer.submit(self._create(names.REGISTRY, asked, names.JSON, None, b"")[1])
            await self._committer.settled()

    async def create(self, path: str, asked: Create) -> tuple[StreamState, bool]:
        """Create a stream, or find it as described (PROTOCOL §5.1, §4.2).

        Returns:
            Its state, and whether it is new.
        """
        _check_writable(path, "PUT")
        try:
            point = None
            if asked.forked_from is not None and self._there(path) is None:
                point = await self._fork_point(asked.forked_from, asked)
            there = self._there(path)
            if there is not None:
                ensure_same(there.state, asked)
                return there.state, False
            self._committer.check_room()
            content_type = self._content_type(asked, point)
            stored = asked.body
            if stored and media.is_json(content_type):
                stored = jsonmode.flatten(stored, allow_empty=True)
            state, change = self._create(path, asked, content_type, point, stored)
            self._committer.submit(change, *self._register("insert", state))
            return state, True
        finally:
            await self._committer.settled()

    async def append(self, path: str, asked: Append) -> Accepted | Unchanged:
        """Append, close, or both (PROTOCOL §5.2, §5.3)."""
        try:
            return self.decide(path, asked)
        finally:
            await self._committer.settled()

    def decide(self, path: str, asked: Append) -> Accepted | Unchanged:
        """Decide an append and submit it. Nobody may be told before all that is submitted by now
        is durable, whatever the outcome."""
        _check_writable(path, "POST")
        stream = self._catalog.find(path)
        self._committer.check_room()
        outcome = decide_append(stream.state, stream.producers, asked)
        if self._catalog.touch(stream):
            self._ledger.note(stream)
        if isinstance(outcome, Accepted):
            self._committer.submit(self._append(stream, asked, outcome))
        else:
            metrics.UNCHANGED.inc()
        return outcome

    async def delete(self, path: str) -> None:
        """Delete a stream, softly while it has forks (PROTOCOL §5.4)."""
        _check_writable(path, "DELETE")
        try:
            stream = self._catalog.find(path)
            if stream.state.deleted:
                raise soft_deleted(path)
            self._committer.check_room()
            self._committer.submit(*self._delete(stream))
        finally:
            await self._committer.settled()

    def expire(self, stream: Stream) -> bool:
        """Delete a stream whose time is over; a sliding window goes on while somebody waits on it.

        Returns:
            Whether it is being deleted now.
        """
        if len(stream.waiters) and self._catalog.touch(stream):
            self._ledger.note(stream)
        if stream.state.deleted or not self._catalog.is_over(stream):
            return False
        metrics.EXPIRED.inc()
        self._committer.submit(*self._delete(stream))
        return True

    def trim(self, stream: Stream, low: int) -> None:
        """Keep a stream from a position on, which lies on an append boundary."""
        before = stream.state
        assert before.low < low <= before.tail
        after = stream.state = replace(before, low=low)

        def undo() -> None:
            stream.state = before

        def done() -> None:
            self._ledger.trim(stream, before.kept - after.kept)
            stream.durable = after
            metrics.TRIMMED_BYTES.inc(before.kept - after.kept)

        self._committer.submit(Change(Trimmed(before.incarnation, low), done, undo))

    async def settled(self) -> None:
        """Return when all that is decided so far is durable.

        Raises:
            Unavailable: it was undone, because the disk is full.
        """
        await self._committer.settled()

    def _there(self, path: str) -> Stream | None:
        """Return what keeps a path from being created; a stream whose time is over gives way."""
        stream = self._catalog.at(path)
        if stream is None or not self.expire(stream):
            return stream
        return self._catalog.at(path)  # gone, unless it is kept for its forks

    async def _fork_point(self, source_path: str, asked: Create) -> ForkPoint:
        """Resolve where a fork diverges; reads the append after the anchor if it must."""
        state = self._catalog.find(source_path).state
        if state.deleted:
            raise Conflict(f"the source {source_path!r} is deleted")
        if len(state.lineage) >= names.FORK_DEPTH_MAX:
            raise BadRequest(
                f"the source {source_path!r} is a fork {len(state.lineage)} deep already"
            )
        start = Start.NOW if asked.fork_offset is None else parse_start(asked.fork_offset)
        position = state.position_of(start)
        if isinstance(start, Offset) and start.position > state.tail:
            raise InvalidOffset(f"Stream-Fork-Offset {asked.fork_offset} is beyond the tail")
        if 0 < position < state.tail or asked.fork_sub_offset:
            await self._committer.settled()
            span = await self._reader.one_append(state, position)
            if span.start != position:
                raise InvalidOffset(f"Stream-Fork-Offset {asked.fork_offset} lies inside an append")
            position += fork.sub_offset_bytes(
                state.content_type, span.stored, asked.fork_sub_offset
            )
        return ForkPoint(
            source_path,
            state.incarnation,
            position,
            asked.fork_offset,
            asked.fork_sub_offset,
            inherits_expiry=asked.expiry == NEVER,
        )

    def _content_type(self, asked: Create, point: ForkPoint | None) -> str:
        """Return the type of a stream to be created, its source looked at anew."""
        if point is None:
            return asked.content_type or names.DEFAULT_CONTENT_TYPE
        # Reading its data took a while: it may be gone, or be another stream.
        source = self._catalog.find(point.source_path)
        if source.state.incarnation != point.source:
            raise NotFound(point.source_path)
        if source.state.deleted:
            raise Conflict(f"the source {point.source_path!r} is deleted")
        there = source.state.content_type
        if asked.content_type is not None and not media.same_type(asked.content_type, there):
            raise ContentTypeMismatch(there, asked.content_type)
        return asked.content_type or there

    def _create(
        self,
        path: str,
        asked: Create,
        content_type: str,
        point: ForkPoint | None,
        stored: bytes,
    ) -> tuple[StreamState, Change]:
        """Let a stream exist, and return how that becomes durable."""
        now_ms = self._clock.now_ms()
        catalog = self._catalog
        source = None if point is None else catalog.of(point.source)
        expiry = asked.expiry
        lineage: tuple[Ancestor, ...] = ()
        keep, low = asked.retention, 0
        if source is not None and point is not None:
            expiry = inherit_expiry(source.state.expiry, expiry)
            lineage = fork.lineage_of(source.state, point.position)
            low = source.state.low
        elif keep == KEEP_ALL and path != names.REGISTRY:
            keep = self._retention
        state = StreamState(
            path=path,
            incarnation=catalog.next_incarnation,
            content_type=content_type,
            expiry=expiry,
            created_ms=now_ms,
            fork=point,
            lineage=lineage,
            tail=(0 if point is None else point.position) + len(stored),
            closed=asked.closed,
            retention=keep,
            low=low,
        )
        stream = Stream(state, now_ms)
        catalog.next_incarnation += 1  # also where the disk turns out full: numbers are plenty
        catalog.add(stream)
        if source is not None:
            source.forks += 1

        def undo() -> None:
            catalog.withdraw(stream)
            if source is not None:
                source.forks -= 1

        def done() -> None:
            self._ledger.move(stream, state.base, on_create(len(stored)))
            stream.durable = state
            if source is not None:
                self._ledger.count_fork(source, 1)
            catalog.watch(stream)
            if keep.age_s is not None:
                self._ledger.look_at(stream, now_ms + keep.age_s * 1000)
            metrics.STREAMS.inc()

        return state, Change(Created(state, stored), done, undo)

    def _append(self, stream: Stream, asked: Append, outcome: Accepted) -> Change:
        before, after, key = stream.state, outcome.state, asked.producer
        known = None if key is None else stream.producers.get(key.producer_id)
        stream.state = after
        if key is not None and outcome.producer is not None:
            stream.producers[key.producer_id] = outcome.producer

        def undo() -> None:
            stream.state = before
            if key is not None and known is not None:
                stream.producers[key.producer_id] = known
            elif key is not None:
                stream.producers.pop(key.producer_id, None)

        def done() -> None:
            self._ledger.move(stream, before.tail, on_append(len(outcome.stored)))
            stream.durable = after
            if retention.is_over(after.retention, after.kept):
                self._ledger.look_at(stream, 0)
            if key is not None and outcome.producer is not None:
                stream.dirty_producers[key.producer_id] = outcome.producer

        record = Appended(after.incarnation, outcome.stored, asked.close, key, asked.stream_seq)
        return Change(record, done, undo)

    def _delete(self, stream: Stream) -> list[Change]:
        """Let a stream go, and whatever it alone kept alive (PROTOCOL §4.2)."""
        changes = self._register("delete", stream.state)
        going: Stream | None = stream
        while going is not None:
            change, source = self._delete_one(going)
            changes.append(change)
            kept_for_nothing = source is not None and source.state.deleted and not source.forks
            going = source if kept_for_nothing else None
        return changes

    def _delete_one(self, stream: Stream) -> tuple[Change, Stream | None]:
        """Return the change, and the source that has lost a fork by it."""
        before = stream.state
        catalog = self._catalog
        soft = stream.forks > 0
        after = replace(before, deleted=True)
        stream.state = after
        point = before.fork
        source = None if soft or point is None else catalog.of(point.source)
        if not soft:
            catalog.vacate(stream)
            if source is not None:
                source.forks -= 1

        def undo() -> None:
            stream.state = before
            if not soft:
                catalog.restore(stream)
                if source is not None:
                    source.forks += 1

        def done() -> None:
            gone = NOTHING if soft else on_delete(before.kept)
            self._ledger.move(stream, before.tail, gone)
            stream.durable = after
            if not soft:
                stream.gone = True
                self._ledger.drop(stream)
                if source is not None:
                    self._ledger.count_fork(source, -1)
                metrics.STREAMS.dec()

        return Change(Deleted(before.incarnation, soft), done, undo), source

    def _register(self, operation: str, state: StreamState) -> list[Change]:
        """Return what tells the registry stream of what comes or goes; it belongs to that
        decision."""
        registry = self._catalog.at(names.REGISTRY)
        if registry is None or state.path == names.REGISTRY:
            return []
        event: dict[str, object] = {
            "type": "stream",
            "key": state.path,
            "headers": {"operation": operation},
        }
        if operation == "insert":
            event["value"] = {
                "path": state.path,
                "contentType": state.content_type,
                "createdAt": state.created_ms,
            }
        asked = Append(names.JSON, orjson.dumps(event))
        outcome = decide_append(registry.state, registry.producers, asked)
        assert isinstance(outcome, Accepted)
        return [self._append(registry, asked, outcome)]


def _check_writable(path: str, method: str) -> None:
    if path == names.REGISTRY:
        raise MethodNotAllowed(method, _REGISTRY_METHODS)
