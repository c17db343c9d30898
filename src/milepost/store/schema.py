"""The tables. The migrations build them; a test holds that both agree.

A document is not a column of its run: it is a snapshot (`documents`) plus the operations committed since (`changes`), so that a
flush writes what changed and nothing else. Values that may be large and never change again have a table of their own
(`large_values`), because SQLite rewrites a whole row on each update.
"""

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Double,
    Index,
    LargeBinary,
    MetaData,
    Table,
    text,
)

from milepost.model.run import FINAL_STATUSES, RunStatus

tables = MetaData()

# Texts are compared code point by code point, whatever order a PostgreSQL database was made with: ids are read in their order, and
# the order of SQLite and of Python is the same one.
Text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
# Whole numbers have 64 bits everywhere. SQLite has one kind of them only, and numbers the rows of `INTEGER PRIMARY KEY` by itself.
Integer = sa.Integer().with_variant(BigInteger(), "postgresql")

COMMON = (RunStatus.QUEUED, RunStatus.EXECUTING, RunStatus.COMPLETED, RunStatus.WAITING)
"""The statuses of most runs; the others are rare. Named first in a check, they end it."""

_RARE = [status for status in RunStatus if status not in COMMON]


# Without `IN`: for a list of three or more SQLite builds a table each time that it looks at a row, which took longer than all else
# that it does to write one.
def _is_one_of(statuses: Iterable[RunStatus]) -> str:
    return "(" + " OR ".join(f"status = '{status}'" for status in statuses) + ")"


def _is_none_of(statuses: Iterable[RunStatus]) -> str:
    return "(" + " AND ".join(f"status <> '{status}'" for status in statuses) + ")"


_KNOWN = _is_one_of((*COMMON, *_RARE))
_FINAL = _is_one_of(status for status in (*COMMON, *_RARE) if status in FINAL_STATUSES)
_HELD = (
    f"(worker_id IS NOT NULL OR {_is_none_of((RunStatus.EXECUTING, RunStatus.WAITING))}) AND "
    f"(worker_id IS NULL OR {_is_none_of((RunStatus.QUEUED, RunStatus.DELAYED, RunStatus.PENDING_VERSION))})"
)
RARE = _is_none_of(COMMON)
"""The condition of the index of runs with a rare status. Queued and held runs have others, completed ones need none."""


def _where(condition: str) -> dict[str, Any]:
    """A partial index: the same condition for both databases."""
    return {"sqlite_where": text(condition), "postgresql_where": text(condition)}


runs = Table(
    "runs",
    tables,
    Column("id", Text, primary_key=True),
    Column("task", Text, nullable=False),
    Column("queue", Text, nullable=False),
    Column("status", Text, nullable=False),
    # The number of the newest attempt. It grows with each claim, so none is ever used twice.
    Column("attempt", Integer, nullable=False),
    # How many attempts that have ended count against the rule of retries.
    Column("charged", Integer, nullable=False, server_default=text("0")),
    Column("max_attempts", Integer),
    # The worker of the newest attempt. It holds the run while that is EXECUTING or WAITING; nobody's once it is QUEUED again.
    Column("worker_id", Text),
    # Which claim of the worker has brought the run, so that a repeat of the claim is answered alike.
    Column("claim_sequence", BigInteger),
    Column("claimed_at", BigInteger),
    # When the server first heard that the code of the newest attempt has begun.
    Column("begun_at", BigInteger),
    # 1 for a suspect of a crash: it executes alone in its process.
    Column("is_apart", Integer, nullable=False, server_default=text("0")),
    # Since when a waiting run would go on, if its queue had room.
    Column("resuming_at", BigInteger),
    # The newest report of the present attempt that was applied (M44: each at most once).
    Column("report_sequence", Integer, nullable=False),
    # What that report said, as a checksum: another one under the same number is no repeat.
    Column("report_checksum", BigInteger),
    Column("due_at", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("started_at", BigInteger),
    Column("finished_at", BigInteger),
    # When it has finished by the clock that is never set back; nothing where that agrees with `finished_at`.
    Column("aged_from", BigInteger),
    Column("parent_id", Text),
    Column("root_id", Text, nullable=False),
    Column("batch_id", Text),
    Column("batch_index", Integer),
    Column("depth", Integer, nullable=False),
    Column("trigger_function", Text, nullable=False),
    Column("tags", Text),
    Column("payload", Text),
    Column("payload_type", Text),
    Column("output", Text),
    Column("error", Text),
    # The document given at trigger; version 0 of the log (M2).
    Column("trigger_metadata", LargeBinary),
    # The version of its document: 0 until the first committed change. Most runs have none, and their log need not be looked at.
    Column("metadata_version", Integer, nullable=False),
    # 1 while the document may differ from its rows in `metadata_values`.
    Column("metadata_unindexed", Integer, nullable=False, server_default=text("0")),
    # Names of columns whose value is in `large_values` instead, joined with commas.
    Column("large", Text),
    # Of runs with the same one the limit of the queue holds by itself.
    Column("concurrency_key", Text),
    # When it is over with a run that no worker has taken; nothing while it is delayed, and once it was claimed.
    Column("expires_at", BigInteger),
    # 1 where `due_at` of a delayed run is a time that somebody has named, and no pause: a clock that is set does not move it.
    Column("is_due_at_given", Integer),
    # When the run was first asked to end.
    Column("cancel_asked_at", BigInteger),
    # 1 while its children are being cancelled.
    Column("cancels_children", Integer),
    # What else was asked at the trigger, as JSON (`RunOptions`): no statement looks into it.
    Column("options", Text),
    # The newest attempt of its parent that has it as its child, triggered or found again; nothing: it is not to be found again.
    Column("parent_attempt", Integer),
    # 1: other batches than its own count it (`batch_members`), or another run than its parent waits for it (`run_waiters`).
    Column("is_shared", Integer, nullable=False, server_default=text("0")),
    # How the run ends once a worker has run the hooks of its end, as JSON (`Closing`).
    Column("closing", Text),
    # By which time of the clock `due_at` was reckoned; nothing where `updated_at` says it, which is never set back.
    Column("reckoned_at", BigInteger),
    CheckConstraint(_KNOWN, name="runs_status"),
    CheckConstraint(_HELD, name="runs_held"),
    CheckConstraint(f"(finished_at IS NOT NULL) = {_FINAL}", name="runs_finished"),
    # By queue, so that runs of one that is full are not even passed over.
    Index(
        "runs_due", "task", "queue", "due_at", "id",
        **_where("status = 'QUEUED' AND is_apart = 0 AND concurrency_key IS NULL"),
    ),
    Index(
        "runs_due_by_key", "task", "queue", "concurrency_key", "due_at", "id",
        **_where("status = 'QUEUED' AND is_apart = 0 AND concurrency_key IS NOT NULL"),
    ),
    Index("runs_apart", "due_at", "id", **_where("status = 'QUEUED' AND is_apart = 1")),
    Index("runs_resuming", "queue", "concurrency_key", "resuming_at", "id", **_where("resuming_at IS NOT NULL")),
    Index("runs_held_by", "worker_id", **_where("status IN ('EXECUTING', 'WAITING')")),
    # Also of the runs without a parent: a list of those must not read past their children.
    Index("runs_parent", "parent_id", "id"),
    # A root is found by its id.
    Index("runs_root", "root_id", "id", **_where("parent_id IS NOT NULL")),
    Index("runs_batch", "batch_id", "batch_index", unique=True, **_where("batch_id IS NOT NULL")),
    Index("runs_task", "task", "id"),
    Index("runs_rare", "status", "id", **_where(RARE)),
    Index("runs_delayed", "due_at", "id", **_where("status = 'DELAYED'")),
    Index("runs_pending", "task", "id", **_where("status = 'PENDING_VERSION'")),
    Index("runs_expiring", "expires_at", "id", **_where("expires_at IS NOT NULL")),
    Index("runs_cancelling", "id", **_where("cancels_children = 1")),
    Index("runs_unindexed", "id", **_where("metadata_unindexed = 1")),
)  # fmt: skip

# Attempts that have ended, but for the last one of a completed run: that, and the newest one of any other, stands in the run's row.
attempts = Table(
    "attempts",
    tables,
    Column("run_id", Text, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("worker_id", Text),
    Column("claimed_at", BigInteger),
    Column("begun_at", BigInteger),
    Column("ended_at", BigInteger, nullable=False),
    # How it ended, a word of `AttemptEnd`.
    Column("end", Text, nullable=False),
    # What it raised, or why it is over, as JSON.
    Column("error", Text),
    sqlite_with_rowid=False,
)

# Queues that have a limit or a rate, had one, or are or were paused. Of any other nothing need be known.
queues = Table(
    "queues",
    tables,
    Column("name", Text, primary_key=True),
    # How many of its runs may execute at once; nothing: any number.
    Column("concurrency", Integer),
    Column("is_paused", Integer, nullable=False),
    # How many execute now, and how many waiting ones would go on if there was room.
    # Runs with a concurrency key are counted in `queue_keys`.
    Column("executing", Integer, nullable=False),
    Column("resuming", Integer, nullable=False),
    # The limit that was set by API, which wins over what the tasks say, and since when.
    Column("concurrency_override", Integer),
    Column("overridden_at", BigInteger),
    # How many runs may start in a period, such as `100/m`, and when the last ones have started: a JSON list of times and numbers.
    Column("rate", Text),
    Column("starts", Text),
)

# How many runs with a concurrency key execute, and would go on, in queues that are in `queues`; without a row: none.
queue_keys = Table(
    "queue_keys",
    tables,
    Column("queue", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("executing", Integer, nullable=False),
    Column("resuming", Integer, nullable=False),
    sqlite_with_rowid=False,
)

# Where runs with a concurrency key may be queued: a line of keys for each task and queue, so that a claim looks at the first ones and
# at no others, however many there are.
key_places = Table(
    "key_places",
    tables,
    Column("queue", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("task", Text, primary_key=True),
    # When there may be a due run; nothing while the limit of the queue is reached for this key. A key whose run was claimed goes to
    # the end of the line.
    Column("look_at", BigInteger),
    # The order of those that have gone there at the same moment.
    Column("turn", BigInteger, nullable=False),
    Index("key_places_line", "task", "queue", "look_at", "turn", "key", **_where("look_at IS NOT NULL")),
    sqlite_with_rowid=False,
)

# How many runs have each status: of the children of a run, and under an empty id of all runs.
run_counts = Table(
    "run_counts",
    tables,
    Column("parent_id", Text, primary_key=True),
    Column("status", Text, primary_key=True),
    Column("count", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

# The workers that hold a lease.
workers = Table(
    "workers",
    tables,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    # The ids of the tasks that it offers, a JSON list.
    Column("tasks", Text, nullable=False),
    # The number of the newest registration that was heard, and that of the worker's last claim by then.
    Column("registration", BigInteger, nullable=False),
    Column("claims", BigInteger, nullable=False),
    Column("registered_at", BigInteger, nullable=False),
)

run_tags = Table(
    "run_tags",
    tables,
    Column("tag", Text, primary_key=True),
    Column("run_id", Text, primary_key=True),
    sqlite_with_rowid=False,
)

large_values = Table(
    "large_values",
    tables,
    Column("run_id", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)

batches = Table(
    "batches",
    tables,
    Column("id", Text, primary_key=True),
    Column("parent_id", Text),
    Column("resume_parent", Integer, nullable=False),
    Column("run_count", Integer, nullable=False),
    Column("accepted_count", Integer, nullable=False),
    Column("finished_count", Integer, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    CheckConstraint(
        "finished_count <= accepted_count AND accepted_count <= run_count", name="batches_counts"
    ),
)

# Runs that were there before a batch which has them among its own, by their place in it.
batch_members = Table(
    "batch_members",
    tables,
    Column("batch_id", Text, primary_key=True),
    Column("batch_index", Integer, primary_key=True, autoincrement=False),
    Column("run_id", Text, nullable=False),
    Index("batch_members_run", "run_id"),
    sqlite_with_rowid=False,
)

# Runs that wait for a run which is not, or not only, a child of theirs.
run_waiters = Table(
    "run_waiters",
    tables,
    Column("run_id", Text, primary_key=True),
    Column("waiter_id", Text, primary_key=True),
    sqlite_with_rowid=False,
)

# What stands for which run. Keys are per task; those of whole batches are under an empty task and stand for the batch. Times are
# microseconds since 1970, by the clock that is never set back.
idempotency_keys = Table(
    "idempotency_keys",
    tables,
    Column("key", Text, primary_key=True),
    Column("task", Text, primary_key=True),
    Column("target_id", Text, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Index("idempotency_keys_expires_at", "expires_at"),
    sqlite_with_rowid=False,
)

documents = Table(
    "documents",
    tables,
    Column("run_id", Text, primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("value", LargeBinary, nullable=False),
    # When this version was reached: the change itself may have been pruned.
    Column("changed_at", BigInteger),
)

# With a row id, so that the changes of a commit stand side by side: in the order of runs each would be on a page of its own.
changes = Table(
    "changes",
    tables,
    Column("run_id", Text, primary_key=True),
    Column("version", BigInteger, primary_key=True),
    Column("operations", LargeBinary, nullable=False),
    # Who wrote it: a run's attempt and report, or nothing for a writer from outside.
    Column("writer_id", Text),
    Column("writer_attempt", Integer),
    Column("writer_sequence", Integer),
    # Places in the list that the writer sent which were refused or had been counted before, a JSON list.
    Column("refused", LargeBinary),
    Column("created_at", BigInteger, nullable=False),
)

# What stands for the `once` ids that were counted (`milepost.model.counted`), for as long as the run takes writes.
counted_ids = Table(
    "counted_ids",
    tables,
    Column("run_id", Text, primary_key=True),
    Column("id", LargeBinary, primary_key=True),
    sqlite_with_rowid=False,
)

# Where the kept log of a document begins once older changes were pruned; without a row it begins with the document given at trigger.
log_starts = Table(
    "log_starts",
    tables,
    Column("run_id", Text, primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("value", LargeBinary, nullable=False),
    Column("changed_at", BigInteger),
)

# The search index: what is where in which document. `metadata_values.py` says what the columns mean.
metadata_values = Table(
    "metadata_values",
    tables,
    Column("run_id", Text, primary_key=True),
    Column("path", Text, primary_key=True),
    Column("kind", Integer, primary_key=True, autoincrement=False),
    Column("number", Double, primary_key=True),
    Column("text", Text, primary_key=True),
    # Of one value the runs in order, so that a list can be read off it, newest first.
    Index("metadata_values_place", "path", "kind", "number", "text", "run_id"),
    sqlite_with_rowid=False,
)

refusals = Table(
    "refusals",
    tables,
    Column("writer_id", Text, primary_key=True),
    Column("writer_attempt", Integer, primary_key=True),
    Column("writer_sequence", Integer, primary_key=True),
    Column("refused", LargeBinary, nullable=False),
)

logs = Table(
    "logs",
    tables,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("run_id", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("level", Text, nullable=False),
    Column("logger", Text, nullable=False),
    Column("message", Text, nullable=False),
    Index("logs_run", "run_id", "number"),
)

# How far the log of an attempt has come, for each worker that writes to it; "" stands for the server itself.
log_marks = Table(
    "log_marks",
    tables,
    Column("run_id", Text, primary_key=True),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    Column("writer_id", Text, primary_key=True),
    # The newest part that was stored, and what is stored of this writer, in bytes.
    Column("sequence", BigInteger, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    # What there was no room for, and the line that says so.
    Column("lines_left_out", BigInteger, nullable=False),
    Column("bytes_left_out", BigInteger, nullable=False),
    Column("notice_number", Integer),
    sqlite_with_rowid=False,
)

# A stream is named by what it is and its key: `out/` is written by the run, `in/` is sent to it from outside.
streams = Table(
    "streams",
    tables,
    Column("run_id", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    # How many chunks it has, and their bytes as JSON.
    Column("next_index", BigInteger, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

# How far each writer of a stream has come: by it a chunk that is sent twice is stored once.
stream_writers = Table(
    "stream_writers",
    tables,
    Column("run_id", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("writer", Text, primary_key=True),
    # The run whose attempt it is part of; nothing for a writer from outside.
    Column("source_id", Text),
    Column("attempt", Integer, nullable=False),
    Column("next_number", BigInteger, nullable=False),
    Column("has_ended", Integer, nullable=False),
    # Why its source has failed.
    Column("error", Text),
    Column("updated_at", BigInteger, nullable=False),
    # Of all chunks of a writer from outside.
    Column("checksum", BigInteger),
    sqlite_with_rowid=False,
)

# Chunks as they were committed, many in a row: JSON texts without line feeds, joined by line feeds.
chunks = Table(
    "chunks",
    tables,
    Column("run_id", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("first_index", BigInteger, primary_key=True, autoincrement=False),
    Column("chunk_count", Integer, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("data", LargeBinary, nullable=False),
)

# What runs wait for beside other runs: tokens, which somebody completes, and times.
waitpoints = Table(
    "waitpoints",
    tables,
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    # When it ends by itself, and 1 where somebody has named that time: a clock that is set does not move it.
    Column("timeout_at", BigInteger),
    Column("is_timeout_given", Integer, nullable=False),
    Column("ended_at", BigInteger),
    # The run that has made it.
    Column("run_id", Text),
    # A JSON list.
    Column("tags", Text),
    # By what a repeat of its making is known: the user's own key behind `key/`, or its place in a run behind `run/`.
    Column("key", Text),
    Column("key_expires_at", BigInteger),
    # What it was completed with, JSON text.
    Column("output", Text),
    CheckConstraint("kind IN ('TOKEN', 'TIME')", name="waitpoints_kind"),
    CheckConstraint(
        "status = 'WAITING' OR status = 'COMPLETED' OR status = 'TIMED_OUT'", name="waitpoints_status"
    ),
    CheckConstraint("(ended_at IS NULL) = (status = 'WAITING')", name="waitpoints_ended"),
    Index("waitpoints_due", "timeout_at", "id", **_where("status = 'WAITING' AND timeout_at IS NOT NULL")),
    Index("waitpoints_open", "id", **_where("status = 'WAITING' AND kind = 'TOKEN'")),
    Index("waitpoints_key", "key", unique=True, **_where("key IS NOT NULL")),
    Index("waitpoints_ended_at", "ended_at", "id", **_where("ended_at IS NOT NULL")),
)

# Runs that wait for a token that has not ended.
waitpoint_waiters = Table(
    "waitpoint_waiters",
    tables,
    Column("waitpoint_id", Text, primary_key=True),
    Column("run_id", Text, primary_key=True),
    sqlite_with_rowid=False,
)

waitpoint_tags = Table(
    "waitpoint_tags",
    tables,
    Column("tag", Text, primary_key=True),
    Column("waitpoint_id", Text, primary_key=True),
    sqlite_with_rowid=False,
)

tasks = Table(
    "tasks",
    tables,
    Column("id", Text, primary_key=True),
    Column("queue", Text, nullable=False),
    Column("queue_concurrency", Integer),
    Column("retry", LargeBinary, nullable=False),
    Column("payload_schema", LargeBinary),
    Column("updated_at", BigInteger, nullable=False),
    Column("metadata_schema", LargeBinary),
    Column("queue_rate", Text),
    # 1: `on_failure` or `on_complete` is to run also where the process of a run has died.
    Column("has_end_hooks", Integer, nullable=False, server_default=text("0")),
)

# What is triggered at set times: by a cron line in a time zone, or every so many microseconds from an anchor on. Times are
# microseconds since 1970.
schedules = Table(
    "schedules",
    tables,
    Column("id", Text, primary_key=True),
    Column("task", Text, nullable=False),
    # DECLARATIVE: the code of the task says so; IMPERATIVE: it was made by a call.
    Column("type", Text, nullable=False),
    Column("cron", Text),
    Column("every", BigInteger),
    Column("timezone", Text, nullable=False),
    Column("anchor_at", BigInteger, nullable=False),
    Column("is_active", Integer, nullable=False),
    # When it fires next; nothing while it is not active.
    Column("next_at", BigInteger),
    # The time for which it has fired last, and the run that was triggered then.
    Column("last_at", BigInteger),
    Column("last_run_id", Text),
    # Why its last time has triggered no run.
    Column("note", Text),
    Column("external_id", Text),
    Column("deduplication_key", Text),
    # What its runs are given; without a payload they are given the time.
    Column("payload", Text),
    Column("payload_type", Text),
    Column("metadata", LargeBinary),
    Column("tags", Text),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    CheckConstraint("(cron IS NULL) <> (every IS NULL)", name="schedules_times"),
    CheckConstraint("(next_at IS NULL) = (is_active = 0)", name="schedules_active"),
    Index("schedules_next", "next_at", "id", **_where("next_at IS NOT NULL")),
    Index("schedules_declared", "task", unique=True, **_where("type = 'DECLARATIVE'")),
    Index("schedules_task", "task", "id"),
    Index("schedules_deduplication_key", "deduplication_key", unique=True, **_where("deduplication_key IS NOT NULL")),
)  # fmt: skip

# Which schedule has triggered a run, and for what time. A table of its own, so that all other runs pay nothing for it.
scheduled_runs = Table(
    "scheduled_runs",
    tables,
    Column("run_id", Text, primary_key=True),
    Column("schedule_id", Text, nullable=False),
    Column("scheduled_at", BigInteger, nullable=False),
    Index("scheduled_runs_schedule", "schedule_id", "run_id"),
    sqlite_with_rowid=False,
)

# Answers of requests that may be sent twice (protocol, section 1.4): the same request id gets the first answer again.
answers = Table(
    "answers",
    tables,
    Column("request_id", Text, primary_key=True),
    Column("answer", LargeBinary, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Index("answers_created_at", "created_at"),
)

# Tokens that work no more, by what tells them apart, kept until they expire: those that work once and have been used, codes of sign-in
# links among them, and sessions of the dashboard that were signed out. Times are microseconds since 1970.
used_tokens = Table(
    "used_tokens",
    tables,
    Column("id", Text, primary_key=True),
    # The batch that was announced with it, whose items may follow with the same token.
    Column("batch_id", Text),
    Column("expires_at", BigInteger, nullable=False),
    Index("used_tokens_expires_at", "expires_at"),
)

# The jobs of the upkeep that any server has done: who has the lease of each, until when, and when it was last finished.
upkeep_jobs = Table(
    "upkeep_jobs",
    tables,
    Column("name", Text, primary_key=True),
    Column("holder", Text, nullable=False),
    Column("lease_until", BigInteger, nullable=False),
    Column("finished_at", BigInteger),
)

# How many groups of all servers were committed that others are told of: one row, which each of them takes on with its commit, so that
# there are no gaps. And one row for each server, by which it finds out whether its newest group was committed. Only where several
# servers may share a database is anything written here.
commit_numbers = Table(
    "commit_numbers",
    tables,
    Column("name", Text, primary_key=True),
    Column("number", BigInteger, nullable=False),
)

# What servers tell each other after a commit, for a minute.
announcements = Table(
    "announcements",
    tables,
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("payload", LargeBinary, nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

# The settings that servers on one database should agree in, as the last one that had another value has them. Only where several
# servers share a database is anything written here.
server_settings = Table(
    "server_settings",
    tables,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
    Column("server", Text, nullable=False),
    Column("changed_at", BigInteger, nullable=False),
)
