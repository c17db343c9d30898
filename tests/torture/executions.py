"""What the database says of runs, compared with what their code has noted and with what was done to their processes."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torture_tasks
from database import Database, Row
from fire import Struck
from verdict import Verdict

from milepost.model.lifecycle import UNCHARGED_MAX

CHARGED = ("raised", "crashed", "lost")
RUN_COLUMNS = (
    "id, task, queue, status, attempt, charged, parent_id, created_at, claimed_at, finished_at, payload, output, "
    "metadata_version"
)


@dataclass
class Execution:
    """One attempt, as its code has noted it."""

    process_id: int
    worker: str
    begun_at: int
    ended_at: int | None = None
    raised: bool = False
    token: str = ""


@dataclass(frozen=True)
class Noted:
    """What this program knows of the runs.

    Attributes:
        triggered: the task of every run that was triggered from outside and acknowledged, by run.
        struck: what was done to processes.
        servers: by worker, the number of the one server that it speaks to, None when it is any.
    """

    triggered: Mapping[str, str]
    struck: Struck
    servers: Sequence[int | None]


class RunAudit:
    """Judges every run.

    Attributes:
        run_count: how many there are.
        operations_of_short_runs: how many of their operations were found.
        found: how many runs that are tried once have each status, and how attempts have ended.
    """

    def __init__(self, database: Database, folder: Path, noted: Noted, verdict: Verdict) -> None:
        self.found: Counter[str] = Counter()
        self.operations_of_short_runs = 0
        self._database = database
        self._noted = noted
        self._verdict = verdict
        self._executions = read_journal(folder / torture_tasks.JOURNAL, verdict)
        self._runs = {row["id"]: row for row in database.rows(f"SELECT {RUN_COLUMNS} FROM runs")}
        self._attempts: dict[str, dict[int, Row]] = defaultdict(dict)
        for row in database.rows("SELECT * FROM attempts"):
            self._attempts[row["run_id"]][row["number"]] = row
        self.run_count = len(self._runs)

    def check(self) -> None:
        """Everything."""
        self._check_triggered()
        check_counts(self._database, self._runs.values(), self._verdict)
        for row in self._runs.values():
            self._check_run(row)
        self._check_crashes()
        self._check_documents()
        self._check_limit()

    def _check_triggered(self) -> None:
        """Every run that was acknowledged is there, and no other one but children."""
        triggered = self._noted.triggered
        for run_id, task in triggered.items():
            row = self._runs.get(run_id)
            if row is None or row["task"] != task:
                self._verdict.add("lost runs", f"run {run_id} ({task}) was acknowledged")
        for run_id, row in self._runs.items():
            if row["parent_id"] is None and run_id not in triggered:
                self._verdict.add("doubled runs", f"run {run_id} ({row['task']}) was never acknowledged")

    def _check_run(self, row: Row) -> None:
        run_id = row["id"]
        attempts = self._attempts.get(run_id, {})
        is_tried_once = row["task"] in torture_tasks.ONCE
        what = f"run {run_id} ({row['task']})"
        if is_tried_once:
            self.found[row["status"]] += 1
        if row["status"] not in ("COMPLETED", "FAILED", "CRASHED"):
            self._verdict.add("stuck", f"{what} is {row['status']}")
        if row["status"] == "COMPLETED":
            self._check_output(what, row)
        for attempt in attempts.values():
            self._check_attempt(what, attempt, attempts.values())
        charged = sum(one["end"] in CHARGED for one in attempts.values())
        may_fail = charged == 1 if is_tried_once else False
        if charged != row["charged"] or (row["status"] in ("FAILED", "CRASHED")) != may_fail:
            self._verdict.add(
                "charged without cause",
                f"{what} is {row['status']}, charged {row['charged']}, by its attempts {charged}",
            )
        if row["task"] == torture_tasks.step.id:
            self._check_parent(what, row)

    def _check_output(self, what: str, row: Row) -> None:
        execution = self._executions.get((row["id"], row["attempt"]))
        is_tried_once = row["task"] in torture_tasks.ONCE
        if execution is None or (is_tried_once and execution.ended_at is None):
            self._verdict.add("wrong output", f"{what} is COMPLETED, and its last attempt has not returned")
        elif (
            is_tried_once
            and row["task"] != torture_tasks.gathering.id
            and json.loads(row["output"] or "null") != execution.token
        ):
            self._verdict.add(
                "wrong output", f"{what} has {row['output']}, its last execution returned {execution.token!r}"
            )

    def _check_attempt(self, what: str, attempt: Row, attempts: Iterable[Row]) -> None:
        end, key = attempt["end"], (attempt["run_id"], attempt["number"])
        what = f"attempt {attempt['number']} of {what}"
        execution = self._executions.get(key)
        self.found[end] += 1
        has_cause = True
        if end == "lost" and execution is None and _was_apart(attempt, attempts):
            # The server had heard that it begins, and its worker was gone before it did. Nobody can know that.
            self.found["lost when it was about to begin apart"] += 1
        elif end == "raised":
            has_cause = execution is not None and (
                execution.raised or "AttemptOver" in (attempt["error"] or "")
            )
        elif end == "crashed":
            has_cause = execution is not None and execution.process_id in self._noted.struck.killed
        elif end == "lost":
            has_cause = execution is not None and self._was_silent(attempt, execution)
        elif end == "never_begun" and execution is not None and not self._was_silent(attempt, execution):
            self._verdict.add("executed twice", f"{what} has begun, and is said not to have")
        if not has_cause:
            self._verdict.add("charged without cause", f"{what} is {end}: {attempt['error']}")

    def _check_crashes(self) -> None:
        """A process that was killed costs one run its attempt at most, and only where no other one executed in it."""
        crashed: defaultdict[int, list[str]] = defaultdict(list)
        for run_id, attempts in self._attempts.items():
            for number, attempt in attempts.items():
                execution = self._executions.get((run_id, number))
                if attempt["end"] == "crashed" and execution is not None:
                    crashed[execution.process_id].append(run_id)
        for process_id, run_ids in crashed.items():
            if len(run_ids) > 1:
                what = (
                    f"the end of process {process_id} is charged to {len(run_ids)} runs, {run_ids[0]} is one"
                )
                self._verdict.add("charged without cause", what, len(run_ids) - 1)

    def _was_silent(self, attempt: Row, execution: Execution) -> bool:
        """Whether the worker could not be heard for long enough, while the attempt was its own."""
        struck, begun_at, ended_at = self._noted.struck, attempt["claimed_at"], attempt["ended_at"]
        if execution.process_id in struck.killed or struck.was_stopped(
            execution.process_id, begun_at, ended_at
        ):
            return True
        own_server = self._noted.servers[int(execution.worker)]
        for away in struck.away:
            # A worker that may speak to any server has a reason only where its connection stayed open and silent.
            concerned = away.was_stopped if own_server is None else own_server == away.server
            if concerned and begun_at <= away.ended_at and away.begun_at <= ended_at:
                self.found[f"{attempt['end']} while a server was away"] += 1
                return True
        return False

    def _check_parent(self, what: str, row: Row) -> None:
        parent_id, number = json.loads(row["payload"])
        parent = self._runs[parent_id]
        ended = self._attempts[parent_id].get(number)
        ended_at = ended["ended_at"] if ended is not None else parent["finished_at"]
        if ended_at is not None and row["created_at"] > ended_at:
            late = (row["created_at"] - ended_at) / 1e6
            self._verdict.add(
                "orphan",
                f"{what} was triggered {late:.3f} s after attempt {number} of {parent_id} was over",
            )

    def _check_documents(self) -> None:
        """The document of a short run that has succeeded says who has executed it: its operation is there, and no other one."""
        tasks = (torture_tasks.brief.id, torture_tasks.brief_in_thread.id)
        query = (
            "SELECT runs.id, documents.value FROM runs LEFT JOIN documents ON documents.run_id = runs.id "
            "WHERE runs.status = 'COMPLETED' AND runs.task IN (?, ?)"
        )
        for row in self._database.rows(query, tasks):
            run = self._runs[row["id"]]
            due = {torture_tasks.TOKEN_KEY: json.loads(run["output"] or "null")}
            if row["value"] is None or json.loads(row["value"]) != due:
                self._verdict.add("lost", f"the document of run {row['id']} is {row['value']!r}, not {due}")
            self.operations_of_short_runs += run["metadata_version"]

    def _check_limit(self) -> None:
        """Of a queue no more execute at once than its limit, of those whose word counted."""
        moments: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        for (run_id, number), execution in self._executions.items():
            row = self._runs.get(run_id)
            if (
                row is not None
                and row["queue"] in torture_tasks.LIMITS
                and (row["status"], row["attempt"]) == ("COMPLETED", number)
                and execution.ended_at is not None
            ):
                moments[row["queue"]] += [(execution.begun_at, 1), (execution.ended_at, -1)]
        for queue, limit in torture_tasks.LIMITS.items():
            at_once = 0
            for at, change in sorted(moments[queue]):
                at_once += change
                if at_once > limit:
                    what = f"{at_once} runs of queue {queue} executed at once at {at}, the limit is {limit}"
                    self._verdict.add("beyond the limit", what)


def check_counts(database: Database, runs: Iterable[Row], verdict: Verdict) -> None:
    """What is counted in place of being looked up, when every run has ended."""
    of_queues = (
        "SELECT name, '' AS key, executing, resuming FROM queues WHERE executing <> 0 OR resuming <> 0"
    )
    of_keys = (
        "SELECT queue AS name, key, executing, resuming FROM queue_keys WHERE executing <> 0 OR resuming <> 0"
    )
    for row in (*database.rows(of_queues), *database.rows(of_keys)):
        what = f"queue {row['name']}" + (f", key {row['key']}," if row["key"] else "")
        verdict.add("leaked slot", f"{what} counts {row['executing']} and {row['resuming']} runs")
    due: Counter[tuple[str, str]] = Counter()
    for row in runs:
        due["", row["status"]] += 1
        if row["parent_id"]:
            due[row["parent_id"], row["status"]] += 1
    for row in database.rows("SELECT parent_id, status, count AS number FROM run_counts"):
        key = row["parent_id"], row["status"]
        if row["number"] != due[key]:
            verdict.add("miscounted", f"{key} is {due[key]}, counted {row['number']}")
        del due[key]
    for key, number in due.items():
        verdict.add("miscounted", f"{key} is {number}, and not counted")
    counts = "SELECT id, run_count, accepted_count, finished_count FROM batches WHERE finished_count <> accepted_count"
    for row in database.rows(counts):
        what = f"batch {row['id']} of {row['run_count']} runs has {row['accepted_count']}"
        verdict.add("miscounted", f"{what}, which have ended, and counts {row['finished_count']}")


def _was_apart(attempt: Row, attempts: Iterable[Row]) -> bool:
    """Whether the attempt was one that begins only when the server has heard so."""
    before = [one for one in attempts if one["number"] < attempt["number"]]
    return attempt["begun_at"] is not None and (
        any(one["end"] == "beside" for one in before) or len(before) >= UNCHARGED_MAX
    )


def read_journal(journal: Path, verdict: Verdict) -> dict[tuple[str, int], Execution]:
    """What executions have noted, by run and number of the attempt; one that has begun twice is told."""
    executions: dict[tuple[str, int], Execution] = {}
    for line in journal.read_text().splitlines() if journal.exists() else ():
        what, run_id, number, process_id, worker, at = line.split()
        key = run_id, int(number)
        if what == "begin":
            if key in executions:
                verdict.add("executed twice", f"attempt {number} of run {run_id}")
            executions[key] = Execution(int(process_id), worker, int(at))
        else:
            executions[key].ended_at = int(at)
            executions[key].raised = what == "raise"
            executions[key].token = f"{run_id} {number} {process_id}"
    return executions
