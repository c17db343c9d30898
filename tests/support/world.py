"""A store, an engine and a clock, driven command by command; and doubles of workers that talk to it."""

import atexit
import os
import shutil
from collections.abc import Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from unittest.mock import patch

import msgspec
from sqlalchemy import inspect

from milepost.engine import others
from milepost.engine.announcements import Announcement
from milepost.engine.commands import (
    AppendLog,
    Claim,
    Command,
    RegisterWorker,
    ReleaseLostRuns,
    Report,
    Trigger,
    TriggerBatch,
    Triggered,
    TriggerItem,
    UpdateMetadata,
)
from milepost.engine.engine import Engine, Request
from milepost.engine.metadata import MetadataUpdated
from milepost.engine.state import EngineSettings, ParkedClaim
from milepost.model.operations import Operation
from milepost.model.retry import NO_RETRY, RetryRule
from milepost.model.run import Outcome, RunError
from milepost.protocol.runs import LogLine
from milepost.protocol.triggering import TriggerOptions
from milepost.protocol.work import (
    AttemptLines,
    BegunRun,
    ClaimedRun,
    Death,
    RunReply,
    RunReport,
    TargetOperations,
    WorkerTask,
)
from milepost.reading.reader import Reader
from milepost.store.database import Store
from support import postgres
from support.faults import FailingConnection, FailingPostgresConnection

# Whether the tests of engine and feed that take any database have PostgreSQL's.
ALL_ON_POSTGRES = os.environ.get("MILEPOST_TEST_DATABASE") == "postgres"
START = 1_800_000_000_000_000


class Clock:
    """Microseconds since 1970; moves only when told."""

    def __init__(self, now: int = START) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += round(seconds * 1_000_000)


class Ticket:
    """Who waits for a command's result; it must come once."""

    def __init__(self) -> None:
        self.results: list[Any] = []

    def __call__(self, result: Any) -> None:
        self.results.append(result)

    @property
    def is_answered(self) -> bool:
        return bool(self.results)

    @property
    def result(self) -> Any:
        [result] = self.results
        return result


def confirm_workers(engine: Engine) -> None:
    """As if the workers had registered again."""
    for worker in engine.state.workers.values():
        worker.is_restored = False


@cache
def _template() -> Path:
    """A database with all tables and nothing in it, made once: copying it is quicker than migrating."""
    folder = mkdtemp(prefix="milepost-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder) / "template.db"
    Store(path).close()
    return path


class _PostgresStore(Store):
    """A database of its own on the PostgreSQL of this process."""

    def __init__(self) -> None:
        self._name = postgres.server().create_migrated_database()
        super().__init__(postgres.server().url(self._name), connection_class=FailingPostgresConnection)

    def close(self) -> None:
        super().close()
        postgres.server().drop_database(self._name)


def new_sqlite_store(path: Path) -> Store:
    """An empty store of SQLite at this path, which `faults` can let fail."""
    shutil.copy(_template(), path)
    return Store(path, synchronous="NORMAL", connection_class=FailingConnection)


def new_store(path: Path) -> Store:
    """An empty store at this path, which `faults` can let fail.

    With MILEPOST_TEST_DATABASE=postgres it is a database of PostgreSQL, wherever the path is, which is gone once it is closed.
    """
    if ALL_ON_POSTGRES:
        return _PostgresStore()
    return new_sqlite_store(path)


class World:
    """Everything behind the HTTP server, in one thread, on a clock of its own.

    Each group of commands happens a millisecond after the one before.
    """

    def __init__(self, store: Store, *, clock: Clock | None = None, **settings: Any) -> None:
        self.store = store
        self.clock = clock or Clock()
        self.settings = EngineSettings(**settings)
        self.announcements: list[Announcement] = []
        self.reader = Reader(
            store,
            queued_reason=lambda task: self.engine.state.queued_reason(task),
            known_queues=lambda: self.engine.state,
            clock=self.clock,
        )
        self.restart()

    def restart(self, *, have_registered: bool = True) -> None:
        """A new engine on the same store: nothing but the store is left of what was before.

        Args:
            have_registered: the workers have done what is asked of them when they claim next.
        """
        self.clock.advance(0.001)
        self.engine = Engine(self.store, self.settings, self.clock)
        if have_registered:
            confirm_workers(self.engine)

    @property
    def next_store(self) -> Store:
        """The store of the engine that carries out the next group."""
        return self.store

    def parked(self, worker_id: str) -> ParkedClaim | None:
        """The claim of a worker that waits."""
        return self.engine.state.parked.get(worker_id)

    def wake_at(self) -> int | None:
        """When something happens next by itself."""
        return self.engine.wake_at()

    def pass_lease(self) -> int:
        """Let the lease of whoever is silent go by, and a second more, with the upkeep looking in between; how many runs were lost."""
        lost, until = 0, self.clock() + round((self.settings.lease_seconds + 1) * 1_000_000)
        while self.clock() < until:
            self.clock.advance(self.settings.lease_seconds / 5)
            lost += self.do(ReleaseLostRuns())
        return lost

    def submit(self, *commands: Command) -> list[Ticket]:
        """Carry out commands as one group; none is like the committer waking up by the clock."""
        self.clock.advance(0.001)
        tickets = [Ticket() for _ in commands]
        requests = [Request(command, ticket) for command, ticket in zip(commands, tickets, strict=True)]
        answers, announcements = self.engine.execute(requests)
        for answer, result in answers:
            answer(result)
        for announcement in announcements:
            self.announced(announcement)
        return tickets

    def announced(self, announcement: Announcement) -> None:
        """The engine has told what it changed."""
        self.announcements.append(announcement)

    def do(self, command: Command) -> Any:
        """The result of one command; raises what refused it."""
        [ticket] = self.submit(command)
        return result_of(ticket)

    def trigger(self, task: str = "work", payload: str | None = None, **options: Any) -> str:
        """Trigger one run and give its id."""
        triggered: Triggered = self.do(Trigger(item(task, payload, **options)))
        return triggered.run_ids[0]

    def trigger_batch(self, *items: TriggerItem, **fields: Any) -> Triggered:
        """Trigger a batch."""
        return self.do(TriggerBatch(items, **fields))

    def write(
        self, run_id: str, *operations: Operation, relation: str = "self", request_id: str | None = None
    ) -> MetadataUpdated:
        """Write to a document from outside."""
        return self.do(
            UpdateMetadata(run_id, [(relation, msgspec.to_builtins(list(operations)))], request_id=request_id)
        )

    def log(self, run_id: str) -> list[str]:
        """The lines of a run's log, all pages of it."""
        lines: list[str] = []
        after: int | None = 0
        while after is not None:
            page = self.reader.log(run_id, after=after)
            lines += [line.message for line in page.data]
            after = page.next
        return lines

    def document(self, run_id: str) -> tuple[dict[str, Any], int]:
        """The document and its version as readers see them."""
        value, version = self.reader.metadata(run_id)
        return msgspec.json.decode(value), version

    def written_answer(self, run_id: str) -> tuple[dict[str, Any], int]:
        """The document and its version as the engine holds them, by a write that changes nothing."""
        updated = self.write(run_id)
        return msgspec.json.decode(updated.value), updated.version

    def dump(self) -> dict[str, list[tuple[Any, ...]]]:
        """Every row of every table."""
        with self.store.read() as connection:
            names = sorted({*inspect(connection).get_table_names()} - {"announcements", "commit_numbers"})
            return {
                name: sorted(
                    (tuple(row) for row in connection.exec_driver_sql(f"SELECT * FROM {name}")), key=repr
                )
                for name in names
            }

    def close(self) -> None:
        """Close the store."""
        self.store.close()


def exact_leases() -> Any:
    """Let servers tell each other of every word of a worker, so that a lease ends when a test expects it to."""
    return patch.object(others, "QUIET_PART", 0)


@contextmanager
def world_at(path: Path, **settings: Any):
    """A world on a new database at this path."""
    with exact_leases():
        world = World(new_store(path), **settings)
        try:
            yield world
        finally:
            world.close()


class WorkerDouble:
    """A worker that does what it is told and counts its claims and reports as a real one does."""

    def __init__(self, world: World, worker_id: str = "worker_1", *tasks: WorkerTask) -> None:
        self.world = world
        self.id = worker_id
        self.tasks = tasks or (offered("work"),)
        self.claim_sequence = 0
        self._sequences: dict[tuple[str, int], int] = {}
        self._log_sequences: dict[tuple[str, int], int] = {}
        self.register()

    def register(self, holding: Sequence[str] = ()) -> None:
        """Present itself."""
        self.world.do(RegisterWorker(self.id, self.id, self.tasks, list(holding)))

    def next_claim(self, slots: int = 1, *, wait: float = 0.0) -> Claim:
        """The next claim, not yet submitted."""
        self.claim_sequence += 1
        return Claim(self.id, self.claim_sequence, slots, wait)

    def claim(self, slots: int = 1) -> list[ClaimedRun]:
        """Claim what is due now."""
        return self.world.do(self.next_claim(slots))

    def claim_one(self) -> ClaimedRun:
        """Claim the one run that must be due."""
        [run] = self.claim()
        return run

    def next_report(
        self,
        run: ClaimedRun,
        *operations: Operation,
        changes: Sequence[TargetOperations] = (),
        outcome: Outcome | None = None,
        waiting: bool | None = None,
        metadata_version: int = -1,
        sequence: int | None = None,
    ) -> RunReport:
        """The next report of a run's attempt, not yet submitted; `operations` are for its own document."""
        if sequence is None:
            key = run.id, run.attempt
            sequence = self._sequences[key] = self._sequences.get(key, 0) + 1
        own = [TargetOperations(run.id, list(operations))] if operations else []
        return RunReport(
            id=run.id,
            attempt=run.attempt,
            sequence=sequence,
            metadata_version=metadata_version,
            changes=[*own, *changes],
            outcome=outcome,
            waiting=waiting,
        )

    def next_lines(self, run: ClaimedRun, *lines: LogLine | str) -> AttemptLines:
        """The next part of the log of a run's attempt, not yet submitted."""
        key = run.id, run.attempt
        sequence = self._log_sequences[key] = self._log_sequences.get(key, 0) + 1
        whole = [
            LogLine(at=self.world.clock(), level="info", message=line) if isinstance(line, str) else line
            for line in lines
        ]
        return AttemptLines(id=run.id, attempt=run.attempt, sequence=sequence, lines=whole)

    def log(self, run: ClaimedRun, *lines: LogLine | str) -> None:
        """Log something for a run."""
        self.world.do(AppendLog(self.id, [self.next_lines(run, *lines)]))

    def send(self, *reports: RunReport, leaving: bool = False) -> list[RunReply]:
        """Send reports as one request."""
        return self.world.do(Report(self.id, reports, leaving))

    def begin(self, *runs: ClaimedRun) -> list[RunReply]:
        """Tell that the code of these attempts has begun."""
        return self.send(*(RunReport(id=run.id, attempt=run.attempt, begun=True) for run in runs))

    def die(
        self, *begun: ClaimedRun, how: str = "was killed by SIGKILL", waiting: Sequence[ClaimedRun] = ()
    ) -> None:
        """The process is dead, and its supervisor says so. `begun` executed in it, `waiting` waited."""
        runs = [BegunRun(id=run.id, attempt=run.attempt) for run in begun]
        runs += [BegunRun(id=run.id, attempt=run.attempt, waiting=True) for run in waiting]
        self.world.do(Report(self.id, [], death=Death(how=how, begun=runs)))

    def report(self, run: ClaimedRun, *operations: Operation, **fields: Any) -> RunReply:
        """Report on one run."""
        [reply] = self.send(self.next_report(run, *operations, **fields))
        return reply

    def finish(
        self, run: ClaimedRun, *operations: Operation, output: str | None = "null", **fields: Any
    ) -> RunReply:
        """End the attempt with success."""
        return self.report(run, *operations, outcome=Outcome(output=output), **fields)

    def fail(self, run: ClaimedRun, *operations: Operation, retry_after_ms: int | None = None) -> RunReply:
        """End the attempt with an error."""
        return self.report(run, *operations, outcome=failure(retry_after_ms=retry_after_ms))


def result_of(ticket: Ticket) -> Any:
    """What a command was answered with; raises what refused it."""
    result = ticket.result
    if isinstance(result, BaseException):
        raise result
    return result


def item(task: str = "work", payload: str | None = None, **options: Any) -> TriggerItem:
    """One run to trigger."""
    return TriggerItem(task, payload, TriggerOptions(**options))


def offered(
    task: str,
    *,
    queue: str | None = None,
    concurrency: int | None = None,
    rate: str | None = None,
    retry: RetryRule = NO_RETRY,
) -> WorkerTask:
    """A task as a worker offers it."""
    return WorkerTask(
        id=task,
        queue=queue or f"task/{task}",
        queue_concurrency=concurrency,
        queue_rate=rate,
        retry=retry,
    )


def failure(message: str = "out of ink", *, retry_after_ms: int | None = None) -> Outcome:
    """How an attempt ends that failed."""
    return Outcome(error=RunError(message=message, name="ValueError"), retry_after_ms=retry_after_ms)
