"""Names that others choose."""

import pytest

from milepost.errors import InvalidRequestError
from milepost.model.names import NAME_CHARACTERS_MAX, check_name


@pytest.mark.parametrize(
    "name",
    ["a", "a b", "ü", "日本", "👩‍💻", "a/b", "..", "a,b", "50%", "x" * NAME_CHARACTERS_MAX, '"', "\u00a0"],
)
def test_names(name: str) -> None:
    check_name(name, "a tag")


@pytest.mark.parametrize(
    "name",
    ["", "x" * (NAME_CHARACTERS_MAX + 1), "\0", "a\nb", "\x1b[31mred", "\x7f", "\x9b", "\ud800", "tab\t"],
    ids=repr,
)
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(InvalidRequestError) as refusal:
        check_name(name, "a tag", field="options.tags")
    assert refusal.value.field == "options.tags"
    assert str(refusal.value).isprintable()
