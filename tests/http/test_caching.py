"""What caches are told: lifetimes per kind of reply, entity tags, and 304."""

from __future__ import annotations

import aiohttp
import pytest
from multidict import CIMultiDictProxy

from shared.protocol.surrogate import surrogate_key
from tests.http.api import JSON, TEXT, ZERO_TOKEN, Server, moved
from tests.service import Service

TAIL = "public, max-age=1"


async def test_only_reads_may_be_kept(server: Server) -> None:
    stream = server.stream()
    for answer, tagged in (
        (await stream.put(), True),
        (await stream.put(), True),
        (await stream.post(b"x"), True),
        (await stream.head(), True),
        (await stream.at("now"), False),
        (await stream.close(), True),
        (await stream.at("now"), False),
        (await stream.delete(), False),
        (await stream.get(), False),
    ):
        assert answer.headers.getall("Cache-Control") == ["no-store"]
        # The tail's own tag, for If-Match: there are no bytes that it could stand for in a cache.
        closed = ":c" if answer.headers.get("Stream-Closed") else ""
        tag = f'"{answer.next}{closed}"' if tagged else None
        assert answer.headers.get("ETag") == tag
        assert "Vary" not in answer.headers


@pytest.mark.parametrize("kind", [TEXT, JSON])
async def test_read_that_reaches_the_tail_is_kept_shortly(server: Server, kind: str) -> None:
    stream = server.stream()
    start = (await stream.put(kind=kind)).next
    for _ in range(2):
        for query in ("", "offset=-1", f"offset={ZERO_TOKEN}", f"offset={start}"):
            answer = await stream.get(query)
            assert answer.headers.getall("Cache-Control") == [TAIL]
            assert answer.headers["ETag"].startswith('"')
            assert "Vary" not in answer.headers
        await stream.post(b"1", kind)


async def test_live_replies_have_lifetimes_of_their_own(server: Server) -> None:
    stream = server.stream()
    start = (await stream.put()).next
    tail = (await stream.post(b"data")).next
    got = await stream.poll("-1")
    assert (got.status, got.cache_control) == (200, TAIL)  # it may be another stream's soon
    got = await stream.poll(start)
    assert (got.status, got.cache_control) == (200, "public, max-age=5")
    waited = await stream.poll(tail)
    assert (waited.status, waited.cache_control) == (204, "public, max-age=1")
    assert "ETag" not in waited.headers
    # From `now` means another place each time.
    from_now = await stream.poll("now")
    assert (from_now.status, from_now.cache_control) == (204, "no-store")
    assert "ETag" not in from_now.headers
    await stream.close()
    for offset, control in ((tail, TAIL), ("now", "no-store")):
        ended = await stream.poll(offset)
        assert (ended.status, ended.closed, ended.cache_control) == (204, True, control)
    async with stream.sse("-1") as events:
        assert events.reply.headers.getall("Cache-Control") == ["no-cache"]
        assert "ETag" not in events.reply.headers
        assert "Vary" not in events.reply.headers


async def test_every_read_names_its_stream_for_purges(server: Server) -> None:
    stream = server.stream()
    await stream.put(b"x")
    read = await stream.get()
    same = await stream.get(headers={"If-None-Match": read.headers["ETag"]})
    waited = await stream.poll(read.next)
    polled = await stream.poll("-1")
    assert [answer.status for answer in (read, same, waited, polled)] == [200, 304, 204, 200]
    heads = [answer.headers for answer in (read, same, waited, polled)]
    async with stream.sse("-1") as events:
        heads.append(events.reply.headers)
    key = surrogate_key(stream.path)
    assert [head.getall("Surrogate-Key") for head in heads] == [[key]] * 5
    assert [head.getall("Cache-Tag") for head in heads] == [[key]] * 5
    for answer in (await stream.head(), await stream.delete(), await stream.get()):
        assert "Surrogate-Key" not in answer.headers  # nobody keeps these


async def test_tag_changes_with_every_append_and_with_the_close(server: Server) -> None:
    stream = server.stream()
    tags = []
    await stream.put()
    for step in (b"a", b"b", b""):
        tags.append((await stream.get()).headers["ETag"])
        assert (await (stream.post(step) if step else stream.close())).status == 204
    tags.append((await stream.get()).headers["ETag"])
    assert len(set(tags)) == 4
    for old in tags[:-1]:
        answer = await stream.get(headers={"If-None-Match": old})
        assert (answer.status, answer.body, answer.closed) == (200, b"ab", True)
    assert (await stream.get(headers={"If-None-Match": tags[-1]})).status == 304


async def test_close_changes_the_tag_of_the_empty_read_at_the_tail(server: Server) -> None:
    stream = server.stream()
    tail = (await stream.put(b"data")).next
    tag = (await stream.at(tail)).headers["ETag"]
    assert (await stream.at(tail, {"If-None-Match": tag})).status == 304
    await stream.close()
    answer = await stream.at(tail, {"If-None-Match": tag})
    assert (answer.status, answer.body, answer.closed) == (200, b"", True)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        pytest.param("{tag}", 304, id="same"),
        pytest.param("W/{tag}", 304, id="weak"),
        pytest.param("*", 304, id="any"),
        pytest.param('"x", {tag}', 304, id="last-of-a-list"),
        pytest.param('{tag} , "x"', 304, id="first-of-a-list"),
        pytest.param('W/"x",W/{tag}', 304, id="weak-in-a-list"),
        pytest.param('"x"', 200, id="other"),
        pytest.param('"x", W/"y"', 200, id="list-of-others"),
        pytest.param("", 200, id="empty"),
        pytest.param("{bare}", 200, id="without-quotes"),
        pytest.param('"*"', 200, id="quoted-star"),
    ],
)
async def test_if_none_match(server: Server, sent: str, status: int) -> None:
    stream = server.stream()
    await stream.put(b"data")
    plain = await stream.get()
    tag = plain.headers["ETag"]
    header = sent.format(tag=tag, bare=tag.strip('"'))
    answer = await stream.get(headers={"If-None-Match": header})
    assert answer.status == status
    assert answer.body == (b"" if status == 304 else b"data")
    # A 304 says all that a cache must know to go on with what it has.
    for name in ("ETag", "Cache-Control", "Stream-Next-Offset", "Stream-Up-To-Date"):
        assert answer.headers[name] == plain.headers[name]


async def test_if_none_match_on_two_lines_is_one_list(server: Server) -> None:
    stream = server.stream()
    await stream.put(b"data")
    tag = (await stream.get()).headers["ETag"]
    answer = await stream.get(headers=[("If-None-Match", '"x"'), ("If-None-Match", tag)])
    assert answer.status == 304


async def test_if_none_match_means_nothing_from_now_and_at_errors(server: Server) -> None:
    stream = server.stream()
    star = {"If-None-Match": "*"}
    assert (await stream.get(headers=star)).status == 404
    await stream.put(b"data")
    assert (await stream.at("now", star)).status == 200
    assert (await stream.at("nonsense", star)).status == 400
    assert (await stream.get("offset=now&live=long-poll", star)).status == 204


async def test_tag_of_another_stream_with_the_same_bytes_does_not_match(server: Server) -> None:
    one, other = server.stream(), server.stream()
    await one.put(b"data")
    await other.put(b"data")
    tag = (await one.get()).headers["ETag"]
    assert (await other.get(headers={"If-None-Match": tag})).status == 200


async def test_tag_does_not_survive_a_new_stream_at_the_path(server: Server) -> None:
    stream = server.stream()
    await stream.put(b"data")
    tag = (await stream.get()).headers["ETag"]
    await stream.delete()
    await stream.put(b"atad")
    answer = await stream.get(headers={"If-None-Match": tag})
    assert (answer.status, answer.body) == (200, b"atad")


async def test_origin_and_edge_give_the_same_answers(
    patient_origin_service: Service,
    patient_edge_service: Service,
    session: aiohttp.ClientSession,
) -> None:
    origin = Server(patient_origin_service.url, session)
    edge = Server(patient_edge_service.url, session)
    stream = origin.stream()
    start = (await stream.put(kind=JSON)).next
    first = (await stream.post(b'{"n":1}', JSON)).next
    await stream.post(b'{"n":2}', JSON)
    for closing in (False, True):
        if closing:
            await stream.close()
        tag = (await stream.get()).headers["ETag"]
        for query, headers in (
            ("", {}),
            ("offset=-1", {}),
            (f"offset={ZERO_TOKEN}", {}),
            (f"offset={start}", {}),
            (f"offset={first}", {}),
            (f"offset={moved(first, 1)}", {}),
            ("offset=now", {}),
            ("offset=-1&live=long-poll&cursor=999999999", {}),
            (f"offset={first}&live=long-poll&cursor=999999999", {}),
            ("", {"If-None-Match": tag}),
            ("offset=0,1", {}),
            ("offset=9999999999999999_9999999999999999", {}),
            (f"offset={moved(start, 1_000_000)}", {}),
            ("live=sse", {}),
        ):
            target = f"{stream.target}?{query}"
            one = await origin.ask("GET", target, headers)
            other = await edge.ask("GET", target, headers)
            assert one.body == other.body, query
            assert one.status == other.status, query
            assert comparable(one.headers) == comparable(other.headers), query


def comparable(headers: CIMultiDictProxy[str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name not in ("Date", "Server")}
