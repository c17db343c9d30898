"""What supervisor and executor say to each other: orders on the executor's standard input, messages on a pipe of its own.

The end of the input means that the supervisor is gone; the executor then drains and ends, so none is ever orphaned. An executor that
ends has said why: `Drained`, `LoadFailed` or `Rejected`. One that ends without such a word has crashed, whatever its exit code is:
user code may end the process with any code.
"""

import os
import threading
from contextlib import suppress
from enum import StrEnum

import msgspec


class Order(StrEnum):
    """What a supervisor tells an executor; one word per line. A later order may only be more urgent.

    finish: claim nothing more, let the runs end however long that takes, leave.
    drain: the same within the grace time.
    stop: the same, but runs that only wait are not waited for: whatever they wait for stops as well.
    """

    FINISH = "finish"
    DRAIN = "drain"
    STOP = "stop"


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The executor is registered and claims runs; its code has these tasks and came from these files. `isolated`: the tasks whose runs
    go to executors that have one run at a time."""

    tasks: list[str]
    files: list[str]
    isolated: list[str] = []


class Waiting(msgspec.Struct, frozen=True, tag="waiting"):
    """The run of an executor that has one at a time begins to wait, or does so no longer."""

    waits: bool


class Stuck(msgspec.Struct, frozen=True, tag="stuck"):
    """The run of an executor that has one at a time is over and its code is not: the process is to be killed."""

    reason: str


class Notice(msgspec.Struct, frozen=True, tag="notice"):
    """Something to tell the user, in one line."""

    message: str


class Finishing(msgspec.Struct, frozen=True, tag="finishing"):
    """The executor was ordered to finish, and this many runs are under way in it."""

    runs: int


class ServerAway(msgspec.Struct, frozen=True, tag="server_away"):
    """The server has not answered this executor for a while."""

    reason: str


class ServerBack(msgspec.Struct, frozen=True, tag="server_back"):
    """The server answers this executor again."""

    away_seconds: float


class LoadFailed(msgspec.Struct, frozen=True, tag="load_failed"):
    """The user's tasks cannot be loaded; the executor ends. A change of one of these files may mend it."""

    message: str
    files: list[str]


class Rejected(msgspec.Struct, frozen=True, tag="rejected"):
    """The server will not have this worker (a wrong key, for example); trying again will not help."""

    message: str


class Drained(msgspec.Struct, frozen=True, tag="drained"):
    """The executor has left the server, by an order or by SIGTERM; the process ends.

    `abandoned` runs have not ended, and the server has not heard so: it did not answer any more.
    """

    abandoned: int = 0


FinalWord = LoadFailed | Rejected | Drained
Message = Ready | Waiting | Stuck | Notice | Finishing | ServerAway | ServerBack | FinalWord

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Message).decode


class UnreadableMessage(Exception):
    """What has come over the pipe is no message: the user's code has written to a descriptor that it did not open."""


def encode(message: Message) -> bytes:
    """A message as it travels. It begins a new line, whatever somebody else may have written before."""
    return b"\n" + _encode(message) + b"\n"


def decode(line: bytes) -> Message | None:
    """The message of a line; None for an empty one. Raises UnreadableMessage."""
    if not line.strip():
        return None
    try:
        return _decode(line)
    except msgspec.DecodeError as error:
        raise UnreadableMessage(repr(line[:100])) from error


class Descriptor:
    """A file descriptor that is used as long as it is what it was: user code may close any descriptor, and the number may then be that
    of a file or connection of its own."""

    def __init__(self, number: int) -> None:
        os.set_inheritable(number, False)
        self._number = number
        self._identity = _identity_of(number)
        self._lock = threading.Lock()

    def write(self, data: bytes) -> None:
        """Write all of it, if there still is somebody to read it."""
        with self._lock, suppress(OSError):
            while data and _identity_of(self._number) == self._identity:
                data = data[os.write(self._number, data) :]

    def read(self) -> bytes | None:
        """Wait for the next bytes; empty when the other side is gone, None when the descriptor was taken away."""
        with suppress(OSError):
            if _identity_of(self._number) == self._identity:
                return os.read(self._number, 4096)
        return None


def _identity_of(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino
