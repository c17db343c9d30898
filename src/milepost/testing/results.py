"""What became of a run in a sandbox, read when nothing was left to do."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from milepost.client import calls
from milepost.client.calls import MetadataVersion
from milepost.client.client import Client
from milepost.client.results import TaskResult, task_result
from milepost.client.run import Run
from milepost.errors import TaskFailedError
from milepost.model.run import RunError, RunStatus
from milepost.protocol.runs import LogLine, RunAttempt
from milepost.sdk.triggering import output_shape

OutputT = TypeVar("OutputT")


@dataclass(frozen=True, kw_only=True)
class SandboxRun(Generic[OutputT]):
    """A run of a sandbox and all runs below it, as they were when it was read.

    Attributes:
        run: the run as every reader sees it: its times, tags, queue and so on.
        output: what the task returned, in the type that its annotation names; None when it has not succeeded.
        history: every change of the metadata, in order: `version`, `operations`, `writer_run_id`, `attempt`.
        logs: what the run has logged and printed, in order: `level`, `message`, `attempt`, `logger`.
        children: the runs that it has triggered, oldest first, of every attempt.
    """

    run: Run = field(repr=False)
    output: OutputT | None
    history: list[MetadataVersion] = field(repr=False)
    logs: list[LogLine] = field(repr=False)
    children: "list[SandboxRun[Any]]" = field(repr=False)

    @property
    def id(self) -> str:
        """The run's id."""
        return self.run.id

    @property
    def task_id(self) -> str:
        """The task that it is of."""
        return self.run.task_id

    @property
    def status(self) -> RunStatus:
        """Where it stands."""
        return self.run.status

    @property
    def error(self) -> RunError | None:
        """The user's error as data (`name`, `message`, `stack_trace`), after a failed attempt."""
        return self.run.error

    @property
    def metadata(self) -> dict[str, Any]:
        """Its document."""
        return self.run.metadata

    @property
    def attempts(self) -> list[RunAttempt]:
        """What became of each attempt: `number`, `end`, `error`, `is_charged`."""
        return self.run.attempts

    @property
    def tags(self) -> list[str]:
        """Its tags."""
        return self.run.tags

    def unwrap(self) -> OutputT:
        """The output. Raises TaskFailedError when the run has not succeeded; it says how the run stands."""
        if self.run.is_success:
            result: TaskResult[OutputT] = TaskResult(ok=True, run_id=self.id, output=self.output)
            return result.unwrap()
        error = self.error or RunError(message=f"the run is {self.status.value}")
        raise TaskFailedError(run_id=self.id, error_name=error.name, error_message=error.message)

    def tree(self) -> "Iterator[SandboxRun[Any]]":
        """This run and all below it, each before those below it."""
        yield self
        for child in self.children:
            yield from child.tree()

    def __repr__(self) -> str:
        attempts = "1 attempt" if self.run.attempt_count == 1 else f"{self.run.attempt_count} attempts"
        reason = self.run.queued_reason
        why = f", {reason.describe(self.task_id)}" if reason is not None else ""
        error = f", {self.error.name}: {self.error.message}" if self.error is not None else ""
        return f"<run {self.id} of {self.task_id}: {self.status.value}, {attempts}{error}{why}>"


def read_run(client: Client, run_id: str) -> SandboxRun[Any]:
    """A run with all runs below it."""
    run = client.runs.retrieve(run_id)
    output: Any = None
    if run.is_success and run.output is not None:
        result = client.send(calls.run_result(run_id))
        if result is not None:
            output = task_result(result, output_shape(run.task_id)).output
    children: list[Run] = list(client.runs.list(parent=run_id)) if run.child_counts else []
    return SandboxRun(
        run=run,
        output=output,
        history=list(client.runs.metadata_history(run_id)) if run.metadata_version else [],
        logs=_log(client, run_id),
        # Lists have the newest first.
        children=[read_run(client, child.id) for child in reversed(children)],
    )


def _log(client: Client, run_id: str) -> list[LogLine]:
    lines: list[LogLine] = []
    after: int | None = 0
    while after is not None:
        page = client.send(calls.run_log(run_id, {}, after=after))
        lines += page.data
        after = page.next
    return lines
