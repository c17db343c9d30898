"""The worker's settings: how often the server is told what happens. Where the server is, the client half knows."""

from typing import Annotated

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from milepost.errors import ConfigurationError


class WorkerSettings(BaseSettings):
    """What the environment says (`MILEPOST_*`)."""

    model_config = SettingsConfigDict(env_prefix="MILEPOST_", extra="ignore")

    metadata_flush_interval_ms: Annotated[float, Field(ge=0, le=60_000)] = 50


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
