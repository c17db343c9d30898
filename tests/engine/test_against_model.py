"""The engine on a real database and the page of rules in `model` are told the same things, and nobody can tell them apart.

Random commands in random groups: repeats, restarts, workers that vanish, jumps of the clock, statements that fail.
"""

import itertools
import shutil
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.model import Model, plain
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
    UpdateMetadata,
)
from milepost.model.operations import Operation
from milepost.model.retry import NO_RETRY, RetryRule
from milepost.model.run import Outcome
from milepost.protocol.runs import LogLine
from milepost.protocol.triggering import BatchLine
from milepost.protocol.work import AttemptLines, BegunRun, Death, RunReport, TargetOperations
from milepost.store.attempts import load_attempts
from milepost.store.runs import RunFilter, count_by_status, load_rows
from support.faults import faults
from support.many import ON_POSTGRES, ONE_SERVER, THREE_SERVERS, world_of
from support.operations import DOCUMENTS, OPERATIONS, RELATED, exactly
from support.properties import database_property
from support.world import failure, item, offered

LEASE_SECONDS, GRACE_SECONDS, LOG_BYTES_MAX = 30, 100, 400
WORKERS = ["worker_1", "worker_2", "worker_3"]
TASKS = [
    offered("quick", retry=NO_RETRY),
    offered(
        "steady", retry=RetryRule(max_attempts=3, min_delay_seconds=2, max_delay_seconds=9, jitter=False)
    ),
]
BROKEN: st.SearchStrategy[Any] = st.sampled_from([None, {"type": "increment", "key": "n"}, {"type": "fly"}])


@dataclass
class Attempt:
    """What a worker knows of an attempt that it was given."""

    worker: str
    run: str
    number: int
    version: int
    sequence: int = 0
    log_sequence: int = 0


class EngineMachine(RuleBasedStateMachine):
    """Rules put commands into a group; most groups are carried out at once, some gather first."""

    servers = ONE_SERVER

    @initialize()
    def begin(self) -> None:
        self.folder = Path(mkdtemp(prefix="milepost-machine-"))
        self.exits = ExitStack()
        self.world = self.exits.enter_context(
            world_of(
                self.servers,
                self.folder / "milepost.db",
                lease_seconds=LEASE_SECONDS,
                grace_seconds=GRACE_SECONDS,
                log_bytes_max=LOG_BYTES_MAX,
            )
        )
        self.model = Model(
            lease_seconds=LEASE_SECONDS,
            grace_seconds=GRACE_SECONDS,
            log_bytes_max=LOG_BYTES_MAX,
            started_at=self.world.clock(),
        )
        self.numbers = itertools.count(1)
        self.group: list[Command] = []
        self.attempts: list[Attempt] = []
        self.reports: list[tuple[str, RunReport]] = []
        self.logged: list[AppendLog] = []
        self.claims: dict[str, Claim] = {}
        self.known_by: dict[str, set[str]] = {worker: set() for worker in WORKERS}
        self.statement_that_fails = 0
        self.is_changed = True
        self.carry_out([RegisterWorker(worker, worker, TASKS, []) for worker in WORKERS])

    def teardown(self) -> None:
        if hasattr(self, "world"):
            try:
                if self.is_sound:
                    self.carry_out(self.group)
                    self.agree()
                    self.agree_in_everything()
            finally:
                self.exits.close()
                shutil.rmtree(self.folder)

    # --- groups ------------------------------------------------------------------------------------------------

    def add(self, command: Command, at_once: bool) -> None:
        self.group.append(command)
        if at_once:
            group, self.group = self.group, []
            self.carry_out(group)

    def carry_out(self, group: list[Command]) -> None:
        number, self.statement_that_fails = self.statement_that_fails, 0
        self.is_sound = False
        failing = faults(self.world.next_store, lambda seen, _: seen == number) if number else nullcontext()
        with failing:
            answers = [ticket.result for ticket in self.world.submit(*group)]
        self.model.apply(group, answers, self.world.clock())
        for command, answer in zip(group, answers, strict=True):
            if isinstance(command, Claim) and isinstance(answer, list):
                for run in answer:
                    known = Attempt(command.worker_id, run.id, run.attempt, run.metadata_version)
                    self.attempts.append(known)
                    self.known_by[command.worker_id].add(run.id)
        self.is_changed = self.is_sound = True

    # --- commands ----------------------------------------------------------------------------------------------

    @rule(data=st.data(), at_once=st.booleans())
    def trigger(self, data: st.DataObject, at_once: bool) -> None:
        options = {
            "metadata": data.draw(DOCUMENTS),
            "parent_run_id": data.draw(st.sampled_from([None, *self.model.runs])),
            "max_attempts": data.draw(st.sampled_from([None, 2])),
        }
        # The same id means the same request, so the options follow from it; with another task it is no repeat.
        request_id = data.draw(st.sampled_from([None, None, "trigger 1", "trigger 2"]))
        if request_id is not None:
            options = {"metadata": {"id": request_id}}
        self.add(
            Trigger(item(data.draw(st.sampled_from(["quick", "steady"])), **options), request_id), at_once
        )

    @rule(count=st.integers(1, 4), data=st.data(), at_once=st.booleans())
    def trigger_batch(self, count: int, data: st.DataObject, at_once: bool) -> None:
        parent = data.draw(st.sampled_from([None, *self.model.runs]))
        self.add(TriggerBatch([item("steady", metadata={"n": 1})] * count, parent), at_once)

    @rule(count=st.none() | st.integers(1, 4))
    def create_batch(self, count: int | None) -> None:
        self.add(CreateBatch(count), at_once=True)

    @precondition(
        lambda self: any(batch.run_count != len(batch.runs) for batch in self.model.batches.values())
    )
    @rule(data=st.data())
    def add_batch_items(self, data: st.DataObject) -> None:
        unfilled = [key for key, batch in self.model.batches.items() if batch.run_count != len(batch.runs)]
        batch_id = data.draw(st.sampled_from(unfilled))
        batch = self.model.batches[batch_id]
        count = batch.run_count or len(batch.runs) + 2
        indexes = data.draw(st.lists(st.integers(0, count - 1), max_size=count + 1))
        in_all = None
        if batch.run_count is None and data.draw(st.booleans()):
            in_all = max(1, *batch.runs, *indexes, -1) + 1
        lines = [BatchLine(index, "quick") for index in indexes]
        self.add(AddBatchItems(batch_id, lines, in_all), at_once=True)

    @rule(
        worker=st.sampled_from(WORKERS), slots=st.integers(1, 3), again=st.booleans(), at_once=st.booleans()
    )
    def claim(self, worker: str, slots: int, again: bool, at_once: bool) -> None:
        claim = self.claims.get(worker) if again else None
        if claim is None:
            claim = self.claims[worker] = Claim(worker, next(self.numbers), slots, 0)
        self.add(claim, at_once)

    @precondition(lambda self: self.attempts)
    @rule(
        data=st.data(),
        operations=st.one_of(st.lists(OPERATIONS, max_size=4), RELATED),
        outcome=st.sampled_from(
            [None, None, None, Outcome("1"), Outcome(None), failure(), failure(retry_after_ms=0)]
        ),
        waiting=st.sampled_from([None, None, True, False]),
        at_once=st.booleans(),
    )
    def report(
        self,
        data: st.DataObject,
        operations: list[Operation],
        outcome: Outcome | None,
        waiting: bool | None,
        at_once: bool,
    ) -> None:
        # The newest attempts are the ones that are most likely still held.
        attempt = data.draw(st.sampled_from(self.attempts[-6:]))
        attempt.sequence += 1
        changes = [TargetOperations(attempt.run, operations)] if operations else []
        others = data.draw(st.lists(st.sampled_from(list(self.model.runs)), max_size=2, unique=True))
        others += [
            run for run in (self.model.runs[attempt.run].parent, self.model.runs[attempt.run].root) if run
        ]
        changes += [
            TargetOperations(other, data.draw(st.lists(OPERATIONS, min_size=1, max_size=2)))
            for other in dict.fromkeys(others)
            if other != attempt.run
        ]
        report = RunReport(
            id=attempt.run,
            attempt=attempt.number,
            sequence=attempt.sequence,
            metadata_version=data.draw(st.sampled_from([-1, attempt.version])),
            changes=changes,
            waiting=waiting,
            outcome=outcome,
        )
        self.reports.append((attempt.worker, report))
        self.add(Report(attempt.worker, [report]), at_once)

    @precondition(lambda self: self.attempts)
    @rule(data=st.data(), sizes=st.lists(st.integers(0, 60), max_size=3), at_once=st.booleans())
    def log(self, data: st.DataObject, sizes: list[int], at_once: bool) -> None:
        attempt = data.draw(st.sampled_from(self.attempts[-6:]))
        attempt.log_sequence += 1
        lines = [
            LogLine(at=1, level="info", message=f"{next(self.numbers)} ".ljust(size, "ü")) for size in sizes
        ]
        part = AttemptLines(
            id=attempt.run, attempt=attempt.number, sequence=attempt.log_sequence, lines=lines
        )
        self.logged.append(AppendLog(attempt.worker, [part]))
        self.add(self.logged[-1], at_once)

    @precondition(lambda self: self.logged)
    @rule(data=st.data(), at_once=st.booleans())
    def log_again(self, data: st.DataObject, at_once: bool) -> None:
        self.add(data.draw(st.sampled_from(self.logged[-8:])), at_once)

    @precondition(lambda self: self.reports)
    @rule(data=st.data(), at_once=st.booleans())
    def report_again(self, data: st.DataObject, at_once: bool) -> None:
        worker, report = data.draw(st.sampled_from(self.reports[-8:]))
        self.add(Report(worker, [report]), at_once)

    @rule(
        worker=st.sampled_from(WORKERS), leaving=st.sampled_from([False, False, True]), at_once=st.booleans()
    )
    def heartbeat(self, worker: str, leaving: bool, at_once: bool) -> None:
        self.add(Report(worker, [], leaving), at_once)

    @precondition(lambda self: self.attempts)
    @rule(data=st.data(), at_once=st.booleans())
    def begin_attempt(self, data: st.DataObject, at_once: bool) -> None:
        attempt = data.draw(st.sampled_from(self.attempts[-6:]))
        report = RunReport(id=attempt.run, attempt=attempt.number, begun=True)
        self.add(Report(attempt.worker, [report]), at_once)

    @rule(worker=st.sampled_from(WORKERS), data=st.data(), at_once=st.booleans())
    def die(self, worker: str, data: st.DataObject, at_once: bool) -> None:
        """What the supervisor tells need not be all that the server knows."""
        held = [attempt for attempt in self.attempts if attempt.worker == worker][-6:]
        some = data.draw(st.lists(st.sampled_from(held), unique_by=id)) if held else []
        begun = [
            BegunRun(id=attempt.run, attempt=attempt.number, waiting=data.draw(st.booleans()))
            for attempt in some
        ]
        self.add(Report(worker, [], death=Death(how="was killed by SIGKILL", begun=begun)), at_once)

    @rule(worker=st.sampled_from(WORKERS), forgets=st.booleans(), at_once=st.booleans())
    def register(self, worker: str, forgets: bool, at_once: bool) -> None:
        holding = [] if forgets else sorted(self.known_by[worker])
        self.add(RegisterWorker(worker, worker, TASKS, holding), at_once)

    @precondition(lambda self: self.model.runs)
    @rule(
        data=st.data(),
        relation=st.sampled_from(["self", "parent", "root"]),
        operations=st.one_of(st.lists(OPERATIONS, max_size=4), RELATED),
        broken=st.lists(BROKEN, max_size=1),
        request_id=st.sampled_from([None, None, "update 1"]),
        at_once=st.booleans(),
    )
    def update(
        self,
        data: st.DataObject,
        relation: str,
        operations: list[Operation],
        broken: list[Any],
        request_id: str | None,
        at_once: bool,
    ) -> None:
        run_id = data.draw(st.sampled_from(list(self.model.runs)))
        raw = [*broken, *msgspec.to_builtins(operations)]
        if request_id is not None:
            request_id = f"{request_id} of {run_id}"
        self.add(UpdateMetadata(run_id, [(relation, raw), ("self", raw)], request_id=request_id), at_once)

    # --- the world -----------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1, 5, 29, 31, 101]))
    def time_passes(self, seconds: int) -> None:
        self.world.clock.advance(seconds)

    @rule()
    def release_lost_runs(self) -> None:
        self.add(ReleaseLostRuns(), at_once=True)

    @rule(data=st.data())
    def a_lease_goes_by(self, data: st.DataObject) -> None:
        """The upkeep looks all the time, and some workers are heard."""
        heard = data.draw(st.sets(st.sampled_from(WORKERS)))
        for _ in range(6):
            self.world.clock.advance(LEASE_SECONDS / 5)
            self.carry_out([Report(worker, []) for worker in sorted(heard)])
            self.carry_out([ReleaseLostRuns()])

    @rule()
    def restart(self) -> None:
        self.world.restart()
        self.model.restart(self.world.clock())

    @rule(number=st.integers(1, 12))
    def a_statement_will_fail(self, number: int) -> None:
        self.statement_that_fails = number

    @invariant()
    def agree(self) -> None:
        """Readers find what the rules say."""
        if getattr(self, "is_changed", False):
            self.is_changed = False
            for shown in self.world.reader.summaries(list(self.model.runs)):
                run = self.model.runs[shown.id]
                assert (shown.status, shown.attempt_count) == (run.status, run.attempt), run.id
                assert exactly(plain(shown.metadata)) == exactly(run.document.value)
                assert shown.metadata_version == run.document.version
                assert (shown.finished_at is None) == (run.finished_at is None)
                assert (shown.error.name if shown.error else None) == run.error
            for parent in (None, *self.model.runs):
                counts: dict[str, int] = {}
                for run in self.model.runs.values():
                    if parent is None or run.parent == parent:
                        counts[run.status] = counts.get(run.status, 0) + 1
                with self.world.store.read() as connection:
                    assert count_by_status(connection, RunFilter(parent_id=parent)) == counts, parent
            for batch_id, batch in self.model.batches.items():
                found = self.world.reader.batch_row(batch_id)
                ended = sum(self.model.runs[run_id].finished_at is not None for run_id in batch.runs.values())
                assert (found.accepted_count, found.finished_count) == (len(batch.runs), ended)

    def agree_in_everything(self) -> None:
        """What is dear to ask for, once at the end."""
        reader = self.world.reader
        for run_id, run in self.model.runs.items():
            shown = reader.run(run_id)
            assert (shown.parent_id, shown.root_id, shown.batch_id) == (run.parent, run.root, run.batch)
            assert (shown.output is None) == (run.output is None)
            with self.world.store.read() as connection:
                row = load_rows(connection, [run_id])[run_id]
                ended = [(one.number, one.end) for one in load_attempts(connection, run_id)]
            assert row.charged == run.charged
            assert ended == run.ends
            lines = reader.log(run_id, after=0).data
            assert [line.message for line in lines if not line.logger] == run.logs
            # A refusal says why behind a colon. What the server itself says is bounded too.
            told = [line.message.partition(":")[0] for line in lines if line.logger == "milepost.metadata"]
            left_out = [line for line in lines if line.logger == "milepost.log"]
            assert told == run.told[: len(told)]
            assert told == run.told or left_out
            full = sum(is_full for _, _, is_full in run.logged.values())
            assert full <= len(left_out) <= full + run.attempt
        for batch_id, batch in self.model.batches.items():
            assert reader.batch(batch_id).runs == [batch.runs[index] for index in sorted(batch.runs)]


EngineMachine.TestCase.settings = database_property(40, steps=40)
TestEngineAgainstModel = EngineMachine.TestCase


class ThreeServersMachine(EngineMachine):
    """Each group by another of three engines."""

    servers = THREE_SERVERS


ThreeServersMachine.TestCase.settings = database_property(40, steps=40)
TestThreeServersAgainstModel = ThreeServersMachine.TestCase


class PostgresMachine(EngineMachine):
    """The same on PostgreSQL."""

    servers = ON_POSTGRES


PostgresMachine.TestCase.settings = database_property(8, steps=40)
TestPostgresAgainstModel = PostgresMachine.TestCase
