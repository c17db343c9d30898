"""What the database says of the runs of the stress, compared with what was asked for and with what their code has noted."""

import json
from collections import Counter, defaultdict
from pathlib import Path

import stress_tasks as tasks
import torture_tasks
from database import Database, Row
from executions import CHARGED, check_counts, read_journal
from stress_load import Asked, Load
from verdict import Verdict

from milepost.model.operations import Increment, decode_operations
from milepost.model.run import FINAL_STATUSES, RunStatus

RUN_COLUMNS = (
    "id, task, queue, status, attempt, charged, parent_id, created_at, started_at, claimed_at, finished_at, payload, output, error, "
    "concurrency_key, cancel_asked_at, options, metadata_version"
)
# How long after its parent a child may hear that it is to end, at a server that may just be away.
TOLD_SECONDS_MAX = 10.0
# What the database's clock and that of this program may differ by, and what a claim may be late by in a server that was away.
SLACK_MICROSECONDS = 50_000
ECHOING = (
    tasks.plain.id,
    tasks.in_thread.id,
    tasks.flaky.id,
    tasks.lingering.id,
    tasks.pausing.id,
    tasks.narrowly.id,
    tasks.of_tenant.id,
    tasks.in_time.id,
    tasks.leaf.id,
)
# What a parent of each task has under it.
CHILDREN = {tasks.root.id: tasks.BRANCHES, tasks.branch.id: tasks.LEAVES}
OUTPUTS = {tasks.root.id: tasks.BRANCHES * tasks.LEAVES, tasks.branch.id: tasks.LEAVES}
# Runs of these queues hold their place from the beginning to the end.
STEADY_QUEUES = (tasks.narrow.name, tasks.by_tenant.name, tasks.squeezed.name)


class StressAudit:
    """Judges every run.

    Attributes:
        found: how many runs there are of each task and status, and how many attempts have ended in which way.
        run_count: how many runs there are.
        counted: how often a child has counted itself at its parent.
    """

    def __init__(self, database: Database, folder: Path, load: Load, verdict: Verdict) -> None:
        self.found: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self.counted = 0
        self._database = database
        self._load = load
        self._verdict = verdict
        self._executions = read_journal(folder / torture_tasks.JOURNAL, verdict)
        self._runs = {row["id"]: row for row in database.rows(f"SELECT {RUN_COLUMNS} FROM runs")}
        self._attempts: dict[str, dict[int, Row]] = defaultdict(dict)
        for row in database.rows("SELECT * FROM attempts"):
            self._attempts[row["run_id"]][row["number"]] = row
        self.run_count = len(self._runs)

    def check(self) -> None:
        """Everything."""
        check_counts(self._database, self._runs.values(), self._verdict)
        self._check_triggered()
        for row in self._runs.values():
            self.found[f"{row['status']:<10} {row['task']}"] += 1
            asked = self._load.asked.get(row["id"], Asked(row["task"], None))
            self._check_status(_name(row), row, asked)
            if RunStatus(row["status"]) in FINAL_STATUSES:
                self._check_times(_name(row), row, asked)
                self._check_cancelled(_name(row), row)
                self._check_attempts(_name(row), row)
        self._check_children()
        self._check_counted_once()
        self._check_tokens()
        self._check_pauses()
        self._check_keys()
        self._check_limits()
        for table in ("waitpoint_waiters", "run_waiters"):
            for row in self._database.rows(f"SELECT * FROM {table}"):
                self._verdict.add("left behind", f"in {table}: {row}")

    def _check_triggered(self) -> None:
        for run_id, asked in self._load.asked.items():
            row = self._runs.get(run_id)
            if row is None or row["task"] != asked.task:
                self._verdict.add("lost runs", f"run {run_id} ({asked.task}) was acknowledged")
        for run_id, row in self._runs.items():
            if row["parent_id"] is None and run_id not in self._load.asked:
                self._verdict.add("doubled runs", f"{_name(row)} was never acknowledged")

    def _check_status(self, what: str, row: Row, asked: Asked) -> None:
        """A run ends as its code did, or as it was asked to."""
        allowed = set(tasks.ENDS.get(row["task"], ("COMPLETED",)))
        if asked.ttl and not row["attempt"]:
            allowed = {"EXPIRED"}
        if row["cancel_asked_at"] is not None:
            allowed = {"CANCELED", *(allowed & {"COMPLETED"})}
        if RunStatus(row["status"]) not in FINAL_STATUSES:
            self._verdict.add("stuck", f"{what} is {row['status']}")
        elif row["status"] not in allowed:
            self._verdict.add(
                "wrong status",
                f"{what} is {row['status']}, not {' or '.join(sorted(allowed))}: {row['error']}",
            )
        if row["status"] == "COMPLETED":
            self._check_output(what, row)
        if (
            row["status"] == "CRASHED"
            and row["task"] == tasks.dying.id
            and "SIGSEGV" not in (row["error"] or "")
        ):
            self._verdict.add("wrong status", f"{what} does not name the signal: {row['error']}")

    def _check_output(self, what: str, row: Row) -> None:
        execution = self._executions.get((row["id"], row["attempt"]))
        output, payload = json.loads(row["output"] or "null"), json.loads(row["payload"] or "null")
        if row["task"] == torture_tasks.gathering.id:
            return
        if execution is None or execution.ended_at is None:
            self._verdict.add("wrong output", f"{what} is COMPLETED, and its last attempt has not returned")
        elif row["task"] in ECHOING and output != payload:
            self._verdict.add("wrong output", f"{what} has {output}, not {payload}")
        elif row["task"] in OUTPUTS and row["cancel_asked_at"] is None and output != OUTPUTS[row["task"]]:
            self._verdict.add("wrong output", f"{what} has {output}, not {OUTPUTS[row['task']]}")

    def _check_times(self, what: str, row: Row, asked: Asked) -> None:
        """Nothing comes before its time."""
        first = self._attempts[row["id"]].get(1)
        claimed_at = row["claimed_at"] if first is None else first["claimed_at"]
        due_at = row["created_at"] + asked.delay * 1_000_000 - SLACK_MICROSECONDS
        if row["attempt"] and claimed_at < due_at:
            self._verdict.add(
                "too early", f"{what} was claimed {(due_at - claimed_at) / 1e6:.2f} s before it was due"
            )
        expires_at = due_at + asked.ttl * 1_000_000
        if row["status"] == "EXPIRED" and row["finished_at"] < expires_at:
            self._verdict.add(
                "too early", f"{what} has expired {(expires_at - row['finished_at']) / 1e6:.2f} s early"
            )

    def _check_cancelled(self, what: str, row: Row) -> None:
        """Who was asked to end is known to have been asked, as are the children, or had ended before."""
        acknowledged_at = self._load.cancelled.get(row["id"])
        was_asked = row["cancel_asked_at"] is not None
        if acknowledged_at is not None and not was_asked and row["finished_at"] > acknowledged_at:
            self._verdict.add("not cancelled", f"{what} was to be cancelled, and is {row['status']}")
        parent = self._runs.get(row["parent_id"] or "")
        if was_asked and acknowledged_at is None and (parent is None or parent["cancel_asked_at"] is None):
            self._verdict.add("wrong status", f"{what} was cancelled, and nobody has asked for it")
        asked_at = None if parent is None else parent["cancel_asked_at"]
        if asked_at is None or was_asked:
            return
        late = (row["finished_at"] - asked_at) / 1e6
        if late > TOLD_SECONDS_MAX:
            self._verdict.add("not cancelled", f"{what} went on for {late:.2f} s after its parent was to end")

    def _check_attempts(self, what: str, row: Row) -> None:
        attempts = self._attempts.get(row["id"], {})
        charged = sum(one["end"] in CHARGED for one in attempts.values())
        if charged != row["charged"]:
            self._verdict.add(
                "charged without cause", f"{what} is charged {row['charged']}, by its attempts {charged}"
            )
        if row["task"] == tasks.failing.id and row["status"] in ("FAILED", "CRASHED") and charged != 2:
            self._verdict.add(
                "charged without cause", f"{what} has failed for good after {charged} attempts, not 2"
            )
        if len(attempts) + (row["status"] == "COMPLETED") != row["attempt"]:
            self._verdict.add(
                "miscounted", f"{what} has had {row['attempt']} attempts, and {len(attempts)} are kept"
            )
        for attempt in attempts.values():
            self.ends[attempt["end"]] += 1
            execution = self._executions.get((row["id"], attempt["number"]))
            if attempt["end"] == "never_begun" and execution is not None and execution.ended_at is not None:
                # Its worker was silent for too long; the end was refused, and counts no more.
                self.ends["never_begun, and ended all the same"] += 1
            has_raised = execution is not None and execution.raised
            if (
                attempt["end"] == "raised"
                and not has_raised
                and "AttemptOver" not in (attempt["error"] or "")
            ):
                told = f"attempt {attempt['number']} of {what}: {attempt['error']}"
                self._verdict.add("charged without cause", told)

    def _check_children(self) -> None:
        """A parent has each of its children once, however often it was tried."""
        children: defaultdict[str, list[Row]] = defaultdict(list)
        for row in self._runs.values():
            if row["parent_id"]:
                children[row["parent_id"]].append(row)
        for parent_id, rows in children.items():
            for payload, count in Counter(row["payload"] for row in rows).items():
                if count > 1:
                    self._verdict.add("child twice", f"{_name(self._runs[parent_id])}: {payload}", count - 1)
        for row in self._runs.values():
            due = CHILDREN.get(row["task"])
            if due is not None and row["status"] == "COMPLETED" and len(children[row["id"]]) < due:
                self._verdict.add(
                    "lost runs", f"{_name(row)} has {len(children[row['id']])} children, not {due}"
                )

    def _check_counted_once(self) -> None:
        """In the log of its parent each child that has completed counts once by its id, and once for each attempt that came so far."""
        by_id: defaultdict[str, int] = defaultdict(int)
        by_attempt: defaultdict[tuple[str, int], int] = defaultdict(int)
        sums: defaultdict[str, Counter[str]] = defaultdict(Counter)
        # What children wrote when their parent had ended is in the log only.
        folded = {
            row["run_id"]: row["version"]
            for row in self._database.rows("SELECT run_id, version FROM documents")
        }
        query = (
            "SELECT run_id, version, writer_id, writer_attempt, operations FROM changes "
            "WHERE writer_id IS NOT NULL AND writer_id <> run_id"
        )
        for row in self._database.rows(query):
            for operation in decode_operations(row["operations"]):
                if not isinstance(operation, Increment):
                    continue
                if row["version"] <= folded.get(row["run_id"], 0):
                    sums[row["run_id"]][operation.key] += int(operation.value)
                if operation.key == tasks.DONE_KEY:
                    by_id[row["writer_id"]] += int(operation.value)
                elif operation.key == tasks.PLAIN_KEY:
                    by_attempt[row["writer_id"], row["writer_attempt"]] += int(operation.value)
        self.counted = sum(by_id.values())
        for row in self._runs.values():
            if row["task"] not in tasks.CHILDREN or row["parent_id"] is None:
                continue
            is_due = row["status"] == "COMPLETED"
            times = by_id[row["id"]], by_attempt[row["id"], row["attempt"]]
            for how, number in zip(("by its id", "in its last attempt"), times, strict=True):
                if is_due and not number:
                    self._verdict.add("lost", f"{_name(row)} is not counted {how}")
        for what, number in (*by_id.items(), *by_attempt.items()):
            if number > 1:
                self._verdict.add("doubled", f"{what} is counted {number} times", number - 1)
        documents = (
            "SELECT runs.id, documents.value FROM runs JOIN documents ON documents.run_id = runs.id "
            "WHERE runs.task = ? OR runs.task = ? AND runs.parent_id IS NOT NULL"
        )
        for row in self._database.rows(documents, list(CHILDREN)):
            document = json.loads(row["value"])
            for key in (tasks.DONE_KEY, tasks.PLAIN_KEY):
                if document.get(key, 0) != sums[row["id"]][key]:
                    in_log = sums[row["id"]][key]
                    self._verdict.add(
                        "doubled", f"{key} of run {row['id']} is {document.get(key)}, {in_log} in the log"
                    )

    def _check_tokens(self) -> None:
        """Who waited for a token got what it was completed with."""
        tokens = {
            row["id"]: row for row in self._database.rows("SELECT * FROM waitpoints WHERE kind = 'TOKEN'")
        }
        for token in tokens.values():
            said, is_completed = self._load.completed.get(token["id"]), token["status"] == "COMPLETED"
            if is_completed != (said is not None) or (is_completed and json.loads(token["output"]) != said):
                what = f"token {token['id']} is {token['status']} with {token['output']}; the first call gave {said}"
                self._verdict.add("wrong output", what)
        for row in self._runs.values():
            if row["task"] != tasks.expecting.id or row["status"] != "COMPLETED":
                continue
            token = tokens[json.loads(row["payload"])]
            due = [token["status"] == "COMPLETED", json.loads(token["output"] or "null")]
            if json.loads(row["output"]) != due:
                self._verdict.add("wrong output", f"{_name(row)} has {row['output']}, its token {due}")

    def _check_pauses(self) -> None:
        """Who waited for a time went on after it, whatever became of its attempts; the time counts from its first call."""
        query = (
            "SELECT run_id, created_at, ended_at FROM waitpoints WHERE kind = 'TIME' AND status = 'COMPLETED'"
        )
        over = {row["run_id"]: row for row in self._database.rows(query)}
        for row in self._runs.values():
            if row["task"] != tasks.pausing.id or row["status"] != "COMPLETED":
                continue
            pause = over.get(row["id"])
            if pause is None:
                self._verdict.add(
                    "too early", f"{_name(row)} is COMPLETED, and what it waited for has not ended"
                )
                continue
            seconds = (min(pause["ended_at"], row["finished_at"]) - pause["created_at"]) / 1e6
            if seconds < tasks.PAUSE_SECONDS:
                self._verdict.add(
                    "too early", f"{_name(row)} has waited {seconds:.2f} s, not {tasks.PAUSE_SECONDS:g}"
                )

    def _check_keys(self) -> None:
        runs: defaultdict[str, set[str]] = defaultdict(set)
        for row in self._runs.values():
            key = json.loads(row["options"] or "{}").get("idempotencyKey")
            if key is not None and row["parent_id"] is None:
                runs[key].add(row["id"])
        for key, run_ids in runs.items():
            if run_ids != self._load.by_key.get(key):
                self._verdict.add(
                    "key twice", f"{key} stands for {sorted(run_ids)}", max(1, len(run_ids) - 1)
                )

    def _check_limits(self) -> None:
        """Of a queue, and of each key in it, no more execute at once than its limit, of those whose word counted."""
        moments: defaultdict[tuple[str, str | None], list[tuple[int, int]]] = defaultdict(list)
        for (run_id, number), execution in self._executions.items():
            row = self._runs.get(run_id)
            if (
                row is not None
                and row["queue"] in STEADY_QUEUES
                and (row["status"], row["attempt"]) == ("COMPLETED", number)
                and execution.ended_at is not None
            ):
                moments[row["queue"], row["concurrency_key"]] += [
                    (execution.begun_at, 1),
                    (execution.ended_at, -1),
                ]
        for (queue, key), changes in moments.items():
            at_once = 0
            for at, change in sorted(changes):
                at_once += change
                if at_once > tasks.LIMITS[queue]:
                    what = f"{at_once} runs of queue {queue}, key {key}, executed at once at {at}"
                    self._verdict.add("beyond the limit", what)


def _name(row: Row) -> str:
    return f"run {row['id']} ({row['task']})"
