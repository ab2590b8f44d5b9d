"""What live readers make of the bytes they receive."""

import pytest

from loadtests.client import BadReply, Target
from loadtests.dialect import (
    STAMPED_BYTES_MIN,
    Dialect,
    LongPoll,
    Place,
    ServerSentEvents,
    Step,
    stamped_message,
    stamps_in,
    wave_message,
    waves_in,
)

TARGET = Target("127.0.0.1", 4437)
PATH = "/v1/stream/a"
POLLED = b"\r\n".join(
    [
        b"HTTP/1.1 200 OK",
        b"Stream-Next-Offset: 0_200",
        b"Stream-Cursor: 77",
        b"Content-Length: 40",
        b"",
        wave_message(1, 20) + wave_message(2, 20),
    ]
)
EMPTY = b"HTTP/1.1 204 No Content\r\nStream-Next-Offset: 0_0\r\nStream-Cursor: 78\r\n\r\n"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CONTROL = (
    b'event: control\ndata: {"streamNextOffset":"0_200","streamCursor":"77","upToDate":true}\n\n'
)
DATA = b"event: data\ndata:" + wave_message(3, 20) + b"\n\n"


def chunk(payload: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(payload), payload)


def events(*, chunked: bool) -> ServerSentEvents:
    """Return a reader that has had its head."""
    reader = ServerSentEvents(TARGET)
    field = b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"Connection: close\r\n\r\n"
    step = reader.step(HEAD + field + (chunk(CONTROL) if chunked else CONTROL))
    assert step is not None
    assert step.place == Place("0_200", "77")
    return reader


def assert_only_whole(reader: Dialect, data: bytes, expected: Step) -> None:
    """Check that data means something once all of it is there, and not before."""
    for size in range(1, len(data)):
        assert reader.step(data[:size]) is None
    assert reader.step(data) == expected


def test_waves_are_found_in_their_order() -> None:
    body = wave_message(12, 30) + wave_message(3, 12)
    assert len(body) == 42
    assert waves_in(body) == (12, 3)


def test_stamped_message_tells_its_number_and_when_it_was_due() -> None:
    body = stamped_message(7, 12.5, STAMPED_BYTES_MIN) + stamped_message(8, 1e6, 100)
    assert len(body) == STAMPED_BYTES_MIN + 100
    assert waves_in(body) == (7, 8)
    assert stamps_in(body) == (12.5, 1e6)
    assert stamps_in(wave_message(1, 100)) == ()


def test_request_says_where_and_how_to_wait() -> None:
    line, *fields = LongPoll(TARGET).request(PATH, Place("0_5", "7")).split(b"\r\n")
    assert line == b"GET /v1/stream/a?live=long-poll&offset=0_5&cursor=7 HTTP/1.1"
    assert b"Host: 127.0.0.1:4437" in fields
    assert b"cursor" not in ServerSentEvents(TARGET).request(PATH, Place("0_5"))


@pytest.mark.parametrize(
    ("data", "status", "waves", "offset", "cursor"),
    [
        pytest.param(POLLED, 200, (1, 2), "0_200", "77", id="data"),
        pytest.param(EMPTY, 204, (), "0_0", "78", id="timed-out"),
    ],
)
def test_long_poll_goes_on_where_the_reply_says(
    data: bytes, status: int, waves: tuple[int, ...], offset: str, cursor: str
) -> None:
    reader = LongPoll(TARGET)
    expected = Step(status, waves, place=Place(offset, cursor), ended=True)
    assert_only_whole(reader, data, expected)


def test_long_poll_without_an_offset_is_refused() -> None:
    with pytest.raises(BadReply):
        LongPoll(TARGET).step(b"HTTP/1.1 204 No Content\r\n\r\n")


@pytest.mark.parametrize("reader", [LongPoll(TARGET), ServerSentEvents(TARGET)])
def test_refusal_is_a_step_that_keeps_the_request(reader: Dialect) -> None:
    refusal = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\nno"
    assert_only_whole(reader, refusal, Step(503, ended=True))
    patient = refusal.replace(b"\r\n", b"\r\nRetry-After: 3\r\n", 1)
    assert reader.step(patient) == Step(503, ended=True, retry_after_s=3.0)


@pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "until-close"])
def test_data_event_counts_when_its_control_event_is_there(chunked: bool) -> None:
    reader = events(chunked=chunked)
    data = chunk(DATA) + chunk(CONTROL) if chunked else DATA + CONTROL
    assert_only_whole(reader, data, Step(200, (3,), place=Place("0_200", "77")))


@pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "until-close"])
def test_comment_is_a_step_without_meaning(chunked: bool) -> None:
    comment = b": still here\n\n"
    assert events(chunked=chunked).step(chunk(comment) if chunked else comment) == Step(200)


def test_last_chunk_ends_the_events() -> None:
    assert events(chunked=True).step(b"0\r\n\r\n") == Step(200, ended=True)


def test_events_of_a_fixed_length_are_refused() -> None:
    with pytest.raises(BadReply):
        ServerSentEvents(TARGET).step(HEAD + b"Content-Length: 9\r\n\r\n")
