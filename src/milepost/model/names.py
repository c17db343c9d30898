"""Names that others choose: of tasks, queues, tags, workers. One rule for all of them, on both sides of the wire."""

import re

from milepost.errors import InvalidRequestError

__all__ = ["NAME_CHARACTERS_MAX", "check_name", "default_queue"]

NAME_CHARACTERS_MAX = 256
"""Characters of a name, where nothing else is said."""

# Terminals, logs and addresses do odd things with them, and nobody who means well has them in a name.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


def default_queue(task: str) -> str:
    """The queue of a task that names none: one of its own."""
    return f"task/{task}"


def check_name(
    name: str, what: str, *, field: str | None = None, characters_max: int = NAME_CHARACTERS_MAX
) -> None:
    """Make sure that a text can be a name: 1 to `characters_max` characters, and no control characters.

    Args:
        what: what it names, for the message: `a tag`.
        field: the field of the request that it stands in.
    Raises: InvalidRequestError.
    """
    if not 1 <= len(name) <= characters_max:
        raise InvalidRequestError(
            f"{what} has 1 to {characters_max} characters, not {len(name):,}",
            field=field,
            limit=characters_max,
        )
    if name.isascii() and name.isprintable():
        return
    if _CONTROL.search(name):
        raise InvalidRequestError(f"{what} has no control characters, and {name!r:.100} has one", field=field)
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InvalidRequestError(
            f"{what} is text that has a UTF-8 form, and {name!r:.100} has none: it holds a lone surrogate",
            field=field,
        ) from None
