"""The store's snapshot and log always give the document, whatever the engine remembers of it."""

from datetime import date

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from milepost.engine.commands import UpdateMetadata
from milepost.engine.documents import RECENT_BYTES, HotDocument, Writer, ids_of
from milepost.errors import MetadataError
from milepost.model.counted import ID_BYTES, KNOWN_MAX
from milepost.model.document import Document
from milepost.model.operations import Append, Increment, Operation, Set, check, decode_operations
from milepost.store import documents, schema
from support.chance import cases, hold
from support.many import world_of
from support.operations import DOCUMENTS, LARGE, OPERATIONS, exactly
from support.properties import database_property
from support.world import WorkerDouble, World, item

pytestmark = pytest.mark.several_servers


def fold(document: Document, operations: list[Operation]) -> int:
    """Apply what can be applied, in order, as one change; how many were refused."""
    applied = 0
    for operation in operations:
        try:
            check(operation)
            document.apply(operation)
            applied += 1
        except MetadataError:
            pass
    document.version += bool(applied)
    return len(operations) - applied


def told(document: dict[str, object], version: int) -> tuple[str, int]:
    return exactly(document), version


def saved_snapshot_version(world: World, run_id: str) -> int:
    with world.store.read() as connection:
        found = documents.load_snapshots(connection, [run_id]).get(run_id)
    return found.version if found else 0


def from_the_log(world: World, run_id: str, given: dict[str, object]) -> tuple[dict[str, object], int]:
    """The document as its history alone tells it."""
    document = Document(given)
    with world.store.read() as connection:
        for step in documents.load_changes(connection, {run_id: 0}).get(run_id, []):
            assert step.version == document.version + 1
            document.apply_all(decode_operations(step.operations))
            document.version = step.version
    return document.value, document.version


@database_property(25)
@given(
    given_at_trigger=DOCUMENTS,
    flushes=st.lists(
        st.tuples(st.lists(st.one_of(OPERATIONS, LARGE), min_size=1, max_size=6), st.booleans()), max_size=12
    ),
)
def test_snapshot_and_log_give_the_sequential_fold(
    tmp_path_factory: pytest.TempPathFactory,
    deployment: str,
    given_at_trigger: dict[str, object],
    flushes: list[tuple[list[Operation], bool]],
) -> None:
    """M1, M29, M31 and the history: with the cache, without it, and by the log alone."""
    with world_of(deployment, tmp_path_factory.mktemp("folding") / "milepost.db") as world:
        worker = WorkerDouble(world)
        run_id = world.trigger(metadata=given_at_trigger)
        run = worker.claim_one()
        expected = Document(given_at_trigger)
        for operations, restart in flushes:
            refused = fold(expected, operations)
            reply = worker.report(run, *operations)
            assert len(reply.refused) == refused
            assert told(*world.document(run_id)) == told(expected.value, expected.version)
            if restart:
                world.restart()
                worker.register(holding=[run_id])
            assert told(*world.written_answer(run_id)) == told(expected.value, expected.version)
        logged = from_the_log(world, run_id, given_at_trigger)
        assert told(*logged) == told(expected.value, expected.version)
        worker.finish(run)
        assert saved_snapshot_version(world, run_id) == expected.version
        assert told(*world.document(run_id)) == told(expected.value, expected.version)


def joined_steps_lead_where_the_steps_lead(value: dict[str, object], operations: list[Operation]) -> None:
    """Whatever was applied step by step, floats of every kind among it: one joined step comes to the same, to the last digit."""
    hot = HotDocument("run", Document(value, counted=None), snapshot_version=0, snapshot_bytes=0)
    counted: set[bytes] = set()
    for operation in operations:
        hot.write([operation], Writer(), 1, ids=ids_of([operation]), counted=counted)
    copied = Document(value, counted=None)
    delta = hot.delta(0, Writer(), known_ids=list)
    for change in delta.changes or () if delta else ():
        copied.apply_all(change.operations)
    assert exactly(copied.value) == exactly(hot.document.value)


@pytest.mark.parametrize("seed", ["fixed", f"{date.today()}"], ids=["fixed", "today"])
def test_joined_steps(seed: str) -> None:
    hold(joined_steps_lead_where_the_steps_lead, cases(seed, quarters=False), 5_000)


def test_joined_steps_sum_no_integers_over_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    """The law finds it where they do."""
    monkeypatch.setattr(HotDocument, "_as_logged", lambda self, operation: operation)
    with pytest.raises(AssertionError, match=r"^case "):
        hold(joined_steps_lead_where_the_steps_lead, cases("planted", quarters=False), 20_000)


def test_a_long_log_is_folded_on_the_way(world: World, worker: WorkerDouble) -> None:
    """What is read is never much longer than the document: appends are linear, not quadratic."""
    run_id = world.trigger()
    run = worker.claim_one()
    folds = {0}
    for _ in range(30):
        worker.report(run, *(Append("log", "x" * 100) for _ in range(10)))
        folds.add(saved_snapshot_version(world, run_id))
        with world.store.read() as connection:
            tail = documents.load_changes(connection, {run_id: max(folds)}).get(run_id, [])
        assert (
            sum(len(step.operations) for step in tail)
            <= max(8192, len(world.reader.metadata(run_id)[0])) + 2_000
        )
    assert 2 < len(folds) < 20


def test_many_ids_cost_no_memory_and_are_written_once(world: World, worker: WorkerDouble) -> None:
    """M46: what an id costs is its row of fixed size; neither a fold nor a claim nor the cache carries them all."""
    run_id = world.trigger()
    run = worker.claim_one()

    def count(numbers: range) -> None:
        worker.report(run, *(Increment("n", 1, once=f"{number}".rjust(60)) for number in numbers))

    count(range(100))
    hot = world.engine._documents.at_hand(run_id)
    assert hot is not None
    weight = hot.weight
    for start in range(100, 20_000, 1000):
        count(range(start, start + 1000))
    hot = world.engine._documents.at_hand(run_id)
    assert hot is not None
    assert hot.document.counted is None
    assert hot.weight < weight + 2 * RECENT_BYTES
    with world.store.read() as connection:
        snapshot = documents.load_snapshots(connection, [run_id])[run_id]
        rows = connection.execute(select(schema.counted_ids.c.id)).scalars().all()
    assert len(snapshot.value) < 100
    assert len(set(rows)) == 20_100
    assert {len(row) for row in rows} == {ID_BYTES}
    worker.fail(run, retry_after_ms=0)
    again = worker.claim_one()
    assert len(again.counted) == KNOWN_MAX * ID_BYTES
    run = again
    count(range(19_990, 20_110))
    assert world.document(run_id)[0] == {"n": 20_110}


def test_the_cache_may_be_full_of_other_documents(world: World, worker: WorkerDouble) -> None:
    """Many large documents push each other out; each stays right."""
    ids = world.trigger_batch(
        *(item(metadata={"id": number, "filling": "x" * 200_000}) for number in range(400))
    ).run_ids
    for turn in range(2):
        for start in range(0, 400, 100):
            tickets = world.submit(
                *(
                    UpdateMetadata(
                        run_id, [("self", msgspec.to_builtins([Increment("n", 1), Set("turn", turn)]))]
                    )
                    for run_id in ids[start : start + 100]
                )
            )
            assert all(ticket.result.version == turn + 1 for ticket in tickets)
    for number in (0, 57, 399):
        document, version = world.document(ids[number])
        assert (document["n"], document["turn"], document["id"], version) == (2, 1, number, 2)


def test_a_document_over_a_limit_that_was_lowered_can_still_shrink(
    world: World, worker: WorkerDouble
) -> None:
    """M86: what does not enlarge it is taken."""
    run_id = world.trigger(metadata={"a": "x" * 1000, "b": 1})
    smaller = World(world.store, clock=world.clock, metadata_size_max=100)
    assert smaller.document(run_id) == world.document(run_id)
    updated = smaller.write(run_id, Set("c", 1), Set("a", "short"), Set("d", 1))
    assert [refusal.index for refusal in updated.refused] == [0]
    assert smaller.document(run_id) == ({"a": "short", "b": 1, "d": 1}, 1)
