"""Jobs of the upkeep as the database knows them: each is done by one server at a time, the one that has the lease of it.

A lease is taken in the transaction that has found work for it, so a server with nothing to do writes nothing, and what a server does
after its lease was over is refused with the commit of whoever has taken it.
"""

from enum import StrEnum

from milepost.engine.commands import BeginJob, FinishJob
from milepost.engine.state import EngineState
from milepost.engine.transaction import Transaction
from milepost.store import upkeep as store

LEASE_MICROSECONDS = 30_000_000
# Of a lease that lasts longer than this nothing is written.
RENEWED_MICROSECONDS = 20_000_000


class JobName(StrEnum):
    """What there is to do."""

    LEASES = "leases"
    STOPS = "stops"
    INDEX = "index"
    HISTORY = "history"
    STREAMS = "streams"
    RUNS = "runs"
    LOGS = "logs"
    PAYLOADS = "payloads"
    WAITPOINTS = "waitpoints"
    ANSWERS = "answers"
    USED_TOKENS = "used_tokens"
    IDEMPOTENCY_KEYS = "idempotency_keys"
    ANNOUNCEMENTS = "announcements"


def is_ours(job: JobName, transaction: Transaction, state: EngineState) -> bool:
    """Whether this server may do the job now; takes the lease where it is free, and renews it in time."""
    row = store.load_job(transaction.connection, job)
    if row is not None and row.holder == state.server_id:
        left = row.lease_until - transaction.age_now
        if RENEWED_MICROSECONDS < left <= LEASE_MICROSECONDS:
            return True
    return store.take_job(
        transaction.connection, job, state.server_id, now=transaction.age_now, lease=LEASE_MICROSECONDS
    )


def begin(command: BeginJob, transaction: Transaction, state: EngineState) -> bool:
    """Take the lease of a job that no server has finished lately."""
    return store.take_job(
        transaction.connection,
        command.job,
        state.server_id,
        now=transaction.age_now,
        lease=LEASE_MICROSECONDS,
        due_before=transaction.age_now - command.period,
    )


def finish(command: FinishJob, transaction: Transaction, state: EngineState) -> None:
    """The job is done for this time, and its lease is given back."""
    store.finish_job(transaction.connection, command.job, state.server_id, now=transaction.age_now)
