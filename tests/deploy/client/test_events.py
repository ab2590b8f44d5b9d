"""Events out of bytes."""

import pytest

from deploy.client.events import EventParser
from deploy.client.failures import BadAnswer

EVENT_STREAM = (
    b": a comment\r\nevent: data\rdata: a\ndata:b\r\ndata:  c\n\nid: 1\ndata\r\r\nevent: none\n\n"
    b"data: cut"
)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_do_not_depend_on_how_they_arrive(size: int) -> None:
    parser = EventParser()
    found = [
        event
        for at in range(0, len(EVENT_STREAM), size)
        for event in parser.feed(EVENT_STREAM[at : at + size])
    ]
    assert found == [("data", b"a\nb\n c"), ("", b"")]


@pytest.mark.parametrize(
    "piece", [b"data: " + b"x" * 90, b"data: " + b"x" * 40 + b"\n"], ids=["line", "lines"]
)
def test_event_without_end_is_refused(monkeypatch: pytest.MonkeyPatch, piece: bytes) -> None:
    monkeypatch.setattr("deploy.client.events.EVENT_BYTES_MAX", 100)
    parser = EventParser()
    assert list(parser.feed(piece)) == []
    with pytest.raises(BadAnswer):
        list(parser.feed(piece * 2))
