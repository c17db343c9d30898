"""The server's settings, from the environment (`MILEPOST_*`) or from whoever starts it."""

import os
import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from milepost.engine.state import LOG_BYTES_MAX, METADATA_BYTES_MAX, STREAM_BYTES_MAX
from milepost.errors import ConfigurationError
from milepost.model.durations import parse_duration

_PUBLIC_URL = re.compile(r"https?://[^\s/?#]+(/[^\s?#]*)?")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[a-z0-9._\[\]:-]*[a-z0-9\]]")


def _kept(value: object) -> object:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    return parse_duration(cast("Any", value))


Kept = Annotated[timedelta | None, BeforeValidator(_kept)]


class ServerSettings(BaseModel):
    """Every number and path of the server. What is not given is taken from the environment, where the case of letters does not matter.
    A wrong value stops the server at start (M86)."""

    model_config = ConfigDict(extra="ignore", populate_by_name=True, validate_default=True)

    data_folder: Path = Path(".milepost")
    # A PostgreSQL database that several servers share, postgresql://user:password@host:5432/name; SQLite in the data folder without.
    database_url: Annotated[str, Field(repr=False)] = ""
    secret_key: str = ""
    sqlite_synchronous: Literal["FULL", "NORMAL"] = "FULL"
    lease_seconds: Annotated[float, Field(ge=1, le=3600)] = 30
    # Seconds for which code may go on that was asked to end, because its run was cancelled or took too long; workers learn it.
    stop_grace_seconds: Annotated[float, Field(ge=0, le=86_400)] = 30
    metadata_grace_seconds: Annotated[float, Field(ge=0)] = 3600
    # Days for which changes of documents are kept; a finished run's final document stays.
    history_days: Annotated[float, Field(ge=0, le=36_500)] = 30
    metadata_size_max: Annotated[
        int,
        Field(gt=0, validation_alias=AliasChoices("TASK_RUN_METADATA_MAXIMUM_SIZE", "metadata_size_max")),
    ] = METADATA_BYTES_MAX

    # Bytes of log lines that are kept of one attempt of a run; workers learn it from here.
    log_bytes_max: Annotated[int, Field(ge=0, lt=2**53)] = LOG_BYTES_MAX

    # Bytes of one stream as JSON, and days for which the streams of a finished run are kept.
    stream_bytes_max: Annotated[int, Field(gt=0, lt=2**53)] = STREAM_BYTES_MAX
    stream_days: Annotated[float, Field(ge=0, le=36_500)] = 30

    # For how long finished runs are kept with everything that belongs to them, their logs, and their payloads: durations such as 30d.
    # What is not set is kept for ever.
    keep_completed_runs: Kept = None
    keep_failed_runs: Kept = None
    keep_canceled_runs: Kept = None
    keep_logs: Kept = None
    keep_payloads: Kept = None

    # Seconds for which the server goes on after it was told to end, and says that it is not ready: so long a load balancer may take to
    # notice.
    drain_seconds: Annotated[float, Field(ge=0, le=3600)] = 0

    # Seconds for which a server that starts waits for a PostgreSQL database that cannot be reached yet.
    database_wait_seconds: Annotated[float, Field(ge=0, le=86_400)] = 60

    # Who may read /metrics: whoever has the secret key or a session of the dashboard, or anybody who reaches the server.
    metrics: Literal["key", "open"] = "key"

    # Origins of pages that may use the API with a token, joined with commas; `*` for every one.
    cors_origins: str = ""

    # Where others reach this server, for callback addresses; without it the address that a request names.
    public_url: str = ""

    @model_validator(mode="before")
    @classmethod
    def _with_environment(cls, given: dict[str, object]) -> dict[str, object]:
        environment = {name.upper(): value for name, value in os.environ.items()}
        found: dict[str, object] = {}
        for name, field in cls.model_fields.items():
            variable = variable_of(name)
            if variable in environment and name not in given and variable not in given:
                found[name if field.validation_alias is None else variable] = environment[variable]
        return {**found, **given}

    @field_validator("public_url")
    @classmethod
    def _check_public_url(cls, value: str) -> str:
        if value and _PUBLIC_URL.fullmatch(value) is None:
            raise ValueError(f"{value!r:.100} is no address of a server, such as https://milepost.example")
        return value

    @property
    def origins(self) -> tuple[str, ...]:
        """The origins one by one."""
        return tuple(dict.fromkeys(part for part in self.cors_origins.replace(",", " ").split() if part))

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: str) -> str:
        for origin in value.replace(",", " ").split():
            if origin not in ("*", "null") and _ORIGIN.fullmatch(origin) is None:
                raise ValueError(
                    f"{origin!r:.100} is no origin as browsers send it: scheme and host in small letters, a port if it is not the "
                    "usual one, no path, such as https://app.example or http://localhost:5173"
                )
        return value

    @property
    def database_path(self) -> Path:
        """The SQLite file."""
        return self.data_folder / "milepost.db"

    @property
    def database(self) -> Path | str:
        """Where the database is: the SQLite file, or the URL of a PostgreSQL database."""
        return self.database_url or self.database_path


def load_settings(**given: object) -> ServerSettings:
    """Settings from the environment, overridden by what is given. Raises ConfigurationError that names each wrong setting."""
    try:
        settings = ServerSettings(**given)  # pyright: ignore[reportArgumentType]
    except ValidationError as error:
        lines = [
            f"{_name(problem['loc'])}: {problem['msg']}, not {problem['input']!r}"
            for problem in error.errors()
        ]
        raise ConfigurationError("wrong setting " + "; ".join(lines)) from None
    key = settings.secret_key
    if not (key.isascii() and key.isprintable()) or " " in key:
        # The key itself is not told: messages end up in logs.
        raise ConfigurationError(
            "wrong setting MILEPOST_SECRET_KEY: it has spaces, line breaks or characters beyond ASCII, which no header can carry; use "
            "letters and digits (openssl rand -hex 24)"
        )
    return settings


def variable_of(name: str) -> str:
    """The variable of the environment by which a setting is given."""
    alias = ServerSettings.model_fields[name].validation_alias
    return str(alias.choices[0]) if isinstance(alias, AliasChoices) else f"MILEPOST_{name.upper()}"


def _name(location: tuple[int | str, ...]) -> str:
    name = str(location[0]) if location else ""
    return name if name.isupper() else f"MILEPOST_{name.upper()}"
