"""Refusals in words, on one line."""

import pytest

from deploy.client.refusals import message_in, retry_after_s
from deploy.client.running import Exit
from tests.deploy.client.running import Done, run_beside
from tests.deploy.client.script import Serve, reply


async def test_refusal_without_a_body_is_put_in_words(serve: Serve) -> None:
    script = await serve(reply(404))
    done = await run_beside("head", script.url)
    assert done == Done(
        Exit.NOT_FOUND, b"", f"headwater: {script.url}: no such stream (HTTP 404)\n"
    )


@pytest.mark.parametrize(
    ("body", "content_type", "expected"),
    [
        pytest.param(b'{"error":{"code":"c","message":"m"}}', "application/json", "m", id="ours"),
        pytest.param(b'{"error":"m"}', "application/json", "m", id="string"),
        pytest.param(b'{"message":"m"}', "application/json", "m", id="message alone"),
        pytest.param(b"plain\nwords", "text/plain", "plain words", id="text"),
        pytest.param(b"<h1>502</h1>", "text/html", "", id="html says nothing"),
        pytest.param(b'{"error"', "application/json", "", id="broken"),
        pytest.param(b"[1]", "application/json", "[1]", id="other JSON"),
        pytest.param(b"\xff\x00\x1b[31mred", "text/plain", "� [31mred", id="terminal controls"),
        pytest.param(b"x" * 9999, "text/plain", "x" * 300 + "…", id="endless"),
        pytest.param(b"", "text/plain", "", id="empty"),
    ],
)
def test_words_of_the_server_fit_one_line(body: bytes, content_type: str, expected: str) -> None:
    assert message_in(body, content_type) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(None, 0, id="absent"),
        pytest.param("0", 0, id="none"),
        pytest.param("17", 17, id="seconds"),
        pytest.param("Thu, 01 Jan 1970 00:01:30 GMT", 30, id="date"),
        pytest.param("Thu, 01 Jan 1970 00:00:30 GMT", 0, id="date in the past"),
        pytest.param("soon", 0, id="words"),
        pytest.param("-5", 0, id="negative"),
        pytest.param("1.5", 0, id="fraction"),
        pytest.param("9" * 400, 999_999_999, id="beyond floats"),
    ],
)
def test_retry_after_is_read(value: str | None, expected: float) -> None:
    assert retry_after_s(value, now=60.0) == expected
