"""Queues on the wire: how they stand, and what can be done with them while runs come and go."""

from datetime import datetime
from enum import StrEnum
from typing import Literal

import msgspec

QUEUED_COUNTED_MAX = 10_000
"""Up to so many queued runs are counted."""

KEYS_SHOWN_MAX = 100
"""Concurrency keys that are told of one queue."""

QueueType = Literal["id", "name", "task", "custom"]


class QueueConcurrency(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", kw_only=True):
    """The limit of a queue: `current` holds; `base` is what tasks say, `override` what was set instead. Absent: no limit."""

    current: int | None = None
    base: int | None = None
    override: int | None = None
    overridden_at: datetime | None = None


class QueueRate(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", kw_only=True):
    """How many runs of a queue may start in a period, such as `100/m`. `nextStartAt`: it is reached until then."""

    limit: str
    next_start_at: datetime | None = None


class QueueKey(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", kw_only=True):
    """The runs of a queue that have one concurrency key. `queuedIsMore`: there are more than were counted."""

    key: str
    queued: int
    queued_is_more: bool = False
    running: int
    waiting_to_go_on: int = 0


class QueueObject(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", kw_only=True):
    """A queue. `type` is `task` for the queue of a task that names none, else `custom`.

    `queued` is counted up to 10,000; `queuedIsMore`: there are more. `waitingToGoOn` are runs that have waited for something and
    would go on if there was room. `keys` are told of one queue that is retrieved, at most 100 of those with runs; the limit holds for
    each of them by itself, and for the runs without a key.
    """

    id: str
    name: str
    type: Literal["task", "custom"]
    running: int
    queued: int
    queued_is_more: bool = False
    waiting_to_go_on: int = 0
    paused: bool
    concurrency_limit: int | None = None
    concurrency: QueueConcurrency
    rate: QueueRate | None = None
    keys: list[QueueKey] = []


class QueuePagination(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Which page of how many, counted from 1, and how many queues there are."""

    current_page: int
    total_pages: int
    count: int


class QueuePage(msgspec.Struct, frozen=True):
    """One page of queues, in the order of their names."""

    data: list[QueueObject]
    pagination: QueuePagination


class PauseRequest(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """Pause a queue, or resume it. `type` `task`: the queue is named by its task."""

    action: Literal["pause", "resume"]
    type: QueueType | None = None


class OverrideRequest(msgspec.Struct, omit_defaults=True, rename="camel", forbid_unknown_fields=True):
    """Another limit for a queue, which holds until it is reset, whatever tasks say."""

    concurrency_limit: int
    type: QueueType | None = None


class ResetRequest(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """Go by the limit that tasks say again."""

    type: QueueType | None = None


class WaitReason(StrEnum):
    """Why a queued run has not begun."""

    NEVER_OFFERED = "never_offered"
    NO_WORKER_ONLINE = "no_worker_online"
    DELAYED = "delayed"
    QUEUE_PAUSED = "queue_paused"
    RATE_REACHED = "rate_reached"
    LIMIT_REACHED = "limit_reached"
    IN_LINE = "in_line"


class QueueWait(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", kw_only=True):
    """Why a queued run has not begun, as it was when somebody looked.

    `position` counts from 1 the runs of its queue, and of its concurrency key if it has one, that are claimed before it; it is told up
    to 10,000, and `positionIsMore` says that it is further behind. `estimatedSeconds` is an estimate from the last starts of the
    queue, and is no promise; absent where too little is known. `until`: it is due then, or
    the rate lets the next run start then. `limit` is
    reached by `runningIds`, of which some are told.
    """

    reason: WaitReason
    position: int | None = None
    position_is_more: bool = False
    estimated_seconds: float | None = None
    until: datetime | None = None
    limit: int | None = None
    running_ids: list[str] = []

    def describe(self, task: str, queue: str, key: str | None) -> str:
        """What a person is told, with the cure where there is one."""
        of_key = "" if key is None else f" for key {key!r:.60}"
        match self.reason:
            case WaitReason.NEVER_OFFERED:
                told = f"no worker has ever offered a task {task!r:.100}: check the id, or start a worker that has it"
            case WaitReason.NO_WORKER_ONLINE:
                told = f"no worker that offers task {task!r:.100} is online: start one"
            case WaitReason.DELAYED:
                told = (
                    "it is not due yet"
                    if self.until is None
                    else f"it is due at {self.until:%Y-%m-%d %H:%M:%S} UTC"
                )
            case WaitReason.QUEUE_PAUSED:
                told = f"queue {queue!r:.100} is paused: resume it"
            case WaitReason.RATE_REACHED:
                told = f"the rate of queue {queue!r:.100} is reached"
                if self.until is not None:
                    told += f"; the next run starts at {self.until:%Y-%m-%d %H:%M:%S} UTC"
            case WaitReason.LIMIT_REACHED:
                told = f"the limit of queue {queue!r:.100}{of_key}, {self.limit:,}, is reached"
                if self.running_ids:
                    told += f" by {', '.join(self.running_ids)}"
            case WaitReason.IN_LINE:
                told = "it comes when a worker has a free slot"
        if self.position is not None:
            more = "more than " if self.position_is_more else ""
            told += f"; position {more}{self.position:,}{of_key}"
        if self.estimated_seconds is not None:
            told += f"; estimated start in {_span(self.estimated_seconds)}"
        return told


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
