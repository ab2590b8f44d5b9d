"""The append decision, with its refusals in their order of precedence (PROTOCOL §5.2)."""

from collections.abc import Mapping
from dataclasses import dataclass

from shared.protocol import jsonmode, media
from shared.protocol.errors import (
    BadRequest,
    ContentTypeMismatch,
    Gone,
    SequenceRegression,
    StreamClosed,
    TailMoved,
)
from shared.protocol.precondition import IfMatch, tail_tag
from shared.protocol.producer import Duplicate, ProducerKey, ProducerState, admit
from shared.protocol.stream import StreamState


# Not frozen, nor is Accepted: each append makes one, and a frozen one costs four times as much.
@dataclass(slots=True)
class Append:
    """A request to append, to close, or both at once."""

    content_type: str | None
    body: bytes
    close: bool = False
    producer: ProducerKey | None = None
    stream_seq: str | None = None
    if_match: IfMatch | None = None
    trace: str | None = None  # of the writer, by W3C trace context; no rule looks at it

    def with_body(self, body: bytes) -> "Append":
        """Return the same request with this body; spelt out, for `replace` is twice as slow."""
        return Append(
            self.content_type,
            body,
            self.close,
            self.producer,
            self.stream_seq,
            self.if_match,
            self.trace,
        )


@dataclass(slots=True)
class Accepted:
    """The append changes the stream: `stored` is added, and `state` is what it then is."""

    state: StreamState
    stored: bytes
    producer: ProducerState | None


@dataclass(frozen=True, slots=True)
class Unchanged:
    """The request had its effect before: a producer's retry, or a close of a closed stream."""

    state: StreamState
    producer: ProducerState | None


def decide_append(
    state: StreamState, producers: Mapping[str, ProducerState], asked: Append
) -> Accepted | Unchanged:
    """Decide what an append does to a stream.

    The order is: deleted, closed, body, content type, JSON, producer, Stream-Seq, If-Match. Closure
    comes before conflicts so that writers always learn of it; producers come before Stream-Seq so
    that a retry is a duplicate and no regression. A precondition is for requests that would succeed
    without it, so it comes last (RFC 9110 §13.2.1).

    Raises:
        ProtocolError: the first refusal in that order.
    """
    if state.deleted:
        raise Gone(f"the stream at {state.path!r} is deleted")
    key = asked.producer
    if state.closed:
        return _on_closed(state, producers, asked)
    if not asked.body and not asked.close:
        raise BadRequest("the body is empty; only a close (Stream-Closed: true) may be")
    stored = _store(state, asked)
    known: ProducerState | None = None
    if key is not None:
        verdict = admit(producers.get(key.producer_id), key.epoch, key.seq)
        if isinstance(verdict, Duplicate):
            return Unchanged(state, verdict.state)
        known = verdict.state
    # Code points compare as their UTF-8 bytes do, which is the order of PROTOCOL §5.2.
    seq, last = asked.stream_seq, state.last_seq
    if seq is not None and last is not None and seq <= last:
        raise SequenceRegression(last, seq)
    if asked.if_match is not None and not asked.if_match.holds(state):
        raise TailMoved(state.tail_offset().token(), tail_tag(state))
    after = state.grown(
        len(stored),
        closed_by=key if asked.close else None,
        closed=asked.close,
        last_seq=last if seq is None else seq,
    )
    return Accepted(after, stored, known)


def _on_closed(
    state: StreamState, producers: Mapping[str, ProducerState], asked: Append
) -> Unchanged:
    """A closed stream answers its closer's retry, and any close without data (PROTOCOL §5.2.1)."""
    key = asked.producer
    if key is not None:
        if key == state.closed_by:
            return Unchanged(state, producers.get(key.producer_id))
    elif asked.close and not asked.body:
        return Unchanged(state, None)
    raise StreamClosed(state.tail_offset().token())


def _store(state: StreamState, asked: Append) -> bytes:
    if not asked.body:
        return b""
    if asked.content_type is None:
        raise BadRequest("an append with a body needs a Content-Type")
    if not media.same_type(state.content_type, asked.content_type):
        raise ContentTypeMismatch(state.content_type, asked.content_type)
    return jsonmode.flatten(asked.body) if media.is_json(state.content_type) else asked.body
