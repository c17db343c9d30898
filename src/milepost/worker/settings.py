"""The worker's settings: how often the server is told what happens, and what is said about it here. Where the server is, the client
half knows."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from milepost.errors import ConfigurationError

ALONE_SECONDS = 60.0

LogLevel = Literal["debug", "info", "warning", "error", "critical"]
LogFormat = Literal["text", "json"]


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


_LOWER = BeforeValidator(_lower)


class WorkerSettings(BaseSettings):
    """What the environment says (`MILEPOST_*`)."""

    model_config = SettingsConfigDict(env_prefix="MILEPOST_", extra="ignore")

    metadata_flush_interval_ms: Annotated[float, Field(ge=0, le=60_000)] = 50
    # Processes kept ready for tasks with isolation="process"; as many as there are for the other tasks when left out.
    isolated_processes: Annotated[int | None, Field(ge=1, le=256)] = None
    # What is said on standard error: lines of this level and above, as text or as one JSON object each.
    log_level: Annotated[LogLevel, _LOWER] = "info"
    log_format: Annotated[LogFormat, _LOWER] = "text"
    # Seconds for which a run that is suspected of having killed its process has an executor to itself, at its first attempt; twice as
    # many with each one that follows.
    alone_seconds: Annotated[float, Field(ge=1, le=86_400)] = ALONE_SECONDS
    # Whether what a run prints and logs goes into the run's log as well.
    log_capture: bool = True


def load_settings() -> WorkerSettings:
    """Settings from the environment. Raises ConfigurationError, which names what is wrong."""
    try:
        return WorkerSettings()
    except ValidationError as error:
        [problem, *_] = error.errors()
        name = f"MILEPOST_{'_'.join(map(str, problem['loc'])).upper()}"
        raise ConfigurationError(
            f"wrong setting {name}: {problem['msg']}, not {problem['input']!r}"
        ) from None
