"""Text of others on a terminal: nothing that the terminal would take for a command, and nothing that it cannot show (pure).

Metadata, tags, outputs and errors come from user code and from whoever may write to a run. Printed raw, an escape sequence in them
could clear the screen, change its title, or hide what stands there.
"""

import json
import re
from datetime import datetime
from typing import TYPE_CHECKING, Any

from milepost.model.text import UNSAFE, visible

if TYPE_CHECKING:
    from milepost.model.run import QueuedReason, RunError

__all__ = [
    "can_be_written",
    "error_text",
    "first_line",
    "has_unsafe",
    "json_text",
    "moment",
    "visible",
    "why_queued",
]


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


def error_text(error: "RunError") -> str:
    """What a run failed with."""
    return f"{error.name}: {error.message}" if error.name else error.message


def first_line(text: str) -> str:
    """The first line that says something."""
    return text.strip().partition("\n")[0]


def why_queued(task_id: str, reason: "QueuedReason") -> str:
    """Why nobody takes a run."""
    return f"the run stays queued: {reason.describe(task_id)}"
