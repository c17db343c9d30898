"""Batches: counts that always add up, and the form in two phases whose items may be sent again."""

import pytest

from milepost.engine.commands import AddBatchItems, CreateBatch, ItemsAdded, Report
from milepost.errors import (
    BatchNotFoundError,
    InvalidRequestError,
    MilepostError,
    RunNotFoundError,
)
from milepost.model.run import Outcome, RunStatus
from milepost.protocol.triggering import BatchLine, TriggerOptions
from milepost.reading import batches
from support.world import WorkerDouble, World, failure, item, result_of

pytestmark = pytest.mark.several_servers(postgres=True)


def lines(*indexes: int, task: str = "work") -> list[BatchLine]:
    return [BatchLine(index, task, str(index), TriggerOptions(tags=[f"t{index}"])) for index in indexes]


def counts(world: World, batch_id: str) -> tuple[str, int, int, int]:
    batch = world.reader.batch(batch_id)
    return batch.status, batch.run_count, len(batch.runs), batch.finished_count


def added(result: ItemsAdded) -> tuple[int, int, int, int | None]:
    return result.accepted, result.deduplicated, result.accepted_count, result.run_count


def test_a_batch_is_done_when_all_its_runs_have_ended_however(world: World, worker: WorkerDouble) -> None:
    batch_id = world.trigger_batch(*([item()] * 3)).batch_id
    assert batch_id is not None
    assert counts(world, batch_id) == ("PROCESSING", 3, 3, 0)
    first, second, third = worker.claim(3)
    worker.finish(first, output="1")
    assert counts(world, batch_id) == ("PROCESSING", 3, 3, 1)
    worker.fail(second, retry_after_ms=0)
    assert counts(world, batch_id) == ("PROCESSING", 3, 3, 1)
    world.submit(
        Report(worker.id, [worker.next_report(third, outcome=Outcome(output="3"))]),
        Report(worker.id, [worker.next_report(worker.claim_one(), outcome=failure())]),
    )
    assert counts(world, batch_id) == ("COMPLETED", 3, 3, 3)
    results = world.reader.batch_results(batch_id).items
    assert [(result.id, result.ok, result.output) for result in results] == [
        (first.id, True, "1"),
        (second.id, False, None),
        (third.id, True, "3"),
    ]
    assert [progress.finished_count for progress in world.announcements[-1].batches] == [3]


def test_a_repeated_outcome_is_counted_once(world: World, worker: WorkerDouble) -> None:
    batch_id = world.trigger_batch(item(), item()).batch_id
    report = worker.next_report(worker.claim(1)[0], outcome=Outcome(output="1"))
    for _ in range(3):
        worker.send(report)
    assert counts(world, batch_id) == ("PROCESSING", 2, 2, 1)


def test_results_hold_only_what_has_ended(world: World, worker: WorkerDouble) -> None:
    batch_id = world.trigger_batch(item(), item()).batch_id
    assert world.reader.batch_results(batch_id).items == []
    run = worker.claim_one()
    worker.finish(run, output="1")
    assert [result.id for result in world.reader.batch_results(batch_id).items] == [run.id]


def test_an_unknown_batch_is_not_found(world: World, worker: WorkerDouble) -> None:
    for read in (world.reader.batch, world.reader.batch_results, world.reader.batch_row):
        with pytest.raises(BatchNotFoundError, match="batch_nobody"):
            read("batch_nobody")
    [ticket] = world.submit(AddBatchItems("batch_nobody", lines(0)))
    assert isinstance(ticket.result, BatchNotFoundError)


# --- two phases --------------------------------------------------------------------------------------------


def test_items_come_in_pieces_and_in_any_order(world: World, worker: WorkerDouble) -> None:
    batch_id = world.do(CreateBatch(4))
    assert counts(world, batch_id) == ("PENDING", 4, 0, 0)
    assert added(world.do(AddBatchItems(batch_id, lines(3, 1)))) == (2, 0, 2, 4)
    assert counts(world, batch_id) == ("PENDING", 4, 2, 0)
    assert added(world.do(AddBatchItems(batch_id, lines(0, 2)))) == (2, 0, 4, 4)
    assert counts(world, batch_id) == ("PROCESSING", 4, 4, 0)
    tags = [world.reader.run(run_id).tags for run_id in world.reader.batch(batch_id).runs]
    assert tags == [["t0"], ["t1"], ["t2"], ["t3"]]


def test_a_stream_that_is_sent_again_adds_only_what_is_missing(world: World, worker: WorkerDouble) -> None:
    """Fault 9 for items."""
    batch_id = world.do(CreateBatch(3))
    world.do(AddBatchItems(batch_id, lines(0, 1)))
    before = world.reader.batch(batch_id).runs
    assert added(world.do(AddBatchItems(batch_id, lines(0, 1, 2)))) == (1, 2, 3, 3)
    assert added(world.do(AddBatchItems(batch_id, lines(0, 1, 2)))) == (0, 3, 3, 3)
    assert world.reader.batch(batch_id).runs[:2] == before
    world.restart()
    assert added(world.do(AddBatchItems(batch_id, lines(2)))) == (0, 1, 3, 3)
    assert counts(world, batch_id) == ("PROCESSING", 3, 3, 0)


def test_a_stream_and_its_repeat_in_one_group(world: World, worker: WorkerDouble) -> None:
    batch_id = world.do(CreateBatch(2))
    command = AddBatchItems(batch_id, lines(0, 1))
    first, second = (result_of(ticket) for ticket in world.submit(command, command))
    assert [first.accepted, second.accepted] == [2, 0]
    assert [first.accepted_count, second.accepted_count] == [2, 2]
    assert counts(world, batch_id) == ("PROCESSING", 2, 2, 0)


def test_two_halves_of_a_stream_in_one_group(world: World, worker: WorkerDouble) -> None:
    batch_id = world.do(CreateBatch(4))
    tickets = world.submit(AddBatchItems(batch_id, lines(0, 1)), AddBatchItems(batch_id, lines(2, 3)))
    assert sorted(result_of(ticket).accepted_count for ticket in tickets) == [2, 4]
    assert counts(world, batch_id) == ("PROCESSING", 4, 4, 0)


def test_an_index_that_comes_twice_in_one_stream_is_one_run(world: World, worker: WorkerDouble) -> None:
    batch_id = world.do(CreateBatch(2))
    assert added(world.do(AddBatchItems(batch_id, lines(0, 0)))) == (1, 1, 1, 2)


@pytest.mark.parametrize(
    ("wrong", "kind", "field"),
    [
        (lines(5), InvalidRequestError, "index"),
        (lines(-1), InvalidRequestError, "index"),
        (lines(2, task=""), InvalidRequestError, "items[2].task"),
        ([BatchLine(2, "work", "{")], InvalidRequestError, "items[2].payload"),
    ],
)
def test_a_bad_line_refuses_its_whole_request(
    world: World, worker: WorkerDouble, wrong: list[BatchLine], kind: type[MilepostError], field: str
) -> None:
    batch_id = world.do(CreateBatch(3))
    before = world.dump()
    [ticket] = world.submit(AddBatchItems(batch_id, [*lines(0), *wrong, *lines(1)]))
    assert isinstance(ticket.result, kind)
    assert ticket.result.field == field
    assert world.dump() == before
    assert world.do(AddBatchItems(batch_id, lines(0, 1, 2))).accepted == 3


@pytest.mark.parametrize("count", [0, -1, 2**31 - 1, 2**40])
def test_a_batch_of_another_size_cannot_be_announced(world: World, worker: WorkerDouble, count: int) -> None:
    [ticket] = world.submit(CreateBatch(count))
    assert isinstance(ticket.result, InvalidRequestError)
    assert ticket.result.field == "runCount"


def test_one_request_takes_a_thousand_items(world: World, worker: WorkerDouble) -> None:
    batch_id = world.do(CreateBatch(2000))
    [ticket] = world.submit(AddBatchItems(batch_id, lines(*range(1001))))
    assert isinstance(ticket.result, InvalidRequestError)
    assert (ticket.result.field, ticket.result.limit) == ("items", 1000)
    assert world.do(AddBatchItems(batch_id, lines(*range(1000)))).accepted == 1000


# --- a batch of which it is not known yet how many items it has -----------------------------------------------


def test_an_open_batch_ends_when_its_number_is_known_and_all_have_ended(
    world: World, worker: WorkerDouble
) -> None:
    batch_id = world.do(CreateBatch(None))
    assert counts(world, batch_id) == ("PENDING", 0, 0, 0)
    first = world.do(AddBatchItems(batch_id, lines(0, 1)))
    assert added(first) == (2, 0, 2, None)
    for run in worker.claim(5):
        worker.finish(run)
    assert counts(world, batch_id) == ("PENDING", 2, 2, 2)
    second = world.do(AddBatchItems(batch_id, lines(2), 3))
    assert added(second) == (1, 0, 3, 3)
    assert counts(world, batch_id) == ("PROCESSING", 3, 3, 2)
    worker.finish(worker.claim_one())
    assert counts(world, batch_id) == ("COMPLETED", 3, 3, 3)
    assert world.reader.batch(batch_id).runs == [*first.run_ids, *second.run_ids]


def test_the_number_may_come_after_all_runs_have_ended(world: World, worker: WorkerDouble) -> None:
    """Then the run that waits for the batch is told by the transaction that learns the number."""
    parent_id = world.trigger()
    parent = worker.claim_one()
    assert parent.id == parent_id
    batch_id = world.do(CreateBatch(None, parent_id, resume_parent=True))
    world.do(AddBatchItems(batch_id, lines(0)))
    child = worker.claim_one()
    announced = world.announcements
    worker.finish(child)
    assert batch_id not in [
        ended for each in announced for told in each.children_finished for ended in told.ids
    ]
    announced.clear()
    world.do(AddBatchItems(batch_id, [], 1))
    assert [told.ids for each in announced for told in each.children_finished] == [[batch_id]]
    assert counts(world, batch_id) == ("COMPLETED", 1, 1, 1)


def test_portions_may_be_sent_again_and_are_answered_alike(world: World, worker: WorkerDouble) -> None:
    batch_id = world.do(CreateBatch(None))
    first = world.do(AddBatchItems(batch_id, lines(0, 1)))
    last = world.do(AddBatchItems(batch_id, lines(2, 3), 4))
    again = world.do(AddBatchItems(batch_id, lines(2, 3), 4)), world.do(AddBatchItems(batch_id, lines(1, 0)))
    assert [added(result) for result in again] == [(0, 2, 4, 4)] * 2
    assert again[0].run_ids == last.run_ids
    assert again[1].run_ids == first.run_ids[::-1]


@pytest.mark.parametrize("run_count", [-1, 0, 1, 3, 2**31 - 1])
def test_a_number_that_cannot_be_is_refused(world: World, worker: WorkerDouble, run_count: int) -> None:
    """Fewer than there are, another one than was said before, more than there can be."""
    open_id, known_id = world.do(CreateBatch(None)), world.do(CreateBatch(2))
    for batch_id in (open_id, known_id) if run_count != 3 else (known_id,):
        world.do(AddBatchItems(batch_id, lines(0, 1)))
        before = world.dump()
        [ticket] = world.submit(AddBatchItems(batch_id, [], run_count))
        assert isinstance(ticket.result, InvalidRequestError)
        assert ticket.result.field == "runCount"
        assert world.dump() == before


def test_results_come_in_pages_of_bounded_size(
    world: World, worker: WorkerDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_id = world.trigger_batch(*([item()] * 60)).batch_id
    assert batch_id is not None
    for number, run in enumerate(worker.claim(60)):
        if number % 7:
            worker.finish(run, output=f'"{"x" * 1000}"')
    whole = world.reader.batch_results(batch_id)
    assert (len(whole.items), whole.next) == (51, None)
    for name, size in (("RESULTS_CHARACTERS_MAX", 5000), ("RESULTS_MAX", 7), ("RESULTS_MAX", 60)):
        monkeypatch.setattr(batches, name, size)
        page = world.reader.batch_results(batch_id)
        items, pages = page.items, 1
        while page.next is not None:
            page = world.reader.batch_results(batch_id, after=page.next)
            items, pages = items + page.items, pages + 1
        assert items == whole.items
        assert pages >= 3


def test_an_announcement_that_is_repeated_is_the_same_batch(world: World, worker: WorkerDouble) -> None:
    """The client repeats it when the answer got lost; a second batch would never be filled."""
    command = CreateBatch(2, request_id="request 1")
    first, second = (result_of(ticket) for ticket in world.submit(command, command))
    world.restart()
    assert first == second == world.do(command)
    assert world.do(CreateBatch(2, request_id="request 2")) != first
    assert len(world.dump()["batches"]) == 2


def test_items_run_before_all_have_come_and_the_batch_waits_for_the_rest(
    world: World, worker: WorkerDouble
) -> None:
    parent = world.trigger()
    assert worker.claim_one().id == parent
    batch_id = world.do(CreateBatch(2, parent, resume_parent=True))
    world.do(AddBatchItems(batch_id, lines(0)))
    worker.finish(worker.claim_one(), output="1")
    assert counts(world, batch_id) == ("PENDING", 2, 1, 1)
    assert world.announcements[-1].children_finished == []
    world.do(AddBatchItems(batch_id, lines(0, 1)))
    run = worker.claim_one()
    shown = world.reader.run(run.id)
    assert (shown.parent_id, shown.depth, shown.trigger_function) == (parent, 1, "batchTriggerAndWait")
    worker.finish(run, output="1")
    assert counts(world, batch_id) == ("COMPLETED", 2, 2, 2)
    assert [told.ids for told in world.announcements[-1].children_finished] == [[batch_id]]
    assert world.reader.run(run.id).status is RunStatus.COMPLETED


def test_a_batch_of_an_unknown_parent_is_refused(world: World, worker: WorkerDouble) -> None:
    [ticket] = world.submit(CreateBatch(1, "run_nobody"))
    assert isinstance(ticket.result, RunNotFoundError)


def test_items_and_the_end_of_earlier_ones_in_one_group(world: World, worker: WorkerDouble) -> None:
    """Both change the counts of one row."""
    batch_id = world.do(CreateBatch(3))
    world.do(AddBatchItems(batch_id, lines(0)))
    run = worker.claim_one()
    world.submit(
        AddBatchItems(batch_id, lines(0, 1)),
        Report(worker.id, [worker.next_report(run, outcome=Outcome(output="1"))]),
        AddBatchItems(batch_id, lines(2)),
    )
    assert counts(world, batch_id) == ("PROCESSING", 3, 3, 1)
