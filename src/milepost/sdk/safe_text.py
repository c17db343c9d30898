"""Text of the user's objects. Their own methods make it, which may raise anything; who only wants to log it must not fail by that."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path

LINE_CHARACTERS_MAX = 32_768
"""The longest line of a run's log; what is longer is cut, and says by how much."""

_OURS = str(Path(__file__).parent.parent)
# Every callback on the worker's event loop is called from there.
_LOOPS = str(Path("milepost", "worker", "loops.py"))


def text_of(value: object, write: Callable[[object], str] = str) -> str:
    """`str(value)`, or why there is none. Never raises, whatever the value's methods do, and gives text that UTF-8 can carry.

    Args:
        write: another way to make the text, such as `repr`.
    """
    try:
        # An exact `str`: a subclass may have methods of its own.
        return carried(str.__str__(write(value)))
    except BaseException as failure:  # a method of the user's may raise anything at all
        return f"<{name_of(type(value))}, whose text cannot be had: {name_of(type(failure))}>"


def name_of(kind: type[object]) -> str:
    """The name of a class as tracebacks show it. Never raises."""
    try:
        name = kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else kind.__name__
        return carried(str.__str__(name))[:200]
    except BaseException:  # a metaclass of the user's
        return "object"


def carried(text: str) -> str:
    """The text with backslashes for what UTF-8 cannot carry (lone surrogates)."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def line_of(text: str) -> str:
    """The text as one line of a run's log: not too long, and without what UTF-8 cannot carry."""
    more = len(text) - LINE_CHARACTERS_MAX
    return (
        carried(text) if more <= 0 else f"{carried(text[:LINE_CHARACTERS_MAX])}... ({more:,} more characters)"
    )


def unformatted(message: object, failure: BaseException) -> str:
    """What is logged instead of a line whose text cannot be made. Never raises."""
    why = f"{name_of(type(failure))}: {text_of(failure)}"
    return f"{text_of(message)[:1000]} (this line could not be formatted: {why[:300]})"


def traceback_of(error: BaseException) -> str:
    """The traceback as Python prints it, without the frames of this package at its outer end. Never raises."""
    try:
        described = traceback.TracebackException.from_exception(error)
        _keep_user_frames(described)
        return carried("".join(described.format()).rstrip())
    except BaseException:  # what the error carries along may raise anything when it is described
        return _frames_of(error)


def _frames_of(error: BaseException) -> str:
    """Where the error was raised, when nothing else can be said of it."""
    try:
        frames = "".join(traceback.format_tb(error.__traceback__))
        return carried(
            f"Traceback (most recent call last):\n{frames}{name_of(type(error))}: {text_of(error)}"
        )
    except BaseException:  # not even the source can be read
        return f"{name_of(type(error))}: {text_of(error)}"


def _keep_user_frames(described: traceback.TracebackException) -> None:
    """Leave out the frames of this package at the outer end and below callbacks: the user did not write them."""
    for part in (described, described.__cause__, described.__context__):
        if part is not None:
            frames = [frame for frame in part.stack if not frame.filename.endswith(_LOOPS)]
            while frames and frames[0].filename.startswith(_OURS):
                del frames[0]
            part.stack = traceback.StackSummary.from_list(frames or list(part.stack))
