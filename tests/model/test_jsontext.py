"""JSON text of others: what is accepted, every reader reads, and reads alike."""

import json
import math
import sys
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milepost.model.jsontext import JSONTextError, read_text
from milepost.model.jsonvalue import DEPTH_MAX, INTEGER_MAX, json_equal

REFUSED = [
    ("1e400", "payload: a number beyond"),
    ("-1e400", "payload: a number beyond"),
    ('{"a":[1,{"b":1e999}]}', "payload.a[1].b: a number beyond"),
    ("9" * 400, "payload: an integer"),
    ('{"rows":[0,' + "9" * 10_000 + "]}", "payload.rows[1]: an integer"),
    (str(INTEGER_MAX + 1), "payload: an integer"),
    ("NaN", "payload: NaN"),
    ("[Infinity]", "payload[0]: a number beyond"),
    ("[-Infinity]", "payload[0]: a number beyond"),
    ('"\\ud800"', "payload: text with a lone surrogate"),
    ('{"x":["\\udc00\\ud800"]}', "payload.x[0]: text with a lone surrogate"),
    ('{"\\ud800":1}', "payload: a name with a lone surrogate"),
    ('{"a":[{"\\ud800":1}]}', "payload.a[0]: a name with a lone surrogate"),
    ("[" * 201 + "]" * 201, f"nested more than {DEPTH_MAX} levels"),
    ("[" * 200 + "9" * 320 + "]" * 200, "an integer of more than 1,024 bits"),
    ('{"a":' * 201 + "1" + "}" * 201, f"nested more than {DEPTH_MAX} levels"),
    ("[" * 10_000 + "]" * 10_000, f"nested more than {DEPTH_MAX} levels"),
    ("[" * 100_000, f"nested more than {DEPTH_MAX} levels"),
    ("", "payload is not JSON"),
    (" ", "payload is not JSON"),
    ("{", "payload is not JSON"),
    ("{} {}", "payload is not JSON"),
    ("\ufeff{}", "payload is not JSON"),
    ("'a'", "payload is not JSON"),
    ('"\x01"', "payload is not JSON"),
    ('"\n"', "payload is not JSON"),
    ("01", "payload is not JSON"),
    ("1.", "payload is not JSON"),
    ("{a:1}", "payload is not JSON"),
    ("[1,]", "payload is not JSON"),
    ("undefined", "payload is not JSON"),
]
ACCEPTED = [
    "-0",
    "-0.0",
    "1e-400",
    "1e308",
    str(INTEGER_MAX),
    str(-INTEGER_MAX),
    str(2**64),
    "0." + "1" * 5000,
    '"\\u0000"',
    '"\x7f"',
    '"\\ud83d\\ude00"',
    '{"a":1,"a":2}',
    '{"__proto__":1,"constructor":{"prototype":2}}',
    "[" * DEPTH_MAX + "]" * DEPTH_MAX,
    '{"":[],"a":{}}',
    "  [ 1 ,\t2\r\n] ",
    '{"' + "k" * 100_000 + '":1}',
]


@pytest.mark.parametrize(("text", "message"), REFUSED, ids=lambda value: repr(value)[:30])
def test_what_some_reader_cannot_read_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(JSONTextError) as refusal:
        read_text(text, place="payload")
    assert message in str(refusal.value)
    assert len(str(refusal.value)) < 500


@pytest.mark.parametrize("text", ACCEPTED, ids=lambda text: text[:30])
def test_what_every_reader_can_read_is_accepted(text: str) -> None:
    assert json_equal(read_text(text, place="payload"), strictly_read(text))


def strictly_read(text: str | bytes) -> Any:
    """As a reader that knows JSON only, and its numbers as 64-bit floats, which is what browsers have."""

    def constant(name: str) -> Any:
        raise AssertionError(name)

    value = json.loads(text, parse_constant=constant)
    json.dumps(value, ensure_ascii=False).encode()
    assert _is_finite(value), text[:200]
    return value


def _is_finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list):
        return all(map(_is_finite, value))
    return not isinstance(value, int | float) or (abs(value) <= INTEGER_MAX and math.isfinite(value))


scraps = st.sampled_from(
    [
        "1",
        "-0",
        "1e400",
        "-1e-400",
        "9" * 320,
        "1" * 309,
        "1.5",
        "null",
        "true",
        "NaN",
        "Infinity",
        '""',
        '"a"',
        '"\\ud800"',
        '"\\ud83d\\ude00"',
        '"\\u0000"',
        '"\x00"',
        '"\ufeff"',
        "\ufeff",
        "",
        "x",
        '"\\x"',
    ]
)


def texts() -> st.SearchStrategy[str]:
    names = st.sampled_from(['"a"', '"a"', '"\\udfff"', '""', '"__proto__"', "a"])

    def grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        lists = st.lists(inner, max_size=3).map(lambda items: "[" + ",".join(items) + "]")
        members = st.tuples(names, inner).map(":".join)
        objects = st.lists(members, max_size=3).map(lambda items: "{" + ",".join(items) + "}")
        deep = st.tuples(st.integers(150, 260), inner).map(
            lambda pair: "[" * pair[0] + pair[1] + "]" * pair[0]
        )
        return lists | objects | deep

    return st.recursive(scraps, grown, max_leaves=6)


@given(texts())
@settings(max_examples=500, deadline=None)
def test_what_is_accepted_all_readers_read_alike(text: str) -> None:
    try:
        value = read_text(text, place="payload")
    except JSONTextError:
        return
    assert json_equal(value, strictly_read(text))
    assert json_equal(value, msgspec.json.decode(text))
    # As it stands inside of an answer, below whatever is around it there.
    assert json_equal(
        value, strictly_read('{"data":[{"run":{"payload":' + text + "}}]}")["data"][0]["run"]["payload"]
    )
    assert _depth(value) <= DEPTH_MAX < sys.getrecursionlimit() / 2


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0
