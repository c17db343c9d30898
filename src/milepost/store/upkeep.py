"""Who does which job of the upkeep: one server at a time, for as long as its lease of the job lasts."""

import msgspec
from sqlalchemy import Connection, and_, bindparam, func, or_, select, update

from milepost.store.schema import upkeep_jobs
from milepost.store.statements import Statement, upsert


class JobRow(msgspec.Struct, gc=False):
    """A job: the server that has its lease, and when it was last done. Times are by the clock that is never set back."""

    name: str
    holder: str
    lease_until: int
    finished_at: int | None = None


_JOB = Statement(
    select(*(upkeep_jobs.c[name] for name in JobRow.__struct_fields__)).where(
        upkeep_jobs.c.name == bindparam("job")
    ),
    ["job"],
)
_NEW = upsert(upkeep_jobs)
# A lease that ends later than one that is taken now was given by a clock that was ahead.
_IS_FREE = or_(
    upkeep_jobs.c.holder == _NEW.excluded.holder,
    upkeep_jobs.c.lease_until <= bindparam("now"),
    upkeep_jobs.c.lease_until > _NEW.excluded.lease_until,
)
_IS_DUE = or_(
    upkeep_jobs.c.finished_at.is_(None),
    upkeep_jobs.c.finished_at <= bindparam("due_before"),
    upkeep_jobs.c.finished_at > bindparam("now"),
)
_TAKEN = {"holder": _NEW.excluded.holder, "lease_until": _NEW.excluded.lease_until}
_TAKE = _NEW.on_conflict_do_update(index_elements=["name"], set_=_TAKEN, where=_IS_FREE).returning(
    upkeep_jobs.c.name
)
_TAKE_WHEN_DUE = _NEW.on_conflict_do_update(
    index_elements=["name"], set_=_TAKEN, where=and_(_IS_FREE, _IS_DUE)
).returning(upkeep_jobs.c.name)
_FINISH = (
    update(upkeep_jobs)
    .where(upkeep_jobs.c.name == bindparam("job"), upkeep_jobs.c.holder == bindparam("server"))
    .values(lease_until=bindparam("now"), finished_at=bindparam("now"))
)


def load_job(connection: Connection, name: str) -> JobRow | None:
    """A job; None for one that no server has taken yet."""
    found = _JOB.read(connection, (name,))
    return JobRow(*found[0]) if found else None


def newest_time(connection: Connection) -> int | None:
    """When the job that was finished last was; None when none was."""
    return connection.execute(select(func.max(upkeep_jobs.c.finished_at))).scalar()


def take_job(
    connection: Connection, name: str, holder: str, *, now: int, lease: int, due_before: int | None = None
) -> bool:
    """Take the lease of a job, or renew it; False when another server has it.

    Args:
        lease: for how long, in microseconds.
        due_before: not when the job was finished after this time.
    """
    values = {"name": name, "holder": holder, "lease_until": now + lease, "now": now}
    if due_before is None:
        return connection.execute(_TAKE, values).first() is not None
    return connection.execute(_TAKE_WHEN_DUE, {**values, "due_before": due_before}).first() is not None


def finish_job(connection: Connection, name: str, holder: str, *, now: int) -> None:
    """The job is done, and its lease is given back; of one that another server has taken meanwhile nothing changes."""
    connection.execute(_FINISH, {"job": name, "server": holder, "now": now})
