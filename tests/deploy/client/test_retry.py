"""When a read is tried again, and how long."""

import asyncio

import pytest
from aiohttp import web
from yarl import URL

from deploy.client.failures import Unavailable
from deploy.client.follow import read
from deploy.client.retry import BACKOFF_MAX_S, backoff_s
from deploy.client.running import Exit
from deploy.client.wire import Wire
from tests.deploy.client.running import Done, run_beside
from tests.deploy.client.script import FakeTime, Serve, reply, tail_of


async def test_read_waits_as_long_as_the_server_asks_and_a_random_while_more(serve: Serve) -> None:
    script = await serve(
        reply(503, Retry_After="3"), reply(429, Retry_After="2"), tail_of(b"data", "4")
    )
    time = FakeTime()
    async with Wire(URL(script.url), timing=time.timing(0.5)) as wire:
        bodies = [chunk.body async for chunk in read(wire, "-1")]
    assert bodies == [b"data"]
    assert time.pauses == [3 + 0.5 * 0.1, 2 + 0.5 * 0.2]


async def test_read_gives_up_when_its_time_is_over(serve: Serve) -> None:
    script = await serve(*[reply(503)] * 100)
    time = FakeTime()
    async with Wire(URL(script.url), retry_for_s=20, timing=time.timing(1)) as wire:
        with pytest.raises(Unavailable):
            await anext(read(wire, "-1"))
    assert time.pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5]
    assert time.now < 20


async def test_server_that_asks_for_more_time_than_there_is_ends_the_command(serve: Serve) -> None:
    script = await serve(reply(503, Retry_After="60"))
    done = await run_beside("read", script.url)
    assert done.code == Exit.UNAVAILABLE
    assert "asks to wait 60 s" in done.err
    assert len(script.asked) == 1


@pytest.mark.parametrize("status", [408, 429, 502, 503, 504])
async def test_read_tries_again_after(serve: Serve, status: int) -> None:
    script = await serve(reply(status), tail_of(b"data", "4"))
    assert await run_beside("read", script.url) == Done(Exit.OK, b"data", "")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 409, 410, 413, 500, 501])
async def test_read_does_not_try_again_after(serve: Serve, status: int) -> None:
    script = await serve(reply(status))
    assert (await run_beside("read", script.url)).code not in (Exit.OK, Exit.UNAVAILABLE)
    assert len(script.asked) == 1


async def test_no_server_is_unavailable(unused_tcp_port: int) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port}/v1/stream/s"
    done = await run_beside("read", url, "--retry-for", "0")
    assert done == Done(
        Exit.UNAVAILABLE, b"", f"headwater: {url}: connection refused; gave up after 1 try\n"
    )


async def test_silent_server_is_unavailable(serve: Serve) -> None:
    released = asyncio.Event()

    async def silent(request: web.Request) -> web.StreamResponse:
        await released.wait()
        return web.Response()

    script = await serve(silent)
    async with Wire(URL(script.url), idle_timeout_s=0.05, retry_for_s=0) as wire:
        with pytest.raises(Unavailable, match="no answer in time"):
            await anext(read(wire, "-1"))
    released.set()


@pytest.mark.parametrize("failures", [0, 1, 5, 10_000])
def test_backoff_is_a_random_part_of_a_bounded_time(failures: int) -> None:
    longest = backoff_s(failures, chance=1.0)
    assert 0 < longest <= BACKOFF_MAX_S
    assert backoff_s(failures, chance=0.0) == 0
    assert backoff_s(failures, chance=0.5) == longest / 2
    assert backoff_s(failures, chance=0.5, retry_after_s=7) == 7 + longest / 2
