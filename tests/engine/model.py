"""The engine as a page of rules: no database, no cache, no groups. What the real one must be indistinguishable from.

Only ids are learnt from the engine; everything else is predicted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from milepost.engine.commands import (
    AddBatchItems,
    AppendLog,
    Claim,
    Command,
    CreateBatch,
    RegisterWorker,
    ReleaseLostRuns,
    Report,
    Trigger,
    TriggerBatch,
    TriggerItem,
    UpdateMetadata,
)
from milepost.errors import ConflictError, MetadataError
from milepost.model.counted import unpack
from milepost.model.document import Document
from milepost.model.operations import Operation, check
from milepost.model.retry import RetryRule
from milepost.model.run import Outcome
from milepost.protocol.metadata import MetadataDelta
from milepost.protocol.triggering import TriggerOptions
from milepost.protocol.work import ClaimedRun, Death, RunReport, WorkerTask
from support.operations import exactly

HELD = ("EXECUTING", "WAITING")
FINAL = ("COMPLETED", "FAILED", "CRASHED")
Refusal = tuple[str, int, str]


@dataclass
class Run:
    """One run. `history[v]` is its document at version v."""

    id: str
    task: str
    due_at: int
    document: Document
    history: list[dict[str, Any]]
    parent: str | None
    root: str
    batch: str | None
    max_attempts: int | None
    status: str = "QUEUED"
    attempt: int = 0
    charged: int = 0
    has_begun: bool = False
    # Of an earlier attempt.
    has_ever_begun: bool = False
    is_apart: bool = False
    # Of every attempt that has ended, but the one that has completed the run.
    ends: list[tuple[int, str]] = field(default_factory=list)
    worker: str | None = None
    sequence: int = 0
    said: Any = None
    finished_at: int | None = None
    output: str | None = None
    error: str | None = None
    logs: list[str] = field(default_factory=list)
    # What the server itself had to say in the log.
    told: list[str] = field(default_factory=list)
    # Per attempt and writer: the last part of the log, the bytes that are kept, whether something was left out.
    logged: dict[tuple[int, str], tuple[int, int, bool]] = field(default_factory=dict)
    refusals: dict[tuple[int, int], list[Refusal]] = field(default_factory=dict)
    sent: dict[tuple[int, int], Sequence[Operation]] = field(default_factory=dict)


@dataclass
class Batch:
    """A batch: its parent, its size (None: not known yet), its runs by index."""

    parent: str | None
    run_count: int | None
    runs: dict[int, str] = field(default_factory=dict)


@dataclass
class Worker:
    """A registered worker, its last answered claim, and the newest one that was heard of."""

    tasks: list[str]
    seen_at: int
    # What the registration said of claims, and whether the server has started anew since.
    claims: int = -1
    is_recalled: bool = False
    newest: int = -1
    sequence: int = -1
    # What the claims have brought.
    answers: dict[int, list[str]] = field(default_factory=dict)


ORDER: dict[type[Any], int] = {
    RegisterWorker: 0,
    Report: 1,
    AppendLog: 1,
    UpdateMetadata: 2,
    CreateBatch: 3,
    Claim: 9,
}


class Model:
    """The rules. `apply` takes a group and the engine's answers, and raises AssertionError where they differ."""

    def __init__(
        self,
        *,
        lease_seconds: float,
        grace_seconds: float,
        log_bytes_max: int,
        started_at: int,
    ) -> None:
        self.lease = round(lease_seconds * 1_000_000)
        self.grace = round(grace_seconds * 1_000_000)
        self.log_bytes_max = log_bytes_max
        self.leases_from = self.looked_at = started_at
        self.runs: dict[str, Run] = {}
        self.batches: dict[str, Batch] = {}
        self.workers: dict[str, Worker] = {}
        self.retries: dict[str, RetryRule] = {}
        self.triggered: dict[str, Any] = {}
        self.updated: dict[str, tuple[Any, list[Refusal]]] = {}

    def restart(self, now: int) -> None:
        """The engine starts anew: the leases of all workers begin again."""
        self.leases_from = self.looked_at = now
        for worker in self.workers.values():
            worker.seen_at = now
            worker.newest, worker.sequence, worker.is_recalled = worker.claims, -1, True

    def apply(self, commands: Sequence[Command], answers: Sequence[Any], now: int) -> None:
        """Carry out a group in the order that groups have: what ends or frees first, claims last."""
        pairs = sorted(zip(commands, answers, strict=True), key=lambda pair: ORDER.get(type(pair[0]), 4))
        for command, answer in pairs:
            if isinstance(command, Claim):
                self._hear_of([other for other in commands if isinstance(other, Claim)])
            match command:
                case RegisterWorker():
                    self._register(command, answer, now)
                case Report():
                    self._report(command, answer, now)
                case AppendLog():
                    self._log(command, answer, now)
                case UpdateMetadata():
                    self._update(command, answer, now)
                case Trigger():
                    self._trigger(command, answer, now)
                case TriggerBatch():
                    self._trigger_batch(command, answer, now)
                case CreateBatch():
                    assert isinstance(answer, str), answer
                    self.batches[answer] = Batch(command.parent_id, command.run_count)
                case AddBatchItems():
                    self._add_items(command, answer, now)
                case ReleaseLostRuns():
                    self._release_lost(answer, now)
                case Claim():
                    self._claim(command, answer, now)
                case _:
                    raise AssertionError(command)

    # --- triggering --------------------------------------------------------------------------------------------

    def _trigger(self, command: Trigger, answer: Any, now: int) -> None:
        earlier = self.triggered.get(command.request_id or "")
        if earlier is not None:
            item, answered = earlier
            if command.item == item:
                assert (answer.run_ids, answer.cached) == (answered.run_ids, True)
            else:
                assert isinstance(answer, ConflictError)
            return
        assert not answer.cached
        self._new_run(answer.run_ids[0], command.item, command.item.options.parent_run_id, None, now)
        if command.request_id:
            self.triggered[command.request_id] = command.item, answer

    def _trigger_batch(self, command: TriggerBatch, answer: Any, now: int) -> None:
        batch = self.batches[answer.batch_id] = Batch(command.parent_id, len(command.items))
        assert len(answer.run_ids) == len(command.items)
        for index, (run_id, item) in enumerate(zip(answer.run_ids, command.items, strict=True)):
            self._new_run(run_id, item, command.parent_id, answer.batch_id, now)
            batch.runs[index] = run_id

    def _add_items(self, command: AddBatchItems, answer: Any, now: int) -> None:
        batch = self.batches[command.batch_id]
        fresh = sorted({line.index for line in command.lines} - batch.runs.keys())
        assert answer.accepted == len(fresh)
        assert answer.deduplicated == len(command.lines) - len(fresh)
        batch.runs.update((index, "") for index in fresh)
        told = dict(zip((line.index for line in command.lines), answer.run_ids, strict=True))
        for index in fresh:
            batch.runs[index] = told[index]
            self._new_run(
                told[index], TriggerItem("quick", None, TriggerOptions()), batch.parent, command.batch_id, now
            )
        assert told == {index: batch.runs[index] for index in told}
        if command.run_count is not None:
            batch.run_count = command.run_count
        assert (answer.accepted_count, answer.run_count) == (len(batch.runs), batch.run_count)

    def _new_run(
        self, run_id: str, item: TriggerItem, parent_id: str | None, batch: str | None, now: int
    ) -> None:
        assert run_id not in self.runs
        given = item.options.metadata or {}
        parent = self.runs[parent_id] if parent_id else None
        self.runs[run_id] = Run(
            id=run_id,
            task=item.task,
            due_at=now,
            document=Document(given),
            history=[given],
            parent=parent_id,
            root=parent.root if parent else run_id,
            batch=batch,
            max_attempts=item.options.max_attempts,
        )

    # --- workers -----------------------------------------------------------------------------------------------

    def _register(self, command: RegisterWorker, answer: Any, now: int) -> None:
        assert answer is None, answer
        tasks: Sequence[WorkerTask] = command.tasks
        self.retries.update((task.id, task.retry) for task in tasks)
        self.workers[command.worker_id] = Worker([task.id for task in tasks], now)
        for run in self._held_by(command.worker_id):
            if run.id not in command.holding:
                self._lose(run, now)

    def _hear_of(self, claims: Sequence[Claim]) -> None:
        for claim in claims:
            if worker := self.workers.get(claim.worker_id):
                worker.newest = max(worker.newest, claim.sequence)

    def _claim(self, command: Claim, answer: Any, now: int) -> None:
        worker = self.workers.get(command.worker_id)
        if worker is None:
            assert type(answer).__name__ == "NotFoundError", answer
            return
        if command.sequence < worker.newest:
            # Nobody listens to what an older claim brings.
            assert answer == []
            return
        worker.seen_at = now
        ids = [run.id for run in answer]
        if command.sequence <= worker.sequence or worker.sequence < 0:
            given = worker.answers.get(command.sequence, [])
            still = [run_id for run_id in given if self.runs[run_id].worker == command.worker_id]
            if command.sequence <= worker.sequence or still:
                assert sorted(ids) == sorted(still)
                worker.sequence = max(worker.sequence, command.sequence)
                return
        due = [run for run in self.runs.values() if run.status == "QUEUED" and run.due_at <= now]
        due = sorted((run for run in due if run.task in worker.tasks), key=lambda run: (run.due_at, run.id))
        expected = [run.id for run in due if not run.is_apart][: command.slots]
        apart = [run for run in due if run.is_apart]
        if apart and not self._held_by(command.worker_id) and command.slots:
            expected = [apart[0].id]
        elif patient := [run for run in apart if run.due_at <= now - 10_000_000]:
            expected = [*expected[: max(0, command.slots - 1)], patient[0].id][: command.slots]
        assert ids == expected
        for claimed in answer:
            self._start(self.runs[claimed.id], command.worker_id, claimed)
        worker.sequence, worker.answers[command.sequence] = command.sequence, ids

    def _start(self, run: Run, worker_id: str, claimed: ClaimedRun) -> None:
        run.status, run.worker, run.attempt, run.sequence = "EXECUTING", worker_id, run.attempt + 1, 0
        run.has_begun = False
        assert (claimed.attempt, claimed.charged) == (run.attempt, run.charged)
        assert (claimed.has_begun, claimed.is_apart) == (run.has_ever_begun, run.is_apart)
        assert exactly(plain(claimed.metadata)) == exactly(run.document.value)
        assert claimed.metadata_version == run.document.version
        assert set(unpack(claimed.counted)) == run.document.counted
        assert (claimed.parent_id, claimed.root_id, claimed.batch_id) == (run.parent, run.root, run.batch)

    def _report(self, command: Report, answer: Any, now: int) -> None:
        worker = self.workers.get(command.worker_id)
        if command.runs or not (command.leaving or command.death):
            if worker is None:
                assert type(answer).__name__ == "NotFoundError", answer
                return
            worker.seen_at = now
        for item, reply in zip(command.runs, answer, strict=True):
            expected = self._report_run(item, command.worker_id, now)
            found = (
                None
                if reply.lost
                else [(refused.run, refused.index, refused.code) for refused in reply.refused]
            )
            assert found == expected, (item, reply)
            if reply.delta is not None:
                self._check_delta(self.runs[item.id], item, reply.delta)
        if command.death is not None:
            self._die(command.worker_id, command.death, now)
        if command.leaving:
            for run in self._held_by(command.worker_id):
                self._release(run, "handed_back" if run.has_begun else "never_begun")
        if command.death or command.leaving:
            self.workers.pop(command.worker_id, None)

    def _die(self, worker_id: str, death: Death, now: int) -> None:
        told = {(begun.id, begun.attempt): begun.waiting for begun in death.begun}
        held = self._held_by(worker_id)
        begun = [run for run in held if run.has_begun or (run.id, run.attempt) in told]
        executed = {attempt for attempt, waiting in told.items() if not waiting}
        suspects = executed or {(run.id, run.attempt) for run in begun}
        for run in held:
            if run not in begun:
                self._lose(run, now)
                continue
            run.has_begun = True
            key = {(run.id, run.attempt)}
            was_in_it = told.keys() | {(one.id, one.attempt) for one in begun}
            if was_in_it == executed == key or (run.is_apart and suspects == key):
                self._charge(run, "crashed", "ProcessDiedError", now)
                continue
            only_waited = run.status == "WAITING" and told.get((run.id, run.attempt), True)
            if only_waited and not run.is_apart and run.attempt - run.charged < 3:
                self._release(run, "waiting")
                continue
            run.is_apart = run.is_apart or (run.id, run.attempt) in suspects
            self._release(run, "beside")

    def _report_run(self, item: RunReport, worker_id: str, now: int) -> list[Refusal] | None:
        """What is refused; None when the run is lost to this worker."""
        run = self.runs[item.id]
        if run.attempt != item.attempt or run.worker not in (None, worker_id):
            return None
        said = item.changes, item.outcome
        if item.sequence == run.sequence > 0 and said != run.said:
            told = f"report {item.sequence} of attempt {item.attempt} was sent before with other content"
            run.told.append(f"{told}; each report needs its own number")
            return [
                (target.run, index, "sequence_reused")
                for target in item.changes
                for index in range(len(target.operations))
            ]
        if 0 < item.sequence <= run.sequence:
            return run.refusals.get((item.attempt, item.sequence), [])
        if run.status not in HELD or run.worker != worker_id:
            return None
        run.has_begun = run.has_begun or item.begun or item.sequence > 0 or item.waiting is not None
        if not item.sequence:
            return []
        run.sequence, run.said = item.sequence, said
        refused: list[Refusal] = []
        for target in item.changes:
            if target.run == run.id:
                run.sent[item.attempt, item.sequence] = target.operations
            refused += self._write(run, target.run, target.operations, now)
        run.refusals[item.attempt, item.sequence] = refused
        run.told += [f"an operation on the metadata of {target} was refused" for target, _, _ in refused]
        if item.outcome is not None:
            self._end(run, item.outcome, now)
        elif item.waiting is not None:
            run.status = "WAITING" if item.waiting else "EXECUTING"
        return refused

    def _log(self, command: AppendLog, answer: Any, now: int) -> None:
        worker = self.workers.get(command.worker_id)
        if worker is None:
            assert type(answer).__name__ == "NotFoundError", answer
            return
        assert answer is None, answer
        worker.seen_at = now
        for part in command.runs:
            run = self.runs[part.id]
            is_another = part.attempt == run.attempt and run.worker not in (None, command.worker_id)
            if not 1 <= part.attempt <= run.attempt or is_another:
                continue
            key = part.attempt, command.worker_id
            sequence, size, is_full = run.logged.get(key, (0, 0, False))
            if part.sequence <= sequence:
                continue
            for line in part.lines:
                size += len(line.message.encode()) + len(line.logger.encode()) + 32
                if size > self.log_bytes_max and not is_full:
                    is_full = True
                elif not is_full:
                    run.logs.append(line.message)
            run.logged[key] = part.sequence, size, is_full

    def _end(self, run: Run, outcome: Outcome, now: int) -> None:
        run.is_apart = False
        if outcome.error is None:
            run.status, run.output, run.error, run.finished_at = "COMPLETED", outcome.output, None, now
            return
        delay_ms = outcome.retry_after_ms
        self._over(run, "raised", outcome.error.name or "", now, charge=True, delay_ms=delay_ms)

    def _charge(self, run: Run, end: str, error: str, now: int) -> None:
        """The task's own rule says what follows."""
        rule = self.retries[run.task]
        delay_ms = rule.delay_ms(run.charged + 1, jitter=0, max_attempts=run.max_attempts)
        self._over(run, end, error, now, charge=True, delay_ms=delay_ms)

    def _over(self, run: Run, end: str, error: str, now: int, *, charge: bool, delay_ms: int | None) -> None:
        run.ends.append((run.attempt, end))
        run.charged += charge
        run.has_ever_begun = run.has_ever_begun or run.has_begun
        run.error = error
        if delay_ms is None:
            run.status, run.finished_at = "FAILED" if end == "raised" else "CRASHED", now
        else:
            run.status, run.worker, run.due_at = "QUEUED", None, now + delay_ms * 1000

    def _release(self, run: Run, end: str) -> None:
        """It costs nothing, and the run keeps its place in the line."""
        run.ends.append((run.attempt, end))
        run.has_ever_begun = run.has_ever_begun or run.has_begun
        run.status, run.worker = "QUEUED", None

    def _lose(self, run: Run, now: int) -> None:
        if run.has_begun and run.status == "WAITING" and not run.is_apart:
            self._release(run, "waiting")
            return
        if run.has_begun:
            self._charge(run, "lost", "WorkerLostError", now)
            return
        self._release(run, "never_begun")

    def _release_lost(self, answer: Any, now: int) -> None:
        if now - self.looked_at > self.lease // 2:
            # Nobody could have been heard.
            self.leases_from = now
        self.looked_at = now
        lost: list[Run] = []
        if self.leases_from < now - self.lease:
            for worker_id, worker in list(self.workers.items()):
                if worker.seen_at < now - self.lease:
                    del self.workers[worker_id]
            lost = [
                run for run in self.runs.values() if run.status in HELD and run.worker not in self.workers
            ]
        assert answer == len(lost)
        for run in lost:
            run.is_apart = run.is_apart or run.attempt - run.charged >= 3
            self._lose(run, now)

    def _held_by(self, worker_id: str) -> list[Run]:
        held = [run for run in self.runs.values() if run.status in HELD and run.worker == worker_id]
        return sorted(held, key=lambda run: (run.due_at, run.id))

    # --- documents ---------------------------------------------------------------------------------------------

    def _update(self, command: UpdateMetadata, answer: Any, now: int) -> None:
        run = self.runs[command.run_id]
        earlier = self.updated.get(command.request_id or "")
        if earlier is not None and earlier[0] != command.targets:
            assert type(answer).__name__ == "ConflictError", answer
            return
        refused = None if earlier is None else earlier[1]
        if refused is None:
            if not self._takes_writes(run, now):
                assert type(answer).__name__ == "RunFinishedError", answer
                return
            refused = []
            related = {"self": run.id, "parent": run.parent or run.id, "root": run.root}
            for relation, raw in command.targets:
                refused += self._write_raw(run, related[relation], raw, now)
            if command.request_id:
                self.updated[command.request_id] = command.targets, refused
        assert [(item.run, item.index, item.code) for item in answer.refused] == refused
        assert (msgspec.json.decode(answer.value), answer.version) == (
            run.document.value,
            run.document.version,
        )

    def _write_raw(self, writing: Run, target: str, raw: Sequence[Any], now: int) -> list[Refusal]:
        operations: list[tuple[int, Operation]] = []
        refused: list[Refusal] = []
        for index, item in enumerate(raw):
            try:
                operations.append((index, msgspec.convert(item, Operation)))
            except msgspec.ValidationError:
                refused.append((target, index, "bad_operation"))
        written = self._write(writing, target, [operation for _, operation in operations], now)
        refused += [(run_id, operations[index][0], code) for run_id, index, code in written]
        return sorted(refused, key=lambda refusal: refusal[1])

    def _write(self, writing: Run, target: str, operations: Sequence[Operation], now: int) -> list[Refusal]:
        ancestors, run = [writing.id], writing
        while run.parent is not None:
            run = self.runs[run.parent]
            ancestors.append(run.id)
        if target not in ancestors:
            return [(target, index, "not_an_ancestor") for index in range(len(operations))]
        run = self.runs[target]
        if not self._takes_writes(run, now):
            return [(target, index, "run_finished") for index in range(len(operations))]
        refused: list[Refusal] = []
        for index, operation in enumerate(operations):
            try:
                check(operation)
                run.document.apply(operation)
            except MetadataError as error:
                refused.append((target, index, error.code))
        if len(refused) < len(operations):
            run.document.version += 1
            run.history.append(run.document.copy_value())
        return refused

    def _takes_writes(self, run: Run, now: int) -> bool:
        return run.finished_at is None or now <= run.finished_at + self.grace

    def _check_delta(self, run: Run, item: RunReport, delta: MetadataDelta) -> None:
        """What the worker was sent brings its copy from where it was to where the document is."""
        assert delta.from_version == item.metadata_version
        assert delta.version == run.document.version
        if delta.changes is None:
            assert exactly(plain(delta.metadata)) == exactly(run.document.value)
            return
        copy = Document(run.history[delta.from_version])
        for change in delta.changes:
            operations: Sequence[Operation] = change.operations
            if change.sequence is not None:
                assert not operations
                assert change.attempt == item.attempt
                own = run.sent[item.attempt, change.sequence]
                operations = [own[index] for index in range(len(own)) if index not in change.refused]
            for operation in operations:
                copy.apply(operation)
            assert exactly(copy.value) == exactly(run.history[change.version])
        assert exactly(copy.value) == exactly(run.document.value)


def plain(value: Any) -> Any:
    """A document as the wire carries it."""
    return msgspec.json.decode(msgspec.json.encode(value))
