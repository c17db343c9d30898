"""Triggering: what is taken, what is refused and how the refusal names it, what a repeated request gets."""

from typing import Any

import msgspec
import pytest

from milepost.engine import triggering
from milepost.engine.commands import CreateBatch, PruneAnswers, Trigger, TriggerBatch
from milepost.errors import (
    ConflictError,
    InvalidRequestError,
    MetadataError,
    MetadataPathError,
    MetadataTooLargeError,
    MetadataTypeError,
    MetadataValueError,
    MilepostError,
    RequestError,
    RunNotFoundError,
    TooLargeError,
)
from milepost.model.operations import Set, Update
from milepost.model.retry import NO_RETRY
from milepost.model.run import QueuedReason, RunStatus
from milepost.protocol.triggering import QueueOption
from milepost.protocol.work import WorkerTask
from milepost.store.runs import RunFilter, load_trigger_metadata
from support.world import WorkerDouble, World, item, offered, result_of

pytestmark = pytest.mark.several_servers

LIMIT = 262_144
MEGABYTE = 1024 * 1024


def refusal(world: World, **options: Any) -> MilepostError:
    """What a trigger with these options is refused with; nothing may be left behind."""
    before = world.dump()
    [ticket] = world.submit(Trigger(item("work", options.pop("payload", None), **options)))
    assert isinstance(ticket.result, MilepostError)
    assert world.dump() == before
    return ticket.result


def document_of_size(size: int) -> dict[str, Any]:
    """A document that is exactly this many bytes of compact UTF-8 JSON."""
    document = {"größe": "x" * (size - len('{"größe":""}'.encode()))}
    assert len(msgspec.json.encode(document)) == size
    return document


def test_a_triggered_run_waits_in_the_queue_of_its_task(world: World) -> None:
    WorkerDouble(world, "worker_1", offered("mail", queue="post"))
    run_id = world.trigger("mail", '{"to":"ü"}', tags=["a", "b", "a"], max_attempts=7)
    run = world.reader.run(run_id)
    assert (run.status, run.task_identifier, run.queue, run.attempt_count) == (
        RunStatus.QUEUED,
        "mail",
        "post",
        0,
    )
    assert (run.tags, run.depth, run.root_id, run.parent_id) == (["a", "b"], 0, run_id, None)
    assert msgspec.json.decode(run.payload) == {"to": "ü"}
    assert (bytes(run.metadata), run.metadata_version) == (b"{}", 0)


def test_a_run_can_name_another_queue(world: World, worker: WorkerDouble) -> None:
    run_id = world.trigger(queue=QueueOption("slow lane"))
    assert world.reader.run(run_id).queue == "slow lane"


def test_a_task_that_nobody_has_offered_is_accepted_and_found_later(world: World) -> None:
    """Its queue is learnt with the task, also by runs whose payloads came in a batch."""
    run_id = world.trigger("later")
    named = world.trigger("later", queue=QueueOption("slow lane"))
    world.trigger_batch(item("later"), item("other"))
    assert world.reader.run(run_id).queued_reason is QueuedReason.NEVER_OFFERED
    other = WorkerDouble(world, "worker_1", WorkerTask(id="other", queue="q", retry=NO_RETRY))
    assert [run.task for run in other.claim(10)] == ["other"]

    later = WorkerTask(id="later", queue="bounded", queue_concurrency=1, retry=NO_RETRY)
    worker = WorkerDouble(world, "worker_2", later)
    assert [world.reader.run(each).queue for each in (run_id, named)] == ["bounded", "slow lane"]
    claimed = worker.claim(10)
    # The limit of the queue that it learnt holds for it.
    assert [run.id for run in claimed] == [run_id, named]
    worker.finish(claimed[0])
    assert len(worker.claim(10)) == 1


def test_why_nobody_can_take_a_run(world: World) -> None:
    run_id = world.trigger("work")

    def reason() -> QueuedReason | None:
        return world.reader.run(run_id).queued_reason

    assert reason() is QueuedReason.NEVER_OFFERED
    worker = WorkerDouble(world, "worker_1", WorkerTask(id="work", queue="q", retry=NO_RETRY))
    WorkerDouble(world, "worker_2", WorkerTask(id="work", queue="q", retry=NO_RETRY))
    assert reason() is None
    worker.send(leaving=True)
    assert reason() is None
    # A worker that offers it no more, and one that falls silent.
    WorkerDouble(world, "worker_2", WorkerTask(id="other", queue="q", retry=NO_RETRY))
    assert reason() is QueuedReason.NO_WORKER_ONLINE
    WorkerDouble(world, "worker_2", WorkerTask(id="work", queue="q", retry=NO_RETRY))
    assert reason() is None
    world.pass_lease()
    assert reason() is QueuedReason.NO_WORKER_ONLINE
    world.restart()
    assert reason() is QueuedReason.NO_WORKER_ONLINE
    third = WorkerDouble(world, "worker_3", WorkerTask(id="work", queue="q", retry=NO_RETRY))
    assert reason() is None
    third.claim_one()
    world.clock.advance(3600)
    world.submit()
    # Whatever becomes of its worker: it is not queued.
    assert (world.reader.run(run_id).status, reason()) == (RunStatus.EXECUTING, None)


@pytest.mark.parametrize("task", ["", "x" * 257, "a\nb", "\ud800"])
def test_the_id_of_a_task_is_a_name(world: World, task: str) -> None:
    [ticket] = world.submit(Trigger(item(task)))
    assert isinstance(ticket.result, InvalidRequestError)
    assert ticket.result.field == "task"


def test_tasks_are_known_after_a_restart_without_a_worker(world: World, worker: WorkerDouble) -> None:
    world.restart()
    assert world.reader.run(world.trigger()).status is RunStatus.QUEUED


@pytest.mark.parametrize(
    ("tags", "kept"),
    [
        (None, []),
        ([], []),
        ("solo", ["solo"]),
        (["a", "a"], ["a"]),
        ([str(number) for number in range(10)], [str(number) for number in range(10)]),
        (["ü" * 128], ["ü" * 128]),
    ],
)
def test_tags(world: World, worker: WorkerDouble, tags: Any, kept: list[str]) -> None:
    assert world.reader.run(world.trigger(tags=tags)).tags == kept


@pytest.mark.parametrize(
    ("tags", "limit"),
    [([str(number) for number in range(11)], 10), (["x" * 129], 128), ([""], 128), ("x" * 129, 128)],
)
def test_wrong_tags_are_refused_with_their_limit(
    world: World, worker: WorkerDouble, tags: Any, limit: int
) -> None:
    error = refusal(world, tags=tags)
    assert isinstance(error, InvalidRequestError)
    assert (error.field, error.limit) == ("options.tags", limit)


@pytest.mark.parametrize("attempts", [0, -1, 1001])
def test_a_wrong_number_of_attempts_is_refused(world: World, worker: WorkerDouble, attempts: int) -> None:
    error = refusal(world, max_attempts=attempts)
    assert isinstance(error, InvalidRequestError)
    assert error.field == "options.maxAttempts"


@pytest.mark.parametrize("metadata", [[1], "text", 7, True, [["a", 1]]])
def test_metadata_that_is_no_object_is_refused_when_it_is_given(
    world: World, worker: WorkerDouble, metadata: Any
) -> None:
    """M73, and fault 17: an array must not be accepted and fail the run later."""
    error = refusal(world, metadata=metadata)
    assert isinstance(error, MetadataTypeError)
    assert error.status == 422
    assert "options.metadata" in str(error)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [{"deep": float("-inf")}], "\ud800"])
def test_metadata_that_has_no_json_form_is_refused(world: World, worker: WorkerDouble, value: Any) -> None:
    """M74"""
    assert isinstance(refusal(world, metadata={"a": value}), MetadataValueError)


@pytest.mark.parametrize("name", ["__proto__", "$$mine"])
def test_reserved_names_are_refused_in_metadata(world: World, worker: WorkerDouble, name: str) -> None:
    """M27"""
    assert isinstance(refusal(world, metadata={name: 1}), MetadataPathError)


def test_metadata_of_exactly_the_limit_passes_and_one_byte_more_fails(
    world: World, worker: WorkerDouble
) -> None:
    """M84, M87: UTF-8 bytes of compact JSON."""
    document = document_of_size(LIMIT)
    assert world.document(world.trigger(metadata=document)) == (document, 0)
    error = refusal(world, metadata=document_of_size(LIMIT + 1))
    assert isinstance(error, MetadataTooLargeError)
    assert (error.size, error.limit, error.status) == (LIMIT + 1, LIMIT, 413)
    assert error.largest_keys[0][0] == "größe"


def test_the_document_given_at_trigger_is_kept_whatever_is_written_later(
    world: World, worker: WorkerDouble
) -> None:
    """M2: replay and "run again" start from it."""
    run_id = world.trigger(metadata={"given": [1, {"ü": None}]})
    worker.finish(worker.claim_one(), Set("given", "other"))
    world.write(run_id, Update({}))
    with world.store.read() as connection:
        given = load_trigger_metadata(connection, [run_id])[run_id]
    assert msgspec.json.decode(given) == {"given": [1, {"ü": None}]}


def test_a_payload_of_ten_megabytes_is_refused_with_the_limit_and_the_cure(
    world: World, worker: WorkerDouble
) -> None:
    error = refusal(world, payload='"' + "x" * (10 * MEGABYTE) + '"')
    assert isinstance(error, TooLargeError)
    assert (error.field, error.limit) == ("payload", 3 * MEGABYTE)
    assert "elsewhere" in str(error)


def test_the_payload_limit_counts_bytes_and_is_exact(world: World, worker: WorkerDouble) -> None:
    exact = "ß" * (3 * MEGABYTE // 2)
    assert world.reader.run(world.trigger(payload=exact, payload_type="text/plain")).payload is not None
    error = refusal(world, payload=exact + "x", payload_type="text/plain")
    assert isinstance(error, TooLargeError)


@pytest.mark.parametrize("kind", [None, "application/json", "application/super+json"])
@pytest.mark.parametrize(
    "payload", ["", "{", "nope", "NaN", "[1,]", '{"a":1} x', "'a'", '"\\ud800"', "[" * 100_000]
)
def test_a_payload_that_is_no_json_is_refused(
    world: World, worker: WorkerDouble, payload: str, kind: str | None
) -> None:
    error = refusal(world, payload=payload, payload_type=kind)
    assert isinstance(error, InvalidRequestError)
    assert error.field == "payload"


@pytest.mark.parametrize("payload", ["", "{", "just text", "null"])
def test_a_text_payload_may_be_any_text(world: World, worker: WorkerDouble, payload: str) -> None:
    run = world.reader.run(world.trigger(payload=payload, payload_type="text/plain"))
    assert msgspec.json.decode(run.payload) == payload
    assert worker.claim_one().payload == payload


@pytest.mark.parametrize(
    ("payload", "decoded"),
    [
        ('{"json":{"at":"2024-01-02"},"meta":{"values":{"at":["Date"]}}}', {"at": "2024-01-02"}),
        ('{"json":null}', None),
        ('{"json":[1,"\\u0000"]}', [1, "\0"]),
        ("{}", None),
    ],
)
def test_a_super_json_payload_is_read_as_its_data(
    world: World, worker: WorkerDouble, payload: str, decoded: Any
) -> None:
    run = world.reader.run(world.trigger(payload=payload, payload_type="application/super+json"))
    assert msgspec.json.decode(run.payload) == decoded
    claimed = worker.claim_one()
    assert (claimed.payload, claimed.payload_type) == (payload, "application/super+json")


@pytest.mark.parametrize("payload", ["5", "[1]", '"text"', "null"])
def test_a_super_json_payload_that_is_no_envelope_never_makes_a_run_unreadable(
    world: World, worker: WorkerDouble, payload: str
) -> None:
    """Refusing it is fine, and so is showing it; a run that nobody can look at is not."""
    [ticket] = world.submit(Trigger(item("work", payload, payload_type="application/super+json")))
    if isinstance(ticket.result, RequestError):
        assert ticket.result.field == "payload"
    else:
        world.reader.run(result_of(ticket).run_ids[0])


def test_an_unknown_payload_type_is_refused(world: World, worker: WorkerDouble) -> None:
    error = refusal(world, payload="{}", payload_type="application/xml")
    assert isinstance(error, InvalidRequestError)
    assert error.field == "options.payloadType"


def test_children_know_their_parent_their_root_and_their_depth(world: World, worker: WorkerDouble) -> None:
    root = world.trigger()
    child = world.trigger(parent_run_id=root)
    grandchild = world.trigger(parent_run_id=child, resume_parent_on_completion=True)
    run = world.reader.run(grandchild)
    assert (run.parent_id, run.root_id, run.depth, run.trigger_function) == (child, root, 2, "triggerAndWait")
    assert run.related_runs.parent.id == child
    assert run.related_runs.root.id == root
    above = world.reader.run(root)
    assert [related.id for related in above.related_runs.children] == [child]
    assert above.child_counts == {"QUEUED": 1}
    assert above.related_runs.parent is None
    assert above.related_runs.root is None


def test_metadata_does_not_flow_to_children(world: World, worker: WorkerDouble) -> None:
    """M71"""
    root = world.trigger(metadata={"a": 1})
    assert world.document(world.trigger(parent_run_id=root)) == ({}, 0)


def test_an_unknown_parent_is_refused(world: World, worker: WorkerDouble) -> None:
    error = refusal(world, parent_run_id="run_nobody")
    assert isinstance(error, RunNotFoundError)
    assert error.field == "options.parentRunId"


# --- batches in one request --------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 1000])
def test_a_batch_takes_one_to_a_thousand_items(world: World, worker: WorkerDouble, count: int) -> None:
    triggered = world.trigger_batch(*(item(payload=str(number)) for number in range(count)))
    batch = world.reader.batch(triggered.batch_id)
    assert (batch.run_count, batch.finished_count, batch.status) == (count, 0, "PROCESSING")
    assert batch.runs == triggered.run_ids
    assert len(set(batch.runs)) == count
    last = world.reader.run(batch.runs[-1])
    assert (last.batch_id, last.trigger_function) == (triggered.batch_id, "batchTrigger")
    assert msgspec.json.decode(last.payload) == count - 1


@pytest.mark.parametrize("count", [0, 1001])
def test_a_batch_of_another_size_is_refused(world: World, worker: WorkerDouble, count: int) -> None:
    before = world.dump()
    [ticket] = world.submit(TriggerBatch([item()] * count))
    assert isinstance(ticket.result, InvalidRequestError)
    assert (ticket.result.field, ticket.result.limit) == ("items", 1000)
    assert world.dump() == before


BAD_ITEMS: dict[str, tuple[dict[str, Any], str]] = {
    "task": ({"task": ""}, "items[2].task"),
    "payload": ({"payload": "{"}, "items[2].payload"),
    "large payload": ({"payload": "1" * (4 * MEGABYTE)}, "items[2].payload"),
    "payload type": ({"payload": "{}", "payload_type": "x"}, "items[2].options.payloadType"),
    "tags": ({"tags": [""]}, "items[2].options.tags"),
    "attempts": ({"max_attempts": 0}, "items[2].options.maxAttempts"),
    "parent": ({"parent_run_id": "run_nobody"}, "items[2].options.parentRunId"),
    "metadata kind": ({"metadata": [1]}, "items[2].options.metadata"),
    "metadata value": ({"metadata": {"a": float("nan")}}, "items[2].options.metadata"),
    "metadata name": ({"metadata": {"__proto__": 1}}, "items[2].options.metadata"),
    "metadata size": ({"metadata": {"a": "x" * LIMIT}}, "items[2].options.metadata"),
}


@pytest.mark.parametrize(("bad", "place"), BAD_ITEMS.values(), ids=BAD_ITEMS)
def test_one_bad_item_refuses_the_batch_and_is_named(
    world: World, worker: WorkerDouble, bad: dict[str, Any], place: str
) -> None:
    before = world.dump()
    items = [item(), item(), item(**bad), item()]
    [ticket] = world.submit(TriggerBatch(items))
    error = ticket.result
    assert isinstance(error, RequestError | MetadataError)
    named = error.field if isinstance(error, RequestError) else f"{error.key} {error}"
    assert place in str(named)
    assert world.dump() == before


def test_a_batch_belongs_to_its_parent(world: World, worker: WorkerDouble) -> None:
    parent = world.trigger()
    triggered = world.trigger_batch(item(), item(parent_run_id=parent), parent_id=parent, resume_parent=True)
    for run_id in triggered.run_ids:
        run = world.reader.run(run_id)
        assert (run.parent_id, run.depth, run.trigger_function) == (parent, 1, "batchTriggerAndWait")
    [ticket] = world.submit(TriggerBatch([item()], parent_id="run_nobody"))
    assert isinstance(ticket.result, RunNotFoundError)


# --- requests that come twice ------------------------------------------------------------------------------


def test_a_repeated_trigger_gets_the_first_answer_and_doubles_nothing(
    world: World, worker: WorkerDouble
) -> None:
    """Fault 9, and M45 for triggers."""
    first = world.do(Trigger(item(payload="1"), "request 1"))
    again = world.do(Trigger(item(payload="1"), "request 1"))
    assert (again.run_ids, again.cached) == (first.run_ids, True)
    assert first.cached is False
    world.restart()
    assert world.do(Trigger(item(payload="1"), "request 1")).run_ids == first.run_ids
    assert world.reader.page(RunFilter(), size=10).data[0].id == first.run_ids[0]
    assert len(world.reader.page(RunFilter(), size=10).data) == 1


def test_a_repeat_in_the_same_group_is_a_repeat_too(world: World, worker: WorkerDouble) -> None:
    command = TriggerBatch([item(), item()], request_id="request 1")
    tickets = world.submit(command, command)
    first, second = (result_of(ticket) for ticket in tickets)
    assert (first.run_ids, first.batch_id) == (second.run_ids, second.batch_id)
    assert (first.cached, second.cached) == (False, True)
    assert len(world.reader.page(RunFilter(), size=10).data) == 2


def test_other_request_ids_are_other_requests(world: World, worker: WorkerDouble) -> None:
    first = world.do(Trigger(item(), "request 1"))
    assert world.do(Trigger(item(), "request 2")).run_ids != first.run_ids
    assert world.do(Trigger(item())).run_ids != world.do(Trigger(item())).run_ids


@pytest.mark.parametrize("same_group", [True, False])
def test_other_content_under_a_request_id_is_no_repeat(
    world: World, worker: WorkerDouble, same_group: bool
) -> None:
    first = Trigger(item(payload="1"), "request 1")
    others = [
        Trigger(item(payload="2"), "request 1"),
        Trigger(item(payload="1", tags=["a"]), "request 1"),
        TriggerBatch([item(payload="1")], request_id="request 1"),
        CreateBatch(1, request_id="request 1"),
    ]
    if same_group:
        # Of a group, batches may come first.
        tickets = world.submit(first, *others[:2])
    else:
        tickets = world.submit(first)
        world.restart()
        tickets += world.submit(*others)
    kinds = [type(ticket.result).__name__ for ticket in tickets]
    assert kinds == ["Triggered", *["ConflictError"] * (len(tickets) - 1)]
    assert len(world.reader.page(RunFilter(), size=10).data) == 1
    # The first one can still be repeated.
    assert world.do(first).cached


def test_a_repeated_announcement_of_a_batch_says_the_same(world: World, worker: WorkerDouble) -> None:
    world.do(CreateBatch(2, request_id="request 1"))
    [ticket] = world.submit(CreateBatch(3, request_id="request 1"))
    assert isinstance(ticket.result, ConflictError)
    command = TriggerBatch([item(), item()], request_id="request 2")
    world.do(command)
    [ticket] = world.submit(msgspec.structs.replace(command, items=[item()]))
    assert isinstance(ticket.result, ConflictError)


def test_answers_of_earlier_versions_say_nothing_of_what_was_asked(
    world: World, worker: WorkerDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(triggering, "_checksum", lambda *said: None)
        first = world.do(Trigger(item(payload="1"), "request 1"))
    world.restart()
    assert world.do(Trigger(item(payload="2"), "request 1")).run_ids == first.run_ids


def test_a_refused_request_may_be_corrected_under_the_same_id(world: World, worker: WorkerDouble) -> None:
    [ticket] = world.submit(Trigger(item(tags=[""]), "request 1"))
    assert isinstance(ticket.result, InvalidRequestError)
    assert world.do(Trigger(item(tags=["a"]), "request 1")).cached is False


def test_answers_are_forgotten_after_a_day_and_not_before(world: World, worker: WorkerDouble) -> None:
    first = world.do(Trigger(item(), "request 1"))
    world.clock.advance(23 * 3600)
    world.do(PruneAnswers(10))
    assert world.do(Trigger(item(), "request 1")).run_ids == first.run_ids
    world.clock.advance(2 * 3600)
    assert world.do(PruneAnswers(10)) == 1
    assert world.do(Trigger(item(), "request 1")).run_ids != first.run_ids


def test_a_refused_command_does_not_touch_its_neighbours(world: World, worker: WorkerDouble) -> None:
    """M29 for whole commands."""
    tickets = world.submit(
        Trigger(item(payload="1")),
        Trigger(item("")),
        TriggerBatch([item(), item(payload="{")]),
        Trigger(item(payload="2")),
    )
    kinds = [type(ticket.result).__name__ for ticket in tickets]
    assert kinds == ["Triggered", "InvalidRequestError", "InvalidRequestError", "Triggered"]
    payloads = [
        msgspec.json.decode(world.reader.run(ticket.result.run_ids[0]).payload) for ticket in tickets[::3]
    ]
    assert payloads == [1, 2]
    assert len(world.reader.page(RunFilter(), size=10).data) == 2
