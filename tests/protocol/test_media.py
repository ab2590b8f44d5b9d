"""Content types: which are any, which are the same, which are text (PROTOCOL §5.8, §9)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.protocol.errors import BadRequest
from shared.protocol.media import essence, is_json, is_text, parse_content_type, same_type


@pytest.mark.parametrize(
    "text",
    [
        "text/plain",
        "TEXT/Plain",
        "application/vnd.api+json",
        "text/plain;charset=utf-8",
        "text/plain ; charset=utf-8",
        "text/plain\t; charset=utf-8",
        "text/plain;\tcharset=utf-8",
        'multipart/mixed; boundary="a;b, c"',
        "x/!#$%&'*+.^_`|~-",
        "text/plain;",
        "a/" + "b" * 254,
    ],
)
def test_content_type_comes_back_as_given(text: str) -> None:
    assert parse_content_type(text) == text


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("text", id="no-slash"),
        pytest.param("/plain", id="no-type"),
        pytest.param("text/", id="no-subtype"),
        pytest.param("text/plain/x", id="two-slashes"),
        pytest.param("text /plain", id="space"),
        pytest.param(" text/plain", id="leading-space"),
        pytest.param("text/plain charset=utf-8", id="no-semicolon"),
        pytest.param("text/plain, text/html", id="list"),
        pytest.param("text/plain; x=é", id="not-ascii"),
        pytest.param("text/plain\u2003", id="unicode-space"),
        pytest.param("text/plain\u00a0; x=y", id="no-break-space"),
        pytest.param("text/plain\n", id="newline"),
        pytest.param("text/plain\r\n", id="crlf"),
        pytest.param("text/plain\r\nX: y", id="header-injection"),
        pytest.param("text/plain\x0b", id="vertical-tab"),
        pytest.param("text/plain\x1f;x=y", id="unit-separator"),
        pytest.param("text/plain; x=\x00", id="nul"),
        pytest.param("text/plain;\n x=y", id="folded"),
        pytest.param("a/" + "b" * 255, id="too-long"),
    ],
)
def test_what_is_no_content_type_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="Content-Type"):
        parse_content_type(text)


@given(st.text())
def test_only_printable_ascii_is_ever_stored(text: str) -> None:
    try:
        kept = parse_content_type("text/plain" + text)
    except BadRequest:
        return
    assert kept.isascii()
    assert kept.replace("\t", " ").isprintable()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("text/plain", "TEXT/PLAIN", True),
        ("text/plain", "text/plain; charset=utf-8", True),
        ("text/plain ;a=b", "text/plain;c=d", True),
        ("text/plain", "text/html", False),
        ("application/json", "application/jsonl", False),
        ("application/json", "application/json-patch+json", False),
    ],
)
def test_types_are_the_same_but_for_case_and_parameters(one: str, other: str, same: bool) -> None:
    assert same_type(one, other) is same
    assert same_type(other, one) is same


@pytest.mark.parametrize(
    ("content_type", "json", "text"),
    [
        ("application/json", True, True),
        ("Application/JSON; charset=utf-8", True, True),
        ("text/plain", False, True),
        ("TEXT/event-stream", False, True),
        ("text/json", False, True),
        ("application/ndjson", False, False),
        ("application/vnd.api+json", False, False),
        ("application/octet-stream", False, False),
        ("application/x; a=text/plain", False, False),
        ("textual/plain", False, False),
        ("image/png", False, False),
    ],
)
def test_json_mode_and_text_are_told_by_the_bare_type(
    content_type: str, json: bool, text: bool
) -> None:
    assert is_json(content_type) is json
    assert is_text(content_type) is text


def test_essence_is_lower_case_without_parameters() -> None:
    assert essence("Text/Plain ; a=B") == "text/plain"
