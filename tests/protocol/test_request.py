"""Requests become typed values, or are refused with what was wrong (PROTOCOL §4.1, §5)."""

from urllib.parse import quote, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from shared.protocol.errors import (
    BadRequest,
    InvalidOffset,
    NotFound,
    ProtocolError,
    UnsupportedEncoding,
)
from shared.protocol.expiry import NEVER, Expiry
from shared.protocol.precondition import IfMatch
from shared.protocol.producer import ProducerKey
from shared.protocol.request import (
    Live,
    Read,
    parse_append,
    parse_create,
    parse_path,
    parse_read,
)

PREFIX = "/v1/stream/"


def headers(*pairs: tuple[str, str], **named: str) -> CIMultiDict[str]:
    """Return request headers; underscores in names stand for dashes."""
    return CIMultiDict([*pairs, *((name.replace("_", "-"), text) for name, text in named.items())])


# --- paths --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        pytest.param("a", "a", id="one-segment"),
        pytest.param("a/b/c", "a/b/c", id="nested"),
        pytest.param("a%20b", "a b", id="space"),
        pytest.param("a+b", "a+b", id="plus-is-no-space"),
        pytest.param("%C3%A9", "é", id="utf-8"),
        pytest.param("é", "é", id="utf-8-unescaped"),
        pytest.param("%c3%a9", "é", id="lower-case-escapes"),
        pytest.param("%61", "a", id="needless-escape"),
        pytest.param("%252f", "%2f", id="escaped-once-only"),
        pytest.param("%3Fx%23y", "?x#y", id="question-mark-and-hash"),
        pytest.param(".hidden", ".hidden", id="leading-dot"),
        pytest.param("...", "...", id="three-dots"),
        pytest.param("a/..b/c..", "a/..b/c..", id="dots-in-a-segment"),
        pytest.param("__registry__", "__registry__", id="registry"),
        pytest.param("a/__ds", "a/__ds", id="reserved-name-further-down"),
        pytest.param("__dsx", "__dsx", id="reserved-name-continued"),
        pytest.param("a:b@c;d=e,f&g", "a:b@c;d=e,f&g", id="punctuation"),
        pytest.param("\U0001f600", "\U0001f600", id="emoji"),
        pytest.param("x" * 1024, "x" * 1024, id="longest"),
        pytest.param("%C3%A9" * 512, "é" * 512, id="longest-escaped"),
    ],
)
def test_path_is_what_is_below_the_prefix(raw: str, path: str) -> None:
    assert parse_path(PREFIX + raw, PREFIX) == path


@pytest.mark.parametrize(
    ("raw", "refusal"),
    [
        pytest.param("..", BadRequest, id="up"),
        pytest.param(".", BadRequest, id="here"),
        pytest.param("../x", BadRequest, id="up-first"),
        pytest.param("a/../b", BadRequest, id="up-between"),
        pytest.param("a/..", BadRequest, id="up-last"),
        pytest.param("a/./b", BadRequest, id="here-between"),
        pytest.param("%2e%2e/x", BadRequest, id="escaped-dots"),
        pytest.param("a/.%2E/b", BadRequest, id="half-escaped-dots"),
        pytest.param("..%2fx", BadRequest, id="escaped-slash"),
        pytest.param("a%2Fb", BadRequest, id="escaped-slash-upper"),
        pytest.param("a%5cb", BadRequest, id="escaped-backslash"),
        pytest.param("a%5Cb", BadRequest, id="escaped-backslash-upper"),
        pytest.param("a\\b", BadRequest, id="backslash"),
        pytest.param("a%00", BadRequest, id="nul"),
        pytest.param("a%0Ab", BadRequest, id="newline"),
        pytest.param("a%7f", BadRequest, id="delete"),
        pytest.param("a\x01", BadRequest, id="raw-control"),
        pytest.param("%", BadRequest, id="bare-percent"),
        pytest.param("a%2", BadRequest, id="short-escape"),
        pytest.param("a%zz", BadRequest, id="no-hex"),
        pytest.param("%ff", BadRequest, id="not-utf-8"),
        pytest.param("%c0%af", BadRequest, id="overlong-slash"),
        pytest.param("%c0%ae%c0%ae", BadRequest, id="overlong-dots"),
        pytest.param("%ed%a0%80", BadRequest, id="surrogate"),
        pytest.param("a\udcff", BadRequest, id="raw-byte-that-is-not-utf-8"),
        pytest.param("/", BadRequest, id="slash-only"),
        pytest.param("//a", BadRequest, id="two-slashes-first"),
        pytest.param("a//b", BadRequest, id="empty-segment"),
        pytest.param("a//", BadRequest, id="empty-last-segments"),
        pytest.param("x" * 1025, BadRequest, id="too-long"),
        pytest.param("%C3%A9" * 512 + "x", BadRequest, id="too-long-escaped"),
        pytest.param("é" * 513, BadRequest, id="too-long-in-bytes"),
        pytest.param("x" * 1_000_000, BadRequest, id="huge"),
        pytest.param("", NotFound, id="nothing"),
        pytest.param("__ds", NotFound, id="reserved"),
        pytest.param("__ds/subscriptions/x", NotFound, id="reserved-below"),
        pytest.param("%5F%5fds/x", NotFound, id="reserved-escaped"),
    ],
)
def test_path_that_is_none_is_refused(raw: str, refusal: type[ProtocolError]) -> None:
    with pytest.raises(ProtocolError) as refused:
        parse_path(PREFIX + raw, PREFIX)
    assert type(refused.value) is refusal
    assert len(str(refused.value)) < 800
    assert str(refused.value).encode()


@pytest.mark.parametrize("raw", ["/", "", "/v1/stream", "/v1/streams/a", "/V1/stream/a", "v1/x"])
def test_path_beside_the_prefix_is_not_found(raw: str) -> None:
    with pytest.raises(NotFound):
        parse_path(raw, PREFIX)


def test_any_prefix_will_do() -> None:
    assert parse_path("/a", "/") == "a"
    assert parse_path("/x/y/a/b", "/x/y/") == "a/b"


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=40))
def test_escaped_path_comes_back_or_is_refused(path: str) -> None:
    segments = path.split("/")
    odd = (
        not path
        or any(segment in (".", "..") for segment in segments)
        or "" in segments[:-1]
        or "\\" in path
        or any(ord(c) < 32 or ord(c) == 127 for c in path)
    )
    if odd:
        with pytest.raises((BadRequest, NotFound)):
            parse_path(PREFIX + quote(path), PREFIX)
    else:
        assert parse_path(PREFIX + quote(path), PREFIX) == path


@given(st.text(alphabet="%2eEfFcC05./\\a_ds", max_size=24))
def test_no_spelling_of_a_path_leads_out(raw: str) -> None:
    try:
        path = parse_path(PREFIX + raw, PREFIX)
    except (BadRequest, NotFound):
        return
    segments = path.split("/")
    assert "\\" not in path
    assert not {".", ".."} & set(segments)
    assert "" not in segments[:-1]
    assert segments[0] != "__ds"
    assert path.count("/") == raw.count("/")


# --- reads --------------------------------------------------------------------------------------

TOKEN = "0000000000000001_0000000000000002"


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        pytest.param("", Read("-1"), id="nothing"),
        pytest.param("offset=-1", Read("-1"), id="beginning"),
        pytest.param("offset=now", Read("now"), id="now"),
        pytest.param(f"offset={TOKEN}", Read(TOKEN), id="token"),
        pytest.param("offset=%2D1", Read("-1"), id="escaped"),
        pytest.param("%6Fffset=now", Read("now"), id="escaped-name"),
        pytest.param("offset=01J9.foreign~x", Read("01J9.foreign~x"), id="foreign-token"),
        pytest.param(
            f"offset={TOKEN}&live=long-poll&cursor=7", Read(TOKEN, Live.LONG_POLL, "7"), id="poll"
        ),
        pytest.param("live=sse&offset=-1", Read("-1", Live.SSE), id="sse-unsorted"),
        pytest.param("cursor=abc", Read("-1", None, "abc"), id="any-cursor"),
        pytest.param("offset=-1&foo=bar&baz=qux", Read("-1"), id="unknown"),
        pytest.param("foo=1&foo=2&offset=now", Read("now"), id="unknown-twice"),
        pytest.param("Offset=x,y&LIVE=z", Read("-1"), id="names-have-a-case"),
        pytest.param("&&offset=now&", Read("now"), id="empty-pieces"),
        pytest.param("%ff=%zz&offset=now", Read("now"), id="unknown-and-malformed"),
    ],
)
def test_read_is_parsed(query: str, expected: Read) -> None:
    assert parse_read(query, headers()) == expected


@pytest.mark.parametrize(
    ("query", "refusal"),
    [
        pytest.param("offset=", InvalidOffset, id="empty-offset"),
        pytest.param("offset", InvalidOffset, id="offset-without-value"),
        pytest.param("offset=0,1", InvalidOffset, id="comma"),
        pytest.param("offset=0%201", InvalidOffset, id="space"),
        pytest.param("offset=0+1", InvalidOffset, id="plus-is-a-space"),
        pytest.param("offset=%00", InvalidOffset, id="nul"),
        pytest.param(f"offset={TOKEN}%0A", InvalidOffset, id="newline"),
        pytest.param(f"offset={TOKEN}%0D%0A", InvalidOffset, id="crlf"),
        pytest.param("offset=..%2Fx", InvalidOffset, id="slash"),
        pytest.param("offset=a=b", InvalidOffset, id="equals"),
        pytest.param("offset=%ff", InvalidOffset, id="not-utf-8"),
        pytest.param("offset=\udcff", InvalidOffset, id="raw-byte"),
        pytest.param(f"offset={'1' * 257}", InvalidOffset, id="too-long"),
        pytest.param("offset=-1&offset=-1", BadRequest, id="offset-twice"),
        pytest.param("offset=-1&%6Fffset=now", BadRequest, id="offset-twice-escaped"),
        pytest.param("offset=-1&offset", BadRequest, id="offset-twice-once-empty"),
        pytest.param("offset=-1&cursor=1&cursor=1", BadRequest, id="cursor-twice"),
        pytest.param("offset=-1&live=sse&live=sse", BadRequest, id="live-twice"),
        pytest.param("live=long-poll", BadRequest, id="long-poll-without-offset"),
        pytest.param("live=sse&cursor=1", BadRequest, id="sse-without-offset"),
        pytest.param("offset=-1&live=", BadRequest, id="live-empty"),
        pytest.param("offset=-1&live=true", BadRequest, id="live-unknown"),
        pytest.param("offset=-1&live=SSE", BadRequest, id="live-has-a-case"),
        pytest.param("offset=-1&live=longpoll", BadRequest, id="live-misspelled"),
    ],
)
def test_read_that_is_malformed_is_refused(query: str, refusal: type[ProtocolError]) -> None:
    with pytest.raises(ProtocolError) as refused:
        parse_read(query, headers())
    assert type(refused.value) is refusal
    assert refused.value.status == 400
    assert str(refused.value).encode()


@given(st.dictionaries(st.text(min_size=1), st.text(), max_size=5))
def test_unknown_parameters_never_change_an_answer(extra: dict[str, str]) -> None:
    more = urlencode({k: v for k, v in extra.items() if k not in ("offset", "live", "cursor")})
    asked = parse_read("offset=now&live=sse", headers())
    assert parse_read(f"{more}&offset=now&live=sse&{more}", headers()) == asked


def test_if_none_match_lines_are_one_list() -> None:
    asked = parse_read("", headers(("If-None-Match", '"a"'), ("if-none-match", '"b", "c"')))
    assert asked.if_none_match == '"a", "b", "c"'
    assert parse_read("", headers()).if_none_match is None


# --- appends ------------------------------------------------------------------------------------


def test_append_is_parsed() -> None:
    asked = parse_append(
        headers(
            content_type="text/plain; charset=utf-8",
            stream_seq="0009",
            stream_closed="true",
            producer_id="p-1",
            producer_epoch="0",
            producer_seq="9007199254740991",
        ),
        b"x",
    )
    assert asked.content_type == "text/plain; charset=utf-8"
    assert asked.body == b"x"
    assert asked.close
    assert asked.producer == ProducerKey("p-1", 0, 2**53 - 1)
    assert asked.stream_seq == "0009"


def test_if_match_lines_are_one_list() -> None:
    asked = parse_append(headers(("If-Match", '"a"'), ("if-match", '"b:c"')), b"x")
    assert asked.if_match == IfMatch(frozenset(("a", "b")))
    assert parse_append(headers(if_match="*"), b"x").if_match == IfMatch(None)
    assert parse_append(headers(), b"x").if_match is None
    with pytest.raises(BadRequest, match="If-Match"):
        parse_append(headers(if_match="a"), b"x")


def test_bare_append_is_parsed() -> None:
    asked = parse_append(headers(), b"x")
    assert (asked.content_type, asked.close, asked.producer, asked.stream_seq) == (
        None,
        False,
        None,
        None,
    )


@pytest.mark.parametrize("content_type", ["application/json", "not a type", "", "\r\n"])
def test_content_type_of_nothing_is_ignored(content_type: str) -> None:
    asked = parse_append(headers(content_type=content_type, stream_closed="true"), b"")
    assert asked.content_type is None


@pytest.mark.parametrize("value", ["true", "TRUE", "True", "tRuE"])
def test_stream_closed_is_true_in_any_case(value: str) -> None:
    assert parse_append(headers(stream_closed=value), b"").close
    assert parse_create(headers(stream_closed=value), b"", PREFIX).closed


@pytest.mark.parametrize(
    "value", ["false", "yes", "1", "", "on", "truee", "true,true", '"true"', "\uff54rue", "\udcff"]
)
def test_any_other_stream_closed_is_as_if_it_were_not_there(value: str) -> None:
    assert not parse_append(headers(stream_closed=value), b"x").close
    assert not parse_create(headers(stream_closed=value), b"", PREFIX).closed


FULL = {"Producer-Id": "p", "Producer-Epoch": "0", "Producer-Seq": "0"}


@pytest.mark.parametrize(
    "missing",
    [
        ("Producer-Id",),
        ("Producer-Epoch",),
        ("Producer-Seq",),
        ("Producer-Id", "Producer-Epoch"),
        ("Producer-Id", "Producer-Seq"),
        ("Producer-Epoch", "Producer-Seq"),
    ],
    ids="-and-".join,
)
def test_producer_headers_come_together(missing: tuple[str, ...]) -> None:
    given_ones = [(name, text) for name, text in FULL.items() if name not in missing]
    with pytest.raises(BadRequest) as refused:
        parse_append(headers(*given_ones), b"x")
    assert all(name in str(refused.value) for name in missing)


@pytest.mark.parametrize("name", ["Producer-Epoch", "Producer-Seq"])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "-1",
        "-0",
        "+1",
        "01",
        "00",
        "1.0",
        "1e3",
        "1abc",
        "0xyz",
        "0x1",
        "1_0",
        " 1",
        "1\n",
        "\u0661",
        "²",
        "NaN",
        "9007199254740992",
        "9999999999999999",
        "18446744073709551616",
        "1" * 5000,
    ],
    ids=lambda text: ascii(text[:20]),
)
def test_producer_number_that_is_no_plain_integer_is_refused(name: str, text: str) -> None:
    with pytest.raises(BadRequest, match=name) as refused:
        parse_append(headers(*(FULL | {name: text}).items()), b"x")
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("text", ["", "p" * 257], ids=["empty", "too-long"])
def test_producer_id_of_a_bad_length_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="Producer-Id"):
        parse_append(headers(*(FULL | {"Producer-Id": text}).items()), b"x")


@pytest.mark.parametrize("text", ["p", "p" * 256, "order service/1", "é"])
def test_producer_id_is_any_text(text: str) -> None:
    asked = parse_append(headers(*(FULL | {"Producer-Id": text}).items()), b"x")
    assert asked.producer == ProducerKey(text, 0, 0)


@pytest.mark.parametrize("text", ["", "x" * 257, "\udcff"], ids=["empty", "too-long", "raw-byte"])
def test_stream_seq_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="Stream-Seq"):
        parse_append(headers(stream_seq=text), b"x")


@pytest.mark.parametrize("text", ["0", "x" * 256, "é", "a b"])
def test_stream_seq_is_any_text(text: str) -> None:
    assert parse_append(headers(stream_seq=text), b"x").stream_seq == text


@pytest.mark.parametrize("content_type", ["", "text", "not a type", "text/plain; x=é"])
def test_append_with_a_malformed_content_type_is_refused(content_type: str) -> None:
    with pytest.raises(BadRequest, match="Content-Type"):
        parse_append(headers(content_type=content_type), b"x")


APPEND_HEADERS = ["Content-Type", "Stream-Seq", "Stream-Closed", *FULL]
CREATE_HEADERS = [
    "Content-Type",
    "Stream-Closed",
    "Stream-TTL",
    "Stream-Expires-At",
    "Stream-Forked-From",
    "Stream-Fork-Offset",
    "Stream-Fork-Sub-Offset",
]


@pytest.mark.parametrize("name", APPEND_HEADERS)
def test_append_with_a_header_twice_is_refused(name: str) -> None:
    with pytest.raises(BadRequest, match=f"{name} is given twice"):
        parse_append(headers((name, "1"), (name.lower(), "1")), b"x")


@pytest.mark.parametrize("name", CREATE_HEADERS)
def test_create_with_a_header_twice_is_refused(name: str) -> None:
    with pytest.raises(BadRequest, match=f"{name} is given twice"):
        parse_create(headers((name, "1"), (name.lower(), "1")), b"", PREFIX)


@pytest.mark.parametrize("encoding", ["gzip", "br", "gzip, identity", "GZIP", "x", "\udcff"])
def test_encoded_body_is_refused(encoding: str) -> None:
    for parse in (
        lambda given: parse_append(given, b"x"),
        lambda given: parse_create(given, b"x", PREFIX),
    ):
        with pytest.raises(UnsupportedEncoding) as refused:
            parse(headers(content_encoding=encoding))
        assert str(refused.value).encode()


@pytest.mark.parametrize("encoding", ["identity", "Identity", " identity ", ""])
def test_body_as_it_is_needs_no_encoding(encoding: str) -> None:
    assert parse_append(headers(content_encoding=encoding), b"").body == b""


# --- creates ------------------------------------------------------------------------------------


def test_create_is_parsed() -> None:
    asked = parse_create(
        headers(
            content_type="Application/JSON; charset=utf-8",
            stream_ttl="60",
            stream_closed="true",
            stream_forked_from="/v1/stream/a%20b/c",
            stream_fork_offset=TOKEN,
            stream_fork_sub_offset="3",
        ),
        b"[1]",
        PREFIX,
    )
    assert asked.content_type == "Application/JSON; charset=utf-8"
    assert asked.expiry == Expiry(60)
    assert asked.closed
    assert asked.body == b"[1]"
    assert asked.forked_from == "a b/c"
    assert asked.fork_offset == TOKEN
    assert asked.fork_sub_offset == 3


def test_bare_create_is_parsed() -> None:
    asked = parse_create(headers(), b"", PREFIX)
    assert (asked.content_type, asked.expiry, asked.closed) == (None, NEVER, False)
    assert (asked.forked_from, asked.fork_offset, asked.fork_sub_offset) == (None, None, 0)


def test_sub_offset_zero_is_as_if_it_were_not_there() -> None:
    source = ("Stream-Forked-From", "/v1/stream/a")
    assert parse_create(headers(source, stream_fork_sub_offset="0"), b"", PREFIX) == (
        parse_create(headers(source), b"", PREFIX)
    )


@pytest.mark.parametrize(
    ("given_ones", "refusal"),
    [
        pytest.param({"Stream-Fork-Offset": TOKEN}, BadRequest, id="offset-without-source"),
        pytest.param({"Stream-Fork-Sub-Offset": "0"}, BadRequest, id="sub-offset-without-source"),
        pytest.param(
            {"Stream-Forked-From": "/v1/stream/a", "Stream-Fork-Sub-Offset": "1"},
            BadRequest,
            id="sub-offset-without-offset",
        ),
        pytest.param(
            {"Stream-Forked-From": "/v1/stream/a", "Stream-Fork-Offset": "0,1"},
            InvalidOffset,
            id="malformed-offset",
        ),
        pytest.param(
            {"Stream-Forked-From": "/v1/stream/a", "Stream-Fork-Offset": ""},
            InvalidOffset,
            id="empty-offset",
        ),
        pytest.param({"Stream-Forked-From": "/v1/stream/../a"}, BadRequest, id="source-up"),
        pytest.param({"Stream-Forked-From": "/v1/stream/a%2fb"}, BadRequest, id="source-slash"),
        pytest.param({"Stream-Forked-From": ""}, NotFound, id="empty-source"),
        pytest.param({"Stream-Forked-From": "a"}, NotFound, id="source-beside-the-prefix"),
        pytest.param(
            {"Stream-Forked-From": "http://h/v1/stream/a"}, NotFound, id="source-elsewhere"
        ),
        pytest.param({"Stream-TTL": "1", "Stream-Expires-At": "x"}, BadRequest, id="two-expiries"),
        pytest.param({"Stream-TTL": "18446744073709551615"}, BadRequest, id="huge-ttl"),
        pytest.param({"Stream-Expires-At": "tomorrow"}, BadRequest, id="no-timestamp"),
        pytest.param({"Content-Type": ""}, BadRequest, id="empty-type"),
        pytest.param({"Content-Type": "text"}, BadRequest, id="no-type"),
    ],
)
def test_create_that_is_malformed_is_refused(
    given_ones: dict[str, str], refusal: type[ProtocolError]
) -> None:
    with pytest.raises(ProtocolError) as refused:
        parse_create(headers(*given_ones.items()), b"", PREFIX)
    assert type(refused.value) is refusal


@pytest.mark.parametrize("text", ["", "-1", "abc", "1.5", "05", "+1", "1e1", "9007199254740992"])
def test_sub_offset_that_is_no_plain_integer_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="Stream-Fork-Sub-Offset"):
        parse_create(
            headers(
                stream_forked_from="/v1/stream/a",
                stream_fork_offset=TOKEN,
                stream_fork_sub_offset=text,
            ),
            b"",
            PREFIX,
        )


@given(
    st.lists(
        st.tuples(st.sampled_from([*APPEND_HEADERS, *CREATE_HEADERS]), st.text(max_size=20)),
        max_size=6,
    ),
    st.binary(max_size=3),
)
def test_any_headers_are_parsed_or_refused(pairs: list[tuple[str, str]], body: bytes) -> None:
    for parse in (
        lambda: parse_append(headers(*pairs), body),
        lambda: parse_create(headers(*pairs), body, PREFIX),
    ):
        message = ""
        try:
            parse()
        except ProtocolError as refused:
            message = str(refused)
        assert message.isprintable()
