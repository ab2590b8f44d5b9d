"""The parsing of replies, whole and in pieces."""

import pytest

from loadtests.client import BadReply, Target, parse_head, parse_reply, unchunk

WITH_LENGTH = b"HTTP/1.1 200 OK\r\ncontent-LENGTH: 5\r\nStream-Next-Offset:  0_5\r\n\r\nhello"
CHUNKS = b"5\r\nhello\r\n6;x=y\r\n, you!\r\n0\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS
NO_CONTENT = b"HTTP/1.1 204 No Content\r\nStream-Next-Offset: 0_5\r\n\r\n"


@pytest.mark.parametrize(
    ("reply", "status", "body"),
    [
        pytest.param(WITH_LENGTH, 200, b"hello", id="with-length"),
        pytest.param(CHUNKED, 200, b"hello, you!", id="chunked"),
        pytest.param(NO_CONTENT, 204, b"", id="no-content"),
    ],
)
def test_reply_is_parsed_once_its_last_byte_is_there(
    reply: bytes, status: int, body: bytes
) -> None:
    for size in range(len(reply)):
        assert parse_reply(reply[:size]) is None
    whole = parse_reply(reply + b"HTTP/1.1 200 the next one")
    assert whole is not None
    assert (whole.head.status, whole.body, whole.size) == (status, body, len(reply))


def test_fields_are_found_whatever_their_case_and_nothing_else_is() -> None:
    head = parse_head(
        b"HTTP/1.1 200 OK\r\nX-Length: 1\r\nStream-Cursor: Stream-Next-Offset: 3\r\n\r\n"
    )
    assert head is not None
    assert head.field("stream-cursor") == "Stream-Next-Offset: 3"
    assert head.field("Stream-Next-Offset") is None
    assert head.field("Length") is None


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"HTTP/1.0 200 OK\r\n\r\n", id="another-version"),
        pytest.param(b"event: data\r\n\r\n", id="no-status-line"),
        pytest.param(b"HTTP/1.1 20 OK\r\n\r\n", id="two-digits"),
        pytest.param(b"HTTP/1.1 200 OK\r\n" + b"x" * 70_000, id="endless-head"),
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\nuntil it closes", id="no-length"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfive\r\n", id="size-is-no-number"
        ),
    ],
)
def test_what_is_no_reply_is_refused(data: bytes) -> None:
    with pytest.raises(BadReply):
        parse_reply(data)


def test_unchunk_stops_before_the_first_partial_chunk() -> None:
    assert unchunk(b"2\r\nab\r\n3\r\ncd") == (b"ab", 7, False)


def test_request_is_complete() -> None:
    request = Target.of("http://127.0.0.1:80/ignored").request("POST", "/a", "X: y", body=b"hi")
    assert request == (
        b"POST /a HTTP/1.1\r\nHost: 127.0.0.1:80\r\nX: y\r\nContent-Length: 2\r\n\r\nhi"
    )


@pytest.mark.parametrize("url", ["https://127.0.0.1:1", "127.0.0.1:1", "http://"])
def test_target_is_plain_http(url: str) -> None:
    with pytest.raises(ValueError):
        Target.of(url)
