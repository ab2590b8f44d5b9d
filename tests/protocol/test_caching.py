"""What caches may keep, and what brings them back (PROTOCOL §10)."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.protocol.caching import CachePolicy, Kind, etag, matches, start_of
from shared.protocol.expiry import NEVER, Expiry

POLICY = CachePolicy()
NOW_MS = 1_800_000_000_000
FOREVER = "public, max-age=31536000, immutable"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Kind.FULL, FOREVER),
        (Kind.FULL_AT_TAIL, "public, max-age=1"),
        (Kind.TAIL, "public, max-age=1"),
        (Kind.LIVE_DATA, "public, max-age=5"),
        (Kind.LIVE_EMPTY, "public, max-age=1"),
        (Kind.FROM_NOW, "no-store"),
        (Kind.SSE, "no-cache"),
    ],
    ids=lambda value: value.name if isinstance(value, Kind) else "",
)
def test_lifetime_of_each_kind_of_reply(kind: Kind, expected: str) -> None:
    assert POLICY.control(kind, NEVER, NOW_MS) == expected


def test_every_kind_has_a_lifetime() -> None:
    assert all(POLICY.control(kind, NEVER, NOW_MS) for kind in Kind)


def test_operator_sets_the_lifetimes_of_what_grows() -> None:
    policy = CachePolicy(tail="private, max-age=0", live_empty="no-store")
    assert policy.control(Kind.TAIL, NEVER, NOW_MS) == "private, max-age=0"
    assert policy.control(Kind.LIVE_EMPTY, NEVER, NOW_MS) == "no-store"
    assert policy.control(Kind.FULL, NEVER, NOW_MS) == FOREVER


def max_age(control: str) -> int:
    found = re.search(r"max-age=([0-9]+)", control)
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize(("ttl_s", "age"), [(0, 0), (1, 1), (59, 59), (60, 60), (10**9, 60)])
def test_chunk_of_a_sliding_window_is_kept_no_longer_than_it(ttl_s: int, age: int) -> None:
    control = POLICY.control(Kind.FULL, Expiry(ttl_s=ttl_s), NOW_MS)
    assert max_age(control) == age
    assert "immutable" not in control
    assert "stale" not in control


@pytest.mark.parametrize(
    ("left_ms", "age"), [(-5_000, 0), (0, 0), (999, 0), (1_000, 1), (59_999, 59), (10**12, 60)]
)
def test_chunk_is_kept_no_longer_than_the_deadline(left_ms: int, age: int) -> None:
    expiry = Expiry(expires_at="-", expires_at_ms=NOW_MS + left_ms)
    control = POLICY.control(Kind.FULL, expiry, NOW_MS)
    assert max_age(control) == age
    assert "immutable" not in control
    assert "stale" not in control


TOKENS = st.from_regex(r"[0-9]{16}_[0-9]{16}", fullmatch=True)


@given(TOKENS, TOKENS, st.booleans(), TOKENS, TOKENS, st.booleans())
def test_etag_tells_start_end_and_closure(
    start: str, end: str, closed: bool, start2: str, end2: str, closed2: bool
) -> None:
    one, other = etag(start, end, closed=closed), etag(start2, end2, closed=closed2)
    assert (one == other) == ((start, end, closed) == (start2, end2, closed2))
    # RFC 9110 §8.8.3: an opaque tag in quotes.
    assert re.fullmatch(r'"[\x21\x23-\x7e]*"', one)


def test_closing_changes_the_etag() -> None:
    assert etag("a", "b", closed=True) == '"a:b:c"'
    assert etag("a", "b", closed=False) == '"a:b"'


@pytest.mark.parametrize(
    ("if_none_match", "tag"),
    [
        pytest.param('"a"', '"a"', id="same"),
        pytest.param('W/"a"', '"a"', id="weak-asked"),
        pytest.param('"a"', 'W/"a"', id="weak-held"),
        pytest.param('W/"a"', 'W/"a"', id="both-weak"),
        pytest.param('"x", "a"', '"a"', id="in-a-list"),
        pytest.param('"x","a" ,W/"y"', '"a"', id="in-a-tight-list"),
        pytest.param('\t"a"\t', '"a"', id="white-space"),
        pytest.param("*", '"a"', id="any"),
        pytest.param(" * ", '"a"', id="any-spaced"),
        pytest.param('"a,b"', '"a,b"', id="comma-in-the-tag"),
        pytest.param('"x", "a,b"', '"a,b"', id="comma-in-a-listed-tag"),
    ],
)
def test_if_none_match_names_the_tag(if_none_match: str, tag: str) -> None:
    assert matches(if_none_match, tag)


@pytest.mark.parametrize(
    ("if_none_match", "tag"),
    [
        pytest.param(None, '"a"', id="not-asked"),
        pytest.param('"a"', None, id="no-tag"),
        pytest.param("*", None, id="any-of-none"),
        pytest.param("", '"a"', id="empty"),
        pytest.param('"b"', '"a"', id="another"),
        pytest.param('"a:c"', '"a"', id="closed-since"),
        pytest.param('"A"', '"a"', id="case"),
        pytest.param("a", '"a"', id="without-quotes"),
        pytest.param('w/"a"', '"a"', id="weak-is-upper-case"),
        pytest.param('"*"', '"a"', id="quoted-star"),
        pytest.param('"x, "a""', '"ab"', id="garbage"),
    ],
)
def test_if_none_match_does_not_name_the_tag(if_none_match: str | None, tag: str | None) -> None:
    assert not matches(if_none_match, tag)


@given(st.text(max_size=60))
def test_any_if_none_match_is_answered(text: str) -> None:
    assert matches(text, '"0_0:0_1"') in (True, False)


A, B = "0000000000000001_0000000000000007", "0000000000000001_0000000000000042"


@pytest.mark.parametrize(
    ("tag", "start"),
    [
        (etag(A, B, closed=False), A),
        (etag(A, B, closed=True), A),
        (etag(A, B, closed=False, last=True), A),
        (None, None),
        (f'W/"{A}:{B}"', None),
        (f'"{A}:{B}:x"', None),
        (f'"their {A}:{B}"', None),
        (f'"{A}"', None),
        ('"5d41402a"', None),
    ],
)
def test_tag_of_ours_tells_where_its_bytes_begin(tag: str | None, start: str | None) -> None:
    assert start_of(tag) == start
