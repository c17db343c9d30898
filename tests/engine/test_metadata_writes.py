"""Writing documents: order, refusals one by one, ancestors, the end of a run, limits, exactly-once ids, what travels back."""

from typing import Any

import msgspec
import pytest

from milepost.engine.commands import AttemptRef, Report, Trigger, UpdateMetadata
from milepost.errors import (
    ConflictError,
    ForbiddenError,
    MetadataPathError,
    MetadataTooLargeError,
    MetadataTypeError,
    RunFinishedError,
    RunNotFoundError,
    VersionConflictError,
)
from milepost.model.counted import id_of, unpack
from milepost.model.operations import Append, Delete, Increment, Operation, Set, Update
from milepost.model.run import Outcome
from milepost.protocol.metadata import ChangeWriter, MetadataChange
from milepost.protocol.work import ClaimedRun, TargetOperations
from support.world import WorkerDouble, World, item, result_of

pytestmark = pytest.mark.several_servers(postgres=True)

LIMIT = 262_144
HOUR = 3600


@pytest.fixture
def run(world: World, worker: WorkerDouble) -> ClaimedRun:
    """A run in its first attempt."""
    world.trigger()
    return worker.claim_one()


def raw(*operations: Operation) -> list[Any]:
    """Operations as they come over the wire."""
    return msgspec.to_builtins(list(operations))


# --- order, versions ---------------------------------------------------------------------------------------


def test_operations_are_applied_in_the_order_of_the_calls(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    """M31; fault 5: `set 0`, `increment`, `increment` is 2, and `set` then `delete` leaves nothing."""
    worker.report(run, Set("n", 0), Increment("n", 1), Increment("n", 1), Set("gone", 1), Delete("gone"))
    worker.report(run, Append("log", 1), Append("log", 2))
    worker.report(run, Append("log", 3), Set("n", 7))
    assert world.document(run.id) == ({"n": 7, "log": [1, 2, 3]}, 3)


def test_the_version_grows_by_one_per_committed_change(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    """M1: many operations together are one change; nothing applied is none; two in one group are two."""
    worker.report(run, Set("a", 1), Set("b", 2))
    assert world.document(run.id)[1] == 1
    worker.report(run)
    worker.report(run, Increment("a", "x"))  # type: ignore[arg-type]
    assert world.document(run.id)[1] == 1
    assert world.write(run.id).version == 1
    first, second = world.submit(
        UpdateMetadata(run.id, [("self", raw(Set("c", 1)))]),
        UpdateMetadata(run.id, [("self", raw(Set("c", 2)))]),
    )
    assert [result_of(first).version, result_of(second).version] == [2, 3]
    assert world.document(run.id) == ({"a": 1, "b": 2, "c": 2}, 3)


def test_two_writers_never_lose_each_others_operation(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    """M32"""
    for number in range(20):
        world.submit(
            Report(worker.id, [worker.next_report(run, Increment("n", 1), Append("own", number))]),
            UpdateMetadata(run.id, [("self", raw(Increment("n", 1), Append("foreign", number)))]),
        )
    assert world.document(run.id) == ({"n": 40, "own": [*range(20)], "foreign": [*range(20)]}, 40)


def test_a_thousand_children_add_up_exactly_although_every_report_comes_twice(
    world: World, worker: WorkerDouble
) -> None:
    """M67: 1,000 children that each increment the root ten times and append once give exactly 10,000 and 1,000."""
    root = world.trigger(metadata={"n": 0})
    assert worker.claim_one().id == root
    for start in range(0, 1000, 250):
        world.trigger_batch(*(item(payload=str(start + number)) for number in range(250)), parent_id=root)
        reports = []
        for child in worker.claim(250):
            changes = [
                TargetOperations(root, [Increment("n", 1)] * 10),
                TargetOperations(root, [Append("ids", child.id)]),
            ]
            reports.append(worker.next_report(child, changes=changes, outcome=Outcome(output="1")))
        world.submit(*(Report(worker.id, [report]) for report in reports[:100]))
        if start == 500:
            world.restart()
            worker.register(holding=[root, *(report.id for report in reports)])
        world.submit(*(Report(worker.id, [report]) for report in reports))
        world.submit(*(Report(worker.id, [report]) for report in reversed(reports)))
    document, version = world.document(root)
    assert document["n"] == 10_000
    assert len(document["ids"]) == len(set(document["ids"])) == 1000
    assert version == 2000


# --- refusals ----------------------------------------------------------------------------------------------


def test_operations_are_refused_one_by_one_with_their_place_and_reason(
    world: World, worker: WorkerDouble
) -> None:
    """M29; fault 8: one bad operation does not refuse the others. Fault 18: text is not replaced by a number."""
    run_id = world.trigger(metadata={"text": "abc", "list": [1]})
    operations: list[Any] = [
        {"type": "set", "key": "a", "value": 1},
        {"type": "increment", "key": "text", "value": 1},
        {"type": "increment", "key": "a"},
        {"type": "fly", "key": "a"},
        "nonsense",
        None,
        {"type": "set", "key": "$.list[5].x", "value": 1},
        {"type": "set", "key": "__proto__", "value": 1},
        {"type": "update", "value": [1]},
        {"type": "increment", "key": "n", "value": True},
        {"type": "append", "key": "list", "value": 2},
    ]
    updated = world.do(UpdateMetadata(run_id, [("self", operations)]))
    assert msgspec.json.decode(updated.value) == {"text": "abc", "list": [1, 2], "a": 1}
    assert updated.version == 1
    assert [refusal.index for refusal in updated.refused] == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert all(refusal.run == run_id and refusal.message and refusal.code for refusal in updated.refused)
    assert [refusal.operation for refusal in updated.refused] == operations[1:10]
    assert [updated.refused[0].code, updated.refused[5].code] == [
        "wrong_metadata_type",
        "invalid_metadata_path",
    ]


def test_a_nested_write_creates_what_is_missing_and_delete_takes_paths(
    world: World, worker: WorkerDouble
) -> None:
    """M18; faults 11 and 12."""
    run_id = world.trigger()
    world.write(run_id, Set("$.steps.first.done", True), Set("a.b", 1))
    assert world.document(run_id) == ({"steps": {"first": {"done": True}}, "a.b": 1}, 1)
    world.write(run_id, Delete("$.steps.first.done"), Delete("a.b"))
    assert world.document(run_id) == ({"steps": {"first": {}}}, 2)


def test_only_the_operation_that_overflows_is_refused(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    """M85; fault 7: one oversized operation does not drop the batch around it."""
    big = "x" * (LIMIT // 2)
    reply = worker.report(run, Set("a", big), Set("n", 1), Set("b", big), Increment("n", 1))
    assert [(refusal.index, refusal.code) for refusal in reply.refused] == [(2, "metadata_too_large")]
    assert world.document(run.id) == ({"a": big, "n": 2}, 1)
    child = world.trigger(parent_run_id=run.id)
    assert worker.claim_one().id == child
    updated = world.write(child, Set("b", big), Set("c", 1), relation="parent")
    assert [(refusal.run, refusal.index, refusal.code) for refusal in updated.refused] == [
        (run.id, 0, "metadata_too_large")
    ]
    assert world.document(run.id)[0] == {"a": big, "n": 2, "c": 1}


def test_writes_reach_exactly_the_limit_and_not_one_byte_more(world: World, worker: WorkerDouble) -> None:
    """M84, M87"""
    run_id = world.trigger(metadata={"k": ""})
    room = LIMIT - len(b'{"k":""}')
    assert [refusal.code for refusal in world.write(run_id, Set("k", "x" * (room + 1))).refused] == [
        "metadata_too_large"
    ]
    assert world.write(run_id, Set("k", "x" * room)).refused == []
    assert len(world.reader.metadata(run_id)[0]) == LIMIT
    assert [refusal.code for refusal in world.write(run_id, Set("", 0)).refused] == ["metadata_too_large"]
    assert world.write(run_id, Set("k", "")).refused == []


def test_a_whole_document_is_taken_or_refused_as_a_whole(world: World, worker: WorkerDouble) -> None:
    """M73, M84, M27 for the whole-document form."""
    run_id = world.trigger(metadata={"old": 1})
    updated = world.do(UpdateMetadata(run_id, document={"new": [1, None]}))
    assert (updated.value, updated.version) == (b'{"new":[1,null]}', 1)
    cases: list[tuple[Any, type[Exception]]] = [
        ({"a": "x" * LIMIT}, MetadataTooLargeError),
        ({"__proto__": 1}, MetadataPathError),
        ([1], MetadataTypeError),
    ]
    for document, kind in cases:
        [ticket] = world.submit(UpdateMetadata(run_id, document=document))
        assert isinstance(ticket.result, kind)
    assert world.document(run_id) == ({"new": [1, None]}, 1)


# --- which document ----------------------------------------------------------------------------------------


def test_a_run_writes_to_all_its_ancestors_and_to_nobody_else(world: World, worker: WorkerDouble) -> None:
    """M60-M63: parent, root, and any run in between."""
    line = [world.trigger()]
    for _ in range(3):
        line.append(world.trigger(parent_run_id=line[-1]))
    stranger, sibling = world.trigger(), world.trigger(parent_run_id=line[2])
    youngest = next(run for run in worker.claim(10) if run.id == line[3])
    targets = [*line, stranger, sibling, "run_nobody"]
    changes = [TargetOperations(target, [Set("by", target), Increment("n", 1)]) for target in targets]
    reply = worker.report(youngest, changes=changes)
    for run_id in line:
        assert world.document(run_id) == ({"by": run_id, "n": 1}, 1)
    for run_id in (stranger, sibling):
        assert world.document(run_id) == ({}, 0)
    assert [(refusal.run, refusal.index, refusal.code) for refusal in reply.refused] == [
        (target, index, "not_an_ancestor") for target in targets[4:] for index in (0, 1)
    ]


def test_a_child_process_writes_as_its_run(world: World, worker: WorkerDouble) -> None:
    """M15, M60-M63: the same documents as the task itself, and no others; history and log say whose it was."""
    line = [world.trigger()]
    for _ in range(3):
        line.append(world.trigger(parent_run_id=line[-1]))
    stranger, sibling = world.trigger(), world.trigger(parent_run_id=line[2])
    youngest = next(run for run in worker.claim(10) if run.id == line[3])
    attempt = AttemptRef(youngest.id, youngest.attempt)
    for target in (*line, stranger, sibling):
        command = UpdateMetadata(
            target, [("self", raw(Set("by", target), Increment("n", 1)))], attempt=attempt
        )
        refused = world.do(command).refused
        assert [(item.index, item.code) for item in refused] == (
            [] if target in line else [(0, "not_an_ancestor"), (1, "not_an_ancestor")]
        )
    for target in line:
        assert world.document(target) == ({"by": target, "n": 1}, 1)
        [change] = world.reader.history.page(target, size=10, after=0).data
        assert change.writer == ChangeWriter(youngest.id, youngest.attempt)
    for target in (stranger, sibling):
        assert world.document(target) == ({}, 0)
    logged = [line.message for line in world.reader.log(youngest.id, after=0).data]
    assert len(logged) == 4
    assert all("was refused" in message and youngest.id in message for message in logged)


def test_a_child_process_puts_no_whole_document_in_the_place_of_a_stranger_s(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    stranger = world.trigger(metadata={"a": 1})
    attempt = AttemptRef(run.id, run.attempt)
    [ticket] = world.submit(UpdateMetadata(stranger, document={"b": 1}, attempt=attempt))
    assert isinstance(ticket.result, ForbiddenError)
    assert world.document(stranger) == ({"a": 1}, 0)
    world.do(UpdateMetadata(run.id, document={"b": 1}, attempt=attempt))
    assert world.document(run.id) == ({"b": 1}, 1)


def test_a_writer_that_never_was_is_not_found(world: World, worker: WorkerDouble) -> None:
    run_id = world.trigger()
    operations = raw(Set("a", 1))
    [ticket] = world.submit(
        UpdateMetadata(run_id, [("self", operations)], attempt=AttemptRef("run_nobody", 1))
    )
    assert isinstance(ticket.result, RunNotFoundError)
    assert world.document(run_id) == ({}, 0)


def test_the_worker_hears_what_child_processes_of_its_run_have_written(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    """Its own reports it knows by their number; what a child process wrote has none, and comes with its operations."""
    worker.report(run, Set("by", "worker"))
    attempt = AttemptRef(run.id, run.attempt)
    world.do(UpdateMetadata(run.id, [("self", raw(Set("by", "child"), Increment("n", 1)))], attempt=attempt))
    reply = worker.report(run, Set("after", 1), metadata_version=0)
    assert reply.delta is not None
    assert reply.delta.changes == [
        MetadataChange(version=1, attempt=run.attempt, sequence=1),
        MetadataChange(version=2, operations=[Set("by", "child"), Increment("n", 1)]),
        MetadataChange(version=3, attempt=run.attempt, sequence=2),
    ]


def test_a_repeat_by_another_writer_is_none(world: World, worker: WorkerDouble, run: ClaimedRun) -> None:
    operations = [("self", raw(Increment("n", 1)))]
    attempt = AttemptRef(run.id, run.attempt)
    world.do(UpdateMetadata(run.id, operations, request_id="one", attempt=attempt))
    world.do(UpdateMetadata(run.id, operations, request_id="one", attempt=attempt))
    [ticket] = world.submit(UpdateMetadata(run.id, operations, request_id="one"))
    assert isinstance(ticket.result, ConflictError)
    assert world.document(run.id) == ({"n": 1}, 1)


def test_a_parent_may_not_write_to_its_child(world: World, worker: WorkerDouble, run: ClaimedRun) -> None:
    child = world.trigger(parent_run_id=run.id)
    reply = worker.report(run, changes=[TargetOperations(child, [Set("a", 1)])])
    assert [refusal.code for refusal in reply.refused] == ["not_an_ancestor"]


def test_without_a_parent_the_relations_mean_the_run_itself(world: World, worker: WorkerDouble) -> None:
    """M64"""
    run_id = world.trigger()
    targets = [(relation, raw(Append("by", relation))) for relation in ("self", "parent", "root")]
    updated = world.do(UpdateMetadata(run_id, targets))
    assert msgspec.json.decode(updated.value) == {"by": ["self", "parent", "root"]}


def test_relations_of_a_grandchild(world: World, worker: WorkerDouble) -> None:
    root = world.trigger()
    child = world.trigger(parent_run_id=root)
    grandchild = world.trigger(parent_run_id=child)
    targets = [(relation, raw(Set("by", relation))) for relation in ("root", "parent", "self")]
    updated = world.do(UpdateMetadata(grandchild, targets))
    assert msgspec.json.decode(updated.value) == {"by": "self"}
    assert [world.document(run_id)[0]["by"] for run_id in (root, child, grandchild)] == [
        "root",
        "parent",
        "self",
    ]


def test_refusals_of_a_relation_name_the_run_that_refused(world: World, worker: WorkerDouble) -> None:
    root = world.trigger(metadata={"t": "text"})
    child = world.trigger(parent_run_id=root, metadata={"t": 1})
    targets = [(relation, raw(Set("a", 1), Increment("t", 1))) for relation in ("self", "parent", "root")]
    updated = world.do(UpdateMetadata(child, targets))
    assert [(refusal.run, refusal.index) for refusal in updated.refused] == [(root, 1), (root, 1)]
    assert world.document(child)[0] == {"t": 2, "a": 1}


def test_an_unknown_run_is_not_found(world: World, worker: WorkerDouble) -> None:
    [ticket] = world.submit(UpdateMetadata("run_nobody", [("self", raw(Set("a", 1)))]))
    assert isinstance(ticket.result, RunNotFoundError)


# --- when ----------------------------------------------------------------------------------------------------


def test_a_run_that_has_not_started_can_be_written(world: World, worker: WorkerDouble) -> None:
    """M48"""
    run_id = world.trigger(metadata={"a": 1})
    world.write(run_id, Set("b", 2))
    claimed = worker.claim_one()
    assert (msgspec.json.decode(msgspec.json.encode(claimed.metadata)), claimed.metadata_version) == (
        {"a": 1, "b": 2},
        1,
    )


def test_a_run_that_waits_for_its_retry_can_be_written(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    """M48, M46"""
    worker.fail(run, Set("first", True), retry_after_ms=1000)
    world.write(run.id, Set("between", True))
    world.clock.advance(1)
    claimed = worker.claim_one()
    assert msgspec.json.decode(msgspec.json.encode(claimed.metadata)) == {"first": True, "between": True}
    assert claimed.metadata_version == 2


def test_a_finished_run_takes_writes_until_the_end_of_its_grace(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    """M69, for every writer alike: outside callers, children, and to the microsecond."""
    child_id = world.trigger(parent_run_id=run.id)
    child = worker.claim_one()
    worker.finish(run, output="1")
    finished_at = world.clock()
    assert child.id == child_id

    def write_all(value: int) -> list[Any]:
        tickets = world.submit(
            UpdateMetadata(run.id, [("self", raw(Set("outside", value)))]),
            Report(
                worker.id,
                [worker.next_report(child, changes=[TargetOperations(run.id, [Set("child", value)])])],
            ),
            UpdateMetadata(child.id, [("parent", raw(Set("through child", value)))]),
        )
        return [ticket.result for ticket in tickets]

    world.clock.now = finished_at + HOUR * 1_000_000 - 1000
    write_all(1)
    assert world.document(run.id) == ({"outside": 1, "child": 1, "through child": 1}, 3)
    worker.send()
    world.clock.now = finished_at + HOUR * 1_000_000 - 1000 + 1
    world.do(Report(worker.id, []))
    outside, [reply], through = write_all(2)
    assert isinstance(outside, RunFinishedError)
    assert outside.status == 422
    assert "MILEPOST_METADATA_GRACE_SECONDS" in str(outside)
    assert [refusal.code for refusal in reply.refused] == ["run_finished"]
    assert [refusal.code for refusal in through.refused] == ["run_finished"]
    assert world.document(run.id) == ({"outside": 1, "child": 1, "through child": 1}, 3)


def test_late_writes_to_a_finished_run_are_kept_over_a_restart(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    worker.finish(run, Set("a", 1), output="1")
    world.write(run.id, Set("late", 1))
    world.restart()
    assert world.document(run.id) == ({"a": 1, "late": 1}, 2)
    assert world.written_answer(run.id) == ({"a": 1, "late": 1}, 2)


# --- retries, exactly-once ids -------------------------------------------------------------------------------


def test_an_id_counts_once_in_a_run_whatever_the_attempt(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    """M46: re-run code does not count twice, also after a restart, also when its parent is what counts."""
    worker.report(run, Increment("n", 1, "row 1"), Increment("n", 1, "row 2"))
    worker.fail(run, retry_after_ms=0)
    world.restart()
    worker.register()
    second = worker.claim_one()
    assert set(unpack(second.counted)) == {id_of("n", "row 1"), id_of("n", "row 2")}
    worker.report(second, Increment("n", 1, "row 1"), Increment("n", 1, "row 3"))
    worker.finish(second, Increment("n", 5, "row 2"), output="1")
    assert world.document(run.id)[0] == {"n": 3}
    world.write(run.id, Increment("n", 1, "row 3"), Increment("n", 1, "row 4"))
    assert world.document(run.id)[0] == {"n": 4}


def test_an_id_counts_once_for_each_key(world: World, worker: WorkerDouble, run: ClaimedRun) -> None:
    """M46: within one report, over reports and attempts, from outside, and in whatever words the key is written."""
    both: list[Operation] = [
        Increment("done", 1, "x"),
        Increment("bytes", 7, "x"),
        Append("log", "x", None, "x"),
    ]
    worker.report(run, *both, *both)
    worker.fail(run, retry_after_ms=0)
    second = worker.claim_one()
    worker.report(second, *both, Increment("$.done", 1, "x"), Increment('$["bytes"]', 7, "x"))
    world.write(run.id, *both, Increment("other", 1, "x"))
    assert world.document(run.id)[0] == {"done": 1, "bytes": 7, "log": ["x"], "other": 1}


def test_an_id_of_an_operation_that_is_refused_is_not_counted(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    refused = worker.report(
        run, Set("n", "text"), Increment("n", 1, "x"), Append("$.n.l", 1, None, "y")
    ).refused
    assert [refusal.index for refusal in refused] == [1, 2]
    worker.report(run, Set("n", 0), Increment("n", 1, "x"))
    worker.report(run, Increment("n", 1, "x"))
    assert world.document(run.id)[0] == {"n": 1}


def test_counted_ids_survive_folding(world: World, worker: WorkerDouble, run: ClaimedRun) -> None:
    worker.report(run, Increment("n", 1, "row 1"), Set("big", "x" * 20_000))
    worker.report(run, Set("big", "y" * 30_000))
    for _ in range(2):
        world.restart()
        worker.register(holding=[run.id])
        worker.report(run, Increment("n", 1, "row 1"))
        assert world.document(run.id)[0]["n"] == 1


# --- repeats of outside callers ------------------------------------------------------------------------------


def test_a_repeated_request_is_applied_once_and_answered_alike(world: World, worker: WorkerDouble) -> None:
    """M45 for outside callers; fault 9."""
    run_id = world.trigger(metadata={"t": "text"})
    operations = (Increment("n", 1), Increment("t", 1))
    first = world.write(run_id, *operations, request_id="request 1")
    world.restart()
    again = world.write(run_id, *operations, request_id="request 1")
    assert again == first
    assert world.document(run_id) == ({"t": "text", "n": 1}, 1)
    command = UpdateMetadata(run_id, [("self", raw(*operations))], request_id="request 2")
    tickets = world.submit(command, command)
    assert result_of(tickets[0]) == result_of(tickets[1])
    assert world.document(run_id)[0]["n"] == 2


def test_a_request_id_belongs_to_one_request(world: World, worker: WorkerDouble) -> None:
    run_id = world.trigger()
    world.write(run_id, Increment("n", 1), request_id="request 1")
    with pytest.raises(ConflictError, match="used for other operations"):
        world.write(run_id, Increment("n", 2), request_id="request 1")
    assert world.document(run_id) == ({"n": 1}, 1)


# --- only at one version -------------------------------------------------------------------------------------


def test_a_write_for_a_version_is_applied_at_that_version_only(world: World, worker: WorkerDouble) -> None:
    run_id = world.trigger(metadata={"n": 1})
    operations = [("self", raw(Increment("n", 1))), ("root", raw(Append("log", "by root")))]
    assert world.do(UpdateMetadata(run_id, operations, if_version=0)).version == 2
    with pytest.raises(VersionConflictError, match="at version 2, not at 0") as caught:
        world.do(UpdateMetadata(run_id, operations, if_version=0))
    assert caught.value.version == 2
    with pytest.raises(VersionConflictError):
        world.do(UpdateMetadata(run_id, document={}, if_version=3))
    assert world.document(run_id) == ({"n": 2, "log": ["by root"]}, 2)
    assert world.do(UpdateMetadata(run_id, document={"new": 1}, if_version=2)).version == 3


def test_of_two_writes_for_one_version_in_one_group_the_first_wins(
    world: World, worker: WorkerDouble
) -> None:
    run_id = world.trigger()
    writes = [UpdateMetadata(run_id, [("self", raw(Set("by", by)))], if_version=0) for by in ("one", "two")]
    first, second = world.submit(*writes)
    assert result_of(first).version == 1
    assert isinstance(second.result, VersionConflictError)
    assert world.document(run_id) == ({"by": "one"}, 1)


def test_a_repeat_of_a_write_for_a_version_is_answered_although_the_version_has_moved_on(
    world: World, worker: WorkerDouble
) -> None:
    run_id = world.trigger()
    command = UpdateMetadata(run_id, [("self", raw(Increment("n", 1)))], if_version=0, request_id="request 1")
    world.do(command)
    world.write(run_id, Increment("n", 1))
    assert world.do(command).version == 2
    assert world.document(run_id) == ({"n": 2}, 2)


def test_a_repeat_after_the_grace_is_still_answered_as_the_first_was(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    worker.finish(run, output="1")
    world.clock.advance(HOUR - 1)
    first = world.write(run.id, Set("a", 1), request_id="request 1")
    world.clock.advance(2)
    assert world.write(run.id, Set("a", 1), request_id="request 1") == first


def test_a_write_right_behind_the_trigger_in_time_sees_the_trigger_document(
    world: World, worker: WorkerDouble
) -> None:
    [ticket] = world.submit(Trigger(item(metadata={"a": [1]})))
    [run_id] = result_of(ticket).run_ids
    updated = world.write(run_id, Append("a", 2))
    assert updated.value == b'{"a":[1,2]}'


# --- what travels back to the worker ---------------------------------------------------------------------------


def test_the_reply_brings_what_others_wrote_and_not_the_own_operations(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    """M42, M66: own steps by number, foreign ones collapsed in between."""
    world.write(run.id, Increment("n", 1))
    world.write(run.id, Increment("n", 2))
    reply = worker.report(run, Set("own", 1), metadata_version=0)
    world.write(run.id, Increment("n", 4))
    assert reply.delta is not None
    assert (reply.delta.from_version, reply.delta.version) == (0, 3)
    foreign, own = reply.delta.changes
    assert (foreign.version, foreign.operations, foreign.attempt) == (2, [Increment("n", 3)], None)
    assert (own.version, own.operations, own.attempt, own.sequence) == (3, [], 1, 1)
    later = worker.report(run, metadata_version=3, sequence=0)
    assert later.delta is not None
    [change] = later.delta.changes
    assert (change.version, change.operations) == (4, [Increment("n", 4)])
    assert worker.report(run, metadata_version=4, sequence=0).delta is None


def test_a_reader_that_is_far_behind_gets_the_whole_document(
    world: World, worker: WorkerDouble, run: ClaimedRun
) -> None:
    for number in range(5):
        world.write(run.id, Set("big", str(number) * 100_000), Increment("n", 1, f"once {number}"))
    delta = worker.report(run, metadata_version=0, sequence=0).delta
    assert delta is not None
    assert delta.changes is None
    assert delta.version == 5
    assert msgspec.json.decode(msgspec.json.encode(delta.metadata)) == {"big": "4" * 100_000, "n": 5}
    assert delta.counted is not None
    assert set(unpack(delta.counted)) == {id_of("n", f"once {number}") for number in range(5)}


@pytest.mark.parametrize("restart", [False, True], ids=["same engine", "restarted"])
def test_own_steps_name_the_operations_that_were_refused(
    world: World, worker: WorkerDouble, run: ClaimedRun, restart: bool
) -> None:
    """M29 with M42: whoever rebuilds its copy from its own operations must know which of them do not count."""
    report = worker.next_report(run, Set("t", "text"), Increment("t", 1), Set("u", 2), metadata_version=0)
    worker.send(report)
    if restart:
        world.restart()
        worker.register(holding=[run.id])
    world.write(run.id, Set("foreign", 1))
    [reply] = worker.send(report)
    assert reply.delta is not None
    if reply.delta.changes is not None:
        own = reply.delta.changes[0]
        if own.sequence is not None:
            assert (own.sequence, list(own.refused)) == (1, [1])
        else:
            assert Set("t", "text") in own.operations
            assert Increment("t", 1) not in own.operations
    else:
        assert reply.delta.metadata is not None


def test_metadata_of_a_claim_is_a_copy_of_that_moment(world: World, worker: WorkerDouble) -> None:
    run_id = world.trigger(metadata={"list": []})
    world.write(run_id, Append("list", 1))
    claimed = worker.claim_one()
    world.write(run_id, Append("list", 2), Update({"other": 1}))
    assert msgspec.json.decode(msgspec.json.encode(claimed.metadata)) == {"list": [1]}
