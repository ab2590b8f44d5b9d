"""Offset tokens: their form, their order, and what is none (PROTOCOL §8)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.protocol.errors import InvalidOffset
from shared.protocol.offset import (
    ZERO_TOKEN,
    Offset,
    Start,
    check_token,
    parse_offset,
    parse_start,
)

OFFSETS = st.builds(Offset, st.integers(0, 10**16 - 1), st.integers(0, 10**16 - 1))


def test_token_is_two_groups_of_sixteen_digits() -> None:
    assert Offset(12, 345).token() == "0000000000000012_0000000000000345"


@given(OFFSETS, OFFSETS)
def test_order_of_tokens_is_order_of_offsets(one: Offset, other: Offset) -> None:
    assert (one.token() < other.token()) == (one < other)
    assert (one.token() == other.token()) == (one == other)


@given(OFFSETS)
def test_token_parses_back(offset: Offset) -> None:
    token = offset.token()
    assert parse_offset(token) == offset
    assert check_token(token) == token
    assert not set(token) & set(",&=?/ +%#")
    assert token not in ("-1", "now")


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("-1", Start.BEGINNING),
        ("now", Start.NOW),
        ("0000000000000000_0000000000000000", Start.BEGINNING),
        ("0000000000000001_0000000000000000", Offset(1, 0)),
        ("9999999999999999_9999999999999999", Offset(10**16 - 1, 10**16 - 1)),
    ],
)
def test_read_starts_at_a_sentinel_or_an_offset(text: str, start: Offset | Start) -> None:
    assert parse_start(text) == start


def test_zero_token_is_the_one_that_other_servers_begin_with() -> None:
    assert ZERO_TOKEN == "0000000000000000_0000000000000000"


GOOD = "0000000000000001_0000000000000002"
# What no server may mint, so every entry refuses it.
FORBIDDEN = [
    pytest.param("", id="empty"),
    pytest.param("0,1", id="comma"),
    pytest.param("a&b", id="ampersand"),
    pytest.param("a=b", id="equals"),
    pytest.param("a?b", id="question-mark"),
    pytest.param("../x", id="slash"),
    pytest.param("0 1", id="space"),
    pytest.param(f" {GOOD}", id="leading-space"),
    pytest.param(f"{GOOD} ", id="trailing-space"),
    pytest.param(f"{GOOD}\n", id="newline"),
    pytest.param(f"{GOOD}\r\n", id="crlf"),
    pytest.param(f"{GOOD}\x00", id="nul"),
    pytest.param("\x7f", id="delete"),
    pytest.param("é", id="not-ascii"),
    pytest.param("\udcff", id="lone-surrogate"),
    pytest.param("1" * 257, id="too-long"),
]
# What another server may mint, and we do not.
FOREIGN = [
    "0",
    "abc",
    "NOW",
    "-2",
    "01J9ZQ4X5R",
    "0000000000000001",
    "0000000000000001-0000000000000002",
    "000000000000001_0000000000000002",
    "0000000000000001_00000000000000002",
    "00000000000000001_0000000000000002",
    "+000000000000001_0000000000000002",
    "0000000000000001_000000000000000a",
    f"{GOOD}_",
    f"{GOOD}_{GOOD}",
    "1" * 256,
]


@pytest.mark.parametrize("text", FORBIDDEN)
def test_forbidden_characters_are_refused_everywhere(text: str) -> None:
    for parse in (check_token, parse_offset, parse_start):
        with pytest.raises(InvalidOffset):
            parse(text)


@pytest.mark.parametrize("text", FOREIGN)
def test_foreign_token_passes_an_edge_and_no_origin(text: str) -> None:
    assert check_token(text) == text
    with pytest.raises(InvalidOffset):
        parse_start(text)


@pytest.mark.parametrize("text", ["-1", "now"])
def test_sentinels_are_no_offsets(text: str) -> None:
    assert check_token(text) == text
    with pytest.raises(InvalidOffset):
        parse_offset(text)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("\u0660" * 16 + "_" + "\u0660" * 16, id="arabic-digits"),
        pytest.param(f"{'0' * 16}\uff3f{'0' * 16}", id="full-width-underscore"),
    ],
)
def test_digits_are_ascii_digits(text: str) -> None:
    with pytest.raises(InvalidOffset):
        parse_offset(text)


@given(st.text())
def test_any_text_is_a_token_or_is_refused(text: str) -> None:
    forbidden = set(",&=?/")
    good = bool(text) and len(text) <= 256 and all("!" <= c <= "~" for c in text)
    if good and not set(text) & forbidden:
        assert check_token(text) == text
    else:
        with pytest.raises(InvalidOffset):
            check_token(text)


def test_refusal_shows_no_more_than_the_beginning_of_a_long_token() -> None:
    with pytest.raises(InvalidOffset) as refused:
        check_token("x" * 100_000)
    assert len(str(refused.value)) < 200
