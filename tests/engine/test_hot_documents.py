"""Hot documents beside another server on the same database: what it has written is read from the log, and nothing else."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.engine import documents
from milepost.engine.commands import IndexDocuments, PruneHistory
from milepost.engine.engine import Engine
from milepost.model.operations import Append, Increment, Operation, Set
from milepost.store.statements import Row, Statement
from milepost.upkeep.old_history import prunable
from support.operations import OPERATIONS, exactly
from support.properties import database_property
from support.work import work_of_writer
from support.world import WorkerDouble, World, world_at

LARGE = "x" * 200_000
_STEP = st.tuples(st.integers(0, 1), st.lists(OPERATIONS, min_size=1, max_size=4), st.booleans())


class Servers(World):
    """Two engines on one store, as two servers would be. `turn_to` says which of them carries out what comes."""

    engines: list[Engine]

    def restart(self) -> None:
        self.engines = [Engine(self.store, self.settings, self.clock) for _ in range(2)]
        self.engine = self.engines[0]

    def turn_to(self, number: int) -> None:
        self.engine = self.engines[number]
        # They have one connection, by which neither can see that the other has written.
        self.engine.state.held_rows.clear()


@pytest.fixture
def servers(world: World) -> Servers:
    return Servers(world.store, clock=world.clock)


class Read:
    """What statements have read."""

    rows = 0
    size = 0


@contextmanager
def counted() -> Iterator[Read]:
    """Count what is read, whoever reads."""
    found = Read()
    read = Statement.read

    def counting(self: Statement, connection: Any, values: Row) -> list[Row]:
        rows = read(self, connection, values)
        found.rows += len(rows)
        found.size += sum(len(value) for row in rows for value in row if isinstance(value, str | bytes))
        return rows

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Statement, "read", counting)
        yield found


@pytest.mark.sqlite_only("it counts rows, to which those of announcements come there")
@pytest.mark.parametrize("steps", [1, 10, 100])
def test_catching_up_costs_what_was_changed_and_not_the_document(servers: Servers, steps: int) -> None:
    run_id = servers.trigger()
    servers.write(run_id, Set("large", LARGE))
    with counted() as alone:
        servers.write(run_id, Set("mine", 2))
    assert alone.size < 1_000
    servers.turn_to(1)
    with counted() as cold:
        servers.write(run_id, Append("theirs", 0))
    assert cold.size > 200_000, "the other one had to read all of it"
    for number in range(1, steps):
        servers.write(run_id, Append("theirs", number))
    servers.turn_to(0)
    with counted() as behind:
        servers.write(run_id, Set("mine", 3))
    assert behind.rows - alone.rows == steps
    assert 0 < behind.size - alone.size < 200 * steps
    expected = {"large": LARGE, "mine": 3, "theirs": list(range(steps))}
    assert servers.document(run_id) == servers.written_answer(run_id) == (expected, steps + 3)
    with counted() as after:
        servers.write(run_id, Set("mine", 4))
    assert after.rows == alone.rows


@pytest.mark.sqlite_only("it counts rows, to which those of announcements come there")
def test_a_document_far_behind_is_read_anew(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "CHANGES_BEHIND_MAX", 5)
    run_id = servers.trigger(metadata={"n": 0})
    servers.write(run_id, Increment("n", 1))
    servers.turn_to(1)
    for _ in range(20):
        # Each outgrows the snapshot, so all is in that.
        servers.write(run_id, Increment("n", 1), Set("filling", "x" * 9_000))
    servers.turn_to(0)
    with counted() as read:
        assert servers.written_answer(run_id)[0]["n"] == 21
    assert read.rows < 10


def test_a_document_whose_log_was_pruned_meanwhile_is_read_anew(servers: Servers) -> None:
    run_id = servers.trigger(metadata={"n": 0})
    servers.write(run_id, Increment("n", 1))
    servers.turn_to(1)
    for _ in range(5):
        servers.write(run_id, Increment("n", 1))
    servers.clock.advance(3600)
    step = prunable(servers.store, cutoff=servers.clock(), settled_before=servers.clock(), rows=250)
    servers.do(PruneHistory(step.logs))
    servers.write(run_id, Increment("n", 1))
    servers.turn_to(0)
    assert servers.written_answer(run_id) == ({"n": 7}, 7)


def test_what_another_server_allowed_fits_also_where_the_limit_is_lower(servers: Servers) -> None:
    small = Servers(servers.store, clock=servers.clock, metadata_size_max=1_000)
    run_id = small.trigger(metadata={"a": 1})
    small.write(run_id, Set("b", 1))
    servers.write(run_id, Set("large", "x" * 5_000))
    servers.write(run_id, Set("large", "y"))
    assert small.written_answer(run_id) == ({"a": 1, "b": 1, "large": "y"}, 3)
    servers.write(run_id, Set("large", "x" * 5_000))
    assert small.written_answer(run_id)[1] == 4
    [refused] = small.write(run_id, Set("c", "x" * 2_000)).refused
    assert refused.code == "metadata_too_large"


@pytest.mark.parametrize("has_document", [False, True])
def test_a_group_takes_as_many_statements_for_many_documents_as_for_two(
    world: World, has_document: bool
) -> None:
    """Also where a server has just started, and none of them is at hand."""
    worker = WorkerDouble(world)

    def statements(count: int) -> int:
        for number in range(count):
            world.trigger(metadata={"row": number} if number % 2 else None)
        runs = worker.claim(count)
        if has_document:
            worker.send(*(worker.next_report(run, Set("n", 0)) for run in runs))
        world.restart()
        with work_of_writer(world.store) as work:
            worker.send(*(worker.next_report(run, Set("n", 1)) for run in runs))
        assert [world.document(run.id)[0]["n"] for run in runs] == [1] * count
        return work.matching("SELECT")

    assert 0 < statements(50) <= statements(2)


@database_property(30)
@given(steps=st.lists(_STEP, min_size=2, max_size=20))
def test_two_servers_hold_the_document_that_readers_see(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, list[Operation], bool]]
) -> None:
    """Whoever writes, and whoever has folded meanwhile."""
    with (
        pytest.MonkeyPatch.context() as patch,
        world_at(tmp_path_factory.mktemp("hot") / "milepost.db") as world,
    ):
        patch.setattr(documents, "FOLD_BYTES_MIN", 200)
        servers = Servers(world.store, clock=world.clock)
        worker = WorkerDouble(servers)
        run_id = servers.trigger()
        run = worker.claim_one()
        for number, operations, by_report in steps:
            if by_report:
                servers.turn_to(0)
                worker.report(run, *operations)
            else:
                servers.turn_to(number)
                servers.write(run_id, *operations)
            held = servers.written_answer(run_id)
            seen = servers.document(run_id)
            assert (exactly(held[0]), held[1]) == (exactly(seen[0]), seen[1])


@pytest.mark.parametrize("is_indexed_before", [False, True])
def test_documents_of_runs_that_have_ended_take_no_memory(
    world: World, worker: WorkerDouble, is_indexed_before: bool
) -> None:
    """Once they are in the search index: that is built a moment later, and from memory."""
    run_id = world.trigger()
    run = worker.claim_one()
    worker.report(run, Set("n", 1))
    at_hand = world.engine._documents.at_hand  # pyright: ignore[reportPrivateUsage]
    if is_indexed_before:
        world.do(IndexDocuments(10))
        assert at_hand(run_id) is not None
    worker.finish(run)
    assert (at_hand(run_id) is None) is is_indexed_before
    world.do(IndexDocuments(10))
    assert at_hand(run_id) is None
    assert world.write(run_id, Increment("n", 1)).version == 2
    assert world.document(run_id) == ({"n": 2}, 2)
