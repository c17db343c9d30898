"""What holds for every task that does not say otherwise: from the environment, else from `[tool.milepost]` of the project."""

from __future__ import annotations

from functools import cache
from typing import Annotated

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    PyprojectTomlConfigSettingsSource,
    SettingsConfigDict,
)

from milepost.errors import ConfigurationError
from milepost.sdk.retry import Retry

_RETRY = "retry_"


class TaskSettings(BaseSettings):
    """What the environment says (`MILEPOST_RETRY_MAX_ATTEMPTS` ...), else `[tool.milepost]` in the `pyproject.toml` of this folder or
    the nearest one above it."""

    model_config = SettingsConfigDict(
        env_prefix="MILEPOST_",
        # A misspelt line of the file would change nothing without a word.
        extra="forbid",
        pyproject_toml_depth=64,
        pyproject_toml_table_header=("tool", "milepost"),
    )

    # The retry rule of tasks that have none; see `Retry`.
    retry_max_attempts: int | None = None
    retry_factor: float | None = None
    retry_min_delay: float | str | None = None
    retry_max_delay: float | str | None = None
    retry_jitter: bool | None = None
    # A hook that takes longer is given up.
    hook_seconds_max: Annotated[float, Field(gt=0, le=86_400)] = 30.0

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over the file."""
        return init_settings, env_settings, PyprojectTomlConfigSettingsSource(settings_cls)

    def retry(self) -> Retry:
        """The retry rule of tasks that have none. Raises ConfigurationError for one that cannot be."""
        given = {name.removeprefix(_RETRY): value for name, value in self if name.startswith(_RETRY)}
        try:
            return Retry(**{name: value for name, value in given.items() if value is not None})
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"the retry rule from the settings cannot be: {error}") from None


@cache
def task_settings() -> TaskSettings:
    """The settings of this process, read once. Raises ConfigurationError, which names what is wrong."""
    try:
        return TaskSettings()
    except ValidationError as error:
        [problem, *_] = error.errors()
        name = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            known = ", ".join(TaskSettings.model_fields)
            raise ConfigurationError(f"[tool.milepost] has no setting {name!r}; it has {known}") from None
        raise ConfigurationError(
            f"wrong setting {name} in [tool.milepost], or MILEPOST_{name.upper()}: {problem['msg']}, not {problem['input']!r}"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"pyproject.toml cannot be read: {error}") from None


@cache
def default_retry() -> Retry:
    """The retry rule of tasks that have none."""
    return task_settings().retry()
