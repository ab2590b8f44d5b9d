"""Tracing: spans of what happens to an append, by OpenTelemetry, which is imported only where they
are asked for."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from shared.config import BadSetting, Settings

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer

_EXPORT_TIMEOUT_S: Final = 2.0  # a collector that is away holds up a stop by as much
_HEADER: Final = "traceparent"


@asynccontextmanager
async def open_tracer(settings: Settings) -> AsyncIterator["Tracer | None"]:
    """Make the tracer of a process, and on leaving send what it still has; None: none is asked for.

    How many appends are traced is for OpenTelemetry's own variables to say (OTEL_TRACES_SAMPLER).

    Raises:
        BadSetting: the extra is not installed.
    """
    if settings.traces is None:
        yield None
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise BadSetting(
            f"--traces: {settings.traces!r} needs `pip install headwater[otel]`: {error}"
        ) from None
    endpoint = f"{settings.traces.rstrip('/')}/v1/traces"
    exporter = OTLPSpanExporter(endpoint, timeout=_EXPORT_TIMEOUT_S)
    named = {"service.name": "headwater", "service.instance.id": settings.role or "headwater"}
    provider = TracerProvider(resource=Resource.create(named))
    # Its queue is bounded (2,048 spans by default), and its thread is its own: who has news for
    # readers never waits for a collector.
    provider.add_span_processor(BatchSpanProcessor(exporter))
    try:
        yield provider.get_tracer("headwater")
    finally:
        await asyncio.to_thread(provider.shutdown)


def within(traceparent: str | None) -> "Context":
    """Return the context of a span that another process has begun; anything malformed is none."""
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    if traceparent is None:
        return Context()
    return TraceContextTextMapPropagator().extract({_HEADER: traceparent}, Context())


def traceparent(span: "Span") -> str | None:
    """Return a span as another process is told of it, or None for one that nobody records."""
    context = span.get_span_context()
    if not context.trace_flags.sampled:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
