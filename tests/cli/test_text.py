"""What others wrote does nothing to a terminal, and JSON for programs is the same value in every encoding."""

import io
import json
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from milepost.cli.terminal import _SafeConsole  # pyright: ignore[reportPrivateUsage]
from milepost.cli.text import can_be_written, json_text, visible

ATTACKS = "\x1b[2J\x1b]0;title\x07\x9b31m\r\x00\x7f\u202eabc\u2066\u2028"
texts = st.text(st.characters() | st.sampled_from(ATTACKS))
# What may stand in a document: no lone surrogates.
stored = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(ATTACKS))
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | stored,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(stored, inner, max_size=4),
    max_leaves=8,
)
encodings = st.sampled_from(["utf-8", "ascii", "latin-1", "cp1252", "cp437", "koi8-r"])
MOVES_THE_TEXT = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def commands(text: str) -> list[str]:
    """The characters that a terminal would not just show."""
    return [
        character
        for character in text
        if (unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t")
        or unicodedata.bidirectional(character) in MOVES_THE_TEXT
    ]


@given(texts)
def test_nothing_is_left_that_a_terminal_obeys(text: str) -> None:
    shown = visible(text)
    assert not commands(shown)
    assert visible(shown) == shown
    if not commands(text):
        assert (
            "\\" not in shown
            or "\\" in text
            or any(mark in text for mark in "\u200e\u200f\u061c\u2028\u2029")
        )


@given(values, encodings, st.sampled_from([-1, 2]))
def test_json_is_the_same_value_in_every_encoding(value: Any, encoding: str, indent: int) -> None:
    text = json_text(value, encoding=encoding, indent=indent)
    assert not commands(text)
    assert json.loads(text.encode(encoding).decode(encoding)) == value
    assert indent >= 0 or "\n" not in text


def test_readable_text_stays_readable() -> None:
    assert json_text({"name": "Zoë 😀"}) == '{"name":"Zoë 😀"}'
    assert can_be_written("Zoë", "latin-1")
    assert not can_be_written("😀", "latin-1")
    assert visible("two\nlines\tand Zoë 😀") == "two\nlines\tand Zoë 😀"
    assert visible("\x1b[31m\x9b\u202e") == r"\x1b[31m\x9b\u202e"


@given(stored)
def test_whatever_is_printed_goes_through_it(text: str) -> None:
    console = _SafeConsole()
    console.file = io.StringIO()
    table = Table(box=None)
    table.add_column("heading")
    table.add_row(Text(text))
    for printed in (Text(text), table):
        console.print(printed)
    console.print(text, markup=False)
    assert not commands(console.file.getvalue())


@pytest.mark.parametrize("columns", [40, 80])
def test_a_pipe_cuts_nothing(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    console = _SafeConsole()
    console.file = io.StringIO()
    console.print(Text("x" * columns * 20))
    assert console.file.getvalue() == "x" * columns * 20 + "\n"
