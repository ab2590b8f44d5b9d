"""TracedStreams: the writing side of an origin, with a span for every append."""

from dataclasses import replace
from typing import Any

from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context

from origin.commit import Change
from origin.stream import Stream
from origin.streams import Streams
from shared.protocol.append import Accepted, Append, Unchanged
from shared.protocol.errors import Unavailable
from shared.tracing import traceparent, within


class TracedStreams(Streams):
    """What it decides is what `Streams` decides.

    An append is a span from its decision until it is answered, in the trace of who sent it: a
    `decide`, and a `commit` until all that it was decided against is durable. Its wake carries it.
    """

    def __init__(self, *args: Any, tracer: Tracer) -> None:
        super().__init__(*args)
        self._tracer = tracer

    def decide(self, path: str, asked: Append) -> Accepted | Unchanged:
        append = self._tracer.start_span(
            "append",
            context=within(asked.trace),
            kind=SpanKind.SERVER,
            attributes={"headwater.stream": path, "headwater.bytes": len(asked.body)},
        )
        if not append.is_recording():  # as are most, of which nothing more is made
            return super().decide(path, replace(asked, trace=None))
        inside = set_span_in_context(append)
        decide = self._tracer.start_span("decide", context=inside)
        try:
            outcome = super().decide(path, replace(asked, trace=traceparent(append)))
            append.set_attribute("headwater.outcome", type(outcome).__name__.lower())
        except Exception as error:
            append.set_attribute("error.type", type(error).__name__)
            raise
        else:
            return outcome
        finally:
            decide.end()
            # Whatever was decided: its answer waits until then.
            commit = self._tracer.start_span("commit", context=inside)
            self._committer.when_settled(lambda error: _end(append, commit, error))

    def _append(self, stream: Stream, asked: Append, outcome: Accepted) -> Change:
        change = super()._append(stream, asked, outcome)
        span = asked.trace
        if span is None:
            return change

        def done() -> None:
            change.done()
            self._ledger.trace(stream, span)

        return replace(change, done=done)


def _end(append: Span, commit: Span, error: Unavailable | None) -> None:
    if error is not None:
        commit.set_status(Status(StatusCode.ERROR, str(error)))
        append.set_status(Status(StatusCode.ERROR, str(error)))
    commit.end()
    append.end()
