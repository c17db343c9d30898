"""What holds for every task that does not say otherwise: from the environment, else from `[tool.milepost]` of the project."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

from milepost.client.environment import (
    WrongSetting,
    names_of,
    number,
    number_or_text,
    read_settings,
    setting,
    truth,
    whole_number,
)
from milepost.errors import ConfigurationError
from milepost.sdk.retry import Retry

_RETRY = "retry_"


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """What the environment says (`MILEPOST_RETRY_MAX_ATTEMPTS` ...), else `[tool.milepost]` in the `pyproject.toml` of this folder or
    the nearest one above it."""

    # The retry rule of tasks that have none; see `Retry`.
    retry_max_attempts: int | None = setting(whole_number(), None)
    retry_factor: float | None = setting(number(), None)
    retry_min_delay: float | str | None = setting(number_or_text, None)
    retry_max_delay: float | str | None = setting(number_or_text, None)
    retry_jitter: bool | None = setting(truth, None)
    # A hook that takes longer is given up.
    hook_seconds_max: float = setting(number(above=0, at_most=86_400), 30.0)

    def retry(self) -> Retry:
        """The retry rule of tasks that have none. Raises ConfigurationError for one that cannot be."""
        given = {
            name.removeprefix(_RETRY): value
            for name, value in asdict(self).items()
            if name.startswith(_RETRY)
        }
        try:
            return Retry(**{name: value for name, value in given.items() if value is not None})
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"the retry rule from the settings cannot be: {error}") from None


@cache
def task_settings() -> TaskSettings:
    """The settings of this process, read once. Raises ConfigurationError, which names what is wrong."""
    try:
        table = _table_of_project()
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"pyproject.toml cannot be read: {error}") from None
    try:
        settings = read_settings(TaskSettings, otherwise=table)
    except WrongSetting as wrong:
        raise ConfigurationError(
            f"wrong setting {wrong.name} in [tool.milepost], or MILEPOST_{wrong.name.upper()}: {wrong.reason}, not {wrong.given!r}"
        ) from None
    # A misspelt line of the file would change nothing without a word.
    known = names_of(TaskSettings)
    if unknown := [name for name in table if name not in known]:
        raise ConfigurationError(f"[tool.milepost] has no setting {unknown[0]!r}; it has {', '.join(known)}")
    return settings


def _table_of_project() -> dict[str, Any]:
    """`[tool.milepost]` of the nearest `pyproject.toml`; empty when there is none. Raises OSError, ValueError."""
    here = Path.cwd()
    file = next(
        (file for folder in (here, *here.parents) if (file := folder / "pyproject.toml").is_file()), None
    )
    if file is None:
        return {}
    import tomllib

    table = tomllib.loads(file.read_text(encoding="utf-8"))
    for name in ("tool", "milepost"):
        found: Any = table.get(name, {})
        if not isinstance(found, dict):
            raise ValueError(f"{name} is to be a table")
        table = cast("dict[str, Any]", found)
    return table


@cache
def default_retry() -> Retry:
    """The retry rule of tasks that have none."""
    return task_settings().retry()
