"""Triggering runs from Python, outside of runs and inside, and waiting for what was triggered.

Preparing is pure: payload and options become a request, checked as far as that can be told here. What follows are steps, which
each colour drives in its own way. Inside a run the new runs become its children, and what the run wrote to its metadata is
committed before they start, so that what the children write comes after it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, TypeVar

from milepost.client import calls, endings
from milepost.client.client import Client, run_handle
from milepost.client.connection import Connection
from milepost.client.default import default_client
from milepost.client.handles import RunHandle
from milepost.client.idempotency import Caller
from milepost.client.requests import NO_PAYLOAD, RunOptions, checked_size, payload_text, trigger_options
from milepost.client.results import TaskResult, task_result
from milepost.client.shape import Shape
from milepost.client.steps import Steps, arun, run
from milepost.errors import PayloadValidationError
from milepost.model.typed import Misfit
from milepost.protocol.runs import RunResult
from milepost.protocol.triggering import TriggerRequest
from milepost.sdk.registry import find_task
from milepost.sdk.scope import RunScope, live_scope

PayloadT = TypeVar("PayloadT")


# --- preparing ---------------------------------------------------------------------------------------------


def describe_misfit(task_id: str, name: str, misfit: Misfit) -> PayloadValidationError:
    """The error for a payload that does not fit. `name` is the payload's parameter."""
    return PayloadValidationError(
        f"the payload does not fit task {task_id!r}: {misfit.describe(name)}",
        field=misfit.problems[0][0] or name,
    )


def encode_payload(task_id: str, payload: object) -> str | None:
    """A payload as JSON text, checked where the task is known in this process; None for one that was left out.

    Raises: PayloadValidationError; TooLargeError.
    """
    task = find_task(task_id)
    if task is None:
        return payload_text(payload)
    signature = task.signature
    parameter = signature.payload
    shape = signature.payload_shape
    if signature.arguments and shape is not None:
        try:
            return checked_size(shape.write(signature.arguments_of(payload)).decode())
        except Misfit as misfit:
            raise describe_misfit(task_id, "payload", misfit) from None
    if parameter is None or shape is None:
        if payload is not NO_PAYLOAD and payload is not None:
            raise PayloadValidationError(
                f"task {task_id!r} takes no payload, and was given one", field="payload"
            )
        return None
    if payload is NO_PAYLOAD:
        if parameter.default is not parameter.empty:
            return None
        payload = None
        try:
            shape.check(None)
        except Misfit:
            message = f"task {task_id!r} needs a payload ({parameter.name}), and was given none"
            raise PayloadValidationError(message, field=parameter.name) from None
    try:
        return checked_size(shape.write(payload).decode())
    except Misfit as misfit:
        raise describe_misfit(task_id, parameter.name, misfit) from None


def caller_of(scope: RunScope | None) -> Caller | None:
    """The attempt that triggers, for the scopes of idempotency keys."""
    return None if scope is None else Caller(scope.run.id, scope.run.attempt)


def prepare(
    task_id: str,
    payload: object,
    options: RunOptions,
    *,
    limit: int,
    scope: RunScope | None,
    resume: bool,
    caller: Caller | None = None,
) -> TriggerRequest:
    """One run as a message.

    Args:
        caller: the attempt that triggers, where the message is part of one that names the parent.
    Raises: PayloadValidationError, MetadataError, UsageError for an idempotency key, TypeError for an unknown option.
    """
    task = find_task(task_id)
    text = encode_payload(task_id, payload)
    document = options.get("metadata")
    if task is not None and task.metadata is not None and document is not None:
        options = {**options, "metadata": task.metadata.document_of(document)}
    return TriggerRequest(
        text,
        trigger_options(
            options,
            has_payload=text is not None,
            metadata_limit=limit if scope is None else scope.buffer.limit,
            parent_run_id=scope.run.id if scope is not None else None,
            resume=resume,
            caller=caller if scope is None else caller_of(scope),
        ),
    )


def output_shape(task_id: str) -> Shape[Any] | None:
    """The type of a task's output, where the task is known in this process."""
    task = find_task(task_id)
    return task.signature.output_shape if task is not None else None


# --- the steps ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Commit:
    """What the run has written to its metadata is committed before the runs that it triggers start."""

    scope: RunScope | None

    def carry_out(self, connection: Connection, until: float | None) -> None:
        """See `Step`."""
        if self.scope is not None and self.scope.buffer.has_unacknowledged:
            self.scope.link.flush(self.scope).result()

    async def acarry_out(self, connection: Connection) -> None:
        """See `Step`."""
        if self.scope is not None and self.scope.buffer.has_unacknowledged:
            await asyncio.shield(asyncio.wrap_future(self.scope.link.flush(self.scope)))


@dataclass(frozen=True, slots=True)
class WaitForEnd:
    """Wait inside a run until another run or a batch has ended; the slot is given back meanwhile."""

    scope: RunScope
    target_id: str

    def carry_out(self, connection: Connection, until: float | None) -> None:
        """See `Step`."""
        scope, attempt = self.scope, self.scope.attempt
        if attempt is not None:
            attempt.run_hooks_blocking("on_wait")
        scope.link.wait_for(scope, self.target_id).result()
        if attempt is not None:
            attempt.run_hooks_blocking("on_resume")

    async def acarry_out(self, connection: Connection) -> None:
        """See `Step`."""
        scope, attempt = self.scope, self.scope.attempt
        if attempt is not None:
            await attempt.run_hooks("on_wait")
        # Not shielded: when the waiting is given up, the link is to know.
        await asyncio.wrap_future(scope.link.wait_for(scope, self.target_id))
        if attempt is not None:
            await attempt.run_hooks("on_resume")


def _triggering(
    client: Client,
    scope: RunScope | None,
    task_id: str,
    payload: object,
    options: RunOptions,
    *,
    resume: bool,
) -> Steps[RunHandle[Any]]:
    request = yield from client.preparing(
        lambda limit: prepare(task_id, payload, options, limit=limit, scope=scope, resume=resume)
    )
    yield Commit(scope)
    return run_handle(client, task_id, (yield calls.trigger(task_id, request)), output_shape(task_id))


def _triggering_and_waiting(
    client: Client, scope: RunScope | None, task_id: str, payload: object, options: RunOptions
) -> Steps[TaskResult[Any]]:
    resume = scope is not None
    handle = yield from _triggering(client, scope, task_id, payload, options, resume=resume)
    result: RunResult | None = None
    if handle.is_cached:
        # What has ended before is not told to anybody any more.
        result = yield calls.run_result(handle.id)
    if result is None and scope is not None:
        yield WaitForEnd(scope, handle.id)
        result = yield calls.run_result(handle.id)
    if result is None:
        result = yield from endings.result_of_run(handle.id)
    return task_result(result, output_shape(task_id))


# --- the two colours ---------------------------------------------------------------------------------------


def trigger(task_id: str, payload: object, options: RunOptions) -> RunHandle[Any]:
    """Trigger one run; see `Task.trigger`."""
    scope, client = blocking_scope("trigger"), default_client()
    return run(client.connection, _triggering(client, scope, task_id, payload, options, resume=False))


async def atrigger(task_id: str, payload: object, options: RunOptions) -> RunHandle[Any]:
    """As `trigger`, without blocking."""
    scope, client = live_scope(), default_client()
    return await arun(client.connection, _triggering(client, scope, task_id, payload, options, resume=False))


def trigger_and_wait(task_id: str, payload: object, options: RunOptions) -> TaskResult[Any]:
    """Trigger one run and wait for its end; see `Task.trigger_and_wait`."""
    scope, client = blocking_scope("trigger_and_wait"), default_client()
    return run(client.connection, _triggering_and_waiting(client, scope, task_id, payload, options))


async def atrigger_and_wait(task_id: str, payload: object, options: RunOptions) -> TaskResult[Any]:
    """As `trigger_and_wait`, without blocking."""
    scope, client = live_scope(), default_client()
    return await arun(client.connection, _triggering_and_waiting(client, scope, task_id, payload, options))


def blocking_scope(form: str) -> RunScope | None:
    """The run that calls a blocking form, if any. Raises UsageError on the worker's event loop."""
    scope = live_scope()
    if scope is not None:
        scope.heed()
        scope.refuse_blocking(f"{form}(...)", f"`await a{form}(...)`")
    return scope
