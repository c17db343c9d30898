"""The judge of the runs, once nothing moves any more: what became of each, as its readers see it, and what its code was told."""

from __future__ import annotations

from collections import defaultdict

import msgspec
from sqlalchemy import select

from milepost.model import lifecycle
from milepost.model.retry import RetryRule
from milepost.model.run import AttemptEnd, Outcome
from milepost.reading.reader import Reader
from milepost.store import schema
from milepost.store.database import Store
from simulation.oracle import said_by
from simulation.records import Attempt, Records
from simulation.watch import FINAL, LAST_HOOKS, Watch, name_of

# So long after a parent its children are asked, in groups of their own, while servers may be stopped or away.
ASKED_MICROSECONDS = 60_000_000
CANCELLED_MESSAGE = lifecycle.CANCELLED.message
SUCCESS = ["on_success", "on_complete"]
FAILURE = ["catch_error", "on_failure", "on_complete"]
RETRY = ["catch_error"]
CANCELLED = ["on_cancel", "on_complete"]
TIMED_OUT = ["on_failure", "on_complete"]
HOOKS_AT_ENDS = (SUCCESS, FAILURE, RETRY, CANCELLED, TIMED_OUT)


class RunOracle:
    """Judges the runs of one simulation. Raises AssertionError."""

    def __init__(self, store: Store, records: Records, watch: Watch, retry: RetryRule) -> None:
        self._records = records
        self._watch = watch
        self._retry = retry
        self._reader = Reader(store)
        self._attempts: dict[str, list[Attempt]] = defaultdict(list)
        for attempt in records.attempts:
            if attempt.started_at is not None or attempt.is_apart:
                self._attempts[attempt.run_id].append(attempt)
        with store.read() as connection:
            rows = connection.execute(select(schema.attempts)).all()
            self._queues = connection.execute(select(schema.queues)).all()
            self._queue_keys = connection.execute(select(schema.queue_keys)).all()
        self._rows = {(row.run_id, row.number): row for row in rows}

    def judge(self) -> None:
        """Everything."""
        self._judge_children_of_cancelled()
        for name, run_ids in self._records.runs.items():
            for run_id in run_ids:
                found = name_of(self._watch.rows[run_id])
                assert found == name, f"who triggered {name} was given {run_id}, which is {found}"
        for run_id in self._watch.rows:
            self._judge_result(run_id)
            self._judge_hooks(run_id)
            self._judge_attempts(run_id)

        for queue in self._queues:
            assert queue.executing == queue.resuming == 0, f"nothing is left of the runs of {queue}"
        assert self._queue_keys == [], "nothing is left of the runs of any key"

    def _judge_children_of_cancelled(self) -> None:
        """They were asked too, unless they had ended when their turn came."""
        watch = self._watch
        for row in watch.rows.values():
            asked_at = watch.asked_at.get(row.parent_id or "")
            if asked_at is not None and row.id not in watch.asked_at:
                assert watch.ended_at(row.id) <= asked_at + ASKED_MICROSECONDS, (
                    f"{row.id} was not asked to end with its parent {row.parent_id}"
                )

    # --- results ---------------------------------------------------------------------------------------------

    def _judge_result(self, run_id: str) -> None:
        """Readers are told what the last execution came to."""
        row, ledger = self._watch.rows[run_id], self._watch.ledgers[run_id]
        assert row.status in FINAL, f"{run_id} is {row.status}"
        result = self._reader.result(run_id)
        assert result is not None
        shown = self._reader.run(run_id)
        if row.status == "EXPIRED":
            assert not self._attempts[run_id], f"{run_id} has expired, and has executed"
            assert shown.error is not None
            assert shown.error.message == lifecycle.EXPIRED.message, f"{run_id} is read as {shown}"
            return
        for seen in (result, shown):
            if row.status != "COMPLETED":
                assert seen.error is not None, f"{run_id} is read as {seen}"
                assert seen.output is None, f"{run_id} is read as {seen}"
                if row.status == "CANCELED" and seen.error.message == CANCELLED_MESSAGE:
                    # Perhaps nobody held it, after attempts that had failed.
                    continue
                last = ledger.ends[-1]
                assert last.message in (None, seen.error.message), (
                    f"{run_id} is read as {seen.error}, not {last}"
                )
                continue
            assert seen.error is None, f"{run_id} is COMPLETED and read as {seen.error}"
            returned = [
                one for one in self._attempts[run_id] if one.number == row.attempt and _has_returned(one)
            ]
            assert returned, f"{run_id} is COMPLETED, and no code has returned in attempt {row.attempt}"
            assert seen.output is not None, f"{run_id} is read as {seen}"
            assert said_by(
                bytes(seen.output).decode() if isinstance(seen.output, msgspec.Raw) else seen.output, None
            ) in {one.label for one in returned}, (
                f"{run_id} is read as {seen.output!r}, and {returned[0].label!r} was returned"
            )

    # --- hooks -----------------------------------------------------------------------------------------------

    def _judge_hooks(self, run_id: str) -> None:
        """Each hook ran when its documentation says, and only then."""
        is_first = may_be_first = True
        for attempt in sorted(self._attempts[run_id], key=lambda one: (one.number, one.begun_at or 0)):
            hooks = [name for name in attempt.hooks if name not in ("on_wait", "on_resume")]
            if attempt.is_closing:
                assert hooks == LAST_HOOKS[: len(hooks)], (
                    f"{attempt} has run {hooks} for a run whose process is dead"
                )
                continue
            if attempt.begun_at is None:
                # Its process has died between the word that it begins and its code.
                may_be_first = may_be_first and not self._is_known_to_have_begun(attempt)
                continue
            if is_first and not may_be_first:
                is_first = "on_start" in hooks
            begin = ["on_start_attempt", *(["on_start"] if is_first else [])]
            expected = [*begin, *_hooks_at_end(attempt)]
            if attempt.outcome is None or attempt.is_over_early:
                # Its process has died, or it was given up: while the code ran, or while its end waited for its streams.
                possible = [[*begin, *end][: len(hooks)] for end in HOOKS_AT_ENDS]
                assert hooks in possible, f"{attempt} has run {hooks}"
            else:
                assert hooks == expected, f"{attempt} has run {hooks} instead of {expected}"
            is_first = is_first and not self._is_known_to_have_begun(attempt)
            waits = [name for name in attempt.hooks if name in ("on_wait", "on_resume")]
            # What goes on after it was given up waits in vain, and may do so again.
            alternates = all(name == "on_wait" for name in waits[::2])
            assert alternates or attempt.is_over_early, f"{attempt} has run {waits}"

    def _is_known_to_have_begun(self, attempt: Attempt) -> bool:
        row = self._rows.get((attempt.run_id, attempt.number))
        return row is None or row.begun_at is not None

    # --- attempts --------------------------------------------------------------------------------------------

    def _judge_attempts(self, run_id: str) -> None:
        """Each attempt that has ended is kept, with how it ended, who had it, and what it raised."""
        run, ledger = self._watch.rows[run_id], self._watch.ledgers[run_id]
        charged = 0
        for end in ledger.ends:
            row = self._rows.get((run_id, end.number))
            if row is None:
                is_on_the_run = end.number == run.attempt and run.status == "COMPLETED"
                assert is_on_the_run, f"attempt {end.number} of {run_id} is missing"
                continue
            assert row.end in end.ends, (
                f"attempt {end.number} of {run_id} has ended as {row.end}, not {set(end.ends)}"
            )
            charged += row.end in ("raised", "crashed", "lost")
            if end.message is not None:
                told = msgspec.json.decode(row.error or "{}").get("message")
                assert told == end.message, (
                    f"attempt {end.number} of {run_id} says {told!r}, not {end.message!r}"
                )
            assert row.worker_id in self._watch.claims[run_id, end.number], f"{row} was another worker's"
        assert charged == run.charged == ledger.charged, (
            f"{run_id} is charged {run.charged} times, by its attempts {charged}, and {ledger.charged} had a cause"
        )
        ended = {end.number for end in ledger.ends}
        extra = {number for of, number in self._rows if of == run_id} - ended
        assert not extra, f"attempts {extra} of {run_id} never were"
        assert charged <= (run.max_attempts or self._retry.max_attempts)


def _has_returned(attempt: Attempt) -> bool:
    return attempt.outcome is not None and attempt.outcome.error is None


def _hooks_at_end(attempt: Attempt) -> list[str]:
    outcome: Outcome | None = attempt.outcome
    if outcome is None:
        return []
    if outcome.error is None:
        return SUCCESS
    if outcome.end is not None:
        return CANCELLED if outcome.end is AttemptEnd.CANCELLED else TIMED_OUT
    return FAILURE if outcome.retry_after_ms is None else RETRY
