"""Every refusal has a status, a code and the headers that clients need (PROTOCOL §5)."""

import pytest

from shared.protocol import errors
from shared.protocol.errors import ProtocolError, Unavailable

REFUSALS: list[tuple[ProtocolError | Unavailable, int, str, dict[str, str]]] = [
    (errors.BadRequest("x"), 400, "bad_request", {}),
    (errors.InvalidOffset("x"), 400, "invalid_offset", {}),
    (errors.InvalidJson("x"), 400, "invalid_json", {}),
    (errors.EpochStart(5), 400, "epoch_start", {}),
    (errors.StaleEpoch(5, 4), 403, "stale_epoch", {"Producer-Epoch": "5"}),
    (errors.NotFound("a"), 404, "not_found", {}),
    (errors.MethodNotAllowed("PUT", "GET"), 405, "method_not_allowed", {"Allow": "GET"}),
    (errors.RequestTimeout("late"), 408, "request_timeout", {}),
    (errors.Conflict("x"), 409, "conflict", {}),
    (errors.ContentTypeMismatch("a/b", "c/d"), 409, "content_type_mismatch", {}),
    (
        errors.StreamClosed("7_8"),
        409,
        "stream_closed",
        {"Stream-Closed": "true", "Stream-Next-Offset": "7_8"},
    ),
    (
        errors.SequenceGap(1, 3),
        409,
        "sequence_gap",
        {"Producer-Expected-Seq": "1", "Producer-Received-Seq": "3"},
    ),
    (errors.SequenceRegression("b", "a"), 409, "sequence_regression", {}),
    (errors.Gone("x"), 410, "gone", {}),
    (errors.Trimmed("5_1", "5_7"), 410, "trimmed", {"Stream-Earliest-Offset": "5_7"}),
    (
        errors.TailMoved("7_8", '"7_8"'),
        412,
        "tail_moved",
        {"Stream-Next-Offset": "7_8", "ETag": '"7_8"'},
    ),
    (errors.BodyTooLarge(10, 11), 413, "body_too_large", {}),
    (errors.UnsupportedEncoding("gzip"), 415, "unsupported_encoding", {}),
    (errors.Unavailable("x", 7), 503, "unavailable", {"Retry-After": "7"}),
]


@pytest.mark.parametrize(
    ("error", "status", "code", "headers"),
    [pytest.param(*entry, id=type(entry[0]).__name__) for entry in REFUSALS],
)
def test_refusal_says_what_clients_need(
    error: ProtocolError | Unavailable, status: int, code: str, headers: dict[str, str]
) -> None:
    assert (error.status, error.code, error.headers()) == (status, code, headers)
    assert str(error)


def test_every_refusal_is_in_the_table_with_a_code_of_its_own() -> None:
    named = {
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, ProtocolError | Unavailable)
    } - {ProtocolError}
    assert named == {type(error) for error, *_ in REFUSALS}
    assert len({code for _, _, code, _ in REFUSALS}) == len(REFUSALS)


@pytest.mark.parametrize(
    ("error", "values"),
    [
        (errors.StaleEpoch(5, 4), ("5", "4")),
        (errors.EpochStart(3), ("3",)),
        (errors.SequenceGap(1, 3), ("1", "3")),
        (errors.SequenceRegression("b", "a"), ("'b'", "'a'")),
        (errors.ContentTypeMismatch("a/b", "c/d"), ("a/b", "c/d")),
        (errors.StreamClosed("7_8"), ("7_8",)),
        (errors.BodyTooLarge(10, 11), ("10", "11")),
        (errors.BodyTooLarge(10), ("10", "more")),
        (errors.UnsupportedEncoding("gzip"), ("gzip",)),
        (errors.MethodNotAllowed("PUT", "GET, HEAD"), ("PUT", "GET, HEAD")),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_message_gives_the_values(error: ProtocolError, values: tuple[str, ...]) -> None:
    assert all(value in str(error) for value in values)


def test_odd_characters_are_escaped_in_messages() -> None:
    for error in (
        errors.NotFound("a\udcff\n"),
        errors.SequenceRegression("\n", "\udcff"),
        errors.ContentTypeMismatch("a/b", "\r\n"),
        errors.UnsupportedEncoding("\udcff"),
    ):
        assert "\n" not in str(error)
        assert str(error).encode()
