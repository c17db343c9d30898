"""Deleting runs: those that are old enough, tree by tree, and those that somebody asks to delete."""

from collections.abc import Mapping

import msgspec

from milepost.engine import jobs
from milepost.engine.commands import DeleteLogLines, DeleteOldTree, DeletePayloads, DeleteRun
from milepost.engine.jobs import JobName
from milepost.engine.state import EngineState
from milepost.engine.transaction import Transaction
from milepost.errors import ConflictError, RunNotFoundError
from milepost.model.run import RunStatus
from milepost.store import deletion as store
from milepost.store.deletion import DoomedRun


def delete_old_tree(command: DeleteOldTree, transaction: Transaction, state: EngineState) -> int:
    """Delete a part of a tree all of which is old; how many runs; none where a run of it must stay after all."""
    if not jobs.is_ours(JobName.RUNS, transaction, state):
        return 0
    transaction.save()
    cutoffs: Mapping[RunStatus, int] = {RunStatus(status): at for status, at in command.cutoffs.items()}
    doomed = store.old_tree(
        transaction.connection,
        command.root_id,
        limit=command.limit,
        cutoffs=cutoffs,
        settled_before=command.settled_before,
    )
    _delete(doomed, transaction)
    return len(doomed)


class _Deleted(msgspec.Struct, frozen=True):
    """What stands under the id of a request that has deleted a run. By the checksum, which none has, a trigger under the same id is
    told that it was used."""

    run_ids: list[str] = []
    checksum: int = -1


def delete_run(command: DeleteRun, transaction: Transaction, state: EngineState) -> tuple[int, int]:
    """Delete a part of a finished run and all below it; how many runs, and how many are left of them.

    Raises: RunNotFoundError; ConflictError while one of them, or the parent, has not finished.
    """
    # What this group has written must be seen here.
    transaction.save()
    found = store.with_descendants(transaction.connection, command.run_id)
    is_repeated = transaction.earlier_answer(command.request_id) is not None
    if not found:
        if is_repeated:
            return 0, 0
        raise RunNotFoundError(f"there is no run {command.run_id!r:.100}")
    own = found[-1]
    for run in (own, *found):
        if not run.status.is_final:
            of = "" if run is own else f"run {run.id}, which is below it, has not: "
            raise ConflictError(
                f"run {own.id} cannot be deleted, because only finished runs can, with all below them; {of}it is {run.status}. "
                "Let it end first"
            )
    parent = transaction.run(own.parent_id) if own.parent_id is not None else None
    if parent is not None and not parent.status.is_final:
        raise ConflictError(
            f"run {own.id} cannot be deleted while its parent {parent.id} is {parent.status}: the parent may still ask for its result"
        )
    doomed = found[: command.limit]
    _delete(doomed, transaction)
    if not is_repeated:
        transaction.keep_answer(command.request_id, msgspec.json.encode(_Deleted()))
    return len(doomed), len(found) - len(doomed)


def delete_log_lines(command: DeleteLogLines, transaction: Transaction, state: EngineState) -> int:
    """Delete lines of logs that are old; how many."""
    if not jobs.is_ours(JobName.LOGS, transaction, state):
        return 0
    store.delete_log_lines(transaction.connection, command.numbers)
    return len(command.numbers)


def delete_payloads(command: DeletePayloads, transaction: Transaction, state: EngineState) -> int:
    """Delete payloads of runs that have finished long ago; how many."""
    if not jobs.is_ours(JobName.PAYLOADS, transaction, state):
        return 0
    store.delete_payloads(transaction.connection, command.run_ids)
    return len(command.run_ids)


def _delete(doomed: list[DoomedRun], transaction: Transaction) -> None:
    if doomed:
        store.delete_runs(transaction.connection, doomed)
        transaction.delete_runs([run.id for run in doomed])
