"""Stream paths: opaque, but no two spellings of one stream, and no way up."""

from __future__ import annotations

import pytest

from tests.http.api import Server
from tests.http.raw import connect

PATH_BYTES_MAX = 1024


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("..", id="up"),
        pytest.param(".", id="dot"),
        pytest.param("a/../b", id="up-inside"),
        pytest.param("a/..", id="up-at-the-end"),
        pytest.param("a/./b", id="dot-inside"),
        pytest.param("../../etc/passwd", id="far-up"),
        pytest.param("%2e%2e/b", id="up-escaped"),
        pytest.param("a/%2E%2e/b", id="up-escaped-inside"),
        pytest.param(".%2e", id="up-half-escaped"),
        pytest.param("a%2fb", id="slash-escaped"),
        pytest.param("a%2Fb", id="slash-escaped-upper"),
        pytest.param("..%2f..%2fetc", id="up-by-escaped-slash"),
        pytest.param("a%5cb", id="backslash-escaped"),
        pytest.param("a%5Cb", id="backslash-escaped-upper"),
        pytest.param("a\\b", id="backslash"),
        pytest.param("a%00", id="nul"),
        pytest.param("a%0ab", id="newline"),
        pytest.param("a%0D%0Ab", id="crlf"),
        pytest.param("a%7f", id="delete"),
        pytest.param("%zz", id="escape-is-no-hex"),
        pytest.param("a%2", id="escape-cut"),
        pytest.param("a%", id="percent-at-the-end"),
        pytest.param("a//b", id="empty-segment"),
        pytest.param("/a", id="empty-first-segment"),
        pytest.param("a//", id="empty-segment-at-the-end"),
        pytest.param("%ff", id="no-utf-8"),
        pytest.param("%c3%28", id="utf-8-cut"),
        pytest.param("%ed%a0%80", id="utf-8-surrogate"),
        pytest.param("%c0%ae%c0%ae/x", id="utf-8-overlong"),
        pytest.param("a" * (PATH_BYTES_MAX + 1), id="long"),
        pytest.param("%61" * (PATH_BYTES_MAX + 1), id="long-escaped"),
        pytest.param("a/" * (PATH_BYTES_MAX // 2) + "bc", id="long-with-slashes"),
        pytest.param("\udcff", id="raw-byte-no-utf-8"),
        pytest.param("a\udc80b", id="raw-byte-no-utf-8-inside"),
    ],
)
async def test_path_that_is_no_path_is_refused(server: Server, path: str) -> None:
    for method in ("PUT", "GET", "POST", "HEAD", "DELETE"):
        async with connect(server.url) as wire:
            # By hand, since clients tidy paths up before they send them.
            head = "Content-Type: text/plain\r\nContent-Length: 0\r\n"
            await wire.request(method, f"/v1/stream/{path}", head)
            answer = await wire.reply(of_head=method == "HEAD")
        assert (method, answer.status) == (method, 400)
        if method != "HEAD":
            answer.refusal()


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/v1",
        "/v1/stream",
        "/v1/stream/",
        "/v1/streams/a",
        "/V1/STREAM/a",
        "/v2/stream/a",
        "/v1/stream/__ds",
        "/v1/stream/__ds/",
        "/v1/stream/__ds/subscriptions/a",
        "/v1/stream/%5f%5fds/a",
        "//v1/stream/a",
        "/v1//stream/a",
        "/healthz",
        "/metrics",
    ],
)
async def test_target_that_is_no_stream_is_not_found(server: Server, target: str) -> None:
    for method in ("PUT", "GET"):
        async with connect(server.url) as wire:
            head = "Content-Type: text/plain\r\nContent-Length: 0\r\n"
            await wire.request(method, target, head)
            answer = await wire.reply()
        assert (method, answer.status) == (method, 404)
        assert answer.refusal()[0] == "not_found"


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(".hidden", id="dot-leading"),
        pytest.param("a/.git/config", id="dot-leading-inside"),
        pytest.param("...", id="three-dots"),
        pytest.param("..a/b..", id="dots-beside-letters"),
        pytest.param("a/b/c/d/e/f", id="deep"),
        pytest.param("a__ds/__ds", id="reserved-name-inside"),
        pytest.param("__dsx", id="reserved-name-begun"),
        pytest.param("__registry__/x", id="below-the-registry"),
        pytest.param("a%20b", id="space"),
        pytest.param("a+b", id="plus"),
        pytest.param("a%25b", id="percent"),
        pytest.param("a%252fb", id="slash-escaped-twice"),
        pytest.param("a%3Fb%23c", id="question-and-hash"),
        pytest.param("a:b@c;d=e,f!g$h'i(j)k*l~m", id="all-that-urls-allow"),
        pytest.param("%C3%BCn%C3%AF/%E2%9C%93/%F0%9F%8C%8A", id="unicode"),
        pytest.param("a/", id="slash-at-the-end"),
        pytest.param("x" * 950, id="long"),
    ],
)
async def test_path_is_opaque(server: Server, path: str) -> None:
    folder = server.stream().path
    target = f"/v1/stream/{folder}/{path}"
    created = await server.ask("PUT", target, {"Content-Type": "text/plain"}, b"one ")
    assert created.status == 201
    assert created.headers["Location"].endswith(target)
    appended = await server.ask("POST", target, {"Content-Type": "text/plain"}, b"two")
    assert appended.status == 204
    assert (await server.ask("GET", target)).body == b"one two"
    assert (await server.ask("HEAD", target)).next == appended.next
    live = await server.ask("GET", f"{target}?offset=-1&live=long-poll")
    assert (live.status, live.body) == (200, b"one two")
    assert (await server.ask("DELETE", target)).status == 204
    assert (await server.ask("GET", target)).status == 404


async def test_path_of_exactly_the_limit_is_taken(server: Server) -> None:
    path = server.stream().path.ljust(PATH_BYTES_MAX, "p")
    assert (await server.stream(path).put(b"x")).status == 201
    assert (await server.stream(path).get()).body == b"x"


async def test_escapes_of_ordinary_characters_name_the_same_stream(server: Server) -> None:
    stream = server.stream()
    await stream.put(b"same")
    escaped = "".join(f"%{byte:02x}" for byte in stream.path.encode())
    assert (await server.ask("GET", f"/v1/stream/{escaped}")).body == b"same"
    assert (await server.ask("GET", f"/v1/stream/{escaped.upper()}")).body == b"same"


async def test_slash_at_the_end_and_letter_case_make_other_streams(server: Server) -> None:
    stream = server.stream()
    await stream.put(b"this one")
    for other in (f"{stream.path}/", stream.path.upper()):
        assert (await server.stream(other).get()).status == 404
        assert (await server.stream(other).put(b"another")).status == 201
    assert (await stream.get()).body == b"this one"
