"""Queries: offsets that no server minted, parameters given twice, parameters of others."""

from __future__ import annotations

import pytest

from tests.http.api import JSON, Server, moved

HUGE = "9999999999999999_9999999999999999"


@pytest.mark.parametrize(
    "offset",
    [
        pytest.param("", id="empty"),
        pytest.param("0,1", id="comma"),
        pytest.param("%200", id="space-before"),
        pytest.param("-1%20", id="space-behind"),
        pytest.param("-1+", id="plus-is-a-space"),
        pytest.param("0%20-1", id="space-inside"),
        pytest.param("%00", id="nul"),
        pytest.param("-1%00", id="nul-behind"),
        pytest.param("-1%0a", id="newline-behind"),
        pytest.param("now%0d%0a", id="crlf-behind"),
        pytest.param("0000000000000000_0000000000000000%0a", id="token-and-newline"),
        pytest.param("../x", id="up"),
        pytest.param("a%2fb", id="slash"),
        pytest.param("a%3db", id="equals"),
        pytest.param("-2", id="minus-two"),
        pytest.param("0", id="zero"),
        pytest.param("NOW", id="upper-case-now"),
        pytest.param("-1_-1", id="negative-groups"),
        pytest.param("0_0", id="short-groups"),
        pytest.param("0000000000000000", id="one-group"),
        pytest.param("00000000000000000_0000000000000000", id="group-too-long"),
        pytest.param("0000000000000000_0000000000000000_0000000000000000", id="three-groups"),
        pytest.param("000000000000000a_0000000000000000", id="letter"),
        pytest.param("%EF%BC%90" * 16 + "_" + "%EF%BC%90" * 16, id="full-width-digits"),
        pytest.param("%ff", id="no-utf-8"),
        pytest.param("%zz", id="escape-is-no-hex"),
        pytest.param(HUGE, id="beyond-everything"),
        pytest.param("9" * 300, id="long"),
        pytest.param("9" * 7000, id="huge"),
    ],
)
async def test_offset_that_no_stream_minted_is_refused(server: Server, offset: str) -> None:
    stream = server.stream()
    await stream.put(b"data")
    for live in ("", "&live=long-poll", "&live=sse"):
        answer = await stream.get(f"offset={offset}{live}")
        assert (live, answer.status) == (live, 400)
        assert answer.refusal()[0] == "invalid_offset"


@pytest.mark.parametrize(
    "query",
    [
        "offset",
        "offset=-1&offset=-1",
        "offset=-1&live=sse&offset=now",
        "%6fffset=-1&offset=-1",
        "offset=-1&live=sse&live=sse",
        "offset=-1&live=sse&live=long-poll",
        "offset=now&live=long-poll&cursor=1&cursor=1",
        "live=long-poll",
        "live=sse",
        "offset=-1&live=",
        "offset=-1&live",
        "offset=-1&live=true",
        "offset=-1&live=SSE",
        "offset=-1&live=long-poll%20",
    ],
)
async def test_query_that_contradicts_itself_is_refused(server: Server, query: str) -> None:
    stream = server.stream()
    await stream.put(b"data")
    answer = await stream.get(query)
    assert answer.status == 400
    answer.refusal()


@pytest.mark.parametrize(
    "query",
    [
        "foo=bar",
        "foo=1&foo=2",
        "&&offset=-1&&",
        "=",
        "a=%zz&offset=-1",
        "a=%00%ff&offset=-1",
        "Offset=nonsense",
        "offset[]=nonsense",
        "offset=-1&LIVE=sse",
        "cursor=17",
        "zz=/../&offset=-1",
        "secret=" + "x" * 4000,
    ],
)
async def test_parameters_of_others_never_change_an_answer(server: Server, query: str) -> None:
    stream = server.stream()
    await stream.put(b"data")
    plain, answer = await stream.get("offset=-1"), await stream.get(query)
    assert (answer.status, answer.body) == (200, b"data")
    ignored = {"Date"}
    assert {k: v for k, v in answer.headers.items() if k not in ignored} == {
        k: v for k, v in plain.headers.items() if k not in ignored
    }


@pytest.mark.parametrize("method", ["PUT", "POST", "HEAD", "DELETE"])
async def test_query_of_a_write_means_nothing(server: Server, method: str) -> None:
    stream = server.stream()
    await stream.put(b"data")
    target = f"{stream.target}?offset=nonsense&offset=twice&live=never"
    body = b"more" if method == "POST" else None
    answer = await server.ask(method, target, {"Content-Type": "text/plain"}, body)
    assert answer.status == (200 if method in ("PUT", "HEAD") else 204)


async def test_offsets_of_another_stream_are_never_answered_with_data(server: Server) -> None:
    one, other = server.stream(), server.stream()
    await one.put(b"first")
    newer = (await other.put(b"second")).next
    assert (await one.at(newer)).status == 400
    assert (await other.at((await one.head()).next)).status == 410


@pytest.mark.parametrize("kind", ["text/plain", JSON])
async def test_offset_arithmetic_of_a_yjs_provider_works(server: Server, kind: str) -> None:
    stream = server.stream()
    await stream.put(kind=kind)
    tokens = [(await stream.post(b'"%d"' % n, kind)).next for n in range(4)]
    whole = (await stream.at("-1")).body
    # A snapshot holds all before an offset, and its reader adds 1 to read what came after: that
    # position is inside the next append, of which the reader has nothing yet.
    stepped = await stream.at(moved(tokens[0], 1))
    assert (stepped.status, stepped.next) == (200, tokens[-1])
    assert stepped.body == (await stream.at(tokens[0])).body
    assert len(stepped.body) < len(whole)
    # One beyond the tail of an open stream is no error, and the tail that it gets is the true one.
    beyond = await stream.at(moved(tokens[-1], 1))
    assert (beyond.status, beyond.next, beyond.up_to_date) == (200, tokens[-1], True)
    assert beyond.body == (b"[]" if kind == JSON else b"")
    # Two are: nobody gets there by a step.
    assert (await stream.at(moved(tokens[-1], 2))).status == 400
    waited = await stream.poll(moved(tokens[-1], 1))
    assert (waited.status, waited.next) == (204, tokens[-1])
