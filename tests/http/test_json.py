"""JSON mode: messages come back byte for byte, in one array."""

from __future__ import annotations

import json

import orjson
import pytest

from tests.http.api import JSON, Server

MESSAGES = {
    "float": b"1.0",
    "exponent": b"1E5",
    "small": b"1e-7",
    "minus-zero": b"-0",
    "big-integer": b"12345678901234567890",
    "bigger-integer": b"123456789012345678901234567890",
    "long-fraction": b"0.1000000000000000055511151231257827",
    "key-order": b'{"b":1,"a":2}',
    "key-twice": b'{"a":1,"a":2}',
    "inner-space": b'{ "a" :\t[ 1 ,\n 2 ] }',
    "escapes": rb'"\u00e9\/\n\"\\"',
    "unicode": '"\u00e9\u2713\U0001f30a"'.encode(),
    "surrogate-pair": rb'"\ud83c\udf0a"',
    "brackets-in-string": b'"],[{,"',
    "nul-escaped": rb'"\u0000"',
    "null": b"null",
    "true": b"true",
    "string": b'""',
    "empty-object": b"{}",
}


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES.keys())
async def test_message_comes_back_byte_for_byte(server: Server, message: bytes) -> None:
    stream = server.stream()
    await stream.put(message, JSON)
    await stream.post(message, JSON)
    await stream.post(b" \r\n\t" + message + b"\n ", JSON)
    await stream.post(b"[" + message + b"]", JSON)
    assert (await stream.get()).body == b"[" + b",".join([message] * 4) + b"]"


@pytest.mark.parametrize(
    ("sent", "messages"),
    [
        (b'{"a":1}', [{"a": 1}]),
        (b'[{"a":1},{"b":2}]', [{"a": 1}, {"b": 2}]),
        (b"[[1,2],[3,4]]", [[1, 2], [3, 4]]),
        (b"[[[1,2,3]]]", [[[1, 2, 3]]]),
        (b"[[]]", [[]]),
        (b"[[],[]]", [[], []]),
        (b" [ 1 , 2 ] ", [1, 2]),
        (b'["[","]"]', ["[", "]"]),
        (b"[null]", [None]),
    ],
    ids=str,
)
async def test_exactly_one_level_is_flattened(
    server: Server, sent: bytes, messages: list[object]
) -> None:
    stream = server.stream()
    await stream.put(kind=JSON)
    assert (await stream.post(sent, JSON)).status == 204
    assert orjson.loads((await stream.get()).body) == messages


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"{", id="cut"),
        pytest.param(b"[1,]", id="comma-at-the-end"),
        pytest.param(b"[1 2]", id="no-comma"),
        pytest.param(b"1 2", id="two-values"),
        pytest.param(b"1,2", id="two-values-with-comma"),
        pytest.param(b'{"a":1}{"b":2}', id="two-objects"),
        pytest.param(b"[1],[2]", id="two-arrays"),
        pytest.param(b"1]", id="bracket-too-many"),
        pytest.param(b"NaN", id="nan"),
        pytest.param(b"[Infinity]", id="infinity"),
        pytest.param(b"01", id="leading-zero"),
        pytest.param(b"+1", id="plus"),
        pytest.param(b".5", id="no-digit-before-the-point"),
        pytest.param(b"'a'", id="single-quotes"),
        pytest.param(b"{a:1}", id="bare-key"),
        pytest.param(b"// c\n1", id="comment"),
        pytest.param(b'"a\nb"', id="newline-in-string"),
        pytest.param(b'"\\x41"', id="unknown-escape"),
        pytest.param(b"\xef\xbb\xbf1", id="byte-order-mark"),
        pytest.param(b'"\xff"', id="no-utf-8"),
        pytest.param(b'"\xed\xa0\x80"', id="utf-8-surrogate"),
        pytest.param(b'"\xc0\x80"', id="utf-8-overlong"),
        pytest.param(b"\xff\xfe1\x00", id="utf-16"),
        pytest.param(b"\x00", id="nul"),
        pytest.param(b" ", id="space"),
        pytest.param(b"tru", id="word-cut"),
        pytest.param(b"[" * 100_000 + b"]" * 100_000, id="arrays-too-deep"),
        pytest.param(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, id="objects-too-deep"),
        pytest.param(b"[" * 1_000_000, id="opened-a-million-times"),
    ],
)
async def test_body_that_is_no_json_is_refused_and_not_stored(server: Server, body: bytes) -> None:
    there, missing = server.stream(), server.stream()
    await there.put(b"0", JSON)
    for answer in (await there.post(body, JSON), await missing.put(body, JSON)):
        assert answer.status == 400
        assert answer.refusal()[0] == "invalid_json"
    assert (await there.get()).body == b"[0]"
    assert (await missing.get()).status == 404


async def test_deep_message_is_stored_and_still_json_when_read(server: Server) -> None:
    stream, depth = server.stream(), 900
    await stream.put(kind=JSON)
    message = b'{"a":[' * (depth // 2) + b"1" + b"]}" * (depth // 2)
    assert (await stream.post(message, JSON)).status == 204
    assert (await stream.get()).body == b"[" + message + b"]"


async def test_deepest_message_that_is_taken_can_be_read_by_the_same_parser(
    server: Server,
) -> None:
    stream = server.stream()
    await stream.put(kind=JSON)
    taken = 0
    for depth in range(1018, 1030):
        message = b'{"a":' * depth + b"1" + b"}" * depth
        taken += (await stream.post(message, JSON)).status == 204
    assert taken > 0
    # A read puts an array around it: one level more than what was checked.
    assert len(orjson.loads((await stream.get()).body)) == taken


async def test_number_that_no_double_holds_is_kept_or_refused_but_never_changed(
    server: Server,
) -> None:
    stream = server.stream()
    await stream.put(kind=JSON)
    taken = (await stream.post(b"1e400", JSON)).status == 204
    assert (await stream.get()).body == (b"[1e400]" if taken else b"[]")


async def test_empty_array_creates_an_empty_stream(server: Server) -> None:
    stream = server.stream()
    created = await stream.put(b" [ ] ", JSON)
    assert created.status == 201
    for answer in (
        await stream.get(),
        await stream.at("-1"),
        await stream.at("now"),
        await stream.at(created.next),
    ):
        assert (answer.body, answer.up_to_date, answer.next) == (b"[]", True, created.next)
    assert (await stream.post(b"[]", JSON)).status == 400


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON"])
async def test_parameters_and_case_of_the_type_leave_json_mode_on(
    server: Server, kind: str
) -> None:
    stream = server.stream()
    await stream.put(b"[1,2]", kind)
    await stream.post(b"3", JSON)
    assert (await stream.get()).body == b"[1,2,3]"


@pytest.mark.parametrize("kind", ["application/vnd.api+json", "text/json", "application/ndjson"])
async def test_types_that_only_resemble_json_are_bytes(server: Server, kind: str) -> None:
    stream = server.stream()
    await stream.put(kind=kind)
    assert (await stream.post(b"[1,", kind)).status == 204
    assert (await stream.get()).body == b"[1,"


async def test_every_offset_of_a_json_stream_reads_as_an_array_of_what_follows(
    server: Server,
) -> None:
    stream = server.stream()
    tokens = [(await stream.put(kind=JSON)).next]
    for n in range(6):
        batch = [{"n": n, "i": i} for i in range(n + 1)]
        tokens.append((await stream.post(orjson.dumps(batch), JSON)).next)
    everything = json.loads((await stream.get()).body)
    for n, offset in enumerate(tokens):
        for answer in (await stream.at(offset), await stream.poll(offset)):
            following = [message for message in everything if message["n"] >= n]
            assert (json.loads(answer.body) if answer.body else []) == following
