"""The small tables: logs of runs, tasks that workers have offered, answers of requests that may come twice."""

from collections.abc import Collection, Iterable, Sequence

import msgspec
from sqlalchemy import Connection, bindparam, delete, insert, select, update

from milepost.store.schema import answers, log_marks, logs, tasks, used_tokens
from milepost.store.statements import Lookup, Row, Statement, upsert
from milepost.store.trees import tree_of


class LogRow(msgspec.Struct):
    """One line of a run's log."""

    run_id: str
    attempt: int
    at: int
    level: str
    logger: str
    message: str


class LogMark(msgspec.Struct, gc=False):
    """How far one writer has come with the log of one attempt; "" is the server itself. Sizes are in bytes.

    `notice_number` is the number of the line that tells what was left out.
    """

    run_id: str
    attempt: int
    writer_id: str
    sequence: int = 0
    size_bytes: int = 0
    lines_left_out: int = 0
    bytes_left_out: int = 0
    notice_number: int | None = None


class UsedToken(msgspec.Struct, frozen=True):
    """A token that works once and has been used; `batch_id`: for this batch. `expires_at` is microseconds since 1970."""

    id: str
    batch_id: str | None
    expires_at: int


class TaskRow(msgspec.Struct):
    """A task that a worker has offered at some time; `retry` and the schemas are JSON."""

    id: str
    queue: str
    queue_concurrency: int | None
    retry: bytes
    payload_schema: bytes | None
    updated_at: int
    metadata_schema: bytes | None = None
    queue_rate: str | None = None
    has_end_hooks: int = 0


_NEW_TASKS = upsert(tasks)
_SAVE_TASKS = _NEW_TASKS.on_conflict_do_update(
    index_elements=["id"],
    set_={name: _NEW_TASKS.excluded[name] for name in TaskRow.__struct_fields__ if name != "id"},
)


_ANSWERS = Lookup(select(answers.c.request_id, answers.c.answer), answers.c.request_id)
_INSERT_LOGS = Statement(insert(logs), LogRow.__struct_fields__)
_INSERT_LOG = insert(logs)
_LOG_ROW = [logs.c[name] for name in LogRow.__struct_fields__]
_CHANGE_LOG = update(logs).where(logs.c.number == bindparam("line")).values(message=bindparam("text"))
_LOG_MARKS = Lookup(select(*(log_marks.c[name] for name in LogMark.__struct_fields__)), log_marks.c.run_id)
_NEW_LOG_MARKS = upsert(log_marks)
_SAVE_LOG_MARKS = Statement(
    _NEW_LOG_MARKS.on_conflict_do_update(
        index_elements=["run_id", "attempt", "writer_id"],
        set_={
            name: _NEW_LOG_MARKS.excluded[name]
            for name in LogMark.__struct_fields__
            if name not in ("run_id", "attempt", "writer_id")
        },
    ),
    LogMark.__struct_fields__,
    key=["run_id", "attempt", "writer_id"],
)
_USED_TOKEN = Lookup(select(*(used_tokens.c[name] for name in UsedToken.__struct_fields__)), used_tokens.c.id)
_INSERT_USED_TOKENS = Statement(insert(used_tokens), UsedToken.__struct_fields__)
_INSERT_ANSWERS = Statement(insert(answers), ("request_id", "answer", "created_at"))


def append_logs(connection: Connection, rows: Sequence[LogRow]) -> None:
    """Add lines to the logs of runs."""
    _INSERT_LOGS.write(connection, [msgspec.structs.astuple(row) for row in rows])


def append_log(connection: Connection, row: LogRow) -> int:
    """Add one line to the log of a run; its number."""
    inserted = connection.execute(_INSERT_LOG, msgspec.structs.asdict(row)).inserted_primary_key
    assert inserted is not None, "a line has a number"
    return inserted[0]


def change_log(connection: Connection, number: int, message: str) -> None:
    """Let a line of a log say something else."""
    connection.execute(_CHANGE_LOG, {"line": number, "text": message})


def load_log_marks(connection: Connection, run_ids: Collection[str]) -> list[LogMark]:
    """How far the logs of all attempts of these runs have come."""
    return [LogMark(*values) for values in _LOG_MARKS.read(connection, run_ids)]


def save_log_marks(connection: Connection, marks: Iterable[LogMark]) -> None:
    """Keep how far logs have come."""
    _SAVE_LOG_MARKS.write(connection, [msgspec.structs.astuple(mark) for mark in marks])


def load_logs(connection: Connection, run_id: str, *, after: int, limit: int) -> list[tuple[int, LogRow]]:
    """Up to `limit` lines of a run with a number above `after`, in order, each with its number."""
    statement = (
        select(logs.c.number, *_LOG_ROW)
        .where(logs.c.run_id == run_id, logs.c.number > after)
        .order_by(logs.c.number)
        .limit(limit)
    )
    return [(number, LogRow(*values)) for number, *values in connection.execute(statement)]


def load_tree_logs(
    connection: Connection, run_id: str, *, after: int, limit: int
) -> list[tuple[int, LogRow]]:
    """The same of a run and all runs below it."""
    tree = tree_of(run_id)
    # The numbers first, which the index has; the lines only of those that are told.
    numbers = (
        select(logs.c.number)
        .join(tree, logs.c.run_id == tree.c.id)
        .where(logs.c.number > after)
        .order_by(logs.c.number)
        .limit(limit)
    )
    statement = (
        select(logs.c.number, *_LOG_ROW)
        .where(logs.c.number.in_(numbers.scalar_subquery()))
        .order_by(logs.c.number)
    )
    return [(number, LogRow(*values)) for number, *values in connection.execute(statement)]


def save_tasks(connection: Connection, rows: Sequence[TaskRow]) -> None:
    """Remember the tasks; the newest word of a worker wins."""
    if rows:
        connection.execute(_SAVE_TASKS, [msgspec.structs.asdict(row) for row in rows])


def load_tasks(connection: Connection) -> dict[str, TaskRow]:
    """Every task that was ever offered, by id."""
    statement = select(*(tasks.c[name] for name in TaskRow.__struct_fields__))
    return {values[0]: TaskRow(*values) for values in connection.execute(statement)}


def load_answers(connection: Connection, request_ids: Sequence[str]) -> dict[str, bytes]:
    """The answers that were given to these request ids."""
    return dict(_ANSWERS.read(connection, request_ids))


def save_answers(connection: Connection, rows: Sequence[Row]) -> None:
    """Keep answers: (request_id, answer as JSON, created_at)."""
    _INSERT_ANSWERS.write(connection, rows)


def load_used_token(connection: Connection, token_id: str) -> UsedToken | None:
    """What a token was used for; None for one that was not."""
    return next((UsedToken(*values) for values in _USED_TOKEN.read(connection, [token_id])), None)


def save_used_tokens(connection: Connection, used: Iterable[UsedToken]) -> None:
    """Remember that tokens have been used."""
    _INSERT_USED_TOKENS.write(connection, [msgspec.structs.astuple(token) for token in used])


def prune_used_tokens(connection: Connection, *, before: int, limit: int) -> int:
    """Forget up to `limit` tokens that have expired before a time; how many they were."""
    expired = select(used_tokens.c.id).where(used_tokens.c.expires_at < before).limit(limit)
    return connection.execute(delete(used_tokens).where(used_tokens.c.id.in_(expired))).rowcount


_PROBE = "probe of writing"
# More than fits into what free pages a nearly full database has left.
_PROBE_BYTES = 16 * 1024


def probe_writing(connection: Connection, *, now: int) -> None:
    """Write what has to go to disk at the commit. It stands under an id that no request has, and is forgotten like the others."""
    connection.execute(
        upsert(answers).on_conflict_do_update(
            index_elements=["request_id"], set_={"answer": bytes(_PROBE_BYTES), "created_at": now}
        ),
        {"request_id": _PROBE, "answer": bytes(_PROBE_BYTES), "created_at": now},
    )


def prune_answers(connection: Connection, *, before: int, limit: int) -> int:
    """Forget up to `limit` answers from before a time, the oldest first; how many they were."""
    oldest = (
        select(answers.c.request_id)
        .where(answers.c.created_at < before)
        .order_by(answers.c.created_at)
        .limit(limit)
    )
    return connection.execute(delete(answers).where(answers.c.request_id.in_(oldest))).rowcount
