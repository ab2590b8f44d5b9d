"""What an append does, and which refusal comes first (PROTOCOL §5.2, §5.2.1)."""

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.protocol.append import Accepted, Append, Unchanged, decide_append
from shared.protocol.errors import (
    BadRequest,
    ContentTypeMismatch,
    EpochStart,
    Gone,
    InvalidJson,
    ProtocolError,
    SequenceGap,
    SequenceRegression,
    StaleEpoch,
    StreamClosed,
    TailMoved,
)
from shared.protocol.expiry import NEVER
from shared.protocol.precondition import IfMatch
from shared.protocol.producer import ProducerKey, ProducerState
from shared.protocol.stream import Ancestor, StreamState

TEXT = StreamState("a/b", 5, "text/plain", NEVER, created_ms=0, tail=10, last_seq="m")
JSON = replace(TEXT, content_type="application/json")
KNOWN = {"p": ProducerState(epoch=2, last_seq=3)}
PLAIN = Append("text/plain", b"hello")
CLOSER = ProducerKey("p", 2, 3)
CLOSED = replace(TEXT, closed=True, closed_by=CLOSER)


def accepted(state: StreamState, asked: Append) -> Accepted:
    outcome = decide_append(state, KNOWN, asked)
    assert isinstance(outcome, Accepted)
    return outcome


def unchanged(state: StreamState, asked: Append) -> Unchanged:
    outcome = decide_append(state, KNOWN, asked)
    assert isinstance(outcome, Unchanged)
    assert outcome.state is state
    return outcome


def test_append_moves_the_tail_and_nothing_else() -> None:
    outcome = accepted(TEXT, PLAIN)
    assert outcome == Accepted(replace(TEXT, tail=15), b"hello", None)


def test_append_to_a_fork_counts_from_the_inherited_tail() -> None:
    fork = replace(TEXT, lineage=(Ancestor(4, 10),))
    assert accepted(fork, PLAIN).state.tail_offset().token() == f"{5:016d}_{15:016d}"


@pytest.mark.parametrize(
    ("body", "stored"),
    [
        pytest.param(b'{"a": 1}', b'{"a": 1},', id="object"),
        pytest.param(b"[1,2]", b"1,2,", id="array-is-flattened"),
        pytest.param(b"[[1,2],[3]]", b"[1,2],[3],", id="one-level-only"),
        pytest.param(b"null", b"null,", id="null"),
    ],
)
def test_json_append_stores_messages(body: bytes, stored: bytes) -> None:
    outcome = accepted(JSON, Append("application/json", body))
    assert outcome.stored == stored
    assert outcome.state.tail == JSON.tail + len(stored)


@pytest.mark.parametrize(
    "content_type", ["text/plain", "TEXT/Plain", "text/plain; charset=utf-8", "text/plain ;x=y"]
)
def test_parameters_and_case_of_the_content_type_do_not_matter(content_type: str) -> None:
    assert accepted(TEXT, Append(content_type, b"x")).state.content_type == "text/plain"


@pytest.mark.parametrize("content_type", [None, "application/json", "text/plain"])
def test_close_without_data_ignores_the_content_type(content_type: str | None) -> None:
    outcome = accepted(TEXT, Append(content_type, b"", close=True))
    assert outcome == Accepted(replace(TEXT, closed=True), b"", None)


def test_append_and_close_are_one_step() -> None:
    outcome = accepted(TEXT, replace(PLAIN, close=True))
    assert outcome.state == replace(TEXT, tail=15, closed=True)
    assert outcome.stored == b"hello"


def test_producer_that_closes_is_remembered_as_the_closer() -> None:
    key = ProducerKey("p", 2, 4)
    outcome = accepted(TEXT, replace(PLAIN, close=True, producer=key))
    assert outcome.state.closed_by == key
    assert outcome.producer == ProducerState(2, 4)


def test_close_without_data_uses_up_a_producer_sequence_number() -> None:
    outcome = accepted(TEXT, Append(None, b"", close=True, producer=ProducerKey("p", 2, 4)))
    assert outcome.producer == ProducerState(2, 4)
    assert outcome.stored == b""


@pytest.mark.parametrize(
    ("last", "seq"),
    [
        pytest.param(None, "0", id="first"),
        pytest.param("09", "10", id="digits"),
        pytest.param("2", "20", id="longer"),
        pytest.param("B", "a", id="case-is-bytewise"),
        pytest.param("z", "é", id="beyond-ascii"),
        pytest.param("\uffff", "\U00010000", id="utf-8-order-not-utf-16"),
    ],
)
def test_stream_seq_that_grows_bytewise_is_taken(last: str | None, seq: str) -> None:
    outcome = accepted(replace(TEXT, last_seq=last), replace(PLAIN, stream_seq=seq))
    assert outcome.state.last_seq == seq


@pytest.mark.parametrize(
    ("last", "seq"),
    [
        pytest.param("10", "10", id="equal"),
        pytest.param("2", "10", id="numbers-do-not-count"),
        pytest.param("20", "2", id="prefix"),
        pytest.param("a", "B", id="case-is-bytewise"),
        pytest.param("\U00010000", "\uffff", id="utf-8-order-not-utf-16"),
    ],
)
def test_stream_seq_that_does_not_grow_is_refused(last: str, seq: str) -> None:
    with pytest.raises(SequenceRegression) as refused:
        decide_append(replace(TEXT, last_seq=last), {}, replace(PLAIN, stream_seq=seq))
    assert refused.value.status == 409


@given(st.text(), st.text())
def test_stream_seq_compares_as_its_utf8_bytes(last: str, seq: str) -> None:
    asked = replace(PLAIN, stream_seq=seq)
    if seq.encode() > last.encode():
        assert accepted(replace(TEXT, last_seq=last), asked).state.last_seq == seq
    else:
        with pytest.raises(SequenceRegression):
            decide_append(replace(TEXT, last_seq=last), {}, asked)


def test_append_without_stream_seq_keeps_the_last_one() -> None:
    assert accepted(TEXT, PLAIN).state.last_seq == "m"


def test_duplicate_changes_nothing_and_tells_the_highest_sequence_number() -> None:
    outcome = unchanged(TEXT, replace(PLAIN, producer=ProducerKey("p", 2, 1)))
    assert outcome.producer == ProducerState(2, 3)


def test_duplicate_is_found_before_its_stream_seq_is_a_regression() -> None:
    unchanged(TEXT, replace(PLAIN, producer=CLOSER, stream_seq="a"))


def test_duplicate_is_found_before_the_tail_has_moved() -> None:
    """It has moved by the very append that is repeated."""
    asked = replace(PLAIN, if_match=IfMatch(frozenset()))
    unchanged(TEXT, replace(asked, producer=CLOSER))
    unchanged(CLOSED, replace(asked, producer=CLOSER, close=True))
    unchanged(CLOSED, Append(None, b"", close=True, if_match=IfMatch(frozenset())))


@pytest.mark.parametrize("tails", [None, {TEXT.tail_offset().token(), "x"}])
def test_append_whose_tail_has_not_moved_is_taken(tails: set[str] | None) -> None:
    if_match = IfMatch(None if tails is None else frozenset(tails))
    assert accepted(TEXT, replace(PLAIN, if_match=if_match)).state.tail == 15
    assert accepted(TEXT, Append(None, b"", close=True, if_match=if_match)).state.closed


def test_refusal_of_a_tail_that_has_moved_tells_where_it_is() -> None:
    with pytest.raises(TailMoved) as refused:
        decide_append(TEXT, {}, replace(PLAIN, if_match=IfMatch(frozenset(("x",)))))
    tail = TEXT.tail_offset().token()
    assert refused.value.headers() == {"Stream-Next-Offset": tail, "ETag": f'"{tail}"'}
    with pytest.raises(TailMoved):
        decide_append(TEXT, {}, Append(None, b"", close=True, if_match=IfMatch(frozenset())))


def test_duplicate_that_asks_to_close_does_not_close() -> None:
    assert not unchanged(TEXT, replace(PLAIN, producer=CLOSER, close=True)).state.closed


@pytest.mark.parametrize(
    "body", [pytest.param(b"hello", id="same-body"), pytest.param(b"other", id="other-body")]
)
@pytest.mark.parametrize("content_type", ["text/plain", "application/json", None])
def test_closer_may_repeat_itself(body: bytes, content_type: str | None) -> None:
    asked = Append(content_type, body, close=True, producer=CLOSER, stream_seq="a")
    assert unchanged(CLOSED, asked).producer == KNOWN["p"]


def test_closer_may_repeat_a_close_without_data() -> None:
    unchanged(CLOSED, Append(None, b"", close=True, producer=CLOSER))


@pytest.mark.parametrize(
    "state", [pytest.param(CLOSED, id="by-producer"), pytest.param(TEXT, id="by-anybody")]
)
@pytest.mark.parametrize("content_type", [None, "image/png"])
def test_closing_a_closed_stream_is_fine(state: StreamState, content_type: str | None) -> None:
    closed = replace(state, closed=True)
    assert unchanged(closed, Append(content_type, b"", close=True)).producer is None


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param(PLAIN, id="append"),
        pytest.param(Append("text/plain", b""), id="empty"),
        pytest.param(replace(PLAIN, close=True), id="append-and-close"),
        pytest.param(replace(PLAIN, close=True, producer=ProducerKey("p", 2, 4)), id="next-seq"),
        pytest.param(replace(PLAIN, close=True, producer=ProducerKey("p", 2, 2)), id="earlier-seq"),
        pytest.param(replace(PLAIN, producer=ProducerKey("p", 3, 3)), id="other-epoch"),
        pytest.param(replace(PLAIN, producer=ProducerKey("q", 2, 3)), id="other-producer"),
    ],
)
def test_closed_stream_takes_nothing_more(asked: Append) -> None:
    with pytest.raises(StreamClosed) as refused:
        decide_append(CLOSED, KNOWN, asked)
    assert refused.value.status == 409
    assert refused.value.headers() == {
        "Stream-Closed": "true",
        "Stream-Next-Offset": CLOSED.tail_offset().token(),
    }


# Every way in which an append can be wrong, in order of precedence. Each entry changes stream and
# request so that exactly this is wrong with them; two entries make both wrong.
Case = tuple[StreamState, Append]
Wrong = Callable[[Case], Case]


def deleted(case: Case) -> Case:
    return replace(case[0], deleted=True), case[1]


def closed(case: Case) -> Case:
    return replace(case[0], closed=True), case[1]


def empty(case: Case) -> Case:
    return case[0], replace(case[1], body=b"")


def untyped(case: Case) -> Case:
    return case[0], replace(case[1], content_type=None)


def mistyped(case: Case) -> Case:
    return case[0], replace(case[1], content_type="image/png")


def not_json(case: Case) -> Case:
    return case[0], replace(case[1], body=b"{")


def no_messages(case: Case) -> Case:
    return case[0], replace(case[1], body=b"[]")


def stale(case: Case) -> Case:
    return case[0], replace(case[1], producer=ProducerKey("p", 1, 0))


def late_epoch(case: Case) -> Case:
    return case[0], replace(case[1], producer=ProducerKey("p", 3, 1))


def gap(case: Case) -> Case:
    return case[0], replace(case[1], producer=ProducerKey("p", 2, 5))


def regression(case: Case) -> Case:
    return case[0], replace(case[1], stream_seq="m")


def moved(case: Case) -> Case:
    return case[0], replace(case[1], if_match=IfMatch(frozenset((f"{5:016d}_{9:016d}",))))


REFUSALS: tuple[tuple[Wrong, type[ProtocolError], int], ...] = (
    (deleted, Gone, 410),
    (closed, StreamClosed, 409),
    (empty, BadRequest, 400),
    (untyped, BadRequest, 400),
    (mistyped, ContentTypeMismatch, 409),
    (not_json, InvalidJson, 400),
    (no_messages, InvalidJson, 400),
    (stale, StaleEpoch, 403),
    (late_epoch, EpochStart, 400),
    (gap, SequenceGap, 409),
    (regression, SequenceRegression, 409),
    (moved, TailMoved, 412),
)
# These say different things of the same header or body, so no request is wrong in both ways.
EXCLUSIVE = (
    {untyped, mistyped},
    {empty, not_json, no_messages},
    {stale, late_epoch, gap},
)
RIGHT: Case = (JSON, Append("application/json", b"1"))


@pytest.mark.parametrize(
    ("wrong", "refusal", "status"),
    [pytest.param(*entry, id=entry[0].__name__) for entry in REFUSALS],
)
def test_each_refusal_alone(wrong: Wrong, refusal: type[ProtocolError], status: int) -> None:
    with pytest.raises(ProtocolError) as refused:
        decide_append(wrong(RIGHT)[0], KNOWN, wrong(RIGHT)[1])
    assert type(refused.value) is refusal
    assert refused.value.status == status


PAIRS = [
    pytest.param(first, second, refusal, id=f"{first.__name__}-before-{second.__name__}")
    for (first, refusal, _), (second, _, _) in combinations(REFUSALS, 2)
    if not any({first, second} <= one for one in EXCLUSIVE)
]


@pytest.mark.parametrize(("first", "second", "refusal"), PAIRS)
def test_of_two_refusals_the_first_in_order_wins(
    first: Wrong, second: Wrong, refusal: type[ProtocolError]
) -> None:
    state, asked = first(second(RIGHT))
    with pytest.raises(ProtocolError) as refused:
        decide_append(state, KNOWN, asked)
    assert type(refused.value) is refusal


def test_refused_append_leaves_everything_as_it_was() -> None:
    producers = dict(KNOWN)
    with pytest.raises(SequenceRegression):
        decide_append(
            TEXT, producers, replace(PLAIN, producer=ProducerKey("p", 2, 4), stream_seq="a")
        )
    assert producers == KNOWN
