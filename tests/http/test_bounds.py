"""Bodies, headers and URLs at their limits and beyond, whole and broken."""

from __future__ import annotations

import asyncio

import pytest

from tests.http.api import BINARY, TEXT, Server
from tests.http.raw import connect

LIMIT_BYTES = 10 * 1024 * 1024


async def test_body_of_exactly_the_limit_is_stored_and_read_back_whole(server: Server) -> None:
    stream, body = server.stream(), bytes(range(256)) * (LIMIT_BYTES // 256)
    assert (await stream.put(kind=BINARY)).status == 201
    assert (await stream.post(body, BINARY)).status == 204
    # One append is never cut, however far beyond a chunk it reaches.
    assert (await stream.at("-1")).body == body


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize("expect", ["", "Expect: 100-continue\r\n"], ids=["", "expect-continue"])
async def test_declared_body_over_the_limit_is_refused_before_it_is_sent(
    server: Server, method: str, expect: str
) -> None:
    stream = server.stream()
    await (server.stream() if method == "PUT" else stream).put()
    async with connect(server.url) as wire:
        head = f"Content-Type: text/plain\r\nContent-Length: {LIMIT_BYTES + 1}\r\n{expect}"
        await wire.request(method, stream.target, head)
        answer = await wire.reply()
    assert answer.status == 413
    code, message = answer.refusal()
    assert code == "body_too_large"
    assert str(LIMIT_BYTES) in message
    assert str(LIMIT_BYTES + 1) in message


async def test_client_that_expects_100_continue_gets_it_before_it_sends_the_body(
    server: Server,
) -> None:
    stream = server.stream()
    await stream.put()
    async with connect(server.url) as wire:
        head = "Content-Type: text/plain\r\nContent-Length: 5\r\nExpect: 100-continue\r\n"
        await wire.request("POST", stream.target, head)
        assert (await wire.reply()).status == 100
        await wire.send(b"hello")
        assert (await wire.reply()).status == 204
    assert (await stream.get()).body == b"hello"


async def test_client_that_sends_a_too_large_body_anyway_reads_the_refusal(
    server: Server,
) -> None:
    stream = server.stream()
    await stream.put(b"before")
    assert (await stream.post(bytes(LIMIT_BYTES + 1))).status == 413
    assert (await stream.get()).body == b"before"


@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_chunked_body_over_the_limit_is_refused(server: Server, method: str) -> None:
    stream, there = server.stream(), server.stream()
    await there.put(b"before")
    target = there if method == "POST" else stream
    piece = b"%x\r\n%s\r\n" % (2**19, bytes(2**19))
    async with connect(server.url) as wire:
        head = "Content-Type: text/plain\r\nTransfer-Encoding: chunked\r\n"
        await wire.request(method, target.target, head)

        async def send_all() -> None:
            for _ in range(LIMIT_BYTES // 2**19 + 1):
                await wire.send(piece)
            await wire.send(b"0\r\n\r\n")

        sending = asyncio.create_task(send_all())
        answer = await wire.reply()
        await sending
    assert answer.status == 413
    assert answer.refusal()[0] == "body_too_large"
    assert (await there.get()).body == b"before"
    assert (await stream.head()).status == 404


async def test_chunked_body_of_exactly_the_limit_is_stored(server: Server) -> None:
    stream = server.stream()
    await stream.put(kind=BINARY)
    async with connect(server.url) as wire:
        head = f"Content-Type: {BINARY}\r\nTransfer-Encoding: chunked\r\n"
        await wire.request("POST", stream.target, head)
        for _ in range(16):
            await wire.send(b"%x\r\n%s\r\n" % (LIMIT_BYTES // 16, bytes(LIMIT_BYTES // 16)))
        await wire.send(b"0\r\n\r\n")
        assert (await wire.reply()).status == 204
    assert (await stream.at("-1")).body == bytes(LIMIT_BYTES)


async def test_chunked_body_is_stored_without_its_framing(server: Server) -> None:
    stream = server.stream()
    await stream.put()
    async with connect(server.url) as wire:
        head = "Content-Type: text/plain\r\nTransfer-Encoding: chunked\r\n"
        await wire.request("POST", stream.target, head)
        await wire.send(b"3\r\nabc\r\n")
        await wire.send(b"2;ext=1\r\nde\r\n0\r\nTrailer: x\r\n\r\n")
        assert (await wire.reply()).status == 204
        # The same connection goes on.
        await wire.request("GET", stream.target)
        assert (await wire.reply()).body == b"abcde"


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"xyz\r\nabc\r\n0\r\n\r\n", id="size-is-no-number"),
        pytest.param(b"-3\r\nabc\r\n0\r\n\r\n", id="negative-size"),
        pytest.param(b"0x3\r\nabc\r\n0\r\n\r\n", id="size-with-prefix"),
        pytest.param(b"3\r\nabcdef\r\n0\r\n\r\n", id="more-data-than-size"),
        pytest.param(b"\r\nabc\r\n0\r\n\r\n", id="no-size"),
        pytest.param(b"fffffffffffffffff\r\nabc\r\n0\r\n\r\n", id="size-beyond-64-bits"),
    ],
)
async def test_malformed_chunked_body_is_refused_and_nothing_is_stored(
    server: Server, body: bytes
) -> None:
    stream = server.stream()
    await stream.put(b"before")
    async with connect(server.url) as wire:
        head = "Content-Type: text/plain\r\nTransfer-Encoding: chunked\r\n"
        await wire.request("POST", stream.target, head, body)
        answer = await wire.reply()
        assert answer.status == 400
        answer.refusal()
        # Nobody knows where the next request would begin.
        assert await wire.has_ended()
    assert (await stream.get()).body == b"before"


@pytest.mark.parametrize(
    ("framing", "sent"),
    [
        pytest.param("Content-Length: 10\r\n", b"abc", id="declared"),
        pytest.param("Transfer-Encoding: chunked\r\n", b"3\r\nabc\r\n", id="chunked"),
    ],
)
async def test_body_that_ends_early_is_not_stored(
    server: Server, framing: str, sent: bytes
) -> None:
    stream = server.stream()
    await stream.put(b"before")
    async with connect(server.url) as wire:
        head = f"Content-Type: text/plain\r\n{framing}"
        await wire.request("POST", stream.target, head, sent)
        wire.end_sending()
        await wire.has_ended()
    assert (await stream.get()).body == b"before"


@pytest.mark.parametrize(
    "framing",
    [
        pytest.param("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", id="both"),
        pytest.param("Content-Length: 3\r\nContent-Length: 4\r\n", id="two-lengths"),
        pytest.param("Content-Length: abc\r\n", id="length-is-no-number"),
        pytest.param("Content-Length: -3\r\n", id="negative-length"),
        pytest.param("Content-Length: +3\r\n", id="length-with-sign"),
        pytest.param("Content-Length: 1_0\r\n", id="length-with-underscore"),
        pytest.param("Transfer-Encoding: gzip\r\n", id="unknown-transfer-encoding"),
        pytest.param("Bad Name: x\r\n", id="space-in-header-name"),
        pytest.param("No-Colon\r\n", id="header-without-colon"),
        pytest.param("X: a\x00b\r\n", id="nul-in-header"),
        pytest.param("X: " + "v" * 10_000 + "\r\n", id="over-long-header"),
        pytest.param("".join(f"X-{n}: v\r\n" for n in range(300)), id="too-many-headers"),
    ],
)
async def test_what_the_parser_refuses_gets_a_json_error_too(server: Server, framing: str) -> None:
    stream = server.stream()
    await stream.put(b"before")
    async with connect(server.url) as wire:
        head = f"Content-Type: text/plain\r\n{framing}"
        await wire.request("POST", stream.target, head, b"abc")
        answer = await wire.reply()
        assert answer.status in (400, 431)
        answer.refusal()
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        assert await wire.has_ended()
    assert (await stream.get()).body == b"before"


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", id="tls"),
        pytest.param(b"GET\r\n\r\n", id="no-target"),
        pytest.param(b"GET /v1/stream/x FTP/1.1\r\n\r\n", id="other-protocol"),
        pytest.param(b"G@T /v1/stream/x HTTP/1.1\r\nHost: x\r\n\r\n", id="bad-method"),
        pytest.param(b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", id="long-url"),
        pytest.param(b"GET /v1/stream/a\x00b HTTP/1.1\r\nHost: x\r\n\r\n", id="nul-in-url"),
        pytest.param(
            b"GET /v1/stream/x?offset=\x00 HTTP/1.1\r\nHost: x\r\n\r\n", id="nul-in-query"
        ),
        pytest.param(b"GET /v1/stream/\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n", id="bytes-no-utf-8"),
        pytest.param(
            b"GET /v1/stream/x?offset=\xff HTTP/1.1\r\nHost: x\r\n\r\n", id="query-no-utf-8"
        ),
    ],
)
async def test_what_is_hardly_http_gets_a_json_error(server: Server, sent: bytes) -> None:
    async with connect(server.url) as wire:
        await wire.send(sent)
        answer = await wire.reply()
    assert answer.status in (400, 414)
    answer.refusal()
    assert (await server.ask("GET", "/health")).status == 200


async def test_refusals_leave_the_connection_usable(server: Server) -> None:
    stream = server.stream()
    await stream.put(b"data")
    async with connect(server.url) as wire:
        for method, target, head, body, status in (
            ("GET", stream.target + "-missing", "", b"", 404),
            ("GET", stream.target + "?offset=x", "", b"", 400),
            ("POST", stream.target, "Content-Type: a/b\r\nContent-Length: 3\r\n", b"abc", 409),
            ("POST", stream.target, "Content-Length: 3\r\n", b"abc", 400),
            ("POST", stream.target + "-missing", "Content-Length: 3\r\n", b"abc", 404),
            ("PATCH", stream.target, "Content-Length: 3\r\n", b"abc", 405),
            ("POST", stream.target, "Content-Encoding: gzip\r\nContent-Length: 3\r\n", b"abc", 415),
        ):
            await wire.request(method, target, head, body)
            assert (await wire.reply()).status == status, (method, target, head)
        await wire.request("GET", stream.target)
        assert (await wire.reply()).body == b"data"


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "DELETE"])
@pytest.mark.parametrize(
    ("framing", "body"),
    [
        ("Content-Length: 100000\r\n", bytes(100_000)),
        ("Transfer-Encoding: chunked\r\n", b"3\r\nabc\r\n0\r\n\r\n"),
    ],
    ids=["declared", "chunked"],
)
async def test_body_that_nobody_reads_is_not_taken_for_the_next_request(
    server: Server, method: str, framing: str, body: bytes
) -> None:
    stream, other = server.stream(), server.stream()
    await stream.put(b"data")
    await other.put(b"other")
    async with connect(server.url) as wire:
        await wire.request(method, stream.target, framing, body)
        assert (await wire.reply(of_head=method == "HEAD")).status in (200, 204)
        await wire.request("GET", other.target)
        assert (await wire.reply()).body == b"other"


async def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    stream = server.stream()
    await stream.put()
    async with connect(server.url) as wire:
        head = f"Host: {wire.host}\r\nContent-Type: text/plain\r\nContent-Length: 1\r\n\r\n"
        posts = "".join(f"POST {stream.target} HTTP/1.1\r\n{head}{n}" for n in range(9))
        await wire.send(posts.encode())
        await wire.request("GET", stream.target)
        statuses = [(await wire.reply()).status for _ in range(9)]
        assert statuses == [204] * 9
        assert (await wire.reply()).body == b"012345678"


@pytest.mark.parametrize("host", ["", "Host: example.test\r\n"], ids=["no-host", "host"])
async def test_http_1_0_is_answered_and_closed(server: Server, host: str) -> None:
    stream = server.stream()
    async with connect(server.url) as wire:
        head = f"{host}Content-Type: text/plain\r\nContent-Length: 3\r\n\r\nabc"
        await wire.send(f"PUT {stream.target} HTTP/1.0\r\n{head}".encode())
        created = await wire.reply()
        assert created.status == 201
        assert created.headers["Location"].endswith(stream.target)
        assert await wire.has_ended()
    async with connect(server.url) as wire:
        await wire.send(f"GET {stream.target} HTTP/1.0\r\n{host}\r\n".encode())
        answer = await wire.reply()
        assert (answer.status, answer.body) == (200, b"abc")
        assert "Transfer-Encoding" not in answer.headers
        assert await wire.has_ended()


async def test_absolute_request_target_means_its_path(server: Server) -> None:
    stream = server.stream()
    await stream.put(b"ab")
    async with connect(server.url) as wire:
        target = f"http://{wire.host}{stream.target}"
        head = f"Content-Type: {TEXT}\r\nContent-Length: 1\r\n"
        await wire.request("POST", target, head, b"c")
        assert (await wire.reply()).status == 204
        await wire.request("GET", target)
        assert (await wire.reply()).body == b"abc"


async def test_header_values_just_below_the_limit_are_taken(server: Server) -> None:
    stream = server.stream()
    await stream.put(b"abc")
    answer = await stream.get(headers={"X-Padding": "v" * 8000})
    assert (answer.status, answer.body) == (200, b"abc")
