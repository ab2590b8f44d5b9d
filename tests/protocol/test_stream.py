"""Where reads start, and which creates describe the stream that is there (PROTOCOL §5.1, §8)."""

from dataclasses import replace

import pytest

from shared.protocol.errors import Conflict, Gone, InvalidOffset, ProtocolError, Trimmed
from shared.protocol.expiry import NEVER, Expiry, parse_expiry
from shared.protocol.offset import Offset, Start
from shared.protocol.retention import KEEP_ALL, Retention
from shared.protocol.stream import Ancestor, Create, ForkPoint, StreamState, ensure_same

ROOT = StreamState("a", 5, "text/plain", NEVER, created_ms=0, tail=10)
FORK = replace(ROOT, incarnation=9, lineage=(Ancestor(5, 10), Ancestor(7, 20)), tail=25)
FRESH_FORK = replace(ROOT, incarnation=9, lineage=(Ancestor(5, 10),), tail=10)


def test_read_of_a_trimmed_stream_starts_at_what_is_kept() -> None:
    state = replace(FORK, low=15)
    assert state.position_of(Start.BEGINNING) == 15
    assert state.position_of(Offset(7, 15)) == 15
    assert state.position_of(Offset(9, 22)) == 22
    for gone in (Offset(7, 14), Offset(5, 0)):
        with pytest.raises(Trimmed) as refused:
            state.position_of(gone)
        assert refused.value.headers() == {"Stream-Earliest-Offset": Offset(7, 15).token()}
    with pytest.raises(InvalidOffset):
        state.position_of(Offset(7, 5))


def test_kept_bytes_are_a_streams_own() -> None:
    assert (ROOT.kept, FORK.kept) == (10, 5)
    assert (replace(FORK, low=15).kept, replace(FORK, low=22).kept) == (5, 3)


@pytest.mark.parametrize(
    ("given", "same"), [(KEEP_ALL, True), (Retention(5), True), (Retention(6), False)]
)
def test_retention_that_is_left_out_is_as_it_is(given: Retention, same: bool) -> None:
    asked = Create("text/plain", NEVER, closed=False, body=b"", retention=given)
    state = replace(ROOT, retention=Retention(5))
    if same:
        ensure_same(state, asked)
    else:
        with pytest.raises(Conflict, match="retention"):
            ensure_same(state, asked)


@pytest.mark.parametrize(
    ("state", "start", "position"),
    [
        pytest.param(ROOT, Start.BEGINNING, 0, id="beginning"),
        pytest.param(ROOT, Start.NOW, 10, id="now"),
        pytest.param(ROOT, Offset(5, 0), 0, id="first"),
        pytest.param(ROOT, Offset(5, 4), 4, id="inside"),
        pytest.param(ROOT, Offset(5, 10), 10, id="tail"),
        pytest.param(ROOT, Offset(5, 11), 10, id="one-step-past-the-tail"),
        pytest.param(replace(ROOT, closed=True), Offset(5, 11), 10, id="one-step-past-the-end"),
        pytest.param(replace(ROOT, tail=0), Offset(5, 1), 0, id="one-step-past-nothing"),
        pytest.param(FORK, Start.BEGINNING, 0, id="fork-beginning"),
        pytest.param(FORK, Start.NOW, 25, id="fork-now"),
        pytest.param(FORK, Offset(5, 10), 10, id="first-seam"),
        pytest.param(FORK, Offset(7, 11), 11, id="in-the-second-ancestor"),
        pytest.param(FORK, Offset(7, 20), 20, id="fork-point"),
        pytest.param(FORK, Offset(9, 21), 21, id="own"),
        pytest.param(FORK, Offset(9, 26), 25, id="one-step-past-the-tail-of-a-fork"),
        # Clients that step over a message add 1 to the offset that they hold. At a seam that offset
        # names the ancestor, and the step leads out of it.
        pytest.param(FRESH_FORK, Offset(5, 11), 10, id="one-step-past-an-empty-fork"),
        pytest.param(FORK, Offset(7, 21), 21, id="one-step-past-the-fork-point"),
        pytest.param(FORK, Offset(5, 11), 11, id="one-step-past-an-older-seam"),
    ],
)
def test_read_starts_at(state: StreamState, start: Offset | Start, position: int) -> None:
    assert state.position_of(start) == position


@pytest.mark.parametrize(
    ("state", "offset", "refusal"),
    [
        pytest.param(ROOT, Offset(5, 12), InvalidOffset, id="two-past-the-tail"),
        pytest.param(ROOT, Offset(5, 10**16 - 1), InvalidOffset, id="far-past-the-tail"),
        pytest.param(ROOT, Offset(6, 0), InvalidOffset, id="a-later-stream"),
        pytest.param(ROOT, Offset(10**16 - 1, 10**16 - 1), InvalidOffset, id="all-nines"),
        pytest.param(ROOT, Offset(4, 0), Gone, id="an-earlier-life"),
        pytest.param(FORK, Offset(9, 27), InvalidOffset, id="two-past-the-tail-of-a-fork"),
        pytest.param(FORK, Offset(9, 19), InvalidOffset, id="own-before-the-fork-point"),
        pytest.param(FORK, Offset(7, 22), InvalidOffset, id="source-after-the-fork-point"),
        pytest.param(FORK, Offset(5, 15), InvalidOffset, id="root-after-its-seam"),
        pytest.param(FORK, Offset(7, 5), InvalidOffset, id="source-before-its-own-data"),
        pytest.param(FORK, Offset(6, 5), Gone, id="an-earlier-life-between-ancestors"),
        pytest.param(FORK, Offset(4, 5), Gone, id="an-earlier-life-before-all"),
        pytest.param(FORK, Offset(10, 0), InvalidOffset, id="a-later-stream-than-the-fork"),
    ],
)
def test_offset_that_was_never_minted_here_is_refused(
    state: StreamState, offset: Offset, refusal: type[ProtocolError]
) -> None:
    with pytest.raises(refusal) as refused:
        state.position_of(offset)
    assert offset.token() in str(refused.value)


def test_refusal_below_the_fork_point_does_not_speak_of_the_tail() -> None:
    with pytest.raises(InvalidOffset) as refused:
        FORK.position_of(Offset(9, 19))
    assert "beyond the tail" not in str(refused.value)


def test_own_data_begins_where_inherited_data_end() -> None:
    assert (ROOT.base, FORK.base) == (0, 20)


DEADLINE = parse_expiry(None, "2030-01-01T00:00:00Z")
SAME_DEADLINE = parse_expiry(None, "2030-01-01T01:00:00+01:00")
PLAIN = Create("text/plain", NEVER, closed=False, body=b"")
DEFAULT = replace(ROOT, content_type="application/octet-stream")
FORKED = replace(
    FRESH_FORK,
    expiry=Expiry(60),
    fork=ForkPoint("src", 5, 10, "0000000000000005_0000000000000008", 2, inherits_expiry=True),
)
ASKED_FORK = Create(
    None,
    NEVER,
    closed=False,
    body=b"",
    forked_from="src",
    fork_offset="0000000000000005_0000000000000008",
    fork_sub_offset=2,
)
TAIL_FORK = replace(FRESH_FORK, fork=ForkPoint("src", 5, 10, None, 0))


@pytest.mark.parametrize(
    ("state", "asked"),
    [
        pytest.param(ROOT, PLAIN, id="same"),
        pytest.param(ROOT, replace(PLAIN, content_type="TEXT/Plain;charset=utf-8"), id="type-case"),
        pytest.param(ROOT, replace(PLAIN, body=b"again"), id="body-does-not-matter"),
        pytest.param(DEFAULT, replace(PLAIN, content_type=None), id="default-type"),
        pytest.param(
            replace(ROOT, expiry=Expiry(60)), replace(PLAIN, expiry=Expiry(60)), id="same-ttl"
        ),
        pytest.param(
            replace(ROOT, expiry=DEADLINE), replace(PLAIN, expiry=SAME_DEADLINE), id="same-instant"
        ),
        pytest.param(replace(ROOT, closed=True), replace(PLAIN, closed=True), id="both-closed"),
        pytest.param(FORKED, ASKED_FORK, id="same-fork-that-inherits"),
        pytest.param(FORKED, replace(ASKED_FORK, content_type="text/plain"), id="fork-with-type"),
        pytest.param(FORKED, replace(ASKED_FORK, expiry=Expiry(60)), id="fork-with-same-ttl"),
        pytest.param(
            TAIL_FORK,
            replace(ASKED_FORK, fork_offset=None, fork_sub_offset=0),
            id="fork-at-the-tail-of-then",
        ),
    ],
)
def test_create_of_what_is_there_is_fine(state: StreamState, asked: Create) -> None:
    ensure_same(state, asked)


@pytest.mark.parametrize(
    ("state", "asked"),
    [
        pytest.param(replace(ROOT, deleted=True), PLAIN, id="deleted"),
        pytest.param(ROOT, replace(PLAIN, content_type="text/html"), id="other-type"),
        pytest.param(ROOT, replace(PLAIN, content_type=None), id="default-type"),
        pytest.param(ROOT, replace(PLAIN, expiry=Expiry(60)), id="ttl-on-none"),
        pytest.param(replace(ROOT, expiry=Expiry(60)), PLAIN, id="none-on-ttl"),
        pytest.param(
            replace(ROOT, expiry=Expiry(3600)), replace(PLAIN, expiry=Expiry(7200)), id="other-ttl"
        ),
        pytest.param(
            replace(ROOT, expiry=DEADLINE), replace(PLAIN, expiry=Expiry(60)), id="ttl-on-deadline"
        ),
        pytest.param(ROOT, replace(PLAIN, closed=True), id="closed-on-open"),
        pytest.param(replace(ROOT, closed=True), PLAIN, id="open-on-closed"),
        pytest.param(ROOT, replace(PLAIN, forked_from="src"), id="fork-on-plain"),
        pytest.param(TAIL_FORK, PLAIN, id="plain-on-fork"),
        pytest.param(FORKED, replace(ASKED_FORK, forked_from="other"), id="other-source"),
        pytest.param(
            FORKED,
            replace(ASKED_FORK, fork_offset="0000000000000005_0000000000000007"),
            id="other-fork-offset",
        ),
        pytest.param(FORKED, replace(ASKED_FORK, fork_sub_offset=3), id="other-sub-offset"),
        pytest.param(FORKED, replace(ASKED_FORK, fork_sub_offset=0), id="no-sub-offset"),
        pytest.param(FORKED, replace(ASKED_FORK, expiry=Expiry(61)), id="fork-with-other-ttl"),
        pytest.param(FORKED, replace(ASKED_FORK, content_type="text/html"), id="fork-other-type"),
        pytest.param(FORKED, replace(ASKED_FORK, closed=True), id="closed-on-open-fork"),
        pytest.param(replace(FORKED, closed=True), ASKED_FORK, id="open-on-closed-fork"),
    ],
)
def test_create_of_something_else_is_a_conflict(state: StreamState, asked: Create) -> None:
    with pytest.raises(Conflict) as refused:
        ensure_same(state, asked)
    assert refused.value.status == 409
