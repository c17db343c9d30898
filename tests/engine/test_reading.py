"""Reading: pages of every size, one consistent view, what is shown of what cannot be found."""

import pytest

from milepost.errors import RunNotFoundError
from milepost.model.operations import Set
from milepost.store.runs import RunFilter
from support.world import WorkerDouble, World, item


def test_pages_of_every_size_lead_through_all_runs_and_back(world: World, worker: WorkerDouble) -> None:
    ids = list(world.trigger_batch(*([item()] * 60)).run_ids)[::-1]
    for size in range(1, 62):
        forwards = []
        after = None
        while True:
            page = world.reader.page(RunFilter(), size=size, after=after)
            forwards.append([run.id for run in page.data])
            if page.pagination.next is None:
                break
            after = page.pagination.next
        assert forwards == [ids[start : start + size] for start in range(0, 60, size)]
        backwards = [forwards[-1]]
        while page.pagination.previous is not None:
            page = world.reader.page(RunFilter(), size=size, before=page.pagination.previous, after=after)
            backwards.insert(0, [run.id for run in page.data])
        assert backwards == forwards


def test_a_summary_is_the_run_without_its_large_parts(world: World, worker: WorkerDouble) -> None:
    run_id = world.trigger(payload="1", metadata={"a": 1})
    world.write(run_id, Set("b", 2))
    whole = world.reader.run(run_id)
    [summary, same] = world.reader.summaries([run_id, "run_nobody", run_id])
    assert summary == same
    for name in summary.__struct_fields__:
        mine, theirs = getattr(summary, name), getattr(whole, name)
        assert (bytes(mine), name) == (bytes(theirs), name) if name == "metadata" else mine == theirs


def test_what_is_not_there_is_not_found(world: World) -> None:
    for read in (world.reader.run, world.reader.result, world.reader.metadata, world.reader.row):
        with pytest.raises(RunNotFoundError, match="run_nobody"):
            read("run_nobody")
    with pytest.raises(RunNotFoundError, match="run_nobody"):
        world.reader.log("run_nobody", after=0)
    assert world.reader.summaries(["run_nobody"]) == []
