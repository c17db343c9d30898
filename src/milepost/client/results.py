"""What comes out of a run: how an output is written and read, and `TaskResult`, the answer of every call that waits for runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar, cast

import msgspec

from milepost.client.shape import Shape, Unsendable, shape_of
from milepost.errors import TaskFailedError
from milepost.model.run import RunError
from milepost.model.typed import Misfit
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


UNTYPED: Final = shape_of(Any)


def output_text(output: object, shape: Shape[Any] | None) -> tuple[str | None, Misfit | None]:
    """An output as JSON text such that `task_result` gives it again, and why it does not fit its annotation, if it does not.

    An output that does not fit is plain JSON: the work is done, and what reads back equal is not thrown away for an annotation.

    Args:
        shape: of the annotation of the output; None without one.
    Raises: Misfit, naming the place, for what cannot be stored or would not come back equal.
    """
    if output is None:
        return None, None
    if shape is None:
        return UNTYPED.write(output).decode(), None
    try:
        return shape.write(output).decode(), None
    except Unsendable:
        raise
    except Misfit as misfit:
        text = UNTYPED.write(output)
        back = _typed_or_plain(text, shape)
        if type(back) is not type(output) or back != output:
            raise
        return text.decode(), misfit


def _output(wire: RunResult, shape: Shape[Any] | None) -> Any:
    if wire.output is None:
        return None
    if wire.output_type == TEXT_TYPE:
        return wire.output
    text: bytes | str = wire.output
    if wire.output_type == SUPER_JSON_TYPE:
        text = bytes(msgspec.json.decode(text, type=dict[str, msgspec.Raw]).get("json", b"null"))
    return UNTYPED.read(text) if shape is None else _typed_or_plain(text, shape)


def _typed_or_plain(text: bytes | str, shape: Shape[Any]) -> Any:
    try:
        return shape.read(text)
    except Misfit:
        return UNTYPED.read(text)
