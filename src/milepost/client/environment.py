"""Settings of the client half: read from the environment, checked, and told by name when they are wrong.

Every executor reads them as it starts; a library for that took longer than all the rest of its start.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from milepost.errors import ConfigurationError

SettingsT = TypeVar("SettingsT")
Read = Callable[[object], Any]
"""Makes the value of a setting of what was given, a text or what TOML has. Raises ValueError, which says what is expected."""

PREFIX = "MILEPOST_"
# Which run, and which attempt of it, a program is part of that a task has started.
RUN_VARIABLE = "MILEPOST_RUN_ID"
ATTEMPT_VARIABLE = "MILEPOST_ATTEMPT"

_TRUE = frozenset({"1", "on", "t", "true", "y", "yes"})
_FALSE = frozenset({"0", "off", "f", "false", "n", "no"})
_WHOLE = re.compile(r"\s*[+-]?\d+\.0+\s*", re.ASCII)


class WrongSetting(Exception):
    """What was given for a setting cannot be.

    Attributes:
        name: the setting, in small letters and without a prefix.
        reason: what is expected.
        given: what was given instead.
    """

    def __init__(self, name: str, reason: str, given: object) -> None:
        super().__init__(name, reason, given)
        self.name = name
        self.reason = reason
        self.given = given


def attempt_of_environment() -> tuple[str, int] | None:
    """The run and the attempt that the environment names; None when it names none. Raises ConfigurationError for half of it."""
    run_id, attempt = os.environ.get(RUN_VARIABLE), os.environ.get(ATTEMPT_VARIABLE)
    if not run_id:
        return None
    if attempt is None or not attempt.isascii() or not attempt.isdigit() or int(attempt) < 1:
        raise ConfigurationError(
            f"{RUN_VARIABLE} names the run {run_id!r:.100}, and {ATTEMPT_VARIABLE} must be the number of its attempt, not "
            f"{attempt!r:.40}; `metadata.environment()` gives both"
        )
    return run_id, int(attempt)


def setting(read: Read, default: Any) -> Any:
    """A field of a dataclass of settings."""
    return dataclasses.field(default=default, metadata={"read": read})


def names_of(kind: type[Any]) -> list[str]:
    """The settings that a dataclass has, in small letters and without a prefix."""
    return [field.name for field in dataclasses.fields(kind)]


def read_settings(
    kind: type[SettingsT], *, ignores_empty: bool = False, otherwise: Mapping[str, object] | None = None
) -> SettingsT:
    """Settings from the environment: `MILEPOST_` and the name of the field; the case of letters does not matter.

    Args:
        ignores_empty: whether an empty variable counts as none.
        otherwise: what holds for a setting that the environment does not have, by name.

    Raises: WrongSetting for the first one that cannot be.
    """
    given = {name.upper(): value for name, value in os.environ.items()}
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):  # pyright: ignore[reportArgumentType]
        value: object = given.get(PREFIX + field.name.upper())
        if value is None or (ignores_empty and value == ""):
            value = (otherwise or {}).get(field.name)
        if value is not None:
            try:
                values[field.name] = field.metadata["read"](value)
            except ValueError as error:
                raise WrongSetting(field.name, str(error), value) from None
    return kind(**values)


def text(value: object) -> str:
    """Any text."""
    if not isinstance(value, str):
        raise ValueError("Input should be a valid string")
    return value


def truth(value: object) -> bool:
    """Yes or no, as people write them."""
    if value in (0, 1):
        return bool(value)
    if not isinstance(value, str):
        raise ValueError("Input should be a valid boolean")
    if value.lower() not in _TRUE | _FALSE:
        raise ValueError("Input should be a valid boolean, unable to interpret input")
    return value.lower() in _TRUE


def number(
    *, at_least: float = float("-inf"), at_most: float = float("inf"), above: float = float("-inf")
) -> Read:
    """A number between these."""

    def read(value: object) -> float:
        if not isinstance(value, str | int | float):
            raise ValueError("Input should be a valid number")
        try:
            found = float(value)
        except ValueError:
            raise ValueError("Input should be a valid number, unable to parse string as a number") from None
        return _between(found, at_least, at_most, above)

    return read


def whole_number(*, at_least: float = float("-inf"), at_most: float = float("inf")) -> Read:
    """A number without a fraction, between these."""

    def read(value: object) -> int:
        if isinstance(value, float) and not value.is_integer():
            raise ValueError("Input should be a valid integer, got a number with a fractional part")
        if not isinstance(value, str | int | float):
            raise ValueError("Input should be a valid integer")
        if isinstance(value, str) and _WHOLE.fullmatch(value):
            value = value.partition(".")[0]
        try:
            found = int(value)
        except ValueError:
            raise ValueError(
                "Input should be a valid integer, unable to parse string as an integer"
            ) from None
        return _between(found, at_least, at_most)

    return read


def number_or_text(value: object) -> float | str:
    """A number as it is in TOML, or a text."""
    if isinstance(value, str):
        return value
    if not isinstance(value, int | float):
        raise ValueError("Input should be a valid number or string")
    return float(value)


def one_of(*choices: str) -> Read:
    """One of these words, in whatever case."""

    def read(value: object) -> str:
        word = value.lower() if isinstance(value, str) else None
        if word not in choices:
            *most, last = map(repr, choices)
            raise ValueError(f"Input should be {', '.join(most)} or {last}")
        return word

    return read


_NumberT = TypeVar("_NumberT", int, float)


def _between(value: _NumberT, at_least: float, at_most: float, above: float = float("-inf")) -> _NumberT:
    # Written so that what is no number at all (NaN) is refused.
    if not value >= at_least:
        raise ValueError(f"Input should be greater than or equal to {at_least:g}")
    if not value <= at_most:
        raise ValueError(f"Input should be less than or equal to {at_most:g}")
    if not value > above:
        raise ValueError(f"Input should be greater than {above:g}")
    return value
