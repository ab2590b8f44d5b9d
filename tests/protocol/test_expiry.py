"""When streams expire, and which expiries are any (PROTOCOL §5.1, §4.2)."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.protocol.errors import BadRequest
from shared.protocol.expiry import NEVER, Expiry, inherit_expiry, parse_expiry

CENTURY_S = 100 * 365 * 86_400


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("1", 1), ("3600", 3600), (str(CENTURY_S), CENTURY_S)],
)
def test_ttl_is_whole_seconds(text: str, seconds: int) -> None:
    assert parse_expiry(text, None) == Expiry(ttl_s=seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "abc",
        "-1",
        "-0",
        "+60",
        "00060",
        "00",
        "60.0",
        "60.5",
        ".5",
        "1e3",
        "3.6e3",
        "0x10",
        "1_000",
        " 60",
        "60 ",
        "60\n",
        "60s",
        "Infinity",
        "NaN",
        "٦٠",
        "²",
        str(CENTURY_S + 1),
        "9999999999",
        "18446744073709551615",
        "18446744073709551616",
        "9" * 400,
        "9" * 100_000,
    ],
    ids=lambda text: ascii(text[:24]),
)
def test_ttl_that_is_no_plain_number_in_range_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="Stream-TTL") as refused:
        parse_expiry(text, None)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize(
    ("text", "iso"),
    [
        ("2030-01-01T00:00:00Z", "2030-01-01T00:00:00+00:00"),
        ("2030-01-01t00:00:00z", "2030-01-01T00:00:00+00:00"),
        ("2030-01-01 00:00:00Z", "2030-01-01T00:00:00+00:00"),
        ("2030-01-01T00:00:00+00:00", "2030-01-01T00:00:00+00:00"),
        ("2030-01-01T00:00:00-00:00", "2030-01-01T00:00:00+00:00"),
        ("2030-01-01T05:30:00+05:30", "2030-01-01T00:00:00+00:00"),
        ("2029-12-31T16:00:00-08:00", "2030-01-01T00:00:00+00:00"),
        ("2030-01-01T23:59:00+23:59", "2030-01-01T00:00:00+00:00"),
        ("2030-01-01T00:00:00.5Z", "2030-01-01T00:00:00.500+00:00"),
        ("2030-01-01T00:00:00.123Z", "2030-01-01T00:00:00.123+00:00"),
        ("2030-01-01T00:00:00.123999999Z", "2030-01-01T00:00:00.123+00:00"),
        ("2030-01-01T00:00:00.000000000001Z", "2030-01-01T00:00:00+00:00"),
        ("2028-02-29T00:00:00Z", "2028-02-29T00:00:00+00:00"),
        ("1969-12-31T23:59:59.5Z", "1969-12-31T23:59:59.500+00:00"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00+00:00"),
        ("9999-12-31T23:59:59Z", "9999-12-31T23:59:59+00:00"),
    ],
)
def test_deadline_is_the_instant_that_the_timestamp_names(text: str, iso: str) -> None:
    expiry = parse_expiry(None, text)
    expected = datetime.fromisoformat(iso) - datetime(1970, 1, 1, tzinfo=UTC)
    assert expiry.expires_at_ms == expected // timedelta(milliseconds=1)
    assert expiry.expires_at == text
    assert expiry.ttl_s is None


@pytest.mark.parametrize(
    "text",
    ["9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59"],
)
def test_deadline_beyond_the_calendar_is_kept_or_refused(text: str) -> None:
    try:
        deadline_ms = parse_expiry(None, text).expires_at_ms
    except BadRequest:
        return
    assert deadline_ms is not None
    assert (deadline_ms > 0) == text.startswith("9")


@pytest.mark.parametrize(
    "text",
    [
        "2016-12-31T23:59:60Z",
        "2016-12-31T23:59:60.000Z",
        "2016-12-31T15:59:60-08:00",
        "2017-01-01T05:29:60+05:30",
    ],
)
def test_leap_second_is_a_timestamp_within_a_second_of_its_end(text: str) -> None:
    found_ms = parse_expiry(None, text).expires_at_ms
    end_ms = 1_483_228_800_000  # 2017-01-01T00:00:00Z
    assert found_ms is not None
    assert end_ms - 1000 <= found_ms <= end_ms


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("not-a-timestamp", id="words"),
        pytest.param("1893456000", id="unix-time"),
        pytest.param("2030-01-01", id="date-only"),
        pytest.param("2030-01-01T00:00:00", id="no-zone"),
        pytest.param("2030-01-01T00:00Z", id="no-seconds"),
        pytest.param("2030-01-01T00:00:00.Z", id="empty-fraction"),
        pytest.param("2030-01-01T00:00:00,5Z", id="comma-fraction"),
        pytest.param("2030-01-01T00:00:00+0000", id="basic-zone"),
        pytest.param("2030-01-01T00:00:00+00", id="short-zone"),
        pytest.param("2030-01-01T00:00:00+24:00", id="zone-hour"),
        pytest.param("2030-01-01T00:00:00+12:60", id="zone-minute"),
        pytest.param("2030-01-01T00:00:00-12:99", id="zone-minute-99"),
        pytest.param("2030-01-01T00:00:00 UTC", id="zone-name"),
        pytest.param("20300101T000000Z", id="basic-format"),
        pytest.param("2030-1-1T00:00:00Z", id="one-digit-month"),
        pytest.param("2030-13-01T00:00:00Z", id="month-13"),
        pytest.param("2030-00-01T00:00:00Z", id="month-0"),
        pytest.param("2030-02-29T00:00:00Z", id="no-leap-year"),
        pytest.param("2030-04-31T00:00:00Z", id="april-31"),
        pytest.param("2030-01-01T24:00:00Z", id="hour-24"),
        pytest.param("2030-01-01T00:60:00Z", id="minute-60"),
        pytest.param("2030-01-01T00:00:61Z", id="second-61"),
        pytest.param("2030-W01-1T00:00:00Z", id="week-date"),
        pytest.param("12030-01-01T00:00:00Z", id="five-digit-year"),
        pytest.param("-2030-01-01T00:00:00Z", id="negative-year"),
        pytest.param(" 2030-01-01T00:00:00Z", id="leading-space"),
        pytest.param("2030-01-01T00:00:00Z\n", id="newline"),
        pytest.param("2030-01-01T00:00:00Z, 2031-01-01T00:00:00Z", id="two"),
        pytest.param("٢٠٣٠-01-01T00:00:00Z", id="arabic-digits"),
        pytest.param("2" * 100_000, id="huge"),
    ],
)
def test_what_is_no_rfc3339_timestamp_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="Stream-Expires-At") as refused:
        parse_expiry(None, text)
    assert len(str(refused.value)) < 300


def test_ttl_and_deadline_together_are_refused() -> None:
    with pytest.raises(BadRequest, match="not both"):
        parse_expiry("60", "2030-01-01T00:00:00Z")


def test_neither_never_expires() -> None:
    assert parse_expiry(None, None) == NEVER
    assert NEVER.deadline_ms(touched_ms=5) is None


ZONES = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(
    st.datetimes(datetime(1971, 1, 1), datetime(9998, 1, 1), timezones=ZONES),
    st.integers(1, 9),
)
def test_any_instant_in_any_zone_and_precision_is_read(moment: datetime, digits: int) -> None:
    fraction = f"{moment.microsecond:06d}000"[:digits]
    text = f"{moment:%Y-%m-%dT%H:%M:%S}.{fraction}{moment:%z}"
    text = f"{text[:-2]}:{text[-2:]}"
    whole = moment.replace(microsecond=0) - datetime(1970, 1, 1, tzinfo=UTC)
    expected = whole // timedelta(milliseconds=1) + int(f"{fraction}000"[:3])
    assert parse_expiry(None, text).expires_at_ms == expected


@given(st.text(alphabet="0123456789-:+TtZz. ", max_size=40))
def test_any_text_is_a_timestamp_or_is_refused(text: str) -> None:
    with suppress(BadRequest):
        assert parse_expiry(None, text).expires_at == text


def test_window_slides_with_each_touch() -> None:
    window = Expiry(ttl_s=2)
    assert window.deadline_ms(touched_ms=1_500) == 3_500
    assert window.deadline_ms(touched_ms=3_499) == 5_499


def test_window_of_zero_is_over_at_once() -> None:
    assert Expiry(ttl_s=0).deadline_ms(touched_ms=7) == 7


def test_longest_window_is_far_from_where_dates_and_json_end() -> None:
    deadline_ms = Expiry(ttl_s=CENTURY_S).deadline_ms(touched_ms=253_402_300_799_000)
    assert deadline_ms is not None
    assert deadline_ms < 2**53


def test_deadline_does_not_move() -> None:
    deadline = Expiry(expires_at="2030-01-01T00:00:00Z", expires_at_ms=1_893_456_000_000)
    assert deadline.deadline_ms(touched_ms=10**15) == 1_893_456_000_000


Z = parse_expiry(None, "2030-01-01T00:00:00Z")
OFFSET = parse_expiry(None, "2030-01-01T01:00:00.000+01:00")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        pytest.param(NEVER, Expiry(), True, id="never"),
        pytest.param(Expiry(60), Expiry(60), True, id="ttl"),
        pytest.param(Z, OFFSET, True, id="one-instant-spelled-twice"),
        pytest.param(Expiry(60), Expiry(61), False, id="other-ttl"),
        pytest.param(Expiry(0), NEVER, False, id="ttl-zero-is-no-never"),
        pytest.param(Expiry(60), Z, False, id="ttl-and-deadline"),
        pytest.param(Z, NEVER, False, id="deadline-and-never"),
    ],
)
def test_expiries_are_the_same_if_they_end_alike(one: Expiry, other: Expiry, same: bool) -> None:
    assert one.same(other) is same
    assert other.same(one) is same


@pytest.mark.parametrize("source", [NEVER, Expiry(10), Z], ids=["never", "ttl", "deadline"])
@pytest.mark.parametrize("asked", [Expiry(0), Expiry(99_999), OFFSET], ids=["0", "ttl", "deadline"])
def test_fork_gets_what_it_asks_for(source: Expiry, asked: Expiry) -> None:
    assert inherit_expiry(source, asked) == asked


@pytest.mark.parametrize("source", [NEVER, Expiry(10), Z], ids=["never", "ttl", "deadline"])
def test_fork_that_asks_for_nothing_inherits(source: Expiry) -> None:
    assert inherit_expiry(source, NEVER) == source
