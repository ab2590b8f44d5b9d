"""JSON mode: flattened one level, wrapped again, and not a byte of a message changed (§9.1)."""

import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.protocol import jsonmode
from shared.protocol.errors import InvalidJson
from shared.protocol.jsonmode import flatten, is_empty, join, message_ends, wrap

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.sampled_from(["[", "]", "{", "}", ",", '"', "\\", '\\"', '",', "\\\\", "[]", "\u2028"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
SPACE = st.text(alphabet=" \t\r\n", max_size=3)


@st.composite
def texts(draw: st.DrawFn) -> str:
    """Return some value as some writer would spell it."""
    return json.dumps(
        draw(VALUES),
        ensure_ascii=draw(st.booleans()),
        indent=draw(st.sampled_from([None, 0, 2, "\t"])),
        separators=draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,", " :\r\n")])),
    )


@st.composite
def arrays(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """Return an array with white space anywhere, and its messages."""
    messages = draw(st.lists(texts(), min_size=1, max_size=5))
    spaced = ",".join(draw(SPACE) + message + draw(SPACE) for message in messages)
    body = f"{draw(SPACE)}[{spaced}]{draw(SPACE)}"
    return body.encode(), [message.encode() for message in messages]


def split(stored: bytes) -> list[bytes]:
    """Return the stored messages as message_ends tells them apart."""
    ends = list(message_ends(stored))
    return [
        stored[start : end - 1].strip(b" \t\r\n")
        for start, end in zip([0, *ends], ends, strict=False)
    ]


@given(arrays())
def test_array_is_stored_as_its_messages_byte_for_byte(made: tuple[bytes, list[bytes]]) -> None:
    body, messages = made
    stored = flatten(body)
    assert split(stored) == messages
    assert list(message_ends(stored))[-1] == len(stored)
    assert json.loads(wrap(stored)) == json.loads(body)


@given(texts().filter(lambda text: not text.startswith("[")), SPACE, SPACE)
def test_value_that_is_no_array_is_one_message(text: str, before: str, after: str) -> None:
    stored = flatten(f"{before}{text}{after}".encode())
    assert stored == text.encode() + b","
    assert list(message_ends(stored)) == [len(stored)]


@given(st.lists(arrays(), min_size=1, max_size=5))
def test_appends_read_together_are_one_array_of_all_messages(
    made: list[tuple[bytes, list[bytes]]],
) -> None:
    stored = b"".join(flatten(body) for body, _ in made)
    expected: list[Any] = [value for body, _ in made for value in json.loads(body)]
    assert json.loads(wrap(stored)) == expected
    assert split(stored) == [message for _, messages in made for message in messages]


@given(arrays(), st.data())
def test_stored_messages_may_be_cut_after_any_message(
    made: tuple[bytes, list[bytes]], data: st.DataObject
) -> None:
    body, messages = made
    stored = flatten(body)
    count = data.draw(st.integers(0, len(messages)))
    cut = [0, *message_ends(stored)][count]
    values = json.loads(body)
    assert json.loads(wrap(stored[:cut])) == values[:count]
    assert json.loads(wrap(stored[cut:])) == values[count:]


@given(st.lists(arrays(), max_size=4), st.lists(st.sampled_from([b"[]", b" [ ]\n"]), max_size=3))
def test_joined_reads_are_one_array(
    made: list[tuple[bytes, list[bytes]]], empties: list[bytes]
) -> None:
    reads = [*empties, *(body for body, _ in made), *empties]
    joined = join(reads)
    assert json.loads(joined) == [value for read in reads for value in json.loads(read)]
    assert is_empty(joined) == (len(made) == 0)


def test_join_of_what_wrap_gave_is_what_wrap_gives_of_all() -> None:
    parts = [b"1,2,", b"", b'"a" ,', b"[3],"]
    assert json.loads(join(map(wrap, parts))) == json.loads(wrap(b"".join(parts)))


@pytest.mark.parametrize(
    ("body", "messages"),
    [
        pytest.param(b'{"event": "created"}', [b'{"event": "created"}'], id="object"),
        pytest.param(b"[[1,2], [3,4]]", [b"[1,2]", b"[3,4]"], id="two-arrays"),
        pytest.param(b"[[[1,2,3]]]", [b"[[1,2,3]]"], id="one-nested-array"),
        pytest.param(b"[[]]", [b"[]"], id="an-empty-array-is-a-message"),
        pytest.param(b"[{}]", [b"{}"], id="an-empty-object-is-a-message"),
        pytest.param(b'[""]', [b'""'], id="empty-string"),
        pytest.param(b'"[1,2]"', [b'"[1,2]"'], id="string-that-looks-like-an-array"),
        pytest.param(b'["a]","b\\",[","c\\\\"]', [b'"a]"', b'"b\\",["', b'"c\\\\"'], id="escapes"),
        pytest.param(b"[1.0,1E+2,-0,1e-400]", [b"1.0", b"1E+2", b"-0", b"1e-400"], id="numbers"),
        pytest.param(b"9" * 30, [b"9" * 30], id="number-beyond-64-bits"),
        pytest.param(
            b'{"b":1,"a":2,"b":3}', [b'{"b":1,"a":2,"b":3}'], id="keys-in-order-and-twice"
        ),
        pytest.param(
            b'["\\u00e9","\xc3\xa9"]', [b'"\\u00e9"', b'"\xc3\xa9"'], id="unicode-as-sent"
        ),
        pytest.param(b"\r\n\t 1 \r\n", [b"1"], id="space-around"),
        pytest.param(b'["\\u0000"]', [b'"\\u0000"'], id="escaped-nul"),
        pytest.param(b'"\x7f\xe2\x80\xa8"', [b'"\x7f\xe2\x80\xa8"'], id="line-separator"),
    ],
)
def test_messages_of_a_body(body: bytes, messages: list[bytes]) -> None:
    assert split(flatten(body)) == messages


REFUSED = [
    pytest.param(b"", id="nothing"),
    pytest.param(b" \n", id="space-only"),
    pytest.param(b"{", id="torn"),
    pytest.param(b"[1,2", id="torn-array"),
    pytest.param(b"[1,]", id="trailing-comma"),
    pytest.param(b"[,1]", id="leading-comma"),
    pytest.param(b"1,2", id="two-values-comma"),
    pytest.param(b"1 2", id="two-values"),
    pytest.param(b"[1][2]", id="two-arrays"),
    pytest.param(b'{"a":1}\n{"a":2}', id="ndjson"),
    pytest.param(b"'a'", id="single-quotes"),
    pytest.param(b"{a:1}", id="bare-key"),
    pytest.param(b"// c\n1", id="comment"),
    pytest.param(b"NaN", id="nan"),
    pytest.param(b"[Infinity]", id="infinity"),
    pytest.param(b"01", id="leading-zero"),
    pytest.param(b"+1", id="plus"),
    pytest.param(b"1.", id="no-fraction"),
    pytest.param(b'"\n"', id="raw-newline-in-string"),
    pytest.param(b'"\x00"', id="raw-nul-in-string"),
    pytest.param(b"1\x00", id="nul-after"),
    pytest.param(b"\x0c1", id="form-feed"),
    pytest.param(b"\xef\xbb\xbf1", id="byte-order-mark"),
    pytest.param(b'"\xff"', id="not-utf-8"),
    pytest.param(b'"\xc0\xaf"', id="overlong-utf-8"),
    pytest.param(b'"\xed\xa0\x80"', id="utf-8-surrogate"),
    pytest.param('"a"'.encode("utf-16"), id="utf-16"),
    pytest.param(b"[" * 100_000, id="deep-and-torn"),
    pytest.param(b"[" * 100_000 + b"]" * 100_000, id="deep"),
    # RFC 8259 §9 lets a parser bound range and content; these two could not be read back by ours.
    pytest.param(b"1e400", id="number-beyond-double"),
    pytest.param(b'"\\ud800"', id="lone-surrogate"),
]


@pytest.mark.parametrize("body", REFUSED)
@pytest.mark.parametrize("allow_empty", [False, True], ids=["append", "create"])
def test_what_is_no_json_is_refused(body: bytes, allow_empty: bool) -> None:
    with pytest.raises(InvalidJson) as refused:
        flatten(body, allow_empty=allow_empty)
    assert refused.value.status == 400
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    ("body", "told"),
    [
        pytest.param(b'["\xc3\xa9", "ab\xff"]', r"not UTF-8 at byte 10: b'\\xff\"\]'", id="utf-8"),
        pytest.param(b'"\xed\xa0\x80"', r"not UTF-8 at byte 1: b.\\xed\\xa0", id="lone-utf-8"),
        pytest.param(b'{"a":1,}', r"comma .* at character \d: ',\}|'\}'", id="comma"),
        pytest.param('["é", nope]'.encode(), r"'null' at character \d+: '.*pe\]'", id="word"),
        pytest.param(b"1 2", r"after document at character 2: '2'", id="two"),
        pytest.param(b"[1e400]", r"infinity .* at character 1: '1e400\]'", id="number"),
        pytest.param(b'["\\ud800"]', r"surrogate .* at character", id="lone-surrogate"),
        pytest.param(b"[" * 1025 + b"]" * 1025, r"depth limit .* at character 1025", id="deep"),
        pytest.param(b"x" * 10**6, r"at character 0: 'x{24}'$", id="long"),
        pytest.param(b"", "empty document at character 0: ''", id="nothing"),
    ],
)
def test_refusal_says_where_and_what(body: bytes, told: str) -> None:
    with pytest.raises(InvalidJson, match=told):
        flatten(body)


def nested(depth: int, opening: bytes = b"[", inner: bytes = b"1", closing: bytes = b"]") -> bytes:
    return opening * depth + inner + closing * depth


@pytest.mark.parametrize(
    ("body", "deepest"),
    [
        pytest.param(lambda depth: nested(depth), 1024, id="array-that-is-flattened"),
        pytest.param(lambda depth: nested(depth, b'{"a":', b"1", b"}"), 1023, id="object"),
        pytest.param(lambda depth: b"[1," + nested(depth) + b"]", 1023, id="message-of-an-array"),
    ],
)
def test_depth_is_bounded_so_that_what_is_stored_can_be_read(
    body: Callable[[int], bytes], deepest: int
) -> None:
    stored = flatten(body(deepest))
    assert orjson.loads(wrap(stored))
    with pytest.raises(InvalidJson, match="depth limit"):
        flatten(body(deepest + 1))


def test_values_of_one_append_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonmode, "_VALUES_MAX", 100)
    within = [b"0," * 99 + b"0", b'{"a":[]},' * 33 + b"1", b'"' + b",[{" * 100 + b'\\""']
    for inner in within:
        assert flatten(b"[" + inner + b" " * 300 + b"]") == inner + b","
    for inner in (b"0," * 100 + b"0", b"[]," * 60 + b"[]"):
        with pytest.raises(InvalidJson, match=r"1\d\d JSON values .* at most 100 "):
            flatten(b"[" + inner + b" " * 300 + b"]")


def test_looking_for_a_fault_takes_memory_within_a_bound() -> None:
    body = b"[" + b"[]," * (3 * 1024 * 1024) + b"0]"
    tracemalloc.start()
    try:
        with pytest.raises(InvalidJson, match="values"):
            flatten(body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * len(body)


@pytest.mark.parametrize("body", [b"[]", b" [ \n] "])
def test_empty_array_creates_and_appends_nothing(body: bytes) -> None:
    assert flatten(body, allow_empty=True) == b""
    with pytest.raises(InvalidJson, match="empty"):
        flatten(body)


def test_nothing_is_wrapped_as_an_empty_array() -> None:
    assert wrap(b"") == b"[]"
    assert join([]) == b"[]"
    assert list(message_ends(b"")) == []


@pytest.mark.parametrize(
    ("array", "empty"),
    [
        pytest.param(b"[]", True, id="ours"),
        pytest.param(b" [ \r\n\t] ", True, id="spaced"),
        pytest.param(b"[" + b" " * 2000 + b"]", True, id="much-space"),
        pytest.param(b"[0]", False, id="zero"),
        pytest.param(b"[[]]", False, id="empty-message"),
        pytest.param(b"[" + b" " * 2000 + b"1]", False, id="much-space-before-a-message"),
        pytest.param(b'["' + b" " * 2000 + b'"]', False, id="large-message"),
    ],
)
def test_body_of_a_read_is_empty_if_it_holds_no_message(array: bytes, empty: bool) -> None:
    assert is_empty(array) is empty


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"a" * 300_000, id="plain"),
        pytest.param(b"\\n" * 150_000, id="escapes"),
        pytest.param(b"a\\n" * 100_000, id="mixed"),
    ],
)
def test_finding_messages_takes_little_more_memory_than_the_messages(text: bytes) -> None:
    stored = b'"' + text + b'",'
    tracemalloc.start()
    try:
        assert list(message_ends(stored)) == [len(stored)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(stored)
