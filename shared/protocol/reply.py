"""Outcomes in; status, headers and body out."""

from dataclasses import dataclass

import orjson

from shared.protocol import caching, names
from shared.protocol.append import Accepted, Append, Unchanged
from shared.protocol.caching import CachePolicy, Kind
from shared.protocol.chunk import Chunk
from shared.protocol.cursor import next_cursor
from shared.protocol.errors import ProtocolError, RequestTimeout, Unavailable
from shared.protocol.expiry import NEVER
from shared.protocol.media import is_text
from shared.protocol.offset import SENTINELS
from shared.protocol.precondition import tail_tag
from shared.protocol.request import Live, Read
from shared.protocol.stream import StreamState
from shared.protocol.surrogate import surrogate_headers

# On every reply, errors and preflights too (PROTOCOL §12.7).
COMMON_HEADERS = {
    "Server": "headwater",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "cross-origin",
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Expose-Headers": ", ".join(
        (
            names.STREAM_NEXT_OFFSET,
            names.STREAM_CURSOR,
            names.STREAM_UP_TO_DATE,
            names.STREAM_CLOSED,
            names.STREAM_TTL,
            names.STREAM_EXPIRES_AT,
            names.STREAM_RETENTION_AGE,
            names.STREAM_RETENTION_BYTES,
            names.STREAM_EARLIEST_OFFSET,
            names.SSE_DATA_ENCODING,
            names.PRODUCER_EPOCH,
            names.PRODUCER_SEQ,
            names.PRODUCER_EXPECTED_SEQ,
            names.PRODUCER_RECEIVED_SEQ,
            "ETag",
            "Content-Type",
            "Content-Encoding",
            "Location",
            "Retry-After",
            "Vary",
        )
    ),
}

PREFLIGHT_HEADERS = {
    "Access-Control-Allow-Methods": "GET, POST, PUT, DELETE, HEAD, OPTIONS",
    "Access-Control-Allow-Headers": ", ".join(
        (
            "Content-Type",
            "Authorization",
            "If-None-Match",
            "If-Match",
            "Last-Event-ID",
            names.STREAM_SEQ,
            names.STREAM_TTL,
            names.STREAM_EXPIRES_AT,
            names.STREAM_RETENTION_AGE,
            names.STREAM_RETENTION_BYTES,
            names.STREAM_CLOSED,
            names.STREAM_FORKED_FROM,
            names.STREAM_FORK_OFFSET,
            names.STREAM_FORK_SUB_OFFSET,
            names.PRODUCER_ID,
            names.PRODUCER_EPOCH,
            names.PRODUCER_SEQ,
        )
    ),
    "Access-Control-Max-Age": "86400",
}


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole reply, but for the headers that all share."""

    status: int
    headers: dict[str, str]
    body: bytes = b""


def created(state: StreamState, *, fresh: bool, location: str) -> Reply:
    """Answer a PUT: 201 for a new stream, 200 for one that was there as described (PROTOCOL
    §5.1)."""
    headers = {
        "Content-Type": state.content_type,
        names.STREAM_NEXT_OFFSET: state.tail_offset().token(),
        "ETag": tail_tag(state),
        "Cache-Control": caching.NO_STORE,
    }
    if state.closed:
        headers[names.STREAM_CLOSED] = "true"
    headers |= _retention(state)
    if fresh:
        headers["Location"] = location
    return Reply(201 if fresh else 200, headers)


def appended(asked: Append, outcome: Accepted | Unchanged) -> Reply:
    """Answer a POST: 200 for a producer's new data, 204 for everything else (PROTOCOL §5.2)."""
    state = outcome.state
    headers = {
        names.STREAM_NEXT_OFFSET: state.tail_offset().token(),
        "ETag": tail_tag(state),
        "Cache-Control": caching.NO_STORE,
    }
    if state.closed:
        headers[names.STREAM_CLOSED] = "true"
    if asked.producer is not None and outcome.producer is not None:
        headers[names.PRODUCER_EPOCH] = str(outcome.producer.epoch)
        headers[names.PRODUCER_SEQ] = str(outcome.producer.last_seq)
    new_data = asked.producer is not None and isinstance(outcome, Accepted) and outcome.stored
    return Reply(200 if new_data else 204, headers)


def deleted() -> Reply:
    """Answer a DELETE (PROTOCOL §5.4)."""
    return Reply(204, {"Cache-Control": caching.NO_STORE})


def head(state: StreamState) -> Reply:
    """Answer a HEAD (PROTOCOL §5.5)."""
    headers = {
        "Content-Type": state.content_type,
        names.STREAM_NEXT_OFFSET: state.tail_offset().token(),
        "ETag": tail_tag(state),
        "Cache-Control": caching.NO_STORE,
    }
    if state.expiry.ttl_s is not None:
        headers[names.STREAM_TTL] = str(state.expiry.ttl_s)
    if state.expiry.expires_at is not None:
        headers[names.STREAM_EXPIRES_AT] = state.expiry.expires_at
    headers |= _retention(state)
    if state.low:
        headers[names.STREAM_EARLIEST_OFFSET] = state.offset_at(state.low).token()
    if state.closed:
        headers[names.STREAM_CLOSED] = "true"
    return Reply(200, headers)


def read(path: str, asked: Read, chunk: Chunk, policy: CachePolicy, now_ms: int) -> Reply:
    """Answer a GET that is no event stream, from the chunk that was found or waited for.

    A long-poll whose chunk is empty has waited in vain, or its stream is closed: 204 (PROTOCOL
    §5.7).
    """
    waiting = asked.live is Live.LONG_POLL
    from_now = asked.offset == names.NOW
    headers = _read_headers(chunk)
    headers |= _purge_names(path, policy)
    if waiting and not chunk.closed:
        headers[names.STREAM_CURSOR] = next_cursor(now_ms, asked.cursor)
    if waiting and chunk.empty:
        # A close is for ever, and news to all who wait: a cache tells them by one answer.
        kind = Kind.FROM_NOW if from_now else Kind.LIVE_EMPTY
        headers["Cache-Control"] = policy.control(kind, NEVER, now_ms)
        del headers["Content-Type"]
        return Reply(204, headers)
    if from_now:
        headers["Cache-Control"] = caching.NO_STORE
        return Reply(200, headers, chunk.body)
    headers["Cache-Control"] = (
        policy.control(_live_kind(asked, chunk), NEVER, now_ms) if waiting else chunk.cache_control
    )
    if chunk.etag is not None:
        headers["ETag"] = chunk.etag
        if caching.matches(asked.if_none_match, chunk.etag):
            del headers["Content-Type"]
            return Reply(304, headers)
    return Reply(200, headers, chunk.body)


def alive() -> Reply:
    """Answer /health, which tools probe."""
    return Reply(200, {"Content-Type": "text/plain", "Cache-Control": caching.NO_STORE}, b"ok\n")


def event_stream(path: str, chunk: Chunk, policy: CachePolicy) -> Reply:
    """Answer a GET with live=sse: the head of the reply; events follow (PROTOCOL §5.8)."""
    headers = {
        "Content-Type": "text/event-stream",
        "Cache-Control": policy.control(Kind.SSE, NEVER, 0),
        "X-Accel-Buffering": "no",  # nginx would hold events back
    }
    headers |= _purge_names(path, policy)
    if not is_text(chunk.content_type):
        headers[names.SSE_DATA_ENCODING] = "base64"
    if (
        chunk.closed and chunk.empty
    ):  # §8: who asks from the end of a closed stream learns it at once
        headers[names.STREAM_NEXT_OFFSET] = chunk.next
        headers[names.STREAM_UP_TO_DATE] = headers[names.STREAM_CLOSED] = "true"
    return Reply(200, headers)


def refused(error: ProtocolError | Unavailable) -> Reply:
    """Answer with a refusal; no cache keeps one."""
    return Reply(
        error.status,
        {
            "Content-Type": "application/json",
            "Cache-Control": caching.NO_STORE,
            **error.headers(),
        },
        orjson.dumps({"error": {"code": error.code, "message": str(error)}}),
    )


def head_late(timeout_s: float) -> Reply:
    """Answer who began a request and did not end its head in time."""
    return refused(RequestTimeout(f"no whole request within {timeout_s:g} s"))


def lost(path: str, asked: Read, error: ProtocolError, policy: CachePolicy) -> Reply:
    """Answer a long-poll whose stream went away while it waited.

    An offset of a life that is over is refused for ever, so a cache may tell all who waited there
    by one answer. A name for the beginning means the next stream as soon as there is one.
    """
    made = refused(error)
    if error.status in (404, 410) and asked.offset not in SENTINELS:
        made.headers["Cache-Control"] = policy.control(Kind.LIVE_EMPTY, NEVER, 0)
        made.headers.update(_purge_names(path, policy))
    return made


def _purge_names(path: str, policy: CachePolicy) -> dict[str, str]:
    return surrogate_headers(path) if policy.surrogate_keys else {}


def _read_headers(chunk: Chunk) -> dict[str, str]:
    headers = {
        "Content-Type": chunk.content_type,
        names.STREAM_NEXT_OFFSET: chunk.next,
    }
    if chunk.at_tail:
        headers[names.STREAM_UP_TO_DATE] = "true"
    if chunk.closed:
        headers[names.STREAM_CLOSED] = "true"
    if chunk.ttl_s is not None:
        headers[names.STREAM_TTL] = str(chunk.ttl_s)
    if chunk.expires_at is not None:
        headers[names.STREAM_EXPIRES_AT] = chunk.expires_at
    return headers


def _live_kind(asked: Read, chunk: Chunk) -> Kind:
    """Tell what a long-poll with data is to a cache: the path may be another stream's soon, or
    nobody's, and the beginning is named alike in each life."""
    expires = chunk.ttl_s is not None or chunk.expires_at is not None
    return Kind.TAIL if asked.offset in SENTINELS or expires else Kind.LIVE_DATA


def _retention(state: StreamState) -> dict[str, str]:
    headers = {}
    if state.retention.age_s is not None:
        headers[names.STREAM_RETENTION_AGE] = str(state.retention.age_s)
    if state.retention.bytes is not None:
        headers[names.STREAM_RETENTION_BYTES] = str(state.retention.bytes)
    return headers
