"""Records of Python's logging, as they are shown and as they go into the logs of runs."""

from __future__ import annotations

import logging
from typing import Literal

from milepost.sdk.safe_text import unformatted


def level_name(level: int) -> Literal["debug", "info", "warning", "error"]:
    """The level of a line in a run's log, for one of Python's logging."""
    if level >= logging.ERROR:
        return "error"
    if level >= logging.WARNING:
        return "warning"
    return "info" if level >= logging.INFO else "debug"


def message_of(record: logging.LogRecord) -> str:
    """The message of a record. Never raises: what cannot be formatted says so."""
    try:
        return str.__str__(record.getMessage())
    except BaseException as failure:  # the user's objects may raise anything when they are made text
        return unformatted(record.msg, failure)
