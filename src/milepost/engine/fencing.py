"""Fencing: what an attempt does is refused once the attempt is over, whoever of its processes says it and however late it arrives.

A command that an attempt has sent names it (`AttemptRef`). The check is part of the transaction that would carry the command out, so
nothing can come between the two.
"""

from collections.abc import Iterable

from milepost.engine.commands import (
    AddBatchItems,
    AddOutsideChunks,
    AttemptRef,
    Command,
    CreateBatch,
    Trigger,
    TriggerBatch,
    UpdateMetadata,
)
from milepost.engine.transaction import Transaction
from milepost.errors import AttemptOverError, InvalidRequestError, RunNotFoundError
from milepost.model.run import HELD_STATUSES
from milepost.protocol.endpoints import ATTEMPT_HEADER

# What an attempt may send by itself. What its worker sends for it names the attempt in its own way (`model.run.holds`).
_FENCED = (Trigger, TriggerBatch, CreateBatch, AddBatchItems, UpdateMetadata, AddOutsideChunks)


def attempt_of(command: Command) -> AttemptRef | None:
    """The attempt that a command names; None for a caller that is no part of a run."""
    return command.attempt if isinstance(command, _FENCED) else None


def check(command: Command, transaction: Transaction) -> None:
    """Make sure that the attempt which sends a command is under way.

    A command that was carried out before, and is answered as it was then, is not looked at: it changes nothing.

    Raises: AttemptOverError; RunNotFoundError; InvalidRequestError for children that would be those of another run.
    """
    attempt = attempt_of(command)
    if attempt is None or transaction.earlier_answer(getattr(command, "request_id", None)) is not None:
        return
    row = transaction.run(attempt.run)
    if row is None:
        raise RunNotFoundError(f"{ATTEMPT_HEADER}: there is no run {attempt.run!r:.100}")
    if row.attempt != attempt.number or row.status not in HELD_STATUSES:
        is_held = row.status in HELD_STATUSES
        present = f"attempt {row.attempt} is under way" if is_held else f"the run is {row.status}"
        raise AttemptOverError(
            f"attempt {attempt.number} of run {row.id} is over, so nothing that it does counts any more: {present}"
        )
    for field, parent_id in _parents(command):
        if parent_id is not None and parent_id != row.id:
            raise InvalidRequestError(
                f"what run {row.id} triggers is a child of that run, not of {parent_id!r:.100}", field=field
            )


def _parents(command: Command) -> Iterable[tuple[str, str | None]]:
    """The parents that a command names, each with its place in the request."""
    match command:
        case Trigger():
            yield "options.parentRunId", command.item.options.parent_run_id
        case TriggerBatch():
            yield "parentRunId", command.parent_id
            for index, item in enumerate(command.items):
                yield f"items[{index}].options.parentRunId", item.options.parent_run_id
        case CreateBatch():
            yield "parentRunId", command.parent_id
        case AddBatchItems():
            for index, line in enumerate(command.lines):
                yield f"items[{index}].options.parentRunId", line.options.parent_run_id
        case _:
            return
