"""Values of `int`, `str` and `bool` are read and written without Pydantic, and come out as with it, rubbish included."""

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from milepost.client.codecs import _foreign_codec, codec_of
from milepost.model.typed import Misfit

KINDS = [int, str, bool]


def said(step: Any, value: Any) -> Any:
    """What a step gives, with its type; or how it refuses, which has to be by a misfit."""
    try:
        found = step(value)
    except Misfit as misfit:
        return misfit.problems
    return type(found), found


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.binary(max_size=12) | st.integers().map(lambda n: str(n).encode()) | st.text().map(str.encode))
@example(text=b"[" * 100_000)
@example(text=b'"\xff"')
@example(text=b"1.0")
@example(text=b"1e5")
@example(text=b'"1"')
@example(text=b"true")
@example(text=b"9" * 400)
@example(text=b'"\\ud800"')
def test_reading(kind: type[Any], text: bytes) -> None:
    assert said(codec_of(kind).read, text) == said(_foreign_codec(kind).read, text)


@pytest.mark.parametrize("kind", KINDS)
@given(
    value=st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(max_size=4)
)
@example(value="\ud800")
@example(value=10**400)
def test_writing(kind: type[Any], value: Any) -> None:
    plain, foreign = codec_of(kind), _foreign_codec(kind)

    def written(codec: Any) -> Any:
        return said(lambda each: codec.write(codec.check(each))[0], value)

    assert written(plain) == written(foreign)


@pytest.mark.parametrize("kind", KINDS)
def test_describing(kind: type[Any]) -> None:
    assert codec_of(kind).json_schema() == _foreign_codec(kind).json_schema()
