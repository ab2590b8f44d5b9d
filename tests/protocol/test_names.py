"""Names of the protocol, and limits that hold together (PROTOCOL §8, §13.2)."""

from shared.protocol import names
from shared.protocol.offset import Offset

# PROTOCOL §13.2, but for the subscriptions, and the sub-offset of §4.2.
HEADERS = {
    "Stream-TTL",
    "Stream-Expires-At",
    "Stream-Seq",
    "Stream-Cursor",
    "Stream-Next-Offset",
    "Stream-Up-To-Date",
    "Stream-Closed",
    "Stream-Forked-From",
    "Stream-Fork-Offset",
    "Stream-Fork-Sub-Offset",
    "Stream-SSE-Data-Encoding",
    "Producer-Id",
    "Producer-Epoch",
    "Producer-Seq",
    "Producer-Expected-Seq",
    "Producer-Received-Seq",
}
# Ours, and documented as such.
EXTENSIONS = {"Stream-Retention-Age", "Stream-Retention-Bytes", "Stream-Earliest-Offset"}


def test_every_header_is_named() -> None:
    named = {
        value
        for value in vars(names).values()
        if isinstance(value, str) and value.startswith(("Stream-", "Producer-"))
    }
    assert named == HEADERS | EXTENSIONS


def test_known_query_parameters() -> None:
    assert set(names.KNOWN_QUERY) == {"offset", "live", "cursor"}


def test_sentinels_are_no_tokens_of_ours() -> None:
    assert {names.BEGINNING, names.NOW} == {"-1", "now"}
    assert len(Offset(0, 0).token()) < names.TOKEN_CHARS_MAX


def test_limits_stay_within_what_others_count_exactly() -> None:
    assert names.INTEGER_MAX == 9_007_199_254_740_991
    assert names.TTL_S_MAX * 1000 < names.INTEGER_MAX
    assert names.TOKEN_CHARS_MAX <= 256
