"""The server holds every writer to the declared type of a task's metadata (M76), by the JSON schema that a worker registers."""

import logging
from typing import Any

import msgspec
import pytest

from milepost.engine.commands import AddBatchItems, CreateBatch, UpdateMetadata
from milepost.errors import MetadataValueError
from milepost.model.operations import Append, Delete, Increment, Remove, Set, Update
from milepost.model.retry import NO_RETRY
from milepost.protocol.metadata import Refused
from milepost.protocol.triggering import BatchLine, TriggerOptions
from milepost.protocol.work import TargetOperations, WorkerTask
from milepost.sdk.buffer import Buffer
from milepost.store import records
from support.world import WorkerDouble, World, item

pytestmark = pytest.mark.several_servers

PROGRESS = {
    "type": "object",
    "properties": {
        "status": {"type": "string"},
        "total": {"type": "integer", "minimum": 0},
        "steps": {"type": "array", "items": {"$ref": "#/$defs/Step"}},
        "at": {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "null"}]},
        "old": {"not": {}, "description": "is written as 'total'"},
    },
    "required": ["status"],
    "$defs": {
        "Step": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "done": {"type": "boolean"}},
            "required": ["name"],
        }
    },
}


def typed(task: str = "work", schema: dict[str, Any] | None = None) -> WorkerTask:
    """A task whose metadata has a type."""
    return WorkerTask(id=task, queue=f"task/{task}", retry=NO_RETRY, metadata_schema=schema or PROGRESS)


@pytest.fixture
def worker(world: World) -> WorkerDouble:
    """A worker that offers a typed and an untyped task."""
    return WorkerDouble(world, "worker_1", typed(), WorkerTask(id="plain", queue="q", retry=NO_RETRY))


def reasons(refused: list[Refused]) -> list[tuple[int, str, str]]:
    return [(one.index, one.code, one.message) for one in refused]


WRONG = [
    (Set("total", "5"), "total: \"5\" is not of type \"integer\""),
    (Set("total", -1), "total: -1 is less than the minimum of 0"),
    (Increment("total", 0.5), "total: 3.5 is not of type"),
    (Delete("status"), "status: is required, and cannot be taken away"),
    (Append("steps", {"done": True}), "steps: \"name\" is a required property"),
    (Set("$.steps[0].done", "yes"), "steps[0].done: \"yes\" is not of type \"boolean\""),
    (Delete("$.steps[0].name"), "steps[0].name: is required"),
    (Append("status", "x"), "status: [\"x\",\"x\"] is not of type \"string\""),
    (Set("at", "soon"), "at: \"soon\" is not valid"),
    (Set("old", 1), "old: is written as 'total'"),
    (Update({"total": 1}), "document: \"status\" is a required property"),
]  # fmt: skip
RIGHT = [
    Set("total", 5),
    Increment("total", 1),
    Delete("total"),
    Append("steps", {"name": "b"}),
    Set("$.steps[-1].done", True),
    Remove("steps", {"name": "a"}),
    Set("at", "2026-01-02T03:04:05"),
    Set("free", {"anything": 1}),
    Append("$.free.more", 1),
    Delete("free"),
    Update({"status": "y", "free": 2}),
]


@pytest.mark.parametrize("way", ["outside", "own", "child", "root"])
def test_each_writer_is_held_to_it_one_operation_at_a_time(
    world: World, worker: WorkerDouble, way: str
) -> None:
    """M29: what does not fit is refused with a reason that names the place, and the others apply."""
    run_id = world.trigger(metadata={"status": "x", "total": 3, "steps": [{"name": "a"}]})
    run = worker.claim_one()
    child_id = world.trigger("plain", parent_run_id=run_id)
    child = worker.claim_one()
    operations = [operation for operation, _ in WRONG] + RIGHT
    if way == "outside":
        refused = world.write(run_id, *operations).refused
    elif way == "own":
        refused = worker.report(run, *operations).refused
    elif way == "child":
        refused = worker.report(child, changes=[TargetOperations(run_id, operations)]).refused
    else:
        refused = world.write(child_id, *operations, relation="root").refused
    assert [index for index, _, _ in reasons(refused)] == list(range(len(WRONG)))
    for (_, expected), (_, code, message) in zip(WRONG, reasons(refused), strict=True):
        assert code == "invalid_metadata_value"
        place, _, reason = expected.partition(": ")
        assert "does not fit the metadata of task 'work': " in message
        assert place in message or place == "document"
        assert reason.replace(" ", "") in message.replace(" ", ""), message
    assert world.document(run_id)[0] == {"status": "y", "free": 2}


def test_a_worker_knows_of_types_above_its_runs(world: World, worker: WorkerDouble) -> None:
    """M30: what it writes to them must not be merged, since each operation is held to the type by itself."""
    run_id = world.trigger(metadata={"status": "x"})
    assert not worker.claim_one().has_typed_ancestor
    child_id = world.trigger("plain", parent_run_id=run_id)
    assert worker.claim_one().has_typed_ancestor
    world.trigger("plain", parent_run_id=child_id)
    grandchild = worker.claim_one()
    assert grandchild.has_typed_ancestor
    world.trigger("plain", parent_run_id=world.trigger("plain"))
    assert [worker.claim_one().has_typed_ancestor for _ in range(2)] == [False, False]

    buffer = Buffer.of(grandchild, limit=262_144)
    for value in (5, "many"):
        buffer.add(run_id, Set("total", value))
    buffer.add(run_id, Increment("total", 1))
    buffer.add(run_id, Increment("total", 0.5))
    batch = buffer.next_batch()
    assert batch is not None
    refused = worker.report(grandchild, changes=batch.changes).refused
    assert [index for index, _, _ in reasons(refused)] == [1, 3]
    assert world.document(run_id)[0] == {"status": "x", "total": 6}


def test_a_document_may_be_begun_without_what_its_type_requires(world: World, worker: WorkerDouble) -> None:
    run_id = world.trigger()
    assert (
        world.write(run_id, Set("total", 1), Set("free", 1), Delete("status"), Delete("nothing")).refused
        == []
    )
    assert reasons(world.write(run_id, Set("status", 5)).refused)[0][2].endswith('5 is not of type "string"')
    assert world.write(run_id, Set("status", "x")).refused == []
    assert len(world.write(run_id, Delete("status")).refused) == 1
    assert world.document(run_id)[0] == {"total": 1, "free": 1, "status": "x"}


def test_a_trigger_is_refused_with_metadata_that_does_not_fit(world: World, worker: WorkerDouble) -> None:
    for metadata, reason in (({"status": 5}, "status: 5 is not"), ({"total": 1}, '"status" is a required')):
        with pytest.raises(MetadataValueError, match=reason) as caught:
            world.trigger(metadata=metadata)
        assert caught.value.key == "options.metadata"
        with pytest.raises(MetadataValueError, match=reason) as caught:
            world.trigger_batch(item(metadata={"status": "x"}), item(metadata=metadata))
        assert caught.value.key == "items[1].options.metadata"
        batch = world.do(CreateBatch(1))
        with pytest.raises(MetadataValueError, match=reason):
            world.do(AddBatchItems(batch, [BatchLine(0, "work", None, TriggerOptions(metadata=metadata))]))
    assert world.document(world.trigger(metadata={"status": "x"}))[0] == {"status": "x"}
    assert world.document(world.trigger("plain", metadata={"status": 5}))[0] == {"status": 5}


def test_a_whole_document_is_refused_as_a_whole(world: World, worker: WorkerDouble) -> None:
    run_id = world.trigger(metadata={"status": "x"})
    with pytest.raises(MetadataValueError, match="total"):
        world.do(UpdateMetadata(run_id, document={"status": "y", "total": "many"}))
    assert world.document(run_id) == ({"status": "x"}, 0)
    world.do(UpdateMetadata(run_id, document={"status": "y", "total": 1}))
    assert world.document(run_id) == ({"status": "y", "total": 1}, 1)


def test_an_operation_that_once_counted_is_no_fault_M46(world: World, worker: WorkerDouble) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 1}}}
    WorkerDouble(world, "worker_2", typed("bounded", schema))
    run_id = world.trigger("bounded")
    assert world.write(run_id, Increment("n", 1, "row 1")).refused == []
    assert world.write(run_id, Increment("n", 1, "row 1")).refused == []
    assert len(world.write(run_id, Increment("n", 1, "row 2")).refused) == 1
    assert world.document(run_id)[0] == {"n": 1}


def test_the_type_survives_a_restart(world: World, worker: WorkerDouble) -> None:
    run_id = world.trigger(metadata={"status": "x"})
    world.restart()
    assert len(world.write(run_id, Set("total", "5")).refused) == 1
    with world.store.read() as connection:
        stored = records.load_tasks(connection)
    assert msgspec.json.decode(stored["work"].metadata_schema or b"null") == PROGRESS
    assert stored["plain"].metadata_schema is None


def test_the_newest_registration_decides(world: World, worker: WorkerDouble) -> None:
    run_id = world.trigger(metadata={"status": "x"})
    other = {"type": "object", "properties": {"total": {"type": "string"}}}
    WorkerDouble(world, "worker_2", typed(schema=other))
    assert world.write(run_id, Set("total", "5"), Delete("status")).refused == []
    worker.register()
    assert len(world.write(run_id, Set("total", "5")).refused) == 1
    # A worker of before this was known says nothing of a type.
    WorkerDouble(world, "worker_3", WorkerTask(id="work", queue="q", retry=NO_RETRY))
    assert world.write(run_id, Set("total", [])).refused == []


@pytest.mark.one_server("each engine says it once")
@pytest.mark.parametrize(
    "schema",
    [
        {"type": "no such type"},
        {"properties": {"a": {"pattern": "("}}},
        {"$ref": "http://127.0.0.1:1/schema.json"},
        {"$ref": "#/$defs/Missing"},
    ],
)
def test_a_schema_that_cannot_be_used_is_told_and_stops_nothing(
    world: World, caplog: pytest.LogCaptureFixture, schema: dict[str, Any]
) -> None:
    with caplog.at_level(logging.WARNING):
        WorkerDouble(world, "worker_1", typed(schema=schema))
        run_id = world.trigger(metadata={"a": 1})
        assert world.write(run_id, Set("a", "x")).refused == []
    [record] = [record for record in caplog.records if record.name == "milepost.engine"]
    assert "'work' is not checked" in record.getMessage()


def test_a_recursive_schema(world: World) -> None:
    tree = {
        "$ref": "#/$defs/Tree",
        "$defs": {
            "Tree": {
                "type": "object",
                "properties": {
                    "n": {"type": "integer"},
                    "below": {"type": "array", "items": {"$ref": "#/$defs/Tree"}},
                },
            }
        },
    }
    WorkerDouble(world, "worker_1", typed(schema=tree))
    run_id = world.trigger(metadata={"below": [{"below": [{"n": 1}]}]})
    written = world.write(run_id, Set("$.below[0].below[0].n", "x"), Set("$.below[0].below[0].n", 2))
    assert [one.index for one in written.refused] == [0]
    assert "below[0].below[0].n" in written.refused[0].message
    assert world.document(run_id)[0] == {"below": [{"below": [{"n": 2}]}]}


def test_the_checks_of_a_change_do_not_look_at_the_document() -> None:
    """What is judged is the part that changes: an item and not its array, a member and not the document."""
    from milepost.engine.declared import declared_by
    from milepost.model import typed as rule

    root = declared_by(msgspec.json.encode(PROGRESS), "work")
    assert root is not None
    document: dict[str, Any] = {
        "status": "x",
        "steps": [{"name": str(n)} for n in range(1000)],
        "free": "y" * 1000,
    }
    judged: list[Any] = []
    for operation in (
        Set("total", 1),
        Append("steps", {"name": "a"}),
        Set("$.steps[500].done", True),
        Delete("$.steps[500].done"),
        Remove("steps", 1),
        Set("free", 1),
    ):
        for demand in rule.demands((operation,), document, root):
            judged.append(demand._value)  # pyright: ignore[reportPrivateUsage]
    assert judged == [1, {"name": "a"}, True]
