"""Waitpoints: what a run waits for beside other runs. A token ends when somebody completes it or its time is over, a time by itself.

Users know the first kind as wait tokens, and never see the second.
"""

from enum import StrEnum

from milepost.model.run import RunError

WAITPOINT_PREFIX = "waitpoint"
TIMED_OUT_NAME = "WaitTimeoutError"


class WaitpointKind(StrEnum):
    """What ends it."""

    TOKEN = "TOKEN"
    TIME = "TIME"


class WaitpointStatus(StrEnum):
    """Whether it has ended, and how. Only the first of all that would end it does."""

    WAITING = "WAITING"
    COMPLETED = "COMPLETED"
    TIMED_OUT = "TIMED_OUT"


def timed_out(waitpoint_id: str) -> RunError:
    """Why whoever waits for a token goes on without an output."""
    return RunError(
        name=TIMED_OUT_NAME,
        message=f"nobody completed token {waitpoint_id} within its timeout",
    )
