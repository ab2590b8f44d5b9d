"""Messages that name their sender, and the check that they came back unchanged."""

import json
from collections.abc import Callable

import pytest

from loadtests.message import SIZE_MIN, Damaged, Shape, names, sign

PLAIN = Shape(size=40)
JSON = Shape(size=40, batch=3)


def test_plain_append_is_one_message_of_its_size() -> None:
    body = sign(PLAIN.template(), connection=7, number=12)
    assert body == b"000007.0000000012.000000.xxxxxxxxxxxxxxx"
    assert len(body) == 40


def test_json_append_is_an_array_of_messages_of_their_size() -> None:
    body = sign(JSON.template(), connection=7, number=12)
    messages = json.loads(body)
    assert [message[:24] for message in messages] == [
        f"000007.0000000012.{at:06d}" for at in range(3)
    ]
    assert len(body) == len("[") + 3 * 40 + 2 * len(",") + len("]")


@pytest.mark.parametrize("shape", [PLAIN, JSON, Shape(SIZE_MIN), Shape(SIZE_MIN, 1)])
def test_what_is_read_back_names_every_append(shape: Shape) -> None:
    sent = [(3, 0), (4, 0), (3, 1)]
    stored = b"".join(shape.decode(sign(shape.template(), *one)) for one in sent)
    assert list(names(shape, [stored])) == sent
    pieces = [stored[:7], stored[7:-9], b"", stored[-9:]]
    assert list(names(shape, pieces)) == sent


@pytest.mark.parametrize(
    ("shape", "damage"),
    [
        pytest.param(PLAIN, lambda good: good[:-1], id="cut"),
        pytest.param(PLAIN, lambda good: good[:-1] + b"y", id="another-byte"),
        pytest.param(PLAIN, lambda good: b"#" * 40, id="never-signed"),
        pytest.param(JSON, lambda good: good[38:76] + good[:38] + good[76:], id="batch-reordered"),
        pytest.param(JSON, lambda good: good[:76], id="batch-torn"),
    ],
)
def test_damage_is_found(shape: Shape, damage: Callable[[bytes], bytes]) -> None:
    good = shape.decode(sign(shape.template(), 1, 2))
    with pytest.raises(Damaged):
        list(names(shape, [damage(good)]))


@pytest.mark.parametrize(("size", "batch"), [(SIZE_MIN - 1, 0), (100, -1), (100, 1_000_001)])
def test_shape_that_cannot_be_named_is_refused(size: int, batch: int) -> None:
    with pytest.raises(ValueError):
        Shape(size, batch)
