"""Fencing: what an attempt does is refused once the attempt is over, whoever of its processes says it and however late it arrives.

A command that an attempt has sent names it (`AttemptRef`). The check is part of the transaction that would carry the command out, so
nothing can come between the two.
"""

from collections.abc import Iterable

from milepost.engine.commands import AttemptRef, Command
from milepost.engine.transaction import Transaction
from milepost.errors import AttemptOverError, InvalidRequestError, RunNotFoundError
from milepost.model.run import HELD_STATUSES
from milepost.protocol.endpoints import ATTEMPT_HEADER


def attempt_of(command: Command) -> AttemptRef | None:
    """The attempt that has sent a command by itself; None for a caller that is no part of a run.

    What a worker sends for an attempt names it in its own way (`model.lifecycle.holds`)."""
    return getattr(command, "attempt", None)


def check(command: Command, parents: Iterable[tuple[str, str | None]], transaction: Transaction) -> None:
    """Make sure that the attempt which sends a command is under way.

    A command that was carried out before, and is answered as it was then, is not looked at: it changes nothing.

    Args:
        parents: of the runs that it would trigger, each with its place in the request.
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
    for field, parent_id in parents:
        if parent_id is not None and parent_id != row.id:
            raise InvalidRequestError(
                f"what run {row.id} triggers is a child of that run, not of {parent_id!r:.100}", field=field
            )
