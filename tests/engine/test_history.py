"""Section 13: every change is kept for a while, and a document can be read as it was; pruning is noticed by nobody else."""

from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.engine import documents as engine_documents
from milepost.engine.commands import PruneHistory
from milepost.errors import HistoryPrunedError, MetadataError, RunNotFoundError, VersionNotFoundError
from milepost.model.counted import id_of, unpack
from milepost.model.document import Document
from milepost.model.operations import Increment, Operation, Set, check
from milepost.protocol.work import ClaimedRun, TargetOperations
from milepost.reading import history
from milepost.upkeep import old_history
from milepost.upkeep.old_history import prunable
from support.many import world_of
from support.operations import DOCUMENTS, OPERATIONS, exactly
from support.properties import database_property
from support.world import WorkerDouble, World

pytestmark = pytest.mark.several_servers

GRACE_SECONDS = 100
DAY = 86_400.0


@dataclass
class Told:
    """A version as the model recorded it."""

    at: int
    document: str
    writer: tuple[str, int] | None = None


@dataclass
class Past:
    """A run's document, all that it has been, and what should be kept of that."""

    run: ClaimedRun
    document: Document
    versions: list[Told]
    earliest: int = 0
    finished_at: int | None = None

    def write(self, operations: list[Operation], now: int, writer: tuple[str, int] | None) -> None:
        applied = 0
        for operation in operations:
            try:
                check(operation)
                self.document.apply(operation)
                applied += 1
            except MetadataError:
                pass
        if applied:
            self.versions.append(Told(now, exactly(self.document.value), writer))

    def newest_at(self, at: int) -> int | None:
        return max((version for version, told in enumerate(self.versions) if told.at <= at), default=None)

    @property
    def snapshot_at_end(self) -> int:
        """Of a run that has finished the snapshot may be the first to be kept alone."""
        return 0 if self.finished_at is None else len(self.versions) - 1

    def prune(self, cutoff: int) -> None:
        # Ids are ordered by milliseconds: a run of the cutoff's own one is left alone.
        if self.versions[0].at // 1000 < cutoff // 1000:
            old = [version for version, told in enumerate(self.versions) if version and told.at < cutoff]
            self.earliest = max([self.earliest, *old])


class Machine:
    """A world and its model, side by side."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.worker = WorkerDouble(world)
        self.pasts: list[Past] = []
        # Of each table, how many one step of the walk looks at.
        self.rows = 250

    def trigger(self, given: dict[str, Any], parent: str | None = None) -> None:
        self.world.trigger(metadata=given, parent_run_id=parent)
        run = self.worker.claim_one()
        self.pasts.append(Past(run, Document(given), [Told(run.created_at, exactly(given))]))

    def report(self, index: int, own: list[Operation], other: list[Operation]) -> None:
        """An attempt writes to its own document and to that of its parent, in one commit."""
        past = self.pasts[index]
        if past.finished_at is not None:
            return
        changes = [TargetOperations(self.pasts[0].run.id, other)] if other and index else []
        self.worker.report(past.run, *own, changes=changes)
        writer = (past.run.id, past.run.attempt)
        past.write(own, self.world.clock(), writer)
        if changes and self.accepts_writes(self.pasts[0]):
            self.pasts[0].write(other, self.world.clock(), writer)

    def write_from_outside(self, index: int, operations: list[Operation]) -> None:
        past = self.pasts[index]
        self.world.clock.advance(0.001)
        if self.accepts_writes(past):
            self.world.clock.advance(-0.001)
            self.world.write(past.run.id, *operations)
            past.write(operations, self.world.clock(), None)

    def accepts_writes(self, past: Past) -> bool:
        return past.finished_at is None or self.world.clock() <= past.finished_at + GRACE_SECONDS * 1_000_000

    def finish(self, index: int) -> None:
        past = self.pasts[index]
        if past.finished_at is None:
            self.worker.finish(past.run)
            past.finished_at = self.world.clock()

    def restart(self) -> None:
        self.world.restart()
        self.worker.register([past.run.id for past in self.pasts if past.finished_at is None])

    def prune(self, cutoff: int, *, steps_max: int = 1_000) -> None:
        """One walk over all logs, or the first steps of one: then the server has gone."""
        settled = min(cutoff, self.world.clock() - (GRACE_SECONDS + 30) * 1_000_000)
        before = [past.earliest for past in self.pasts]
        for past in self.pasts:
            past.prune(cutoff)
        after: str | None = ""
        steps = 0
        while after is not None and steps < steps_max:
            steps += 1
            step = prunable(
                self.world.store, cutoff=cutoff, settled_before=settled, rows=self.rows, after=after
            )
            assert step.logs or step.next is None or step.next > after
            if step.logs:
                self.world.do(PruneHistory(step.logs))
                self.newest_is_right()
            after = step.next
        if after is not None:
            for past, earliest in zip(self.pasts, before, strict=True):
                reached = self.world.reader.history.page(past.run.id, size=1).earliest_version
                assert earliest <= reached <= max(past.earliest, past.snapshot_at_end)
                past.earliest = reached

    # --- what must hold ----------------------------------------------------------------------------------------

    def newest_is_right(self) -> None:
        for past in self.pasts:
            expected = (exactly(past.document.value), len(past.versions) - 1)
            value, version, counted = self.world.reader.document(past.run.id)
            assert (exactly(msgspec.json.decode(value)), version) == expected
            assert isinstance(past.document.counted, set)
            assert set(counted) <= past.document.counted
            if self.accepts_writes(past):
                # As long as the run takes writes.
                assert set(counted) == past.document.counted
                value, version = self.world.written_answer(past.run.id)
                assert (exactly(value), version) == expected

    def all_is_right(self) -> None:
        self.newest_is_right()
        for past in self.pasts:
            self.versions_are_right(past)
            self.times_are_right(past)
            self.pages_are_right(past)

    def versions_are_right(self, past: Past) -> None:
        reading = self.world.reader.history
        for version, told in enumerate(past.versions):
            if version >= past.earliest:
                value, found = reading.at_version(past.run.id, version)
                assert (exactly(msgspec.json.decode(value)), found) == (told.document, version)
            else:
                with pytest.raises(HistoryPrunedError) as caught:
                    reading.at_version(past.run.id, version)
                assert caught.value.earliest_version == past.earliest
        with pytest.raises(VersionNotFoundError):
            reading.at_version(past.run.id, len(past.versions))

    def times_are_right(self, past: Past) -> None:
        times = {told.at + step for told in past.versions for step in (-1, 0)}
        for at in times | {0, -(2**63), 2**63 - 1}:
            version = past.newest_at(at)
            if version is not None and version >= past.earliest:
                value, found = self.world.reader.history.at_time(past.run.id, at)
                assert (exactly(msgspec.json.decode(value)), found) == (
                    past.versions[version].document,
                    version,
                )
            else:
                before = at < past.versions[0].at
                with pytest.raises(VersionNotFoundError if before else HistoryPrunedError):
                    self.world.reader.history.at_time(past.run.id, at)

    def pages_are_right(self, past: Past) -> None:
        document = Document.load(self.at_earliest(past), version=past.earliest)
        after: int | None = 0
        listed: list[int] = []
        while after is not None:
            page = self.world.reader.history.page(past.run.id, size=3, after=after)
            assert page.earliest_version == past.earliest
            assert len(page.data) == 3 or page.next is None
            for change in page.data:
                told = past.versions[change.version]
                document.apply_all(change.operations)
                assert exactly(document.value) == told.document
                assert change.at == told.at
                assert (change.writer and (change.writer.run, change.writer.attempt)) == told.writer
                listed.append(change.version)
            after = page.next
        assert listed == list(range(past.earliest + 1, len(past.versions)))

    def at_earliest(self, past: Past) -> bytes:
        return self.world.reader.history.at_version(past.run.id, past.earliest)[0]


_FLUSH = st.lists(OPERATIONS, min_size=1, max_size=4)
_RUN = st.sampled_from([0, 0, 1, 2])
_STEPS = st.one_of(
    st.tuples(st.just("report"), _RUN, _FLUSH, st.one_of(st.just([]), _FLUSH)),
    st.tuples(st.just("report"), _RUN, _FLUSH, st.one_of(st.just([]), _FLUSH)),
    st.tuples(st.just("outside"), _RUN, _FLUSH),
    # The clock may jump back.
    st.tuples(st.just("wait"), st.sampled_from([0.5, 60, 150, 7200, -30])),
    st.tuples(st.just("prune"), st.floats(0, 1), st.sampled_from([1, 2, 3, 1_000, 1_000, 1_000])),
    st.tuples(st.just("finish"), _RUN),
    st.tuples(st.just("restart")),
)


@pytest.mark.one_server("the clock is set back, and several servers go by that of the database, which is not")
@database_property(20)
@given(
    documents=st.tuples(DOCUMENTS, DOCUMENTS, DOCUMENTS),
    steps=st.lists(_STEPS, min_size=4, max_size=24),
    sizes=st.tuples(st.integers(1, 4), st.sampled_from([1, 300, 10**6])),
    rows=st.integers(1, 4),
)
def test_kept_versions_read_back_and_pruned_ones_are_refused(
    tmp_path_factory: pytest.TempPathFactory,
    documents: tuple[dict[str, Any], ...],
    deployment: str,
    steps: list[tuple[Any, ...]],
    sizes: tuple[int, int],
    rows: int,
) -> None:
    """Whatever is written, refused, counted once, pruned in however small steps, or forgotten by a restart."""
    with pytest.MonkeyPatch.context() as patch:
        # Small documents are folded often too.
        patch.setattr(engine_documents, "FOLD_BYTES_MIN", 200)
        for name, size in zip(("CHANGES_PER_STEP", "BYTES_PER_STEP"), sizes, strict=True):
            patch.setattr(old_history, name, size)
        with world_of(
            deployment, tmp_path_factory.mktemp("history") / "milepost.db", grace_seconds=GRACE_SECONDS
        ) as world:
            machine = Machine(world)
            machine.rows = rows
            for number, given_at_trigger in enumerate(documents):
                machine.trigger(given_at_trigger, machine.pasts[0].run.id if number else None)
            began = world.clock()
            for step in steps:
                match step:
                    case ("report", run, own, other):
                        machine.report(run, own, other)
                    case ("outside", run, operations):
                        machine.write_from_outside(run, operations)
                    case ("wait", seconds):
                        world.clock.advance(seconds)
                    case ("prune", share, steps_max):
                        cutoff = began + round((world.clock() - began) * share)
                        machine.prune(cutoff, steps_max=steps_max)
                        machine.restart()
                        machine.all_is_right()
                    case ("finish", run):
                        machine.finish(run)
                    case _:
                        machine.restart()
            machine.all_is_right()
            world.clock.advance(2 * DAY)
            for index in range(3):
                machine.finish(index)
            world.clock.advance(DAY)
            machine.prune(world.clock())
            machine.prune(world.clock())
            machine.all_is_right()
            rows = world.dump()
            # Of a run that is settled only the final document is kept.
            assert rows["changes"] == rows["log_starts"] == rows["refusals"] == rows["counted_ids"] == []


def test_a_run_that_was_never_written_to(world: World, worker: WorkerDouble) -> None:
    run_id = world.trigger(metadata={"a": 1})
    page = world.reader.history.page(run_id, size=10)
    assert (page.data, page.earliest_version, page.next) == ([], 0, None)
    assert world.reader.history.at_version(run_id, 0) == (b'{"a":1}', 0)
    assert world.reader.history.at_time(run_id, world.clock()) == (b'{"a":1}', 0)
    plain = world.trigger()
    assert world.reader.history.at_version(plain, 0) == (b"{}", 0)


def test_an_unknown_run(world: World) -> None:
    reading = world.reader.history
    for read in (
        lambda: reading.page("run_x", size=1),
        lambda: reading.at_version("run_x", 0),
        lambda: reading.at_time("run_x", 0),
    ):
        with pytest.raises(RunNotFoundError, match="run_x"):
            read()


def test_a_page_of_large_changes_ends_early(
    world: World, worker: WorkerDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a page may hold is bounded in bytes too; one change is always there."""
    monkeypatch.setattr(history, "PAGE_BYTES", 5_000)
    run_id = world.trigger()
    run = worker.claim_one()
    for number in (1, 2, 3, 4):
        worker.report(run, Set("a", "x" * 2_000 * number))
    pages = [world.reader.history.page(run_id, size=10, after=after) for after in (0, 1, 2, 3)]
    assert [[change.version for change in page.data] for page in pages] == [[1], [2], [3], [4]]
    assert [page.next for page in pages] == [1, 2, 3, None]


def test_the_refusals_of_a_run_stay_while_a_report_of_it_may_be_repeated(
    world: World, worker: WorkerDouble
) -> None:
    """M44: a repeat is answered as the original was, pruned or not."""
    world.trigger(metadata={"text": "t"})
    run = worker.claim_one()
    report = worker.next_report(run, Increment("text", 1), Set("a", 1))
    [first] = worker.send(report)
    world.clock.advance(10 * DAY)
    step = prunable(world.store, cutoff=world.clock(), settled_before=world.clock(), rows=250)
    world.do(PruneHistory(step.logs))
    assert world.dump()["changes"] == []
    [again] = worker.send(report)
    assert (
        [refused.message for refused in again.refused] == [refused.message for refused in first.refused] != []
    )


def test_a_run_that_may_be_written_again_after_its_log_has_gone(world: World, worker: WorkerDouble) -> None:
    """M69: the grace time is a setting, and may be made longer."""
    world.trigger()
    run = worker.claim_one()
    worker.report(run, Set("a", 1))
    worker.finish(run, Set("a", 2))
    world.clock.advance(DAY)
    step = prunable(world.store, cutoff=world.clock(), settled_before=world.clock(), rows=250)
    world.do(PruneHistory(step.logs))
    later = World(world.store, clock=world.clock, grace_seconds=10 * DAY)
    for number in range(3, 8):
        later.write(run.id, Set("a", number), Set("filling", "x" * 9_000))
    assert later.document(run.id)[1] == 7
    page = later.reader.history.page(run.id, size=10)
    assert page.earliest_version >= 2
    assert [change.version for change in page.data] == list(range(page.earliest_version + 1, 8))
    for version in range(page.earliest_version, 8):
        value, _ = later.reader.history.at_version(run.id, version)
        assert msgspec.json.decode(value)["a"] == version
    with pytest.raises(HistoryPrunedError):
        later.reader.history.at_version(run.id, 1)


def test_a_pruned_document_is_handed_to_the_next_attempt(world: World, worker: WorkerDouble) -> None:
    """M46: the next attempt starts from what is stored, `once` ids included."""
    world.trigger(metadata={"n": 1})
    run = worker.claim_one()
    worker.report(run, Increment("n", 5, once="first"))
    world.clock.advance(DAY)
    step = prunable(world.store, cutoff=world.clock(), settled_before=0, rows=250)
    world.do(PruneHistory(step.logs))
    world.restart()
    worker.register(holding=[run.id])
    worker.fail(run, retry_after_ms=0)
    again = worker.claim_one()
    assert (msgspec.json.decode(again.metadata), again.metadata_version) == ({"n": 6}, 1)
    assert list(unpack(again.counted)) == [id_of("n", "first")]
    worker.report(again, Increment("n", 5, once="first"), Increment("n", 1))
    assert world.document(run.id) == ({"n": 7}, 2)
