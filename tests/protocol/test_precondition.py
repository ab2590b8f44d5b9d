"""If-Match: which tags name a tail, and which are no tags."""

from dataclasses import replace

import pytest

from shared.protocol.caching import etag
from shared.protocol.errors import BadRequest
from shared.protocol.expiry import NEVER
from shared.protocol.precondition import IfMatch, parse_if_match, tail_tag
from shared.protocol.stream import StreamState

STATE = StreamState("s", 5, "text/plain", NEVER, 0, tail=10)
TAIL = STATE.tail_offset().token()
FIRST = STATE.offset_at(0).token()


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("*", id="any"),
        pytest.param(" * ", id="any-with-space"),
        pytest.param(tail_tag(STATE), id="tail"),
        pytest.param(tail_tag(replace(STATE, closed=True)), id="closed-tail"),
        pytest.param(etag(FIRST, TAIL, closed=False), id="read"),
        pytest.param(etag(FIRST, TAIL, closed=True), id="read-of-a-closed-stream"),
        pytest.param(etag(FIRST, TAIL, closed=False, last=True), id="read-of-a-full-chunk"),
        pytest.param(f'"a,b" , ,{tail_tag(STATE)},"c"', id="list"),
        pytest.param(f'W/"x", {tail_tag(STATE)}', id="beside-a-weak-one"),
    ],
)
def test_tag_that_names_the_tail_holds(text: str) -> None:
    assert parse_if_match(text).holds(STATE)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(f"W/{tail_tag(STATE)}", id="weak"),
        pytest.param(f'"{FIRST}"', id="earlier"),
        pytest.param(etag(TAIL, FIRST, closed=False), id="begins-there"),
        pytest.param(tail_tag(replace(STATE, incarnation=6)), id="another-life"),
        pytest.param(f'" {TAIL}", "{TAIL}0"'.replace('" ', '"x'), id="contains-it"),
        pytest.param('""', id="empty-tag"),
        pytest.param('"*"', id="quoted-star"),
        pytest.param(",", id="empty-list"),
        pytest.param('"c"', id="suffix-alone"),
    ],
)
def test_any_other_tag_does_not(text: str) -> None:
    assert not parse_if_match(text).holds(STATE)


@pytest.mark.parametrize(
    "text",
    ["", " ", TAIL, f"{tail_tag(STATE)} x", f'{tail_tag(STATE)}"', "*, *", 'w/"x"', '"a" "b"',
     '"a b"', ", " * 1000 + "x", '"x",' * 2000],
)  # fmt: skip
def test_what_is_no_list_of_tags_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="If-Match"):
        parse_if_match(text)


def test_fork_without_data_of_its_own_has_the_tail_of_its_source() -> None:
    assert IfMatch(None).holds(STATE)
    assert not IfMatch(frozenset()).holds(STATE)
