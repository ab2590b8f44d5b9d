"""Traced: an edge's tails and parked readers, with a span from a wake to the last reader who has
what it told of."""

import time
from dataclasses import dataclass
from typing import Any, Final

from opentelemetry.trace import Span, SpanKind, Tracer

from edge.groups import Group
from edge.parked import Parked
from edge.passes import Pass
from edge.tails import Tails
from shared.protocol.chunk import Chunk
from shared.tracing import within
from shared.wake import Wake

# Traced appends that are on their way to readers: more would be of streams that nobody waits on.
_NEWS_MAX: Final = 1024
# Groups of one append, each of which is a span: clients choose how many there are.
_SPANS_MAX: Final = 16


@dataclass(slots=True)
class _News:
    """A traced append that a wake has told of."""

    after: str
    trace: str
    heard_ns: int
    spans: int = 0


class Traces:
    """The latest traced append of each stream."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._news: dict[str, _News] = {}  # who was heard of last is last

    def hear(self, path: str, wake: Wake) -> None:
        """Take in a wake."""
        if wake.trace is None:
            return
        self._news.pop(path, None)
        self._news[path] = _News(wake.after, wake.trace, time.time_ns())
        if len(self._news) > _NEWS_MAX:
            del self._news[next(iter(self._news))]

    def begin(self, group: Group, before: str, after: str) -> Span | None:
        """Begin the span of what a group gets, if a traced append is in it."""
        news = self._news.get(group.crowd.path)
        if news is None or not before < news.after <= after or news.spans == _SPANS_MAX:
            return None
        news.spans += 1
        return self._tracer.start_span(
            "fan-out",
            context=within(news.trace),
            kind=SpanKind.CONSUMER,
            start_time=news.heard_ns,
            attributes={
                "headwater.stream": group.crowd.path,
                "headwater.mode": "sse" if group.streams else "long-poll",
                "headwater.readers": group.count,
            },
        )


class TracedTails(Tails):
    """Tails that pass on what they hear of traces."""

    def __init__(self, *args: Any, traces: Traces) -> None:
        super().__init__(*args)
        self._traces = traces

    def _on_wake(self, path: str, wake: Wake) -> None:
        self._traces.hear(path, wake)
        super()._on_wake(path, wake)


class TracedParked(Parked):
    """Readers whose passes are spans: from the wake until the last of them has its bytes."""

    def __init__(self, *args: Any, traces: Traces) -> None:
        super().__init__(*args)
        self._traces = traces
        self._spans: dict[Pass, Span] = {}  # of passes under way

    def deliver(self, group: Group, chunk: Chunk) -> Pass:
        before = group.chunk.next
        work = super().deliver(group, chunk)
        span = self._traces.begin(group, before, chunk.next)
        if span is not None:
            self._spans[work] = span
        return work

    def finished(self, work: Pass) -> None:
        super().finished(work)
        span = self._spans.pop(work, None)
        if span is not None:
            span.end()

    def close(self) -> None:
        super().close()
        for span in self._spans.values():
            span.end()
