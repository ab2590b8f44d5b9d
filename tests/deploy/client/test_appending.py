"""What the append command sends, and says of it."""

import os

import pytest

from deploy.client import batches
from deploy.client.running import Exit
from tests.deploy.client.running import Done, run_beside
from tests.deploy.client.script import Serve, lost, reply


async def test_content_type_is_asked_for_when_it_is_not_given(serve: Serve) -> None:
    script = await serve(
        reply(Content_Type="a/b", Stream_Next_Offset="0"), reply(204, Stream_Next_Offset="1")
    )
    await run_beside("append", script.url, "x")
    assert script.methods == ["HEAD", "POST"]
    assert script.asked[1].headers["content-type"] == "a/b"


async def test_each_argument_is_an_append_and_the_last_one_closes(serve: Serve) -> None:
    script = await serve(
        reply(204, Stream_Next_Offset="1"), reply(204, Stream_Next_Offset="2", Stream_Closed="true")
    )
    await run_beside("append", script.url, "--content-type", "a/b", "x", "é", "--close")
    assert [asked.body for asked in script.asked] == [b"x", "é".encode()]
    assert [asked.headers.get("stream-closed") for asked in script.asked] == [None, "true"]


async def test_lines_of_json_are_messages_of_one_append(serve: Serve) -> None:
    script = await serve(reply(204, Stream_Next_Offset="1"), reply(204, Stream_Closed="true"))
    argv = ["append", script.url, "--lines", "--content-type", "application/json", "--close"]
    done = await run_beside(*argv, stdin=b'{"b": 1.0}\r\n\n  [1,2]\n"x"\n')
    assert done.code == Exit.OK
    assert [asked.body for asked in script.asked] == [b'[{"b": 1.0},[1,2],"x"]', b""]
    assert script.asked[1].headers["stream-closed"] == "true"


@pytest.mark.parametrize("line", [b"1,2", b"1],[2", b"{", b"'a'", b"NaN", b"\xff"])
async def test_line_that_is_not_one_json_value_is_not_sent(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, line: bytes
) -> None:
    monkeypatch.setattr(batches, "BATCH_LINES", 1)
    script = await serve(reply(204, Stream_Next_Offset="1"))
    argv = ["append", script.url, "--lines", "--content-type", "application/json"]
    done = await run_beside(*argv, stdin=b"1\n" + line + b"\n3\n")
    assert done.code == Exit.REFUSED
    assert "line 2 is not JSON" in done.err
    assert "stored before: line 1, next offset 1" in done.err
    assert [asked.body for asked in script.asked] == [b"[1]"]


async def test_all_of_standard_input_is_one_append(serve: Serve) -> None:
    script = await serve(reply(204, Stream_Next_Offset="1"))
    body = os.urandom(300_000)
    await run_beside("append", script.url, "-", "--content-type", "a/b", stdin=body)
    assert [asked.body for asked in script.asked] == [body]


async def test_no_lines_are_no_append(serve: Serve) -> None:
    script = await serve()
    argv = ["append", script.url, "--lines", "--content-type", "application/json"]
    assert await run_beside(*argv, stdin=b"\n \n") == Done(Exit.OK, b"", "")
    assert script.asked == []


async def test_standard_input_beyond_all_bounds_is_refused_before_it_is_sent(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "BODY_BYTES_MAX", 10)
    script = await serve()
    argv = ["append", script.url, "-", "--content-type", "a/b"]
    assert (await run_beside(*argv, stdin=b"x" * 11)).code == Exit.REFUSED
    argv = ["append", script.url, "--lines", "--content-type", "a/b"]
    assert (await run_beside(*argv, stdin=b"x" * 11)).code == Exit.REFUSED


@pytest.mark.parametrize(
    ("how", "bodies"),
    [
        pytest.param([], [b"1\n2\n3\n", b"4\n5\n"], id="as they arrive"),
        pytest.param(["--exactly-once"], [b"1\n2\n3\n", b"4\n5\n"], id="made-up producer"),
        pytest.param(["--producer-id", "p"], [b"1\n2\n3\n4\n", b"5\n"], id="by number alone"),
    ],
)
async def test_lines_of_a_named_producer_are_cut_as_they_will_be_next_time(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, how: list[str], bodies: list[bytes]
) -> None:
    monkeypatch.setattr(batches, "BATCH_LINES", 4)
    script = await serve(*[reply(200, Stream_Next_Offset="1")] * 2)
    argv = ["append", script.url, "--lines", "--content-type", "text/plain"]
    await run_beside(*argv, *how, stdin=b"1\n2\n3\n4\n5\n", piece_bytes=6)
    assert [asked.body for asked in script.asked] == bodies


async def test_failed_append_tells_what_was_stored_before(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "BATCH_LINES", 2)
    script = await serve(reply(204, Stream_Next_Offset="2"), lost)
    argv = ["append", script.url, "--lines", "--content-type", "text/plain"]
    done = await run_beside(*argv, stdin=b"a\nb\nc\nd\ne\n")
    assert done.code == Exit.UNAVAILABLE
    assert "lines 3 to 4 may or may not have been stored" in done.err
    assert "stored before: lines 1 to 2, next offset 2" in done.err
    assert [asked.body for asked in script.asked] == [b"a\nb\n", b"c\nd\n"]
