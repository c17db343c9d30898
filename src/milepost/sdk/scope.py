"""The run that the present code belongs to, and the one port through which the SDK speaks to the worker.

The worker makes a `RunScope` for each attempt and sets it in a context variable before the user's code starts; everything the user
touches (`metadata`, `ctx`, `wait`) finds it there. The SDK knows the worker only as `Link`.
"""

from __future__ import annotations

from concurrent.futures import Future
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from milepost.protocol.work import ClaimedRun

if TYPE_CHECKING:
    from milepost.sdk.buffer import Buffer


class Link(Protocol):
    """What the SDK may ask of the worker. Every method is thread-safe and returns at once."""

    def wake(self, scope: RunScope) -> None:
        """The scope's buffer has something to send and had nothing before (called once per change from clean to dirty)."""
        ...

    def flush(self, scope: RunScope) -> Future[None]:
        """Done when everything added to the buffer before this call is committed (M37)."""
        ...

    def wait_for(self, scope: RunScope, target_id: str) -> Future[None]:
        """Done when the run or batch `target_id` has ended. The run gives its slot back meanwhile and is WAITING (M39: it is flushed
        first)."""
        ...

    def log(self, scope: RunScope, level: str, message: str, logger: str) -> None:
        """Add a line to the run's log."""
        ...


@dataclass(eq=False)
class RunScope:
    """One attempt of one run in this process."""

    run: ClaimedRun
    buffer: Buffer
    link: Link
    loop_thread_id: int = field(default=0)

    @property
    def parent_id(self) -> str:
        """The run that `metadata.parent` writes to: the run itself when it has no parent (M64)."""
        return self.run.parent_id or self.run.id

    @property
    def root_id(self) -> str:
        """The run that `metadata.root` writes to."""
        return self.run.root_id or self.run.id


current_scope: ContextVar[RunScope | None] = ContextVar("milepost_run", default=None)
