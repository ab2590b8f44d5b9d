"""JSON messages out of arrays."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.client.failures import BadAnswer
from deploy.client.messages import lines_of_array


def messages(body: bytes) -> bytes:
    return b"".join(lines_of_array(body))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(b"[]", b"", id="none"),
        pytest.param(b" [ \n ] \n", b"", id="blank"),
        pytest.param(b"[1, 2.50 ,-3e-7]", b"1\n2.50\n-3e-7\n", id="numbers"),
        pytest.param(b'[true,false,null,""]', b'true\nfalse\nnull\n""\n', id="words"),
        pytest.param(b'["a,]}[{b", "c"]', b'"a,]}[{b"\n"c"\n', id="brackets in strings"),
        pytest.param(rb'["\"","\\","\\\"]"]', b'"\\""\n"\\\\"\n"\\\\\\"]"\n', id="escapes"),
        pytest.param(b'[{"b":1,"a":{}},[[]],{}]', b'{"b":1,"a":{}}\n[[]]\n{}\n', id="nested"),
        pytest.param(b"[[[[[[1]]],2]]]", b"[[[[[1]]],2]]\n", id="deep"),
        pytest.param(b'[{\r\n "a": [\n1 ]\n}]', b'{ "a": [1 ]}\n', id="lines inside"),
        pytest.param('["é"]'.encode(), '"é"\n'.encode(), id="beyond ASCII"),
    ],
)
def test_messages_come_one_a_line_as_they_are(body: bytes, expected: bytes) -> None:
    assert messages(body) == expected


@pytest.mark.parametrize(
    "body",
    [b'{"a":1}', b"1", b'"a"', b"[1", b"[1,]", b"[,1]", b'["a', b"]", b"[[1]", b"[1}", b"<html>"],
)
def test_what_is_no_array_is_refused(body: bytes) -> None:
    with pytest.raises(BadAnswer):
        messages(body)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=30,
)


@settings(deadline=None)
@given(st.lists(JSON_VALUES, max_size=6), st.booleans(), st.booleans())
def test_every_array_comes_apart_into_its_elements(
    values: list[object], ascii_only: bool, spaced: bool
) -> None:
    separators = (", ", ": ") if spaced else (",", ":")
    texts = [json.dumps(value, ensure_ascii=ascii_only, separators=separators) for value in values]
    body = "[" + ",\n".join(texts) + "]"
    assert messages(body.encode("utf-8", "surrogatepass")) == "".join(
        text + "\n" for text in texts
    ).encode("utf-8", "surrogatepass")
