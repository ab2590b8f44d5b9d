"""`headwater up`: one service of several processes, which start, die and stop together."""

import asyncio
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.deploy.up import DEADLINE_S, admin_url, answered, processes, roles, start, until


async def test_ready_line_and_example_are_all_that_a_person_needs(tmp_path: Path) -> None:
    with start(tmp_path) as service:
        assert service.stdout() == f"headwater up is ready at {service.url}\n"
        example = re.search(r"try: +(curl .*)\n", service.stderr())
        assert example is not None
        shell = await asyncio.create_subprocess_shell(
            example[1], stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        told, _ = await shell.communicate()
        assert told == b"hello, stream"


async def test_settings_come_from_the_environment_too(tmp_path: Path) -> None:
    env = {"HEADWATER_EDGES": "2", "HEADWATER_STREAM_PREFIX": "/streams/"}
    with start(tmp_path, env=env) as service:
        assert sorted(roles(service)) == ["edge-0", "edge-1", "origin", "shield"]
        stream = f"{service.url}/streams/a"
        async with aiohttp.ClientSession() as client, client.put(stream) as reply:
            assert reply.status == 201
            assert reply.headers["Location"] == stream


async def test_metrics_of_all_processes_stand_side_by_side(tmp_path: Path) -> None:
    with start(tmp_path, "--edges", "2") as service:
        async with aiohttp.ClientSession() as client:
            async with client.get(f"{admin_url(service)}/metrics") as reply:
                text = await reply.text()
                assert reply.headers["Content-Type"].startswith("text/plain")
            for role in ("origin", "shield", "edge-0", "edge-1"):
                assert f'headwater_bus_up{{process="{role}"}}' in text
            for path, told in (("/healthz", b"ok\n"), ("/readyz", b"ready\n")):
                async with client.get(admin_url(service) + path) as reply:
                    assert (reply.status, await reply.read()) == (200, told)


async def test_processes_end_when_their_parent_is_gone(tmp_path: Path) -> None:
    with start(tmp_path) as service:
        service.send(signal.SIGKILL)
        await until(lambda: not processes(service))
        service.kill()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        pytest.param((), ["edge-0", "origin"], id="one edge"),
        pytest.param(("--shield", "on"), ["edge-0", "origin", "shield"], id="one edge, shield"),
        pytest.param(
            ("--edges", "2", "--shield", "off"),
            ["edge-0", "edge-1", "origin"],
            id="two edges, no shield",
        ),
    ],
)
async def test_shield_stands_where_it_is_wanted(
    tmp_path: Path, flags: tuple[str, ...], expected: list[str]
) -> None:
    with start(tmp_path, *flags) as service:
        assert sorted(roles(service)) == expected
        stream = f"{service.url}/v1/stream/a"
        async with aiohttp.ClientSession() as client:
            async with client.put(stream, data=b"x") as reply:
                assert reply.status == 201
            async with client.get(stream) as reply:
                assert await reply.read() == b"x"


def test_port_in_use_is_said_and_nothing_is_left(tmp_path: Path) -> None:
    with start(tmp_path / "one") as service:
        port = service.url.rpartition(":")[2]
        with pytest.raises(Exception, match=f"cannot listen on 127.0.0.1:{port}: Address already"):
            start(tmp_path / "two", "--port", port)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["sigterm", "sigint"])
async def test_drain_lets_every_live_reader_go_and_loses_nothing(
    tmp_path: Path, number: signal.Signals
) -> None:
    with start(tmp_path, "--drain-s", "0.5", "--edges", "2") as service:
        stream, headers = f"{service.url}/v1/stream/a", {"Content-Type": "text/plain"}
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(headers=headers, connector=connector) as client:
            async with client.put(stream, data=b"0") as reply:
                tail = reply.headers["Stream-Next-Offset"]

            async def long_poll() -> tuple[int, str]:
                query = {"offset": tail, "live": "long-poll"}
                async with client.get(stream, params=query) as reply:
                    return reply.status, reply.headers["Stream-Next-Offset"]

            async def events() -> bytes:
                async with client.get(stream, params={"offset": tail, "live": "sse"}) as reply:
                    assert reply.status == 200
                    return await reply.read()  # to its end: a reset would raise

            polls = [asyncio.create_task(long_poll()) for _ in range(60)]
            streams = [asyncio.create_task(events()) for _ in range(10)]
            waiting = re.compile(r"^headwater_live_readers\{[^}]*\} (\d+)", re.MULTILINE)
            async with asyncio.timeout(DEADLINE_S):
                while True:
                    async with client.get(f"{admin_url(service)}/metrics") as reply:
                        counts = waiting.findall(await reply.text())
                    if sum(map(int, counts)) == len(polls) + len(streams):
                        break
                    await asyncio.sleep(0.02)
            service.send(number)
            assert await asyncio.gather(*polls) == [(204, tail)] * len(polls)
            for told in await asyncio.gather(*streams):
                assert told.endswith(b"\n\n")
                assert b'"upToDate":true' in told
        assert service.wait() == 0
    with start(tmp_path) as service:
        stream = f"{service.url}/v1/stream/a"
        async with aiohttp.ClientSession() as client, client.get(stream) as reply:
            assert await reply.read() == b"0"


@pytest.mark.parametrize("edges", [1, 2])
async def test_readiness_fails_first_and_what_is_under_way_is_finished(
    tmp_path: Path, edges: int
) -> None:
    with start(tmp_path, "--drain-s", "3", "--edges", str(edges)) as service:
        stream = f"{service.url}/v1/stream/a"
        arrived = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            yield b"first half, "
            arrived.set()
            await answered(client, "GET", f"{admin_url(service)}/readyz", 503)
            yield b"second half"

        async with aiohttp.ClientSession() as client:
            async with client.put(stream):
                pass
            headers = {"Content-Type": "application/octet-stream"}
            append = asyncio.create_task(client.post(stream, data=body(), headers=headers))
            await arrived.wait()
            service.terminate()
            async with await append as reply:
                assert reply.status == 204
                assert reply.headers["Connection"] == "close"
        assert service.wait() == 0
    with start(tmp_path) as service:
        stream = f"{service.url}/v1/stream/a"
        async with aiohttp.ClientSession() as client, client.get(stream) as reply:
            assert await reply.read() == b"first half, second half"


async def test_whoever_others_read_from_stops_after_them(tmp_path: Path) -> None:
    with start(tmp_path, "--edges", "3") as service:
        left = set(roles(service))
        service.terminate()
        while left:
            # Looked at one after the other, so only what is seen to be there was there later.
            now = set(roles(service))
            if any(role.startswith("edge") for role in now):
                assert {"shield", "origin"} <= left
            if "shield" in now:
                assert "origin" in left
            left = now
        assert service.wait() == 0
