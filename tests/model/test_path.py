"""Keys and paths (M17, M18, M27)."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from milepost.errors import MetadataPathError, MetadataTypeError
from milepost.model.path import SEGMENTS_MAX, Path, check_key, check_name, parse, read

from . import reference, strategies

FORBIDDEN = ("__proto__", "constructor", "prototype")


def write_plainly(path: Path) -> str:
    """A path in the quoted form, which can say everything."""
    return "$" + "".join(f"[{json.dumps(segment)}]" for segment in path)


names = st.text(st.characters(codec="utf-8")).filter(lambda name: name not in FORBIDDEN)
paths = st.builds(
    lambda first, rest: (first, *rest),
    names.filter(lambda name: not name.startswith("$$")),
    st.lists(st.one_of(names, st.integers(-(10**9), 10**9)), max_size=5),
)


@given(paths)
def test_m18_every_place_can_be_written_and_is_read_back(path: Path) -> None:
    assert parse(write_plainly(path)) == path
    single = "$" + "".join(
        f"[{segment}]"
        if isinstance(segment, int)
        else "['" + json.dumps(segment)[1:-1].replace('\\"', '"').replace("'", "\\'") + "']"
        for segment in path
    )
    assert parse(single) == path


@given(paths)
def test_m18_words_are_the_short_form_of_names(path: Path) -> None:
    def short(segment: str | int) -> str:
        if isinstance(segment, str) and segment and segment != "*" and not set(segment) & set(".["):
            return f".{segment}"
        return f"[{json.dumps(segment)}]"

    assert parse("$" + "".join(map(short, path))) == path


@given(
    st.one_of(
        st.text(), st.text("$.[]\"'\\ab0-*_").map(lambda text: "$." + text), st.text().map("$[".__add__)
    )
)
@example("\ud800")
@example("$.\ud800")
def test_m18_any_text_is_a_path_or_refused(key: str) -> None:
    try:
        path = parse(key)
    except MetadataPathError as error:
        refused = str(error)
    else:
        refused = None
    if refused is not None:
        # The message can be printed and sent whatever the key holds.
        assert refused.encode()
        return
    assert isinstance(path[0], str)
    assert not set(path) & {"__proto__"}
    if key.startswith(("$.", "$[")):
        assert not set(path) & set(FORBIDDEN)
        assert parse(write_plainly(path)) == path
    else:
        assert path == (key,)


@given(strategies.documents, st.sampled_from(list(strategies.KEYS)))
def test_m4_reading_agrees_with_the_reference(value: dict[str, Any], key: str) -> None:
    expected = reference.read(value, strategies.KEYS[key])
    assert read(value, key, reference.MISSING) is expected


def test_m4_reading_what_is_not_there_gives_the_default() -> None:
    value: dict[str, Any] = {"a": {"b": None}, "l": [1], "n": 1}
    assert read(value, "$.a.b", "default") is None
    for key in ("x", "$.a.c", "$.n.x", "$.n[0]", "$.l[1]", "$.l[-2]", "$.l.x", "$.a[0]", "$.a.b.c"):
        assert read(value, key, "default") == "default"
        assert read(value, key) is None


@pytest.mark.parametrize("key", [None, 1, b"a", ["a"], {}, ("a",), 1.5])
def test_a_key_is_text(key: Any) -> None:
    for check in (parse, check_key):
        with pytest.raises(MetadataTypeError, match=f"not an instance of {type(key).__name__}"):
            check(key)


def test_a_subclass_of_text_becomes_plain_text() -> None:
    class Name(str):
        __slots__ = ()

    for text in ("never seen before", "$.never.seen"):
        assert type(check_key(Name(text))) is str
        assert check_key(Name(text)) == text
        assert all(type(segment) is str for segment in parse(text))


@pytest.mark.parametrize(
    ("key", "segment"),
    [
        ("$.a.", ""),
        ("$.a..b", ""),
        ("$.a.*", "*"),
        ("$.a[*].b", "*"),
        ("$.a.__proto__.b", "__proto__"),
        ("$.a[nonsense]", "[nonsense]"),
        ("$[0]", "[0]"),
        ('$["$$x"].b', "$$x"),
    ],
)
def test_m18_the_error_names_the_segment(key: str, segment: str) -> None:
    with pytest.raises(MetadataPathError) as caught:
        parse(key)
    assert caught.value.segment == segment
    assert caught.value.key == key
    assert segment in str(caught.value)
    assert key in str(caught.value)


def test_paths_are_bounded() -> None:
    parse("$" + ".a" * SEGMENTS_MAX)
    with pytest.raises(MetadataPathError, match="at most 64"):
        parse("$" + ".a" * (SEGMENTS_MAX + 1))


def test_long_and_many_keys_are_answered_right_and_not_kept() -> None:
    long = "x" * 100_000
    assert parse(long) == (long,)
    assert parse(f"$.{long}.a") == (long, "a")
    for number in range(10_000):
        assert parse(f"$.key{number}.a") == (f"key{number}", "a")
    from milepost.model import path

    assert len(path._paths) <= 4096
    assert long not in path._paths


def test_m27_names_at_the_top_of_a_document_are_literal() -> None:
    for name in ("", "$.a", "$", "constructor", "$x"):
        assert check_name(name) == name
    for name in ("__proto__", "$$", "$$streams"):
        with pytest.raises(MetadataPathError):
            check_name(name)
