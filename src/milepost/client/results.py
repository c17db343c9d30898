"""What came out of a run: `TaskResult`, the answer of every call that waits for runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import msgspec

from milepost.client.shape import Misfit, Shape
from milepost.errors import TaskFailedError
from milepost.model.run import RunError
from milepost.protocol.runs import RunResult
from milepost.protocol.triggering import SUPER_JSON_TYPE, TEXT_TYPE

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


def task_result(wire: RunResult, shape: Shape[Any] | None) -> TaskResult[Any]:
    """A result out of a message. An output that does not fit its annotation stays plain JSON: the run has succeeded all the same."""
    if not wire.ok:
        return TaskResult(
            ok=False, run_id=wire.id, error=wire.error or RunError(message="the run did not succeed")
        )
    return TaskResult(ok=True, run_id=wire.id, output=_output(wire, shape))


def _output(wire: RunResult, shape: Shape[Any] | None) -> Any:
    if wire.output is None:
        return None
    if wire.output_type == TEXT_TYPE:
        return wire.output
    text: bytes | str = wire.output
    if wire.output_type == SUPER_JSON_TYPE:
        text = bytes(msgspec.json.decode(text, type=dict[str, msgspec.Raw]).get("json", b"null"))
    if shape is not None:
        try:
            return shape.read(text)
        except Misfit:
            pass
    return msgspec.json.decode(text)
