"""Messages that carry their own offset, and all others untouched."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.protocol.jsonmode import flatten, wrap
from shared.protocol.stamp import stamp


def token_at(position: int) -> str:
    return f"@{position}"


@pytest.mark.parametrize(
    ("message", "stamped"),
    [
        pytest.param(
            {"headers": {"operation": "insert"}, "key": "k"},
            {"headers": {"operation": "insert", "offset": "@END"}, "key": "k"},
            id="change",
        ),
        pytest.param(
            {"headers": {"control": "reset", "x": 1}},
            {"headers": {"control": "reset", "x": 1, "offset": "@END"}},
            id="control",
        ),
        pytest.param(
            {"headers": {"control": "reset", "offset": "old"}},
            {"headers": {"control": "reset", "offset": "@END"}},
            id="offset-of-another-place",
        ),
    ],
)
def test_message_that_asks_for_it_gets_the_offset_of_its_end(
    message: object, stamped: object
) -> None:
    stored = b"1," + flatten(json.dumps([message]).encode()) + b"2,"
    expected = json.dumps(stamped).replace("END", str(100 + len(stored) - 2))
    assert json.loads(wrap(stamp(stored, 100, token_at))) == [1, json.loads(expected), 2]


@pytest.mark.parametrize(
    "body",
    [
        b'{"headers": {"operation": 1}}',
        b'{"headers": {"control": null}}',
        b'{"headers": {"other": "x"}}',
        b'{"headers": {}}',
        b'{"headers": ["operation"]}',
        b'{"headers": "operation"}',
        b'{"operation": "insert"}',
        b'{"value": {"headers": {"operation": "insert"}}}',
        b'[[{"headers": {"operation": "insert"}}]]',
        b'"operation"',
        b"null",
        b"1.00",
        b'{ "b" : 1.0, "a" : 1e2 }',
    ],
)
def test_every_other_message_keeps_its_bytes(body: bytes) -> None:
    stored = flatten(body)
    assert stamp(stored, 0, token_at) == stored


def test_no_messages_stay_no_messages() -> None:
    assert stamp(b"", 7, token_at) == b""


CHANGES = st.fixed_dictionaries(
    {"headers": st.fixed_dictionaries({"operation": st.text(max_size=5)}), "key": st.text()}
)


@given(st.lists(CHANGES | st.integers(-9, 9) | st.text(max_size=9), min_size=1), st.integers(0, 99))
def test_offsets_go_up_and_the_last_is_the_end_of_the_read(
    values: list[object], start: int
) -> None:
    stored = flatten(json.dumps(values).encode())
    found = json.loads(wrap(stamp(stored, start, token_at)))
    assert len(found) == len(values)
    offsets = [int(v["headers"]["offset"][1:]) for v in found if isinstance(v, dict)]
    assert offsets == sorted(set(offsets))
    if isinstance(found[-1], dict):
        assert offsets[-1] == start + len(stored)
    for value in found:
        if isinstance(value, dict):
            del value["headers"]["offset"]
    assert found == values


def test_numbers_that_do_not_fit_64_bits_keep_their_value() -> None:
    stored = flatten(
        b'{"headers": {"operation": "insert"}, "value": 123456789012345678901234567890}'
    )
    found = json.loads(wrap(stamp(stored, 0, token_at)))
    assert found[0]["value"] == 123456789012345678901234567890
