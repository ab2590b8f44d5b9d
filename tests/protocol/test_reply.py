"""Outcomes become replies: status, headers, body (PROTOCOL §5, §8, §10, §12.7)."""

from dataclasses import replace

import orjson
import pytest

from shared.protocol import reply
from shared.protocol.append import Accepted, Append, Unchanged
from shared.protocol.caching import CachePolicy
from shared.protocol.chunk import Chunk
from shared.protocol.errors import (
    BadRequest,
    Gone,
    NotFound,
    ProtocolError,
    SequenceGap,
    StreamClosed,
    Unavailable,
)
from shared.protocol.expiry import NEVER, Expiry
from shared.protocol.producer import ProducerKey, ProducerState
from shared.protocol.request import Live, Read
from shared.protocol.stream import Ancestor, ForkPoint, StreamState

TAIL = "0000000000000005_0000000000000010"
OPEN = StreamState("a", 5, "text/plain; charset=UTF-8", NEVER, created_ms=0, tail=10)
CLOSED = replace(OPEN, closed=True)
CHUNK = Chunk(
    content_type="text/plain; charset=UTF-8",
    next=TAIL,
    body=b"hello",
    empty=False,
    at_tail=True,
    closed=False,
    etag='"x:y"',
    cache_control="public, max-age=1",
)
PART = replace(CHUNK, at_tail=False)
NOTHING = replace(CHUNK, body=b"", empty=True)
NO_MESSAGES = replace(NOTHING, content_type="application/json", body=b"[]")
NOW_MS = 1_728_432_000_000 + 1000 * 20_000  # interval 1000
POLICY = CachePolicy(tail="tail", live_empty="live-empty")


def answer(
    chunk: Chunk,
    offset: str = "-1",
    live: Live | None = None,
    cursor: str | None = None,
    if_none_match: str | None = None,
) -> reply.Reply:
    return reply.read(Read(offset, live, cursor, if_none_match), chunk, POLICY, NOW_MS)


# --- create -------------------------------------------------------------------------------------


def test_new_stream_is_created_with_its_location() -> None:
    made = reply.created(OPEN, fresh=True, location="http://h/v1/stream/a")
    assert made == reply.Reply(
        201,
        {
            "Content-Type": "text/plain; charset=UTF-8",
            "Stream-Next-Offset": TAIL,
            "ETag": f'"{TAIL}"',
            "Cache-Control": "no-store",
            "Location": "http://h/v1/stream/a",
        },
    )


def test_stream_that_was_there_is_ok_without_a_location() -> None:
    made = reply.created(OPEN, fresh=False, location="http://h/v1/stream/a")
    assert made.status == 200
    assert "Location" not in made.headers


@pytest.mark.parametrize("fresh", [True, False])
def test_closed_stream_says_so_when_created(fresh: bool) -> None:
    headers = reply.created(CLOSED, fresh=fresh, location="x").headers
    assert headers["Stream-Closed"] == "true"


def test_fork_does_not_tell_its_source() -> None:
    fork = replace(OPEN, lineage=(Ancestor(3, 10),), fork=ForkPoint("src", 3, 10, None, 0))
    for made in (reply.created(fork, fresh=True, location="x"), reply.head(fork)):
        assert not any("Fork" in name for name in made.headers)
        assert made.headers["Stream-Next-Offset"] == "0000000000000003_0000000000000010"


# --- append -------------------------------------------------------------------------------------

KEY = ProducerKey("p", 2, 4)
PLAIN = Append("text/plain", b"x")
BY_PRODUCER = replace(PLAIN, producer=KEY)
CLOSE = Append(None, b"", close=True)
STATE = ProducerState(2, 4)


@pytest.mark.parametrize(
    ("asked", "outcome", "status"),
    [
        pytest.param(PLAIN, Accepted(OPEN, b"x", None), 204, id="plain"),
        pytest.param(BY_PRODUCER, Accepted(OPEN, b"x", STATE), 200, id="producer-new"),
        pytest.param(BY_PRODUCER, Unchanged(OPEN, STATE), 204, id="producer-duplicate"),
        pytest.param(CLOSE, Accepted(CLOSED, b"", None), 204, id="close"),
        pytest.param(CLOSE, Unchanged(CLOSED, None), 204, id="close-again"),
        pytest.param(
            replace(CLOSE, producer=KEY), Accepted(CLOSED, b"", STATE), 204, id="producer-closes"
        ),
        pytest.param(
            replace(BY_PRODUCER, close=True),
            Accepted(CLOSED, b"x", STATE),
            200,
            id="producer-appends-and-closes",
        ),
        pytest.param(
            replace(BY_PRODUCER, close=True), Unchanged(CLOSED, STATE), 204, id="closer-again"
        ),
    ],
)
def test_append_is_answered(asked: Append, outcome: Accepted | Unchanged, status: int) -> None:
    made = reply.appended(asked, outcome)
    assert made.status == status
    assert made.body == b""
    expected = {"Stream-Next-Offset": TAIL, "ETag": f'"{TAIL}"', "Cache-Control": "no-store"}
    if outcome.state.closed:
        expected["Stream-Closed"] = "true"
        expected["ETag"] = f'"{TAIL}:c"'
    if asked.producer is not None:
        expected |= {"Producer-Epoch": "2", "Producer-Seq": "4"}
    assert made.headers == expected


def test_duplicate_tells_the_highest_sequence_number_not_the_sent_one() -> None:
    asked = replace(BY_PRODUCER, producer=ProducerKey("p", 2, 1))
    assert reply.appended(asked, Unchanged(OPEN, STATE)).headers["Producer-Seq"] == "4"


# --- delete, head -------------------------------------------------------------------------------


def test_delete_is_answered_without_content() -> None:
    assert reply.deleted() == reply.Reply(204, {"Cache-Control": "no-store"})


@pytest.mark.parametrize(
    ("state", "extra"),
    [
        pytest.param(OPEN, {}, id="open"),
        pytest.param(CLOSED, {"Stream-Closed": "true"}, id="closed"),
        pytest.param(replace(OPEN, expiry=Expiry(3600)), {"Stream-TTL": "3600"}, id="ttl"),
        pytest.param(replace(OPEN, expiry=Expiry(0)), {"Stream-TTL": "0"}, id="ttl-zero"),
        pytest.param(
            replace(OPEN, expiry=Expiry(None, "2030-01-01t00:00:00.50z", 1)),
            {"Stream-Expires-At": "2030-01-01t00:00:00.50z"},
            id="deadline-as-given",
        ),
    ],
)
def test_head_tells_all_but_the_data(state: StreamState, extra: dict[str, str]) -> None:
    assert reply.head(state) == reply.Reply(
        200,
        {
            "Content-Type": "text/plain; charset=UTF-8",
            "Stream-Next-Offset": TAIL,
            "ETag": f'"{TAIL}:c"' if state.closed else f'"{TAIL}"',
            "Cache-Control": "no-store",
            **extra,
        },
    )


# --- catch-up -----------------------------------------------------------------------------------


def test_catch_up_read() -> None:
    made = answer(PART)
    assert made.status == 200
    assert made.body == b"hello"
    assert made.headers == {
        "Content-Type": "text/plain; charset=UTF-8",
        "Stream-Next-Offset": TAIL,
        "Cache-Control": "public, max-age=1",
        "ETag": '"x:y"',
    }


def test_read_that_reaches_the_tail_says_so() -> None:
    assert answer(CHUNK).headers["Stream-Up-To-Date"] == "true"
    assert "Stream-Closed" not in answer(CHUNK).headers


def test_read_at_the_tail_is_ok_and_empty() -> None:
    made = answer(NOTHING, TAIL)
    assert (made.status, made.body) == (200, b"")
    assert made.headers["Stream-Next-Offset"] == TAIL
    assert made.headers["Stream-Up-To-Date"] == "true"


@pytest.mark.parametrize("chunk", [CHUNK, NOTHING, NO_MESSAGES], ids=["data", "none", "json"])
def test_read_that_reaches_the_end_of_a_closed_stream_says_so(chunk: Chunk) -> None:
    made = answer(replace(chunk, closed=True))
    assert made.status == 200
    assert made.headers["Stream-Closed"] == "true"
    assert made.headers["Stream-Up-To-Date"] == "true"


def test_read_of_an_expiring_stream_tells_the_edge_behind_it() -> None:
    made = answer(replace(CHUNK, ttl_s=60))
    assert made.headers["Stream-TTL"] == "60"
    made = answer(replace(CHUNK, expires_at="2030-01-01T00:00:00Z"))
    assert made.headers["Stream-Expires-At"] == "2030-01-01T00:00:00Z"


@pytest.mark.parametrize("live", [None, Live.LONG_POLL])
@pytest.mark.parametrize("asked", ['"x:y"', 'W/"x:y"', '"a", "x:y"', "*"])
def test_read_that_the_client_has_is_not_sent_again(live: Live | None, asked: str) -> None:
    made = answer(CHUNK, live=live, if_none_match=asked)
    assert (made.status, made.body) == (304, b"")
    assert made.headers["ETag"] == '"x:y"'
    assert "Content-Type" not in made.headers
    assert made.headers["Stream-Next-Offset"] == TAIL
    assert made.headers["Cache-Control"]


@pytest.mark.parametrize("asked", [None, "", '"other"', '"x:y:c"', "x:y"])
def test_read_that_the_client_does_not_have_is_sent(asked: str | None) -> None:
    made = answer(CHUNK, if_none_match=asked)
    assert (made.status, made.body) == (200, b"hello")


def test_close_is_not_hidden_behind_the_etag_of_before() -> None:
    closed = replace(CHUNK, closed=True, etag='"x:y:c"')
    assert answer(closed, if_none_match='"x:y"').status == 200


def test_foreign_chunk_without_etag_is_never_unmodified() -> None:
    made = answer(replace(CHUNK, etag=None), if_none_match="*")
    assert made.status == 200
    assert "ETag" not in made.headers


# --- offset=now ---------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [NOTHING, NO_MESSAGES], ids=["text", "json"])
@pytest.mark.parametrize("closed", [False, True], ids=["open", "closed"])
def test_now_is_empty_and_not_kept(chunk: Chunk, closed: bool) -> None:
    made = answer(replace(chunk, closed=closed), "now", if_none_match='"x:y"')
    assert made.status == 200
    assert made.body == (b"[]" if chunk is NO_MESSAGES else b"")
    assert made.headers["Content-Type"] == chunk.content_type
    assert made.headers["Stream-Next-Offset"] == TAIL
    assert made.headers["Stream-Up-To-Date"] == "true"
    assert made.headers["Cache-Control"] == "no-store"
    assert made.headers.get("Stream-Closed") == ("true" if closed else None)
    assert "ETag" not in made.headers


# --- long-poll ----------------------------------------------------------------------------------


def test_long_poll_with_data() -> None:
    made = answer(CHUNK, TAIL, Live.LONG_POLL, cursor="1000")
    assert (made.status, made.body) == (200, b"hello")
    assert made.headers["Stream-Cursor"] == "1001"
    assert made.headers["Stream-Up-To-Date"] == "true"
    assert made.headers["Cache-Control"] == "public, max-age=5"
    assert made.headers["ETag"] == '"x:y"'


@pytest.mark.parametrize(
    ("offset", "chunk"),
    [
        pytest.param("-1", CHUNK, id="beginning"),
        pytest.param("0000000000000000_0000000000000000", CHUNK, id="zero-token"),
        pytest.param(TAIL, replace(CHUNK, ttl_s=1), id="sliding-window"),
        pytest.param(TAIL, replace(CHUNK, expires_at="2099-01-01T00:00:00Z"), id="deadline"),
    ],
)
def test_long_poll_with_data_that_may_soon_be_wrong_is_kept_as_the_tail_is(
    offset: str, chunk: Chunk
) -> None:
    made = answer(chunk, offset, Live.LONG_POLL)
    assert (made.status, made.body) == (200, b"hello")
    assert made.headers["Cache-Control"] == "tail"


def test_long_poll_in_vain() -> None:
    made = answer(NOTHING, TAIL, Live.LONG_POLL)
    assert made == reply.Reply(
        204,
        {
            "Stream-Next-Offset": TAIL,
            "Stream-Up-To-Date": "true",
            "Stream-Cursor": "1000",
            "Cache-Control": "live-empty",
        },
    )


def test_long_poll_of_a_json_stream_in_vain_has_no_body() -> None:
    made = answer(NO_MESSAGES, TAIL, Live.LONG_POLL)
    assert (made.status, made.body) == (204, b"")


@pytest.mark.parametrize(
    ("offset", "control"), [(TAIL, "live-empty"), ("-1", "live-empty"), ("now", "no-store")]
)
@pytest.mark.parametrize("chunk", [NOTHING, NO_MESSAGES], ids=["text", "json"])
def test_long_poll_at_the_end_of_a_closed_stream(offset: str, control: str, chunk: Chunk) -> None:
    made = answer(replace(chunk, closed=True), offset, Live.LONG_POLL, cursor="5")
    assert made == reply.Reply(
        204,
        {
            "Stream-Next-Offset": TAIL,
            "Stream-Up-To-Date": "true",
            "Stream-Closed": "true",
            "Cache-Control": control,
        },
    )


def test_long_poll_from_now_in_vain_is_not_kept() -> None:
    made = answer(NOTHING, "now", Live.LONG_POLL)
    assert made.status == 204
    assert made.headers["Cache-Control"] == "no-store"
    assert made.headers["Stream-Cursor"] == "1000"


def test_long_poll_from_now_with_data_is_not_kept() -> None:
    made = answer(CHUNK, "now", Live.LONG_POLL)
    assert (made.status, made.body) == (200, b"hello")
    assert made.headers["Cache-Control"] == "no-store"
    assert made.headers["Stream-Cursor"] == "1000"
    assert "ETag" not in made.headers


@pytest.mark.parametrize(
    ("offset", "error", "control"),
    [
        pytest.param(TAIL, NotFound("a"), "live-empty", id="deleted"),
        pytest.param(TAIL, Gone("a"), "live-empty", id="gone"),
        pytest.param("-1", NotFound("a"), "no-store", id="beginning"),
        pytest.param("now", NotFound("a"), "no-store", id="now"),
        pytest.param(TAIL, BadRequest("a"), "no-store", id="refused"),
    ],
)
def test_stream_that_went_away_while_a_reader_waited(
    offset: str, error: ProtocolError, control: str
) -> None:
    made = reply.lost(Read(offset, Live.LONG_POLL), error, POLICY)
    assert made.status == error.status
    assert made.headers["Cache-Control"] == control
    plain = reply.refused(error)
    assert made == replace(plain, headers=plain.headers | {"Cache-Control": control})


# --- event streams ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content_type", "encoding"),
    [
        ("text/plain", None),
        ("TEXT/html; charset=utf-8", None),
        ("application/json", None),
        ("application/octet-stream", "base64"),
        ("image/png", "base64"),
        ("application/x-protobuf", "base64"),
        ("application/ndjson", "base64"),
    ],
)
def test_event_stream_tells_whether_data_are_encoded(
    content_type: str, encoding: str | None
) -> None:
    made = reply.event_stream(replace(CHUNK, content_type=content_type), POLICY)
    assert made.status == 200
    assert made.headers["Content-Type"] == "text/event-stream"
    assert made.headers["Cache-Control"] == "no-cache"
    assert made.headers.get("Stream-SSE-Data-Encoding") == encoding
    assert "Content-Length" not in made.headers
    assert "ETag" not in made.headers


def test_event_stream_from_now_of_a_closed_stream_says_so_in_its_headers() -> None:
    # PROTOCOL §8: regardless of `live`, these three stand on the response.
    made = reply.event_stream(replace(NOTHING, closed=True), POLICY)
    assert made.headers["Stream-Closed"] == "true"
    assert made.headers["Stream-Up-To-Date"] == "true"
    assert made.headers["Stream-Next-Offset"] == TAIL


# --- refusals, and what all replies share -------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "extra"),
    [
        (NotFound("a"), 404, {}),
        (
            StreamClosed(TAIL),
            409,
            {"Stream-Closed": "true", "Stream-Next-Offset": TAIL},
        ),
        (SequenceGap(1, 2), 409, {"Producer-Expected-Seq": "1", "Producer-Received-Seq": "2"}),
        (Unavailable("busy", 3), 503, {"Retry-After": "3"}),
    ],
    ids=["not-found", "closed", "gap", "unavailable"],
)
def test_refusal_is_json_that_no_cache_keeps(
    error: NotFound | Unavailable, status: int, extra: dict[str, str]
) -> None:
    made = reply.refused(error)
    assert made.status == status
    assert made.headers == {
        "Content-Type": "application/json",
        "Cache-Control": "no-store",
        **extra,
    }
    assert orjson.loads(made.body) == {"error": {"code": error.code, "message": str(error)}}


def test_every_reply_is_safe_and_readable_for_browsers() -> None:
    assert reply.COMMON_HEADERS["X-Content-Type-Options"] == "nosniff"
    assert reply.COMMON_HEADERS["Cross-Origin-Resource-Policy"] == "cross-origin"
    assert reply.COMMON_HEADERS["Access-Control-Allow-Origin"] == "*"


def listed(text: str) -> set[str]:
    return {name.strip().lower() for name in text.split(",")}


def test_browsers_may_read_every_header_that_a_reply_has() -> None:
    exposed = listed(reply.COMMON_HEADERS["Access-Control-Expose-Headers"])
    state = replace(CLOSED, expiry=Expiry(1))
    replies = [
        reply.created(CLOSED, fresh=True, location="x"),
        reply.appended(BY_PRODUCER, Accepted(CLOSED, b"x", STATE)),
        reply.head(state),
        answer(replace(CHUNK, ttl_s=1, expires_at="x"), live=Live.LONG_POLL),
        reply.event_stream(replace(CHUNK, content_type="image/png"), POLICY),
        reply.refused(SequenceGap(1, 2)),
        reply.refused(Unavailable("busy")),
    ]
    # Cache-Control is readable anyway; the last is for nginx.
    sent = {name.lower() for made in replies for name in made.headers}
    assert sent - exposed == {"cache-control", "x-accel-buffering"}


def test_browsers_may_send_every_header_that_a_request_has() -> None:
    allowed = listed(reply.PREFLIGHT_HEADERS["Access-Control-Allow-Headers"])
    assert {
        "content-type",
        "authorization",
        "if-none-match",
        "stream-ttl",
        "stream-expires-at",
        "stream-seq",
        "stream-closed",
        "stream-forked-from",
        "stream-fork-offset",
        "stream-fork-sub-offset",
        "producer-id",
        "producer-epoch",
        "producer-seq",
    } <= allowed
    methods = listed(reply.PREFLIGHT_HEADERS["Access-Control-Allow-Methods"])
    assert {"get", "head", "post", "put", "delete", "options"} <= methods
