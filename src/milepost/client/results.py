"""What came out of a run: `TaskResult`, the answer of every call that waits for runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from milepost.errors import TaskFailedError
from milepost.model.run import RunError

OutputT = TypeVar("OutputT")


@dataclass(frozen=True)
class TaskResult(Generic[OutputT]):
    """How a run ended. A failed run is a result like any other; `unwrap()` is for those who want it to raise.

    Attributes:
        ok: whether the run succeeded.
        run_id: the run.
        output: what the task returned, in the type that its annotation names; None for a failed run.
        error: the user's error as data (`name`, `message`, `stack_trace`); None for a run that succeeded.
    """

    ok: bool
    run_id: str
    output: OutputT | None = None
    error: RunError | None = None

    def unwrap(self) -> OutputT:
        """The output. Raises TaskFailedError when the run did not succeed."""
        if not self.ok:
            error = self.error or RunError(message="no reason is known")
            raise TaskFailedError(run_id=self.run_id, error_name=error.name, error_message=error.message)
        return cast("OutputT", self.output)

    def __bool__(self) -> bool:
        """As `ok`, so that a result can be asked directly."""
        return self.ok


AnyResult = TaskResult[Any]
