"""Writes that must not happen twice."""

import contextlib

import pytest
from yarl import URL

from deploy.client import writes
from deploy.client.failures import Refused, Unavailable
from deploy.client.retry import Timing
from deploy.client.running import Exit
from deploy.client.wire import Wire
from deploy.client.writes import Fork
from shared.protocol.producer import ProducerKey
from tests.deploy.client.running import Done, run_beside
from tests.deploy.client.script import FakeTime, Serve, lost, reply


async def test_append_whose_answer_was_lost_is_not_sent_again(serve: Serve) -> None:
    script = await serve(lost)
    done = await run_beside("append", script.url, "x", "--content-type", "text/plain")
    assert done.code == Exit.UNAVAILABLE
    assert "may or may not have been stored, and was not sent again" in done.err
    assert "--exactly-once" in done.err
    assert len(script.asked) == 1


@pytest.mark.parametrize("status", [408, 500, 502, 503, 504, 507])
async def test_append_that_may_have_been_stored_is_not_sent_again_after(
    serve: Serve, status: int
) -> None:
    script = await serve(reply(status))
    done = await run_beside("append", script.url, "x", "--content-type", "text/plain")
    assert done.code == Exit.UNAVAILABLE
    assert "may or may not" in done.err
    assert len(script.asked) == 1


async def test_append_that_was_turned_away_is_sent_again(serve: Serve) -> None:
    script = await serve(reply(429, Retry_After="0"), reply(204, Stream_Next_Offset="1"))
    done = await run_beside("append", script.url, "x", "--content-type", "text/plain")
    assert done == Done(Exit.OK, b"", "")
    assert [asked.body for asked in script.asked] == [b"x", b"x"]


async def test_append_is_sent_once_the_server_is_there(serve: Serve, unused_tcp_port: int) -> None:
    scripts = []

    async def start_server(delay_s: float) -> None:
        scripts.append(await serve(reply(204, Stream_Next_Offset="1"), port=unused_tcp_port))

    url = URL(f"http://127.0.0.1:{unused_tcp_port}/s")
    async with Wire(url, timing=Timing(pause=start_server)) as wire:
        answer = await writes.append(wire, b"x", "text/plain")
    assert answer.next_offset == "1"
    assert [asked.body for asked in scripts[0].asked] == [b"x"]


async def test_append_of_a_producer_is_sent_again_with_the_same_number(serve: Serve) -> None:
    script = await serve(
        lost,
        reply(204, Stream_Next_Offset="1", Producer_Epoch="0", Producer_Seq="0"),
        reply(503),
        reply(200, Stream_Next_Offset="2", Producer_Epoch="0", Producer_Seq="1"),
    )
    done = await run_beside(
        "append", script.url, "a", "b", "--exactly-once", "--content-type", "text/plain", "-v"
    )
    assert done == Done(Exit.OK, b"", "headwater: next offset: 2\n")
    assert [(asked.body, asked.headers["producer-seq"]) for asked in script.asked] == [
        (b"a", "0"),
        (b"a", "0"),
        (b"b", "1"),
        (b"b", "1"),
    ]
    assert len({asked.headers["producer-id"] for asked in script.asked}) == 1
    assert {asked.headers["producer-epoch"] for asked in script.asked} == {"0"}


async def test_each_run_exactly_once_is_another_producer(serve: Serve) -> None:
    script = await serve(*[reply(200, Stream_Next_Offset="1")] * 2)
    for _ in range(2):
        await run_beside("append", script.url, "a", "--exactly-once", "--content-type", "a/b")
    assert len({asked.headers["producer-id"] for asked in script.asked}) == 2


async def test_append_that_the_producer_made_before_is_told(serve: Serve) -> None:
    script = await serve(reply(204, Stream_Next_Offset="1"))
    argv = ["append", script.url, "a", "--producer-id", "p", "--epoch", "7"]
    done = await run_beside(*argv, "--content-type", "a/b")
    assert done.code == Exit.OK
    assert "1 of 1 appends had been stored before" in done.err
    assert script.asked[0].headers["producer-epoch"] == "7"


async def test_stale_producer_learns_the_epoch_of_the_server(serve: Serve) -> None:
    script = await serve(reply(403, Producer_Epoch="9"))
    argv = ["append", script.url, "a", "--producer-id", "p", "--content-type", "a/b"]
    done = await run_beside(*argv)
    assert done.code == Exit.CONFLICT
    assert "epoch 9" in done.err


async def test_redirected_append_is_not_taken_for_stored(serve: Serve) -> None:
    script = await serve(reply(302, Location="/elsewhere"))
    done = await run_beside("append", script.url, "x", "--content-type", "text/plain")
    assert done.code == Exit.REFUSED
    assert "redirected" in done.err
    assert script.methods == ["POST"]


async def test_delete_whose_answer_was_lost_is_done_when_the_stream_is_gone(serve: Serve) -> None:
    script = await serve(lost, reply(404))
    assert await run_beside("delete", script.url) == Done(Exit.OK, b"", "")
    assert script.methods == ["DELETE", "DELETE"]


async def test_delete_of_no_stream_is_not_found(serve: Serve) -> None:
    script = await serve(reply(503), reply(404))
    # A 503 may come from a proxy whose request went through, so this one counts as done ...
    assert (await run_beside("delete", script.url)).code == Exit.OK
    script = await serve(reply(429), reply(404))
    # ... and a 429 says that nothing was done.
    assert (await run_beside("delete", script.url)).code == Exit.NOT_FOUND


async def test_close_is_sent_again(serve: Serve) -> None:
    script = await serve(lost, reply(204, Stream_Next_Offset="5", Stream_Closed="true"))
    done = await run_beside("close", script.url, "-v")
    assert done == Done(Exit.OK, b"", "headwater: next offset: 5\n")
    assert [asked.headers["stream-closed"] for asked in script.asked] == ["true", "true"]


@pytest.mark.parametrize(
    ("fork", "times"),
    [
        pytest.param(None, 2, id="no fork"),
        pytest.param(Fork("/s", "5"), 2, id="at an offset"),
        pytest.param(Fork("/s"), 1, id="at a tail that moves"),
    ],
)
async def test_create_is_sent_again_unless_it_would_ask_for_something_else(
    serve: Serve, fork: Fork | None, times: int
) -> None:
    script = await serve(lost, reply(201))
    async with Wire(URL(script.url), timing=FakeTime().timing()) as wire:
        with contextlib.suppress(Unavailable):
            await writes.create(wire, fork=fork)
    assert len(script.asked) == times


async def test_producers_number_is_part_of_the_append(serve: Serve) -> None:
    script = await serve(reply(409, Producer_Expected_Seq="1"))
    async with Wire(URL(script.url)) as wire:
        with pytest.raises(Refused):
            await writes.append(wire, b"x", "a/b", producer=ProducerKey("p", 2, 3))
    headers = script.asked[0].headers
    assert [headers[f"producer-{name}"] for name in ("id", "epoch", "seq")] == ["p", "2", "3"]


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE", "HEAD"])
async def test_request_is_sent_once_unless_we_say_so(serve: Serve, method: str) -> None:
    script = await serve(lost, reply(200))
    async with Wire(URL(script.url), retry_for_s=0) as wire:
        with pytest.raises(Unavailable):
            await wire.ask(method, {})
    assert script.methods == [method]


@pytest.mark.parametrize(("repeatable", "connections"), [(True, 1), (False, 2)])
async def test_what_must_not_be_sent_twice_has_a_connection_of_its_own(
    serve: Serve, repeatable: bool, connections: int
) -> None:
    script = await serve(reply(204), reply(204))
    async with Wire(URL(script.url)) as wire:
        for _ in range(2):
            await wire.ask("POST", {}, b"x", repeatable=repeatable)
    assert len({id(asked.connection) for asked in script.asked}) == connections
