"""Event streams, read back as browsers read them (PROTOCOL §5.8; WHATWG HTML §9.2.6)."""

import json
import re
from base64 import b64decode
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.protocol.chunk import Chunk
from shared.protocol.sse import HEARTBEAT, encode_events

TEXT = Chunk(
    content_type="text/plain",
    next="0000000000000001_0000000000000005",
    body=b"hello",
    empty=False,
    at_tail=True,
    closed=False,
    etag=None,
    cache_control="no-cache",
)
JSON = replace(TEXT, content_type="application/json", body=b'[{"a":1}]')
BINARY = replace(TEXT, content_type="application/octet-stream")


def parse(stream: bytes) -> list[tuple[str, str]]:
    """Return the events that an EventSource would dispatch, by type and data.

    Source: WHATWG HTML §9.2.6, interpreting an event stream.
    """
    text = stream.decode("utf-8", "replace").removeprefix("\ufeff")
    lines = re.split("\r\n|\r|\n", text)
    events = []
    kind, data = "", ""
    for line in lines[:-1]:  # what no line end follows is no line yet
        if line == "":
            if data:
                events.append((kind or "message", data.removesuffix("\n")))
            kind, data = "", ""
        elif not line.startswith(":"):
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "event":
                kind = value
            elif field == "data":
                data += value + "\n"
    return events


def control_of(event: tuple[str, str]) -> dict[str, object]:
    assert event[0] == "control"
    fields = json.loads(event[1])
    assert isinstance(fields, dict)
    return fields


def unify(text: str) -> str:
    """Return text with the line ends that events carry: there is only one kind."""
    return re.sub("\r\n|\r|\n", "\n", text)


HOSTILE = st.lists(
    st.text(max_size=8)
    | st.sampled_from(
        ("\r", "\n", "\r\n", "\n\n", " ", "  ", ":", ":\n\n", "data:", "data: x", "\ufeff", "\x00")
    )
    | st.sampled_from(
        ("event: control", "\n\nevent: control\ndata:{}\n\n", "id: 1\n", "retry: 1\n")
    ),
    min_size=1,
    max_size=12,
).map("".join)


@given(st.lists(HOSTILE.filter(bool), min_size=1, max_size=4))
def test_any_text_is_read_back_as_it_was(texts: list[str]) -> None:
    stream = b"".join(encode_events(replace(TEXT, body=text.encode()), "7") for text in texts)
    events = parse(stream)
    assert [event for event in events if event[0] == "data"] == [
        ("data", unify(text)) for text in texts
    ]
    assert [kind for kind, _ in events] == ["data", "control"] * len(texts)
    for event in events[1::2]:
        assert control_of(event)["streamNextOffset"] == TEXT.next


@pytest.mark.parametrize(
    ("body", "wire"),
    [
        pytest.param(b"one", b"data:one\n", id="no-space-after-the-colon"),
        pytest.param(b" one", b"data:  one\n", id="leading-space-is-kept"),
        pytest.param(b"a\nb", b"data:a\ndata:b\n", id="lf"),
        pytest.param(b"a\rb", b"data:a\ndata:b\n", id="cr"),
        pytest.param(b"a\r\nb", b"data:a\ndata:b\n", id="crlf"),
        pytest.param(b"a\n\rb", b"data:a\ndata:\ndata:b\n", id="lf-cr"),
        pytest.param(b"\n", b"data:\ndata:\n", id="only-a-line-end"),
        pytest.param(b"a\n", b"data:a\ndata:\n", id="trailing-line-end"),
        pytest.param(b"a\xc2\x85b", b"data:a\xc2\x85b\n", id="next-line-is-no-line-end"),
        pytest.param(b"a\xe2\x80\xa8b\x0bc", b"data:a\xe2\x80\xa8b\x0bc\n", id="nor-are-these"),
        pytest.param(b"\xff\x00", b"data:\xff\x00\n", id="bytes-as-they-are"),
    ],
)
def test_text_on_the_wire(body: bytes, wire: bytes) -> None:
    step = encode_events(replace(TEXT, body=body), "7")
    assert step.startswith(b"event: data\n" + wire + b"\nevent: control\ndata:{")
    assert step.endswith(b"}\n\n")
    assert b"\r" not in step


@given(
    st.lists(
        st.dictionaries(st.text(max_size=5), HOSTILE, max_size=3) | HOSTILE | st.integers(),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from([None, 1, "\t"]),
)
def test_any_json_is_read_back_as_an_array(values: list[object], indent: int | str | None) -> None:
    body = json.dumps(values, indent=indent).replace("\n", "\r\n").encode()
    events = parse(encode_events(replace(JSON, body=body), "7"))
    assert [kind for kind, _ in events] == ["data", "control"]
    assert json.loads(events[0][1]) == values


@given(st.binary(min_size=1, max_size=200))
def test_any_bytes_are_read_back_from_base64(body: bytes) -> None:
    events = parse(encode_events(replace(BINARY, body=body), "7"))
    assert [kind for kind, _ in events] == ["data", "control"]
    text = events[0][1].replace("\n", "").replace("\r", "")
    assert len(text) % 4 == 0
    assert b64decode(text, validate=True) == body


def test_hello_in_base64() -> None:
    assert b"data:SGVsbG8=\n" in encode_events(replace(BINARY, body=b"Hello"), "7")


@pytest.mark.parametrize("chunk", [TEXT, JSON, BINARY], ids=["text", "json", "binary"])
def test_chunk_without_data_is_a_control_event_alone(chunk: Chunk) -> None:
    body = b"[]" if chunk is JSON else b""
    events = parse(encode_events(replace(chunk, body=body, empty=True), "7"))
    assert [kind for kind, _ in events] == ["control"]


@pytest.mark.parametrize(
    ("at_tail", "closed", "expected"),
    [
        pytest.param(False, False, {"streamCursor": "7"}, id="more-follows"),
        pytest.param(True, False, {"streamCursor": "7", "upToDate": True}, id="at-the-tail"),
        pytest.param(True, True, {"upToDate": True, "streamClosed": True}, id="closed"),
    ],
)
@pytest.mark.parametrize("empty", [False, True], ids=["data", "no-data"])
def test_control_event(
    at_tail: bool, closed: bool, expected: dict[str, object], empty: bool
) -> None:
    chunk = replace(TEXT, at_tail=at_tail, closed=closed, empty=empty)
    events = parse(encode_events(chunk, "7"))
    assert control_of(events[-1]) == {"streamNextOffset": TEXT.next, **expected}


def test_control_event_is_written_as_clients_match_it() -> None:
    step = encode_events(TEXT, "7").decode()
    found = re.search(r"event: control\s*\ndata:({[^}]+})", step)
    assert found is not None
    assert json.loads(found[1])["streamCursor"] == "7"


def test_heartbeat_is_no_event() -> None:
    assert parse(HEARTBEAT * 3 + encode_events(TEXT, "7") + HEARTBEAT) == parse(
        encode_events(TEXT, "7")
    )
