"""What supervisor and executor say to each other: orders on the executor's standard input, messages on a pipe of its own.

The end of the input means that the supervisor is gone; the executor then drains and ends, so none is ever orphaned.
"""

from enum import StrEnum

import msgspec


class Order(StrEnum):
    """What a supervisor tells an executor; one word per line.

    drain: claim nothing more, let the runs end within the grace time, leave.
    stop: the same, but runs that only wait are not waited for: whatever they wait for stops as well.
    """

    DRAIN = "drain"
    STOP = "stop"


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The executor is registered under this worker id and claims runs of these tasks; its code came from these files."""

    worker_id: str
    tasks: list[str]
    files: list[str]


class Notice(msgspec.Struct, frozen=True, tag="notice"):
    """Something to tell the user, in one line."""

    message: str


class LoadFailed(msgspec.Struct, frozen=True, tag="load_failed"):
    """The user's tasks cannot be loaded; the executor ends. A change of one of these files may mend it."""

    message: str
    files: list[str]


class Rejected(msgspec.Struct, frozen=True, tag="rejected"):
    """The server will not have this worker (a wrong key, for example); trying again will not help."""

    message: str


Message = Ready | Notice | LoadFailed | Rejected

encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Message).decode

EXIT_DRAINED = 0
EXIT_LOAD_FAILED = 3
EXIT_REJECTED = 4
EXIT_LINK_FAILED = 5
