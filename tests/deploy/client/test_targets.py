"""URLs, paths and tokens."""

from collections.abc import Sequence

import pytest

from deploy.client.failures import Usage
from deploy.client.running import Exit
from deploy.client.targets import redacted, stream_url
from tests.deploy.client.running import run, run_beside
from tests.deploy.client.script import Serve, refusal, reply, tail_of


@pytest.mark.parametrize(
    ("text", "base", "expected"),
    [
        ("http://h:1/x/y", "http://b/v1/stream/", "http://h:1/x/y"),
        ("foo/bar", "http://b:4437/v1/stream/", "http://b:4437/v1/stream/foo/bar"),
        ("foo", "http://b/v1/stream", "http://b/v1/stream/foo"),
        ("/other/foo", "http://b/v1/stream/", "http://b/other/foo"),
        (".hidden/x", "http://b/v1/stream/", "http://b/v1/stream/.hidden/x"),
        ("a b", "http://b/s/", "http://b/s/a%20b"),
        ("a%2Fb", "http://b/s/", "http://b/s/a%2Fb"),
        ("a#b", "http://b/s/", "http://b/s/a%23b"),
        ("é", "http://b/s/", "http://b/s/%C3%A9"),
        ("user:42", "http://b/s/", "http://b/s/user:42"),
        ("foo?key=1", "http://b/s/", "http://b/s/foo?key=1"),
    ],
)
def test_stream_is_named_by_url_or_by_path(text: str, base: str, expected: str) -> None:
    assert str(stream_url(text, base)) == expected


@pytest.mark.parametrize("base", ["host:4437", "", "http://", "http://h/s/?a=1", "file:///s/"])
def test_path_needs_a_base_that_is_a_url(base: str) -> None:
    with pytest.raises(Usage, match="http URL"):
        stream_url("foo", base)


async def test_path_is_taken_relative_to_the_environment(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = await serve(tail_of(b"data", "4"))
    monkeypatch.setenv("HEADWATER_URL", script.url.removesuffix("s"))
    assert (await run_beside("read", "s")).out == b"data"


async def test_token_is_sent_and_never_shown(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    script = await serve(refusal(401), refusal(403))
    monkeypatch.setenv("HEADWATER_TOKEN", "from-environment\n")
    first = await run_beside("read", script.url, "-v")
    second = await run_beside(
        "append", script.url, "x", "--token", "given", "--content-type", "a/b"
    )
    sent = [asked.headers["authorization"] for asked in script.asked]
    assert sent == ["Bearer from-environment", "Bearer given"]
    assert "environment" not in first.err
    assert "given" not in second.err


async def test_token_is_not_sent_to_another_server(serve: Serve) -> None:
    other = await serve(tail_of(b"data", "4"))
    script = await serve(reply(307, Location=other.url + "?offset=-1"))
    done = await run_beside("read", script.url, "--token", "secret")
    assert done.out == b"data"
    assert "authorization" in script.asked[0].headers
    assert "authorization" not in other.asked[0].headers


@pytest.mark.parametrize(
    "argv",
    [
        ["read", "http://user:secret@127.0.0.1:9/s?key=secret", "--retry-for", "0"],
        ["read", "http://user:secret@127.0.0.1:9/s/../t?key=secret"],
        ["read", "http://user:secret@127.0.0.1:9/s?key=secret", "--token", "secret"],
        ["read", "ftp://user:secret@127.0.0.1/s?key=secret"],
        ["read", "http://user:secret@127.0.0.1:9/s#secret"],
        ["read", "s", "--token", "sécret secret"],
    ],
)
def test_no_message_shows_a_secret(argv: Sequence[str]) -> None:
    done = run(*argv)
    assert done.code in (Exit.USAGE, Exit.UNAVAILABLE)
    assert "secret" not in done.err


def test_redacted_url_keeps_what_says_which_stream() -> None:
    assert redacted("http://u:p@h:1/a@b/c?k=v#f") == "http://h:1/a@b/c"
