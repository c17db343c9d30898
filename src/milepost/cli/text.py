"""Text of others on a terminal: nothing that the terminal would take for a command, and nothing that it cannot show (pure).

Metadata, tags, outputs and errors come from user code and from whoever may write to a run. Printed raw, an escape sequence in them
could clear the screen, change its title, or hide what stands there.
"""

import json
import re
from datetime import datetime
from typing import Any

from milepost.model.text import UNSAFE, visible

__all__ = ["can_be_written", "has_unsafe", "json_text", "visible"]


def has_unsafe(text: str) -> bool:
    """Whether `visible` would change the text."""
    return UNSAFE.search(text) is not None


def json_text(value: Any, *, encoding: str = "utf-8", indent: int = -1) -> str:
    """A value as JSON that a terminal shows and a program reads: the same value, whatever characters are in it.

    Args:
        encoding: of the output. What it does not have is written as `\\uXXXX`, which is JSON too.
        indent: spaces for each level; below 0 it is one line.
    """
    import msgspec

    text = msgspec.json.format(msgspec.json.encode(value), indent=indent).decode()
    # Everything but ASCII stands inside of texts, where it may be written in either way.
    text = UNSAFE.sub(lambda found: json.dumps(found[0])[1:-1], text)
    if can_be_written(text, encoding):
        return text
    return re.sub(r"[^\x00-\x7f]", lambda found: json.dumps(found[0])[1:-1], text)


def can_be_written(text: str, encoding: str) -> bool:
    """Whether an output with this encoding has all of these characters."""
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def moment(at: datetime) -> str:
    """A time as people of this machine read it."""
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
