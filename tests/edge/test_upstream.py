"""What an upstream may answer, from any server of the protocol, and what is made of it."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from edge.upstream import BrokeOff, Refused, Upstream
from shared.protocol.chunk import Chunk
from shared.protocol.errors import Unavailable

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
NEXT = {"Stream-Next-Offset": "abc"}


@asynccontextmanager
async def upstream(handler: Handler, *, connections: int = 8) -> AsyncIterator[Upstream]:
    server = web.ServerRunner(web.Server(handler, handler_cancellation=True))
    await server.setup()
    site = web.TCPSite(server, "127.0.0.1", 0)
    await site.start()
    host, port = server.addresses[0][:2]
    made = Upstream(f"http://{host}:{port}/", "/v1/stream/", timeout_s=0.5, connections=connections)
    try:
        yield made
    finally:
        await made.close()
        await server.cleanup()


def answering(response: Callable[[], web.Response]) -> Handler:
    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        return response()

    return handle


def ok(headers: dict[str, str], body: bytes = b"data") -> Handler:
    all_ = {"Content-Type": "text/plain"} | headers
    return answering(lambda: web.Response(body=body, headers=all_))


async def test_read_asks_for_path_and_offset_as_they_are() -> None:
    seen: list[str] = []

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        seen.append(request.raw_path)
        return web.Response(body=b"x", headers=NEXT)

    async with upstream(handle) as there:
        await there.read("a b/ü?#%", "x~!$")
        await there.wait("a", "o", "17", 0.0)
    assert seen == [
        "/v1/stream/a%20b/%C3%BC%3F%23%25?offset=x~%21%24",
        "/v1/stream/a?cursor=17&live=long-poll&offset=o",
    ]


async def test_chunk_is_what_the_reply_says() -> None:
    headers = NEXT | {
        "Stream-Up-To-Date": "true",
        "Stream-Closed": "TRUE",
        "ETag": '"a:b"',
        "Cache-Control": "public",
        "Stream-TTL": "60",
        "Stream-Expires-At": "2030-01-01T00:00:00Z",
    }
    async with upstream(ok(headers)) as there:
        chunk = await there.read("s", "-1")
    assert chunk == Chunk(
        content_type="text/plain",
        next="abc",
        body=b"data",
        empty=False,
        at_tail=True,
        closed=True,
        etag='"a:b"',
        cache_control="public",
        ttl_s=60,
        expires_at="2030-01-01T00:00:00Z",
    )


@pytest.mark.parametrize(
    ("kind", "body", "empty"),
    [
        ("text/plain", b"", True),
        ("text/plain", b"[]", False),
        ("application/json", b"[]", True),
        ("application/json; charset=utf-8", b" [\n] ", True),
        ("application/json", b"[0]", False),
    ],
)
async def test_empty_is_what_holds_no_message(kind: str, body: bytes, empty: bool) -> None:
    async with upstream(ok(NEXT | {"Content-Type": kind}, body)) as there:
        assert (await there.read("s", "-1")).empty is empty


async def test_chunk_that_is_held_is_confirmed_by_its_tag() -> None:
    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        known = request.headers.get("If-None-Match") == '"tag"'
        return web.Response(status=304 if known else 200, headers=NEXT | {"ETag": '"tag"'})

    async with upstream(handle) as there:
        first = await there.read("s", "o")
        assert await there.read("s", "o", first) is first
        other = replace(first, etag='"other"')
        assert await there.read("s", "o", other) is not other


async def test_who_is_named_in_the_url_is_named_in_reads() -> None:
    seen: list[str | None] = []

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        seen.append(request.headers.get("Authorization"))
        return web.Response(body=b"x", headers=NEXT)

    async with upstream(handle) as there:
        url = there._url.replace("//", "//us%40er:p%3Aw@")
        named = Upstream(url, "/v1/stream/", timeout_s=0.5, connections=1)
        await named.read("s", "-1")
        await named.close()
    assert seen == ["Basic dXNAZXI6cDp3"]


async def test_certificates_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[ssl.SSLContext] = []

    def create() -> ssl.SSLContext:
        made.append(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        return made[-1]

    monkeypatch.setattr(ssl, "create_default_context", create)
    there = Upstream("https://127.0.0.1:1", "/", timeout_s=0.5, connections=1)
    for _ in range(3):
        with pytest.raises(Unavailable, match="cannot be read"):
            await there.read("s", "-1")
    await there.close()
    assert len(made) == 1


async def test_address_that_does_not_answer_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with upstream(ok(NEXT)) as there:
        # A listener whose queue is full is as silent as a host that is not there.
        with socket.create_server(("127.0.0.2", URL(there._url).port or 0), backlog=0) as silent:
            stuck = [socket.socket() for _ in range(3)]
            for one in stuck:
                one.setblocking(False)
                one.connect_ex(silent.getsockname())
            loop = asyncio.get_running_loop()
            found = await loop.getaddrinfo("127.0.0.2", silent.getsockname()[1])
            good = await loop.getaddrinfo("127.0.0.1", silent.getsockname()[1])

            async def both(*_: object, **__: object) -> list[object]:
                return [info for info in (*found, *good) if info[1] == socket.SOCK_STREAM]

            monkeypatch.setattr(loop, "getaddrinfo", both)
            assert (await there.read("s", "-1")).body == b"data"
            for one in stuck:
                one.close()


REFUSALS = [
    pytest.param(404, b'{"error":{"code":"not_found","message":"none"}}', ("not_found", "none")),
    pytest.param(410, b"plain words", ("refused", "plain words")),
    pytest.param(400, b"", ("refused", "the upstream answers 400")),
    pytest.param(403, b'{"error":"a string"}', ("refused", '{"error":"a string"}')),
    pytest.param(409, b"[1,2]", ("refused", "[1,2]")),
    pytest.param(404, b"\xff" * 9000, None),
]


@pytest.mark.parametrize(("status", "body", "told"), REFUSALS)
async def test_refusal_is_passed_on_in_whatever_words(
    status: int, body: bytes, told: tuple[str, str] | None
) -> None:
    headers = {"Retry-After": "7", "Set-Cookie": "secret", "Location": "/elsewhere"}
    async with upstream(
        answering(lambda: web.Response(status=status, body=body, headers=headers))
    ) as there:
        with pytest.raises(Refused) as caught:
            await there.read("s", "-1")
    assert caught.value.status == status
    assert caught.value.headers() == {"Retry-After": "7"}
    if told is not None:
        assert (caught.value.code, str(caught.value)) == told
    assert len(str(caught.value)) <= 500


@pytest.mark.parametrize(
    "handler",
    [
        answering(lambda: web.Response(status=500)),
        answering(lambda: web.Response(status=503, headers={"Retry-After": "9"})),
        answering(lambda: web.Response(body=b"<html>not a stream server</html>")),
        ok(NEXT | {"Content-Length": "999999999999"}),
        *(answering(partial(web.Response, status=status)) for status in (301, 304, 408, 425, 429)),
    ],
    ids=["500", "503", "no offset", "too much", "301", "304", "408", "425", "429"],
)
async def test_answer_that_makes_no_sense_is_unavailable(handler: Handler) -> None:
    async with upstream(handler) as there:
        with pytest.raises(Unavailable):
            await there.read("s", "-1")


async def hangs(request: web.BaseRequest) -> web.StreamResponse:
    await asyncio.sleep(30)
    return web.Response()


async def breaks_off(request: web.BaseRequest) -> web.StreamResponse:
    response = web.StreamResponse(headers=NEXT | {"Content-Length": "100"})
    await response.prepare(request)
    await response.write(b"only this")
    assert request.transport is not None
    request.transport.abort()
    return response


@pytest.mark.parametrize("handler", [hangs, breaks_off])
async def test_upstream_that_falls_silent_is_unavailable_in_time(handler: Handler) -> None:
    async with upstream(handler) as there:
        with pytest.raises(Unavailable, match="cannot be read"):
            await asyncio.wait_for(there.read("s", "-1"), 10)


async def test_upstream_that_is_not_there_is_unavailable() -> None:
    there = Upstream("http://127.0.0.1:1", "/", timeout_s=0.5, connections=1)
    with pytest.raises(Unavailable, match="cannot be read"):
        await there.read("s", "-1")
    with pytest.raises(Unavailable, match="cannot be reached"):
        async with there.pass_on("POST", "/s", {}, b"x"):
            pass
    await there.close()


async def test_wait_may_take_as_long_as_it_says() -> None:
    async def slow(request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(0.8)
        return web.Response(status=204, headers=NEXT | {"Stream-Up-To-Date": "true"})

    async with upstream(slow) as there:
        chunk = await there.wait("s", "o", None, 30.0)
        assert (chunk.empty, chunk.at_tail) == (True, True)
        with pytest.raises(Unavailable):
            await there.read("s", "o")


async def test_reads_and_waits_at_once_are_bounded_each_by_itself() -> None:
    running = {"read": 0, "wait": 0}
    most = dict(running)
    go = asyncio.Event()

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        mode = "wait" if "live" in request.raw_path else "read"
        running[mode] += 1
        most[mode] = max(most[mode], running[mode])
        await go.wait()
        running[mode] -= 1
        return web.Response(body=b"x", headers=NEXT)

    async with upstream(handle, connections=3) as there:
        tasks = [asyncio.create_task(there.read("s", str(n))) for n in range(10)]
        tasks += [asyncio.create_task(there.wait("s", str(n), None, 5.0)) for n in range(10)]
        await asyncio.sleep(0.2)
        assert most == {"read": 3, "wait": 3}
        go.set()
        await asyncio.gather(*tasks)
    assert most == {"read": 3, "wait": 3}


async def test_request_that_is_passed_on_goes_and_comes_as_it_is() -> None:
    seen: list[tuple[str | bytes | None, ...]] = []

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        named = [request.headers.get(name) for name in ("X", "User-Agent")]
        seen.append((request.method, request.raw_path, body, *named))
        return web.Response(status=307, headers={"Location": "/there"}, body=b"moved")

    async with (
        upstream(handle) as there,
        there.pass_on("PUT", "/v1/stream/a%2Fb?x=%20", {"X": "1"}, b"body") as reply,
    ):
        assert isinstance(reply, aiohttp.ClientResponse)
        assert (reply.status, await reply.read()) == (307, b"moved")
    assert seen == [("PUT", "/v1/stream/a%2Fb?x=%20", b"body", "1", None)]


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE"])
async def test_write_is_never_sent_twice(method: str) -> None:
    """The kept connection breaks once the upstream has the request."""
    seen: list[str] = []

    async def answers_once(request: web.BaseRequest) -> web.StreamResponse:
        seen.append(request.method)
        if request.method == "HEAD":
            return web.Response()
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async with upstream(answers_once) as there:
        async with there.pass_on("HEAD", "/v1/stream/s", {}, None) as reply:
            assert reply.status == 200
        with pytest.raises(BrokeOff):
            async with there.pass_on(method, "/v1/stream/s", {}, b"x"):
                pass
    assert seen == ["HEAD", method]


async def test_place_is_not_waited_for_without_end() -> None:
    async with upstream(hangs) as there:
        await there.reads.acquire()
        for _ in range(500):
            if there.reads.locked():
                break
            await there.reads.acquire()
        with pytest.raises(Unavailable, match="too many reads"):
            await there.read("s", "-1")


@pytest.mark.parametrize(
    ("headers", "ours"),
    [
        ({"Server": "headwater"}, True),
        ({"Server": "headwater", "Via": "1.1 proxy"}, False),
        ({"Server": "nginx"}, False),
        ({}, False),
    ],
    ids=["headwater", "something in between", "another", "who does not say"],
)
async def test_upstream_of_our_kind_is_known_by_a_greeting(
    headers: dict[str, str], ours: bool
) -> None:
    asked: list[str] = []

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        asked.append(f"{request.method} {request.path}")
        return web.Response(body=b"ok", headers=headers)

    async with upstream(handle) as there:
        assert not there.is_headwater
        await there.greet()
        assert there.is_headwater is ours
    assert asked == ["GET /health"]


async def test_upstream_that_is_not_there_is_greeted_in_vain_and_known_by_its_first_reply() -> None:
    async with upstream(ok(NEXT | {"Server": "headwater"})) as there:
        url, there._url = there._url, "http://127.0.0.1:1"
        await there.greet()
        assert not there.is_headwater
        there._url = url
        await there.read("s", "-1")
        assert there.is_headwater
