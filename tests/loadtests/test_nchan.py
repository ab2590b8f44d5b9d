"""Nchan's speech, and what is said where Nchan is not."""

from pathlib import Path

import pytest

from loadtests import nchan
from loadtests.client import Target
from loadtests.dialect import Place, Step, wave_message
from loadtests.launch import KNOWN, CannotStart, Options

TARGET = Target("127.0.0.1", 4437)
POLL = nchan.NCHAN.dialects["lp"](TARGET)
EVENTS = nchan.NCHAN.dialects["sse"](TARGET)
DATE = "Wed, 25 Nov 2026 03:56:05 GMT"
POLLED = (
    f"HTTP/1.1 200 OK\r\nContent-Length: 20\r\nLast-Modified: {DATE}\r\nEtag: 0\r\n\r\n"
).encode() + wave_message(7, 20)
GREETED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n: hi\n\n"
EVENT = b"id: 1795578970:1\ndata: " + wave_message(8, 20) + b"\n\n"


def test_first_request_waits_for_what_comes() -> None:
    request = POLL.request("/sub/a", nchan.NCHAN.beginning)
    assert request.startswith(b"GET /sub/a HTTP/1.1\r\n")
    assert b"If-" not in request
    assert b"Last-Event-ID" not in EVENTS.request("/sub/a", nchan.NCHAN.beginning)


def test_long_poll_goes_on_behind_the_message_it_got() -> None:
    for size in range(1, len(POLLED)):
        assert POLL.step(POLLED[:size]) is None
    step = POLL.step(POLLED)
    assert step == Step(200, (7,), place=Place(DATE, "0"), ended=True)
    assert step.place is not None
    request = POLL.request("/sub/a", step.place)
    assert f"\r\nIf-Modified-Since: {DATE}\r\nIf-None-Match: 0\r\n".encode() in request


def test_long_poll_that_timed_out_is_an_empty_wait() -> None:
    step = POLL.step(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
    assert step == Step(204, ended=True)


def test_events_go_on_behind_the_last_id() -> None:
    for size in range(1, len(GREETED)):
        assert EVENTS.step(GREETED[:size]) is None
    assert EVENTS.step(GREETED) == Step(200)
    step = EVENTS.step(EVENT)
    assert step == Step(200, (8,), place=Place("1795578970:1"))
    assert EVENTS.step(EVENT[:-1]) is None
    assert step.place is not None
    assert b"\r\nLast-Event-ID: 1795578970:1\r\n" in EVENTS.request("/sub/a", step.place)


def test_refusal_keeps_the_place() -> None:
    refusal = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"
    assert POLL.step(refusal) == EVENTS.step(refusal) == Step(503, ended=True)


def test_missing_nchan_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(CannotStart, match="libnginx-mod-nchan"):
        KNOWN["nchan"](tmp_path, Options())


def test_configuration_is_filled_in(tmp_path: Path) -> None:
    arguments = nchan.configure(tmp_path, Path("/m.so"), port=8080, workers=3, live_s=60)
    assert arguments[:2] == ["-p", str(tmp_path)]
    text = (tmp_path / "nginx.conf").read_text()
    assert "worker_processes 3;" in text
    assert "listen 127.0.0.1:8080 " in text
    assert "nchan_channel_id $1;" in text
    assert "nchan_subscriber_timeout 60s;" in text
