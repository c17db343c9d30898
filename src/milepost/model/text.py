"""Text of others, shown where a terminal may take a part of it for a command (pure)."""

import re

# Control characters but the line feed and the tab; what turns the direction of the text around; lone surrogates.
UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def visible(text: str) -> str:
    r"""The text with each control character in a form to be seen, such as `\x1b`. Line feeds and tabs stay."""
    return UNSAFE.sub(lambda found: _escaped(found[0]), text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
