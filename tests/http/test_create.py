"""Creating: types, expiry, closure, Location, and asking twice."""

from __future__ import annotations

import asyncio

import pytest

from tests.http.api import BINARY, JSON, TEXT, Server, token
from tests.http.raw import connect

CENTURY_S = 100 * 365 * 86_400


@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "TEXT/Plain",
        "text/plain;charset=utf-8",
        "text/plain; charset=ISO-8859-1",
        'multipart/mixed; boundary="a b; c"',
        "application/vnd.api+json; version=1",
        "application/json; charset=UTF-8",
        "APPLICATION/JSON",
        "x-y/x.y+z",
        "text/html;",
    ],
)
async def test_content_type_comes_back_exactly(server: Server, kind: str) -> None:
    stream = server.stream()
    assert (await stream.put(kind=kind)).headers.getall("Content-Type") == [kind]
    assert (await stream.put(kind=kind)).headers.getall("Content-Type") == [kind]
    # However an append spells the type, the stream keeps its own.
    assert (await stream.post(b"1", kind.partition(";")[0].upper())).status == 204
    for answer in (
        await stream.get(),
        await stream.at("now"),
        await stream.head(),
        await stream.poll("-1"),
    ):
        assert answer.headers.getall("Content-Type") == [kind]


async def test_stream_without_content_type_is_binary(server: Server) -> None:
    stream = server.stream()
    assert (await stream.put(kind=None)).headers["Content-Type"] == BINARY
    assert (await stream.head()).headers["Content-Type"] == BINARY
    assert (await stream.put(kind=BINARY)).status == 200


@pytest.mark.parametrize(
    "kind",
    [
        "text",
        "text/",
        "/plain",
        "te xt/plain",
        "a/b/c",
        "text/plain, text/html",
        "text/plain\tx",
        "a/b;\u00e9",
        "*",
        "x" * 300 + "/y",
        "a/b;" + "c" * 300,
    ],
)
@pytest.mark.parametrize("method", ["PUT", "POST"])
async def test_malformed_content_type_is_refused(server: Server, method: str, kind: str) -> None:
    stream = server.stream()
    if method == "POST":
        await stream.put()
    answer = await server.ask(method, stream.target, {"Content-Type": kind}, b"x")
    assert answer.status == 400
    assert "Content-Type" in answer.refusal()[1]


@pytest.mark.parametrize("ttl", ["1", "60", "3600", str(CENTURY_S)])
async def test_ttl_comes_back_as_it_was_set(server: Server, ttl: str) -> None:
    stream = server.stream()
    assert (await stream.put(headers={"Stream-TTL": ttl})).status == 201
    assert (await stream.put(headers={"Stream-TTL": ttl})).status == 200
    assert (await stream.head()).headers["Stream-TTL"] == ttl


@pytest.mark.parametrize(
    "ttl",
    [
        *("", "-1", "+1", "01", "00", "1.0", "1e3", "0x10", "1 2", "1_0", "1s", "NaN", "\uff11"),
        *(str(CENTURY_S + 1), "9999999999", str(2**63), str(2**64 - 1), "9" * 5000),
    ],
    ids=lambda ttl: ttl[:24] or "empty",
)
async def test_ttl_out_of_form_or_range_is_refused(server: Server, ttl: str) -> None:
    stream = server.stream()
    answer = await stream.put(headers={"Stream-TTL": ttl})
    assert answer.status == 400
    assert answer.refusal()[0] == "bad_request"
    assert (await stream.head()).status == 404


@pytest.mark.parametrize(
    "expires_at",
    [
        "2099-01-02T03:04:05Z",
        "2099-01-02t03:04:05z",
        "2099-01-02T03:04:05.678Z",
        "2099-01-02T03:04:05.123456789+00:00",
        "2099-01-02T03:04:05-23:59",
        "2098-12-31T23:59:60Z",
        "2096-02-29T00:00:00Z",
        "9999-12-31T23:59:59Z",
        "9999-12-31T23:59:59-23:59",
    ],
)
async def test_expiry_instant_comes_back_as_it_was_written(server: Server, expires_at: str) -> None:
    stream = server.stream()
    assert (await stream.put(headers={"Stream-Expires-At": expires_at})).status == 201
    assert (await stream.put(headers={"Stream-Expires-At": expires_at})).status == 200
    assert (await stream.head()).headers["Stream-Expires-At"] == expires_at
    assert (await stream.get()).status == 200


@pytest.mark.parametrize(
    "expires_at",
    [
        "",
        "never",
        "0",
        "4102444800",
        "2099",
        "2099-01-02",
        "2099-01-02T03:04:05",
        "2099-01-02T03:04Z",
        "2099-1-2T3:4:5Z",
        "2099-13-01T00:00:00Z",
        "2099-02-30T00:00:00Z",
        "2097-02-29T00:00:00Z",
        "2099-01-01T24:00:00Z",
        "2099-01-01T00:60:00Z",
        "2099-01-01T00:00:61Z",
        "2099-01-01T00:00:00+24:00",
        "2099-01-01T00:00:00+0100",
        "2099-01-01T00:00:00.Z",
        "2099-01-01T00:00:00Z\tx",
        "99999-01-01T00:00:00Z",
        "0000-01-01T00:00:00Z",
        "-2099-01-01T00:00:00Z",
        "Tue, 01 Jan 2099 00:00:00 GMT",
        "\uff12099-01-01T00:00:00Z",
        "2" * 5000,
    ],
    ids=lambda text: text[:32] or "empty",
)
async def test_expiry_instant_that_is_none_is_refused(server: Server, expires_at: str) -> None:
    stream = server.stream()
    answer = await stream.put(headers={"Stream-Expires-At": expires_at})
    assert answer.status == 400
    answer.refusal()
    assert (await stream.head()).status == 404


async def test_ttl_beside_an_expiry_instant_is_refused(server: Server) -> None:
    both = {"Stream-TTL": "60", "Stream-Expires-At": "2099-01-01T00:00:00Z"}
    assert (await server.stream().put(headers=both)).status == 400


@pytest.mark.parametrize(
    "headers",
    [
        {"Stream-TTL": "0"},
        {"Stream-Expires-At": "2001-01-01T00:00:00Z"},
        {"Stream-Expires-At": "0001-01-01T00:00:00+23:59"},
    ],
    ids=["ttl-0", "long-ago", "before-all-time"],
)
async def test_stream_that_is_over_at_once_leaves_its_path_free(
    server: Server, headers: dict[str, str]
) -> None:
    stream = server.stream()
    first = await stream.put(b"gone", headers=headers)
    assert first.status == 201
    assert (await stream.get()).status == 404
    assert (await stream.head()).status == 404
    assert (await stream.post(b"x")).status == 404
    second = await stream.put(b"here")
    assert second.status == 201
    assert token(second.next)[0] > token(first.next)[0]
    assert (await stream.get()).body == b"here"


@pytest.mark.parametrize(
    ("first", "second", "status"),
    [
        pytest.param({}, {}, 200, id="same"),
        pytest.param({"Stream-TTL": "60"}, {}, 409, id="ttl-and-none"),
        pytest.param({}, {"Stream-TTL": "60"}, 409, id="none-and-ttl"),
        pytest.param({"Stream-TTL": "60"}, {"Stream-TTL": "61"}, 409, id="other-ttl"),
        pytest.param(
            {"Stream-TTL": "60"}, {"Stream-Expires-At": "2099-01-01T00:00:00Z"}, 409, id="kinds"
        ),
        pytest.param(
            {"Stream-Expires-At": "2099-01-01T00:00:00Z"},
            {"Stream-Expires-At": "2099-01-01T01:00:00.000+01:00"},
            200,
            id="same-instant",
        ),
        pytest.param(
            {"Stream-Expires-At": "2099-01-01T00:00:00Z"},
            {"Stream-Expires-At": "2099-01-01T00:00:00.001Z"},
            409,
            id="other-instant",
        ),
        pytest.param({"Stream-Closed": "true"}, {"Stream-Closed": "TRUE"}, 200, id="closed"),
        pytest.param({"Stream-Closed": "true"}, {}, 409, id="closed-and-open"),
        pytest.param({}, {"Stream-Closed": "true"}, 409, id="open-and-closed"),
        pytest.param({}, {"Stream-Closed": "false"}, 200, id="not-closed"),
    ],
)
async def test_create_again_succeeds_exactly_if_it_describes_what_is_there(
    server: Server, first: dict[str, str], second: dict[str, str], status: int
) -> None:
    stream = server.stream()
    created = await stream.put(b"body", headers=first)
    assert created.status == 201
    again = await stream.put(b"body", headers=second)
    assert again.status == status
    if status == 200:
        assert again.next == created.next
        assert again.closed == created.closed
        assert "Location" not in again.headers
    assert (await stream.get()).body == b"body"


async def test_concurrent_creates_make_one_stream(server: Server) -> None:
    stream = server.stream()
    answers = await asyncio.gather(*(stream.put(b"%d" % n) for n in range(16)))
    assert sorted(answer.status for answer in answers) == [200] * 15 + [201]
    assert (await stream.get()).body in {b"%d" % n for n in range(16)}


@pytest.mark.parametrize("value", ["true", "TRUE", "True", "tRuE"])
async def test_closure_is_recognised_in_any_case(server: Server, value: str) -> None:
    created, appended = server.stream(), server.stream()
    closing = {"Stream-Closed": value}
    assert (await created.put(b"all", headers=closing)).closed
    await appended.put()
    assert (await appended.post(b"all", headers=closing)).closed
    for stream in (created, appended):
        assert (await stream.head()).closed
        assert (await stream.get()).body == b"all"


@pytest.mark.parametrize("value", ["false", "FALSE", "yes", "1", "", "true,true", "truey", "on"])
async def test_closure_of_any_other_value_is_as_if_it_were_not_there(
    server: Server, value: str
) -> None:
    stream = server.stream()
    ignored = {"Stream-Closed": value}
    assert not (await stream.put(headers=ignored)).closed
    assert not (await stream.post(b"x", headers=ignored)).closed
    assert not (await stream.head()).closed
    # Without the close, an empty body is just empty.
    assert (await stream.post(b"", headers=ignored)).status == 400


@pytest.mark.parametrize(
    ("method", "name", "value"),
    [
        ("PUT", "Content-Type", TEXT),
        ("PUT", "Stream-TTL", "60"),
        ("PUT", "Stream-Expires-At", "2099-01-01T00:00:00Z"),
        ("PUT", "Stream-Closed", "true"),
        ("PUT", "Stream-Forked-From", "/v1/stream/x"),
        ("POST", "Content-Type", TEXT),
        ("POST", "Stream-Closed", "true"),
        ("POST", "Stream-Seq", "a"),
        ("POST", "Producer-Id", "p"),
        ("POST", "Producer-Epoch", "0"),
        ("POST", "Producer-Seq", "0"),
    ],
)
async def test_header_given_twice_is_refused(
    server: Server, method: str, name: str, value: str
) -> None:
    stream = server.stream()
    if method == "POST":
        await stream.put()
    others = {"Producer-Id": "p", "Producer-Epoch": "0", "Producer-Seq": "0"}
    headers = [("Content-Type", TEXT)] if name != "Content-Type" else []
    if name in others:
        headers += [(other, sent) for other, sent in others.items() if other != name]
    answer = await server.ask(method, stream.target, [*headers, (name, value), (name, value)], b"x")
    assert answer.status == 400
    assert name in answer.refusal()[1]


@pytest.mark.parametrize(
    ("headers", "begins"),
    [
        pytest.param("Host: streams.example\r\n", "http://streams.example/", id="host"),
        pytest.param("Host: a.example:8443\r\n", "http://a.example:8443/", id="port"),
        pytest.param(
            "Host: a.example\r\nX-Forwarded-Proto: https\r\n", "https://a.example/", id="https"
        ),
        pytest.param(
            "Host: a.example\r\nX-Forwarded-Proto: HTTPS\r\n", "https://a.example/", id="upper"
        ),
        pytest.param(
            "Host: a.example\r\nX-Forwarded-Proto: javascript\r\n", "http://a.example/", id="other"
        ),
    ],
)
async def test_location_begins_with_the_url_that_the_client_used(
    server: Server, headers: str, begins: str
) -> None:
    stream = server.stream()
    async with connect(server.url) as wire:
        head = f"PUT {stream.target} HTTP/1.1\r\n{headers}Content-Length: 0\r\n\r\n"
        await wire.send(head.encode())
        answer = await wire.reply()
    assert answer.status == 201
    assert answer.headers.getall("Location") == [begins + stream.target[1:]]


async def test_location_leaves_the_query_out(server: Server) -> None:
    stream = server.stream()
    answer = await server.ask("PUT", f"{stream.target}?token=secret", {"Content-Type": JSON})
    assert answer.headers["Location"] == f"{server.url}{stream.target}"
