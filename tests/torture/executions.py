"""What the database says of runs that are tried once, compared with what their code has noted and what was done to their processes."""

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import torture_tasks
from verdict import Verdict

from milepost.model.lifecycle import UNCHARGED_MAX

TASKS = ("once", "once_in_thread", "step")


@dataclass
class Struck:
    """The executors that were killed, and those that were stopped for longer than their lease, by process id."""

    killed: set[int] = field(default_factory=set[int])
    stopped: set[int] = field(default_factory=set[int])


@dataclass
class _Execution:
    """One attempt, as its code has noted it."""

    process_id: int
    begun_at: int
    ended_at: int | None = None
    raised: bool = False
    token: str = ""


def check_executions(database: Path, folder: Path, struck: Struck, verdict: Verdict) -> Counter[str]:
    """Judge every run of `TASKS`; how many there are, by status, and how their attempts have ended."""
    executions = _read(folder / torture_tasks.JOURNAL, verdict)
    found: Counter[str] = Counter()
    with closing(sqlite3.connect(database)) as connection:
        connection.row_factory = sqlite3.Row
        marks = ", ".join("?" * len(TASKS))
        runs = {
            row["id"]: row for row in connection.execute(f"SELECT * FROM runs WHERE task IN ({marks})", TASKS)
        }
        attempts: dict[str, dict[int, sqlite3.Row]] = defaultdict(dict)
        for row in connection.execute("SELECT * FROM attempts"):
            attempts[row["run_id"]][row["number"]] = row
        for row in connection.execute("SELECT name, executing, resuming FROM queues"):
            if row["executing"] or row["resuming"]:
                verdict.add(
                    "leaked slot", f"queue {row['name']} counts {row['executing']} and {row['resuming']} runs"
                )
    for run_id, row in runs.items():
        found[row["status"]] += 1
        what = f"run {run_id} ({row['task']})"
        if row["status"] not in ("COMPLETED", "FAILED"):
            verdict.add("stuck", f"{what} is {row['status']}")
        execution = executions.get((run_id, row["attempt"]))
        if row["status"] == "COMPLETED":
            token = execution.token if execution is not None else None
            if row["output"] is None or json.loads(row["output"]) != token:
                verdict.add(
                    "wrong output", f"{what} has {row['output']}, its last execution returned {token!r}"
                )
        for number, attempt in attempts[run_id].items():
            found[attempt["end"]] += 1
            execution = executions.get((run_id, number))
            if (
                execution is None
                and attempt["end"] == "lost"
                and _was_apart(attempt, attempts[run_id].values())
            ):
                # The server had heard that it begins, and its worker was gone before it did. Nobody can know that.
                found["lost when it was about to begin apart"] += 1
            else:
                _check_attempt(what, attempt, execution, struck, verdict)
        charged = sum(one["end"] in ("raised", "crashed", "lost") for one in attempts[run_id].values())
        if charged != row["charged"] or (row["status"] == "FAILED") != (charged == 1):
            verdict.add(
                "charged without cause",
                f"{what} is {row['status']}, charged {row['charged']}, by its attempts {charged}",
            )
        if row["task"] == "step":
            _check_parent(what, row, runs, attempts, verdict)
    _check_limit(runs, executions, verdict)
    return found


def _was_apart(attempt: sqlite3.Row, attempts: Iterable[sqlite3.Row]) -> bool:
    """Whether the attempt was one that begins only when the server has heard so."""
    before = [one for one in attempts if one["number"] < attempt["number"]]
    return attempt["begun_at"] is not None and (
        any(one["end"] == "beside" for one in before) or len(before) >= UNCHARGED_MAX
    )


def _check_attempt(
    what: str, attempt: sqlite3.Row, execution: _Execution | None, struck: Struck, verdict: Verdict
) -> None:
    end = attempt["end"]
    what = f"attempt {attempt['number']} of {what}"
    has_cause = True
    if end == "raised":
        has_cause = execution is not None and (execution.raised or "AttemptOver" in (attempt["error"] or ""))
    elif end == "crashed":
        has_cause = execution is not None and execution.process_id in struck.killed
    elif end == "lost":
        has_cause = execution is not None and execution.process_id in struck.killed | struck.stopped
    elif (
        end == "never_begun"
        and execution is not None
        and execution.process_id not in struck.killed | struck.stopped
    ):
        verdict.add("executed twice", f"{what} has begun, and is said not to have")
    if not has_cause:
        verdict.add("charged without cause", f"{what} is {end}: {attempt['error']}")


def _check_parent(
    what: str,
    row: sqlite3.Row,
    runs: dict[str, sqlite3.Row],
    attempts: dict[str, dict[int, sqlite3.Row]],
    verdict: Verdict,
) -> None:
    parent_id, number = json.loads(row["payload"])
    parent = runs[parent_id]
    ended = attempts[parent_id].get(number)
    ended_at = ended["ended_at"] if ended is not None else parent["finished_at"]
    if ended_at is not None and row["created_at"] > ended_at:
        late = (row["created_at"] - ended_at) / 1e6
        verdict.add(
            "orphan", f"{what} was triggered {late:.3f} s after attempt {number} of {parent_id} was over"
        )


def _check_limit(
    runs: dict[str, sqlite3.Row], executions: dict[tuple[str, int], _Execution], verdict: Verdict
) -> None:
    """Of a queue no more execute at once than its limit, of those whose word counted."""
    moments: list[tuple[int, int]] = []
    for (run_id, number), execution in executions.items():
        row = runs.get(run_id)
        if (
            row is None
            or row["queue"] != torture_tasks.narrow.name
            or row["status"] != "COMPLETED"
            or row["attempt"] != number
        ):
            continue
        assert execution.ended_at is not None, "it has returned"
        moments += [(execution.begun_at, 1), (execution.ended_at, -1)]
    at_once = 0
    for at, change in sorted(moments):
        at_once += change
        if at_once > torture_tasks.NARROW_LIMIT:
            verdict.add(
                "beyond the limit",
                f"{at_once} runs executed at once at {at}, the limit is {torture_tasks.NARROW_LIMIT}",
            )


def _read(journal: Path, verdict: Verdict) -> dict[tuple[str, int], _Execution]:
    executions: dict[tuple[str, int], _Execution] = {}
    for line in journal.read_text().splitlines() if journal.exists() else ():
        what, run_id, number, process_id, at = line.split()
        key = run_id, int(number)
        if what == "begin":
            if key in executions:
                verdict.add("executed twice", f"attempt {number} of run {run_id}")
            executions[key] = _Execution(int(process_id), int(at))
        else:
            executions[key].ended_at = int(at)
            executions[key].raised = what == "raise"
            executions[key].token = f"{run_id} {number} {process_id}"
    return executions
