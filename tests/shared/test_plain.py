"""Which requests the lane answers by itself, and what it finds in them."""

from __future__ import annotations

import pytest

from shared.plain import (
    HEAD_BYTES_MAX,
    Passable,
    Plain,
    PlainAppend,
    Refusal,
    is_partial,
    parse_head,
    parse_passable,
    parse_plain,
)
from shared.protocol.append import Append
from shared.protocol.producer import ProducerKey
from shared.protocol.request import Live, Read

PREFIX = "/v1/stream/"


def head(target: str = "/v1/stream/a?offset=-1", *fields: str, host: str = "Host: x") -> bytes:
    lines = [f"GET {target} HTTP/1.1", host, *fields]
    return "".join(f"{line}\r\n" for line in lines if line).encode("latin-1") + b"\r\n"


@pytest.mark.parametrize(
    ("received", "expected"),
    [
        pytest.param(head(), Plain("a", Read("-1"), True), id="catch-up"),
        pytest.param(head("/v1/stream/a"), Plain("a", Read("-1"), True), id="no-query"),
        pytest.param(head("/v1/stream/a%20b/c"), Plain("a b/c", Read("-1"), True), id="escapes"),
        pytest.param(
            head("/v1/stream/a?offset=1_2&live=long-poll&cursor=7&mine=x"),
            Plain("a", Read("1_2", Live.LONG_POLL, "7"), True),
            id="long-poll",
        ),
        pytest.param(
            head("/v1/stream/a?live=sse&offset=now", "Accept: text/event-stream"),
            Plain("a", Read("now", Live.SSE), True),
            id="event-stream",
        ),
        pytest.param(
            head("/v1/stream/a", 'if-none-match: "x"', 'If-None-Match: "y"'),
            Plain("a", Read("-1", if_none_match='"x", "y"'), True),
            id="tags",
        ),
        pytest.param(
            head("/v1/stream/a", "Connection: Close"), Plain("a", Read("-1"), False), id="close"
        ),
        pytest.param(
            head("/v1/stream/a", "Connection: keep-alive", "Cookie: a=b", "Range: bytes=0-1"),
            Plain("a", Read("-1"), True),
            id="headers-that-change-nothing",
        ),
    ],
)
def test_plain_read_is_understood(received: bytes, expected: Plain) -> None:
    assert parse_plain(received, PREFIX) == expected


@pytest.mark.parametrize(
    ("target", "code"),
    [
        ("/v1/stream/a?offset=0,1", "invalid_offset"),
        ("/v1/stream/a?offset=-1&offset=-1", "bad_request"),
        ("/v1/stream/a?live=sse", "bad_request"),
        ("/v1/stream/a//b", "bad_request"),
        ("/v1/stream/%zz", "bad_request"),
        ("/v1/stream/__ds/x", "not_found"),
        ("/v1/stream/", "not_found"),
    ],
)
def test_plain_read_that_the_protocol_refuses_is_refused_here(target: str, code: str) -> None:
    refusal = parse_plain(head(target), PREFIX)

    assert isinstance(refusal, Refusal)
    assert refusal.error.code == code
    assert refusal.error.__traceback__ is None  # what is kept holds no frames


@pytest.mark.parametrize(
    "received",
    [
        pytest.param(head().replace(b"GET", b"HEAD"), id="another-method"),
        pytest.param(head().replace(b"GET", b"get"), id="method-in-small-letters"),
        pytest.param(head().replace(b"1.1", b"1.0"), id="older-version"),
        pytest.param(head() + head(), id="two-requests"),
        pytest.param(head() + b"x", id="more-bytes"),
        pytest.param(head()[:-2], id="no-end"),
        pytest.param(b"\r\n" + head(), id="empty-line-first"),
        pytest.param(head().replace(b"\r\n", b"\n"), id="bare-newlines"),
        pytest.param(head("/v1/stream/a", "X: a\nY: b"), id="one-bare-newline"),
        pytest.param(head("/v1/stream/a", "X: a", " b"), id="folded-header"),
        pytest.param(head("/v1/stream/a", "X : a"), id="space-before-colon"),
        pytest.param(head("/v1/stream/a", "X: a\x01"), id="control-character"),
        pytest.param(head("/v1/stream/a", "Content-Length: 0"), id="length"),
        pytest.param(head("/v1/stream/a", "Transfer-Encoding: chunked"), id="chunked"),
        pytest.param(head("/v1/stream/a", "Upgrade: h2c", "Connection: upgrade"), id="upgrade"),
        pytest.param(head("/v1/stream/a", "Expect: 100-continue"), id="expectation"),
        pytest.param(head("/v1/stream/a", "Connection: te, close"), id="connection-list"),
        pytest.param(
            head("/v1/stream/a", "Connection: close", "Connection: close"), id="connection-twice"
        ),
        pytest.param(head(host=""), id="no-host"),
        pytest.param(head("/v1/stream/a", "Host: y"), id="two-hosts"),
        pytest.param(head("/v1/stream/a", "User-Agent: a", "user-agent: a"), id="any-field-twice"),
        pytest.param(head("/v1/stream/a", "If-None-Match: \xff"), id="tag-not-ascii"),
        pytest.param(head("http://x/v1/stream/a"), id="absolute-target"),
        pytest.param(head("/v1/stream/a#b"), id="fragment"),
        pytest.param(head("/v1/stream/\xc3\xa4"), id="target-not-ascii"),
        pytest.param(head("/health"), id="elsewhere"),
        pytest.param(head("/v1/stream/a", *(f"X{n}: y" for n in range(120))), id="many-headers"),
        pytest.param(head("/v1/stream/a", "X: " + "y" * HEAD_BYTES_MAX), id="long"),
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", id="tls"),
    ],
)
def test_anything_else_is_left_to_others(received: bytes) -> None:
    assert parse_plain(received, PREFIX) is None


def test_head_is_partial_until_its_empty_line_is_there() -> None:
    whole = head()

    assert all(is_partial(whole[:end]) for end in range(len(whole)))
    assert all(is_partial((b"\r\n" + whole)[:end]) for end in range(len(whole)))
    assert not is_partial(whole)
    assert not is_partial(whole + b"x")
    assert not is_partial(head("/v1/stream/a", "X: " + "y" * HEAD_BYTES_MAX)[:-2])


@pytest.mark.parametrize(
    "received",
    [
        b"get ",
        b"G@T",
        b"GET\r\n/",
        b"\n",
        b"GET /\n",
        b"GET /\x00",
        b"\x16\x03\x01",
        b"PUT / H\x7f",
    ],
)
def test_what_can_never_become_a_request_is_not_partial(received: bytes) -> None:
    assert not is_partial(received)


# --- appends -------------------------------------------------------------------------------------


def append_head(size: int | str = 5, *fields: str, target: str = "/v1/stream/a") -> bytes:
    lines = [f"POST {target} HTTP/1.1", "Host: x", f"Content-Length: {size}", *fields]
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n"


PRODUCER = ("Producer-Id: p", "Producer-Epoch: 1", "Producer-Seq: 7")


@pytest.mark.parametrize(
    ("received", "expected"),
    [
        pytest.param(
            append_head(5, "Content-Type: text/plain"),
            PlainAppend("a", Append("text/plain", b""), 5, True),
            id="plain",
        ),
        pytest.param(
            append_head(0, "Content-Type: nonsense", "Stream-Closed: true"),
            PlainAppend("a", Append(None, b"", close=True), 0, True),
            id="close-only",
        ),
        pytest.param(
            append_head(5, "content-type: a/b", "stream-seq: 9", *PRODUCER, "Connection: close"),
            PlainAppend(
                "a", Append("a/b", b"", False, ProducerKey("p", 1, 7), stream_seq="9"), 5, False
            ),
            id="producer",
        ),
        pytest.param(
            append_head(5, "Content-Type: \t a/b \t", "Stream-Closed: true ", "Stream-Seq:  1 2\t"),
            PlainAppend("a", Append("a/b", b"", close=True, stream_seq="1 2"), 5, True),
            id="space-around-values",
        ),
        pytest.param(
            append_head(5, "Content-Type: a/b", target="/v1/stream/a?mine=x"),
            PlainAppend("a", Append("a/b", b""), 5, True),
            id="query-that-says-nothing",
        ),
    ],
)
def test_plain_append_is_understood(received: bytes, expected: PlainAppend) -> None:
    assert parse_head(received, PREFIX) == expected


@pytest.mark.parametrize(
    "received",
    [
        pytest.param(append_head("5, 5"), id="two-lengths-in-one"),
        pytest.param(append_head(5, "Content-Length: 5"), id="two-lengths"),
        pytest.param(append_head("+5"), id="signed"),
        pytest.param(append_head("5_0"), id="underscore"),
        pytest.param(append_head(5, "Transfer-Encoding: chunked"), id="chunked-too"),
        pytest.param(append_head(5, "Expect: 100-continue"), id="expects"),
        pytest.param(append_head(5, "Content-Encoding: gzip"), id="encoded"),
        pytest.param(b"POST /v1/stream/a HTTP/1.1\r\nHost: x\r\n\r\n", id="no-length"),
        pytest.param(append_head(5, "Host: y"), id="two-hosts"),
        pytest.param(append_head(5, *2 * ["Stream-Closed: true"]), id="any-field-twice"),
        pytest.param(append_head(5).replace(b"HTTP/1.1", b"HTTP/1.0"), id="http-1.0"),
        pytest.param(append_head(5).replace(b"POST", b"PUT"), id="put"),
        pytest.param(append_head(5, "Stream-Seq: ä"), id="other-alphabets"),
        pytest.param(append_head(5).replace(b"POST", b"GET"), id="body-on-get"),
        pytest.param(append_head(5, target="/elsewhere"), id="elsewhere"),
    ],
)
def test_append_that_is_not_plain_is_left_to_others(received: bytes) -> None:
    assert parse_head(received, PREFIX) is None


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        (("Producer-Id: p",), "bad_request"),
        (("Stream-Seq: ",), "bad_request"),
        (("Content-Type: nonsense",), "bad_request"),
    ],
)
def test_append_that_the_protocol_refuses_is_refused_with_its_body(
    fields: tuple[str, ...], code: str
) -> None:
    found = parse_head(append_head(5, *fields), PREFIX)
    assert isinstance(found, Refusal)
    assert (found.error.code, found.size, found.keep_alive) == (code, 5, True)


def test_heads_that_count_on_do_not_push_others_out() -> None:
    kept = append_head(5, "Content-Type: text/plain", target="/v1/stream/kept")
    first = parse_head(kept, PREFIX)
    for seq in range(2000):
        parse_head(
            append_head(5, "Producer-Id: p", "Producer-Epoch: 0", f"Producer-Seq: {seq}"), PREFIX
        )
    assert parse_head(kept, PREFIX) is first


# --- passed on -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param((), "x-forwarded-proto: http\r\n", id="scheme-added"),
        pytest.param(
            ("X-Forwarded-Proto: HTTPS",), "x-forwarded-proto: https\r\n", id="scheme-kept"
        ),
        pytest.param(
            ("x-forwarded-proto: gopher",), "x-forwarded-proto: http\r\n", id="scheme-nonsense"
        ),
        pytest.param(
            ("X-Mine:  a b \t",), "x-mine: a b\r\nx-forwarded-proto: http\r\n", id="space"
        ),
        pytest.param(
            ("Connection: keep-alive",), "x-forwarded-proto: http\r\n", id="connection-header"
        ),
    ],
)
def test_append_is_passed_on_as_it_was_understood(fields: tuple[str, ...], expected: str) -> None:
    found = parse_passable(append_head(5, *fields), PREFIX)
    line = b"POST /v1/stream/a HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n"
    assert found == Passable(line + expected.encode() + b"\r\n", 5, True)
    # Whoever gets it understands the same.
    again = parse_passable(found.head, PREFIX)
    assert again == found


def test_append_that_wants_the_connection_closed_does_not_say_so_to_others() -> None:
    found = parse_passable(append_head(5, "Connection: close"), PREFIX)
    assert found is not None
    assert not found.keep_alive
    assert b"onnection" not in found.head


@pytest.mark.parametrize(
    "received",
    [
        pytest.param(append_head(5, "X: \xe4"), id="other-alphabets"),
        pytest.param(append_head(5, "X: a\r\n b"), id="folded"),
        pytest.param(append_head(5, "X: a\nY: b"), id="bare-newline"),
        pytest.param(append_head(5, "X : a"), id="space-before-colon"),
        pytest.param(append_head(5, "Content-Length: 5"), id="two-lengths"),
        pytest.param(append_head(5, "Transfer-Encoding: chunked"), id="chunked-too"),
        pytest.param(append_head(5, "Connection: content-type"), id="names-a-header"),
        pytest.param(head(), id="read"),
        pytest.param(
            append_head(5, "X: " + "y" * (HEAD_BYTES_MAX - len(append_head()) - 5)), id="no-room"
        ),
        pytest.param(append_head(5, *(f"X{n}: y" for n in range(98))), id="too-many-headers"),
    ],
)
def test_what_the_next_server_might_not_take_is_not_passed_on(received: bytes) -> None:
    assert len(received) <= HEAD_BYTES_MAX
    assert parse_passable(received, PREFIX) is None
