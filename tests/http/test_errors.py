"""Every refusal: its status, what it says, and the headers that go with it."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from tests.http.api import JSON, TEXT, Answer, Server, Stream

PRODUCER = {"Producer-Id": "p", "Producer-Epoch": "1"}


@dataclass(frozen=True, slots=True)
class Case:
    """A request that is refused, and what its error says."""

    method: str
    status: int
    code: str
    names: str  # the value that the message must name
    stream: str = "open"
    query: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    kind: str | None = None


CASES = {
    "read-missing": Case("GET", 404, "not_found", "missing", "missing"),
    "append-missing": Case("POST", 404, "not_found", "missing", "missing", body=b"x", kind=TEXT),
    "close-missing": Case(
        "POST", 404, "not_found", "missing", "missing", headers={"Stream-Closed": "true"}
    ),
    "delete-missing": Case("DELETE", 404, "not_found", "missing", "missing"),
    "live-missing": Case("GET", 404, "not_found", "missing", "missing", "offset=-1&live=sse"),
    "poll-missing": Case(
        "GET", 404, "not_found", "missing", "missing", "offset=now&live=long-poll"
    ),
    "bad-offset": Case("GET", 400, "invalid_offset", "0,1", query="offset=0,1"),
    "bad-live": Case("GET", 400, "bad_request", "sometimes", query="offset=-1&live=sometimes"),
    "live-without-offset": Case("GET", 400, "bad_request", "offset", query="live=sse"),
    "offset-twice": Case("GET", 400, "bad_request", "offset", query="offset=-1&offset=-1"),
    "method": Case("PATCH", 405, "method_not_allowed", "PATCH", body=b"x", kind=TEXT),
    "empty-append": Case("POST", 400, "bad_request", "empty", kind=TEXT),
    "append-without-type": Case("POST", 400, "bad_request", "Content-Type", body=b"x"),
    "append-malformed-type": Case(
        "POST", 400, "bad_request", "nonsense", body=b"x", kind="nonsense"
    ),
    "append-other-type": Case(
        "POST", 409, "content_type_mismatch", "a/b", body=b"x", kind="a/b"
    ),
    "append-encoded": Case(
        "POST", 415, "unsupported_encoding", "br",
        headers={"Content-Encoding": "br"}, body=b"x", kind=TEXT,
    ),
    "create-encoded": Case(
        "PUT", 415, "unsupported_encoding", "gzip", "missing",
        headers={"Content-Encoding": "gzip"}, body=b"x", kind=TEXT,
    ),
    "append-to-closed": Case(
        "POST", 409, "stream_closed", "closed", "closed", body=b"x", kind=TEXT
    ),
    "bad-json": Case("POST", 400, "invalid_json", "JSON", "json", body=b"{", kind=JSON),
    "empty-array": Case("POST", 400, "invalid_json", "empty", "json", body=b"[]", kind=JSON),
    "create-bad-json": Case("PUT", 400, "invalid_json", "JSON", "missing", body=b"{", kind=JSON),
    "create-other-type": Case("PUT", 409, "conflict", TEXT, kind="a/b"),
    "create-other-ttl": Case("PUT", 409, "conflict", "60", "ttl", kind=TEXT),
    "create-closed": Case("PUT", 409, "conflict", "closed", "closed", kind=TEXT),
    "bad-ttl": Case("PUT", 400, "bad_request", "1e3", "missing", headers={"Stream-TTL": "1e3"}),
    "bad-expiry": Case(
        "PUT", 400, "bad_request", "soon", "missing", headers={"Stream-Expires-At": "soon"}
    ),
    "producer-alone": Case(
        "POST", 400, "bad_request", "Producer-Seq", headers=PRODUCER, body=b"x", kind=TEXT
    ),
    "producer-seq": Case(
        "POST", 400, "bad_request", "0x1",
        headers=PRODUCER | {"Producer-Seq": "0x1"}, body=b"x", kind=TEXT,
    ),
    "producer-gap": Case(
        "POST", 409, "sequence_gap", "7",
        headers=PRODUCER | {"Producer-Seq": "7"}, body=b"x", kind=TEXT,
    ),
    "stale-epoch": Case(
        "POST", 403, "stale_epoch", "0", "produced",
        headers=PRODUCER | {"Producer-Epoch": "0", "Producer-Seq": "0"}, body=b"x", kind=TEXT,
    ),
    "epoch-start": Case(
        "POST", 400, "epoch_start", "5", "produced",
        headers=PRODUCER | {"Producer-Epoch": "2", "Producer-Seq": "5"}, body=b"x", kind=TEXT,
    ),
    "stream-seq": Case(
        "POST", 409, "sequence_regression", "m", "produced",
        headers={"Stream-Seq": "k"}, body=b"x", kind=TEXT,
    ),
    "fork-missing": Case(
        "PUT", 404, "not_found", "nowhere", "missing",
        headers={"Stream-Forked-From": "/v1/stream/nowhere"},
    ),
    "fork-offset-alone": Case(
        "PUT", 400, "bad_request", "Stream-Forked-From", "missing",
        headers={"Stream-Fork-Offset": "-1"},
    ),
    "reserved": Case("PUT", 404, "not_found", "__ds", "__ds/jwks", kind=TEXT),
    "path": Case("PUT", 400, "bad_request", "..", "..", kind=TEXT),
    "gone": Case(
        "GET", 410, "gone", "0000000000000000_0000000000000001",
        query="offset=0000000000000000_0000000000000001",
    ),
    "registry-append": Case(
        "POST", 405, "method_not_allowed", "POST", "__registry__", body=b"{}", kind=JSON
    ),
    "registry-delete": Case("DELETE", 405, "method_not_allowed", "DELETE", "__registry__"),
    "registry-create": Case("PUT", 405, "method_not_allowed", "PUT", "__registry__", kind=JSON),
}  # fmt: skip


async def prepared(server: Server, name: str) -> Stream:
    """Return a stream in the state that a case asks for."""
    if name == "missing":
        return server.stream(f"missing-{server.stream().path}")
    if name.startswith(("__", ".")):
        return server.stream(name)
    stream = server.stream()
    kind = JSON if name == "json" else TEXT
    await stream.put(kind=kind, headers={"Stream-TTL": "60"} if name == "ttl" else {})
    if name == "produced":
        headers = PRODUCER | {"Producer-Seq": "0", "Stream-Seq": "m"}
        assert (await stream.post(b"x", headers=headers)).status == 200
    if name == "closed":
        await stream.close()
    return stream


def check_common(answer: Answer) -> None:
    assert answer.headers.getall("X-Content-Type-Options") == ["nosniff"]
    assert answer.headers.getall("Cross-Origin-Resource-Policy") == ["cross-origin"]
    assert answer.headers.getall("Access-Control-Allow-Origin") == ["*"]
    exposed = {name.strip() for name in answer.headers["Access-Control-Expose-Headers"].split(",")}
    assert {"Stream-Next-Offset", "Stream-Closed", "Retry-After", "Location"} <= exposed
    assert "Stream-SSE-Data-Encoding" in exposed
    assert "Vary" not in answer.headers


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
async def test_refusal_says_what_was_wrong_with_which_value(server: Server, case: Case) -> None:
    stream = await prepared(server, case.stream)
    headers = dict(case.headers)
    if case.kind is not None:
        headers["Content-Type"] = case.kind
    answer = await server.ask(case.method, f"{stream.target}?{case.query}", headers, case.body)
    assert answer.status == case.status, answer
    code, message = answer.refusal()
    assert code == case.code
    assert case.names in message
    check_common(answer)
    assert "Stream-Next-Offset" not in answer.headers or answer.closed


@pytest.mark.parametrize("name", ["missing", "__ds/x", ".."])
async def test_refused_head_has_the_headers_and_no_body(server: Server, name: str) -> None:
    stream = await prepared(server, name)
    answer = await stream.head()
    assert answer.status == (400 if name == ".." else 404)
    assert answer.body == b""
    assert answer.cache_control == "no-store"
    check_common(answer)


@pytest.mark.parametrize("method", ["PATCH", "TRACE", "PROPFIND"])
async def test_method_that_does_not_exist_is_refused_with_those_that_do(
    server: Server, method: str
) -> None:
    stream = await prepared(server, "open")
    answer = await server.ask(method, stream.target)
    assert answer.status == 405
    allowed = {name.strip() for name in answer.headers["Allow"].split(",")}
    assert allowed == {"GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS"}


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE"])
async def test_registry_takes_no_writes_and_says_what_it_takes(server: Server, method: str) -> None:
    answer = await server.ask(method, "/v1/stream/__registry__", {"Content-Type": JSON}, b"{}")
    assert answer.status == 405
    assert "GET" in answer.headers["Allow"]
    assert method not in answer.headers["Allow"]


async def test_security_headers_are_on_every_success_too(server: Server) -> None:
    stream = server.stream()
    answers = [
        await stream.put(),
        await stream.put(),
        await stream.post(b"x"),
        await stream.get(),
        await stream.at("now"),
        await stream.head(),
        await stream.poll("-1"),
        await stream.poll("now"),
        await stream.get(headers={"If-None-Match": "*"}),
        await stream.close(),
        await server.ask("OPTIONS", stream.target),
        await stream.delete(),
        await server.ask("GET", "/health"),
    ]
    statuses = [201, 200, 204, 200, 200, 200, 200, 204, 304, 204, 204, 204, 200]
    assert [answer.status for answer in answers] == statuses
    for answer in answers:
        check_common(answer)
