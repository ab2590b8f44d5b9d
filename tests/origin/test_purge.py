"""What a CDN is asked to forget, and what becomes of that when it does not answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from origin import purge
from origin.purge import Hook, Purger, load_hook
from shared import metrics
from shared.config import BadSetting, Settings
from shared.protocol.surrogate import surrogate_key
from shared.tasks import background
from tests.service import Service

Answer = Callable[[int], Coroutine[None, None, web.Response]]


class Cdn:
    """A real endpoint that is asked to purge."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.asked: list[tuple[str, str, str, str, bytes]] = []
        self.news = asyncio.Event()

    async def handle(self, request: web.Request) -> web.Response:
        self.asked.append(
            (
                request.method,
                request.raw_path,
                request.headers.get("Surrogate-Key", ""),
                request.headers.get("Authorization", ""),
                await request.read(),
            )
        )
        self.news.set()
        return await self._answer(len(self.asked))

    async def until(self, count: int) -> None:
        """Wait until it was asked so often."""
        async with asyncio.timeout(20):
            while len(self.asked) < count:
                self.news.clear()
                await self.news.wait()


@asynccontextmanager
async def cdn(answer: Answer) -> AsyncIterator[tuple[Cdn, str]]:
    made = Cdn(answer)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", made.handle)
    async with TestServer(app) as server:
        yield made, str(server.make_url("/"))


async def fine(number: int) -> web.Response:
    return web.Response(status=200)


def counted(outcome: str) -> float:
    value: float = metrics.PURGES.labels(outcome)._value.get()
    return value


async def idle(purger: Purger) -> None:
    async with asyncio.timeout(20):
        await purger._idle.wait()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries that follow each other at once, and give up soon."""
    monkeypatch.setattr(purge, "_FIRST_S", 0.001)
    monkeypatch.setattr(purge, "_TRY_TIMEOUT_S", 0.3)
    monkeypatch.setattr(purge, "_TRIES", 4)
    monkeypatch.setattr(purge, "_GRACE_S", 0.1)
    monkeypatch.setattr(purge, "_AGAIN_S", 60)


async def test_what_a_cdn_needs_is_in_the_request() -> None:
    async with cdn(fine) as (asked, url):
        secret = {"Authorization": "Bearer s3cret"}
        hook = Hook(url + "purge/{key}?p={path}", "POST", '{"tags":["{key}"]}', secret)
        assert "s3cret" not in repr(hook)
        purger = Purger(hook)
        async with background(purger.keep()):
            purger.forget("a/b c")
            await idle(purger)
    key = surrogate_key("a/b c")
    assert asked.asked == 2 * [  # the second time as it ends: an edge may have had it still
        (
            "POST",
            f"/purge/{key}?p=a%2Fb%20c",
            key,
            "Bearer s3cret",
            b'{"tags":["%b"]}' % key.encode(),
        )
    ]


@pytest.mark.usefixtures("quick")
async def test_it_is_asked_until_it_has_understood() -> None:
    async def reluctant(number: int) -> web.Response:
        if number == 1:
            return web.Response(status=503, headers={"Retry-After": "0"})
        if number == 2:
            await asyncio.sleep(5)  # longer than anybody waits
        return web.Response(status=429 if number == 3 else 204)

    before = counted("done"), counted("retried")
    async with cdn(reluctant) as (asked, url):
        purger = Purger(Hook(url, "PURGE"))
        async with background(purger.keep()):
            purger.forget("a")
            await idle(purger)
    assert [one[0] for one in asked.asked] == ["PURGE"] * 5
    assert (counted("done"), counted("retried")) == (before[0] + 2, before[1] + 3)


async def test_it_is_asked_again_when_no_edge_has_it_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(purge, "_AGAIN_S", 0.05)
    async with cdn(fine) as (asked, url):
        purger = Purger(Hook(url, "POST"))
        async with background(purger.keep()):
            for path in ("a", "b"):
                purger.forget(path)
            await asked.until(4)
            await idle(purger)
    assert sorted(one[2] for one in asked.asked) == sorted(2 * [*map(surrogate_key, "ab")])


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("status", "outcome", "tries"), [(403, "refused", 1), (500, "given up", 4)]
)
async def test_what_cannot_be_had_is_counted(
    status: int, outcome: str, tries: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def refuse(number: int) -> web.Response:
        return web.Response(status=status)

    before = counted(outcome)
    async with cdn(refuse) as (asked, url):
        purger = Purger(Hook(url, "POST"))
        async with background(purger.keep()):
            purger.forget("a")
            await idle(purger)
    assert len(asked.asked) == tries
    assert counted(outcome) == before + 1
    assert f"key={surrogate_key('a')}" in caplog.text
    assert f"status {status}" in caplog.text


@pytest.mark.usefixtures("quick")
async def test_a_queue_that_is_full_drops_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(purge, "_QUEUE_MAX", 3)
    before = counted("dropped")
    purger = Purger(Hook("http://127.0.0.1:1/", "POST"))
    for number in (*range(5), 0):
        purger.forget(str(number))
    assert list(purger._queue) == ["0", "1", "2"]
    assert counted("dropped") == before + 3
    assert caplog.text.count("purges are dropped") == 1


@pytest.mark.usefixtures("quick")
async def test_what_waits_at_the_end_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    async def silent(number: int) -> web.Response:
        await asyncio.sleep(5)
        return web.Response()

    before = counted("dropped")
    async with cdn(silent) as (asked, url):
        purger = Purger(Hook(url, "POST"))
        async with background(purger.keep()):
            for number in range(10):
                purger.forget(str(number))
            await asked.until(4)
    assert counted("dropped") == before + 10
    assert "left=10" in caplog.text


@pytest.mark.parametrize(
    ("text", "named"), [("Fastly-Key: k\nnonsense s3cret\n", "line 2"), (None, "No such file")]
)
def test_headers_that_make_no_sense_stop_the_start_and_stay_secret(
    text: str | None, named: str, tmp_path: Path
) -> None:
    file = tmp_path / "headers"
    if text is not None:
        file.write_text(text)
    with pytest.raises(BadSetting, match=named) as raised:
        load_hook(Settings(purge_url="http://cdn/", purge_headers_file=file))
    assert "s3cret" not in str(raised.value)


async def test_streams_that_go_are_purged_under_the_key_of_their_reads(tmp_path: Path) -> None:
    hanging = asyncio.Event()

    async def late(number: int) -> web.Response:
        await hanging.wait()  # nobody who deletes waits for a CDN
        return web.Response()

    secret = tmp_path / "secret"
    secret.write_text("Authorization: Bearer s3cret\n\n")
    async with cdn(late) as (asked, url), aiohttp.ClientSession() as client:
        flags = ["--port", "0", "--admin-port", "0", "--data-dir", str(tmp_path / "data")]
        flags += ["--purge-url", url, "--purge-headers-file", str(secret)]
        with await asyncio.to_thread(Service.start, ["up", *flags]) as service:
            keys = []
            kept: dict[str, str] = {}
            for name, headers in (("goes", kept), ("expires", {"Stream-TTL": "1"})):
                at = f"{service.url}/v1/stream/{name}"
                async with client.put(at, data=b"x", headers=headers) as made:
                    assert made.status == 201
                async with client.get(f"{at}?offset=-1") as read:
                    keys.append(read.headers["Surrogate-Key"])
                    assert read.headers["Cache-Tag"] == keys[-1] == surrogate_key(name)
            async with client.delete(f"{service.url}/v1/stream/goes") as gone:
                assert gone.status == 204
            await asked.until(2)
            hanging.set()
            service.terminate()
            assert await asyncio.to_thread(service.wait) == 0
    assert sorted(one[2] for one in asked.asked) == sorted(2 * keys)
    assert {one[3] for one in asked.asked} == {"Bearer s3cret"}
