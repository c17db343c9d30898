"""The worker's settings: how often the server is told what happens, and what is said about it here. Where the server is, the client
half knows."""

from dataclasses import dataclass
from typing import Literal, get_args

from milepost.client.environment import (
    WrongSetting,
    number,
    one_of,
    read_settings,
    setting,
    truth,
    whole_number,
)
from milepost.errors import ConfigurationError

ALONE_SECONDS = 60.0

LogLevel = Literal["debug", "info", "warning", "error", "critical"]
LogFormat = Literal["text", "json"]


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """What the environment says (`MILEPOST_*`)."""

    metadata_flush_interval_ms: float = setting(number(at_least=0, at_most=60_000), 50.0)
    # Processes kept ready for tasks with isolation="process"; as many as there are for the other tasks when left out.
    isolated_processes: int | None = setting(whole_number(at_least=1, at_most=256), None)
    # What is said on standard error: lines of this level and above, as text or as one JSON object each.
    log_level: LogLevel = setting(one_of(*get_args(LogLevel)), "info")
    log_format: LogFormat = setting(one_of(*get_args(LogFormat)), "text")
    # Seconds for which a run that is suspected of having killed its process has an executor to itself, at its first attempt; twice as
    # many with each one that follows.
    alone_seconds: float = setting(number(at_least=1, at_most=86_400), ALONE_SECONDS)
    # Whether what a run prints and logs goes into the run's log as well.
    log_capture: bool = setting(truth, True)


def load_settings() -> WorkerSettings:
    """Settings from the environment. Raises ConfigurationError, which names what is wrong."""
    try:
        return read_settings(WorkerSettings)
    except WrongSetting as wrong:
        raise ConfigurationError(
            f"wrong setting MILEPOST_{wrong.name.upper()}: {wrong.reason}, not {wrong.given!r}"
        ) from None
