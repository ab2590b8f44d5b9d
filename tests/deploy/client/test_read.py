"""Reading to the tail: what is asked, shown, and kept."""

from pathlib import Path

from deploy.client.running import Exit
from tests.deploy.client.running import Done, run_beside
from tests.deploy.client.script import Serve, cut, part_of, refusal, reply, tail_of


async def test_read_follows_chunk_after_chunk_to_the_tail(serve: Serve) -> None:
    script = await serve(
        part_of(b"one ", "4"),
        part_of(b"two ", "8"),
        tail_of(b"three", "13"),
    )
    done = await run_beside("read", script.url, "-v")
    assert done == Done(Exit.OK, b"one two three", "headwater: next offset: 13\n")
    assert script.queries == [{"offset": "-1"}, {"offset": "4"}, {"offset": "8"}]


async def test_read_shows_json_messages_one_a_line_with_their_own_bytes(serve: Serve) -> None:
    body = b'[{"z": 1.0, "a": 12345678901234567890123},\n "x,]\\"y", [1, [2]], null, -0.10e5]'
    script = await serve(tail_of(body, "9", "Application/JSON; charset=utf-8"))
    done = await run_beside("read", script.url)
    assert done.out == (
        b'{"z": 1.0, "a": 12345678901234567890123}\n"x,]\\"y"\n[1, [2]]\nnull\n-0.10e5\n'
    )


async def test_read_raw_shows_json_bodies_as_they_come(serve: Serve) -> None:
    script = await serve(tail_of(b'[1,\n{"a":2}]', "9", "application/json"))
    assert (await run_beside("read", script.url, "--raw")).out == b'[1,\n{"a":2}]'


async def test_read_after_a_cut_connection_shows_every_byte_once(serve: Serve) -> None:
    script = await serve(
        part_of(b"one ", "4"),
        cut(b"tw"),
        tail_of(b"two three", "13"),
    )
    done = await run_beside("read", script.url)
    assert done == Done(Exit.OK, b"one two three", "")
    assert script.queries == [{"offset": "-1"}, {"offset": "4"}, {"offset": "4"}]


async def test_read_that_fails_says_where_to_go_on(serve: Serve) -> None:
    script = await serve(
        part_of(b"one ", "4"),
        refusal(410, "offset 4 is no longer kept"),
    )
    done = await run_beside("read", script.url)
    assert done == Done(
        Exit.GONE,
        b"one ",
        f"headwater: {script.url}: offset 4 is no longer kept (HTTP 410); "
        "to go on from there: --offset 4\n",
    )


async def test_read_keeps_a_body_larger_than_its_memory_in_order(serve: Serve) -> None:
    body = bytes(range(256)) * (24 << 10)  # 6 MiB, more than is held in memory
    script = await serve(tail_of(body, "9", "application/octet-stream"))
    done = await run_beside("read", script.url)
    assert done.code == Exit.OK
    assert done.out == body


async def test_read_of_what_is_no_stream_is_an_error(serve: Serve) -> None:
    script = await serve(reply(body=b"<html>", Content_Type="text/html"))
    done = await run_beside("read", script.url)
    assert done.code == Exit.UNEXPECTED
    assert "this is not the URL of a stream" in done.err
    assert done.out == b""


async def test_read_that_would_go_round_in_circles_is_an_error(serve: Serve) -> None:
    stuck = part_of(b"", "4")
    script = await serve(stuck)
    done = await run_beside("read", script.url, "--offset", "4")
    assert done.code == Exit.UNEXPECTED
    assert "does not move on" in done.err


async def test_read_into_a_file_leaves_standard_output_alone(serve: Serve, tmp_path: Path) -> None:
    script = await serve(tail_of(b"data", "4"))
    file = tmp_path / "out"
    done = await run_beside("read", script.url, "--output", str(file))
    assert done == Done(Exit.OK, b"", "")
    assert file.read_bytes() == b"data"


async def test_refused_read_leaves_the_file_as_it_was(serve: Serve, tmp_path: Path) -> None:
    script = await serve(refusal(404))
    file = tmp_path / "out"
    file.write_bytes(b"precious")
    done = await run_beside("read", script.url, "--output", str(file))
    assert done.code == Exit.NOT_FOUND
    assert file.read_bytes() == b"precious"


async def test_parameters_of_the_url_are_kept_and_sent_in_order(serve: Serve) -> None:
    script = await serve(tail_of(b"", "0"))
    await run_beside("read", script.url + "?z=1&a=%202")
    assert list(script.asked[0].query.items()) == [("a", " 2"), ("offset", "-1"), ("z", "1")]
