"""Triggers that mean one run: `Debounce`, what a trigger says about that."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal, get_args

from milepost.errors import UsageError
from milepost.model.durations import delay_text, parse_duration
from milepost.protocol.triggering import DebounceOption

Mode = Literal["leading", "trailing"]


@dataclass(frozen=True, slots=True)
class Debounce:
    """Let triggers that come one after the other mean one run, which begins once they have paused: `Debounce("user-7", "5s")`.

    The first trigger of a task with a key makes a run that is DELAYED. Each further one with that key, until the run is queued, is
    given the same run and puts it off anew; the one after that makes a new run.

    Attributes:
        key: a text of 1 to 512 characters; each task has its own.
        delay: how long no trigger must have come before the run begins: a timedelta, seconds, or text such as "5s". More than nothing,
            at most a year.
        mode: whose payload the run has: the first trigger's ("leading"), or the last one's ("trailing"). Metadata, tags and all other
            options are the first one's.
        max_delay: the run begins that long after its first trigger at the latest, however many come.
    Raises: UsageError for what is none of these.
    """

    key: str
    delay: timedelta | float | str
    mode: Mode = "leading"
    max_delay: timedelta | float | str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.key, str) or not self.key:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"a debounce key is a text that is not empty, not {self.key!r:.100}")
        if self.mode not in get_args(Mode):
            raise UsageError(f"the mode of a debounce is leading or trailing, not {self.mode!r:.100}")
        for name, value in (("delay", self.delay), ("max_delay", self.max_delay)):
            if value is not None:
                _check_span(name, value)

    def option(self) -> DebounceOption:
        """As it travels."""
        return DebounceOption(
            key=self.key,
            delay=_text(self.delay),
            mode=self.mode,
            max_delay=None if self.max_delay is None else _text(self.max_delay),
        )


_NOTHING: Final = timedelta(0)


def _check_span(name: str, value: timedelta | float | str) -> None:
    try:
        span = parse_duration(value)
    except ValueError as error:
        raise UsageError(f"{name} of a debounce: {error}") from None
    if span <= _NOTHING:
        raise UsageError(f"{name} of a debounce is more than nothing, not {value!r}")


def _text(value: timedelta | float | str) -> str:
    return delay_text(parse_duration(value))


def debounce_option(value: Any) -> DebounceOption | None:
    """What a user has given as `debounce=`. Raises UsageError."""
    if value is None:
        return None
    if not isinstance(value, Debounce):
        raise UsageError(f'debounce= is a Debounce, such as Debounce("user-7", "5s"), not {value!r:.100}')
    return value.option()
