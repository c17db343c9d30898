"""The search index: whatever is written, indexed or not, a search finds exactly the runs whose documents match."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milepost.engine.commands import IndexDocuments, Report, TriggerItem
from milepost.errors import UnavailableError
from milepost.model.filters import parse_filter
from milepost.model.jsonvalue import encode
from milepost.model.operations import Append, Delete, Increment, Set, Update
from milepost.model.run import RunStatus
from milepost.protocol.triggering import TriggerOptions
from milepost.reading import search as reading_search
from milepost.store import metadata_values, search
from milepost.store.metadata_values import Kind, terms_of, traces_of, values_of
from milepost.store.runs import RunFilter
from model.strategies import documents_and_filters, few_documents, few_values, filters
from support.properties import database_property
from support.world import WorkerDouble, World, world_at

# So small that texts are cut, containers incomplete and ranges too long to be gathered.
SMALL = {
    "TEXT_CHARACTERS": 7,
    "PATH_CHARACTERS_MAX": 14,
    "DEPTH_MAX": 2,
    "ARRAY_ITEMS_MAX": 2,
    "OBJECT_NAMES_MAX": 3,
    "ROWS_MAX": 8,
}


@pytest.fixture(params=["usual limits", "small limits"], autouse=True, scope="module")
def limits(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every test here runs with the index as it is, and with one that leaves much to the documents."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "small limits":
            for name, value in SMALL.items():
                patch.setattr(metadata_values, name, value)
            patch.setattr(search, "GATHERED_MAX", 2)
            patch.setattr(reading_search, "CANDIDATES_MIN", 1)
        yield request.param


def rows_of(world: World) -> dict[str, set[Any]]:
    """What the index holds of each run."""
    found: dict[str, set[Any]] = {}
    for run_id, *value in world.dump()["metadata_values"]:
        found.setdefault(run_id, set()).add(tuple(value))
    return found


def unindexed(world: World) -> list[str]:
    with world.store.read() as connection:
        return search.unindexed_ids(connection, limit=1000)


def index_all(world: World) -> None:
    while world.do(IndexDocuments(7)):
        pass
    assert unindexed(world) == []


def walk(world: World, filter: RunFilter, size: int) -> list[str]:
    """All pages, newest first, and back again."""
    page = world.reader.page(filter, size=size)
    pages = [page]
    while page.pagination.next is not None:
        page = world.reader.page(filter, size=size, after=page.pagination.next)
        pages.append(page)
    ids = [[run.id for run in page.data] for page in pages]
    for number in range(len(pages) - 1, 0, -1):
        back = world.reader.page(filter, size=size, before=pages[number].pagination.previous)
        assert [run.id for run in back.data] == ids[number - 1]
    return [run_id for page in ids for run_id in page]


def find(world: World, filter: dict[str, Any], size: int = 100, **fields: Any) -> list[str]:
    return walk(world, RunFilter(metadata=parse_filter(filter), **fields), size)


@settings(max_examples=300)
@given(st.one_of(documents_and_filters, st.tuples(few_documents, filters)))
def test_a_document_that_matches_is_a_candidate(both: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """The law that the index rests on."""
    document, filter = both
    parsed = parse_filter(filter)
    if not parsed.matches(document):
        return
    rows = values_of(document)
    terms = terms_of(parsed)
    for group in terms.required:
        assert any(
            stands(term, row) for each in group for term in (each, *each.incomplete) for row in rows
        ), group
    for term in terms.absent:
        assert not any(stands(term, row) for row in rows), term
    for trace in traces_of(parsed):
        assert any(part in encode(document) for part in trace.any_of), trace


def stands(term: metadata_values.Term, row: metadata_values.IndexedValue) -> bool:
    path, kind, number, text = row
    if term.is_below:
        low, high = term.paths_below
        return low < path < high
    if path != term.path or (term.kind is not None and kind != term.kind):
        return False
    value: Any = text if term.kind is Kind.TEXT else number
    return (term.low is None or value > term.low or (value == term.low and not term.after_low)) and (
        term.high is None or value < term.high or (value == term.high and not term.before_high)
    )


_keys = st.sampled_from(["a", "n", "l", "a.b", "$.a.b", "$.l[0].n", "$.a"])
_writes = st.one_of(
    st.builds(Set, _keys, few_values),
    st.builds(Append, st.sampled_from(["l", "a"]), few_values),
    st.builds(Increment, st.sampled_from(["n", "$.a.n"]), st.integers(-2, 2)),
    st.builds(Delete, _keys),
    st.builds(Update, few_documents),
)
_steps = st.one_of(
    st.tuples(st.just("trigger"), st.lists(few_documents, min_size=1, max_size=4)),
    st.tuples(st.just("write"), st.tuples(st.integers(0, 20), st.lists(_writes, max_size=3))),
    st.tuples(st.just("index"), st.integers(1, 5)),
    st.tuples(st.just("finish"), st.integers(1, 2)),
)


@database_property(12)
@given(
    st.lists(documents_and_filters, min_size=2, max_size=3),
    st.lists(_steps, min_size=2, max_size=8),
    filters,
    st.integers(1, 4),
)
def test_a_search_finds_what_a_scan_finds(
    made: list[tuple[dict[str, Any], dict[str, Any]]],
    steps: list[tuple[str, Any]],
    other: dict[str, Any],
    size: int,
) -> None:
    with TemporaryDirectory() as folder, world_at(Path(folder) / "milepost.db") as world:
        worker = WorkerDouble(world)
        ids: list[str] = []
        searches = [*(filter for _, filter in made), other]
        documents = [document for document, _ in made]
        for step, argument in [("trigger", documents * 2), *steps, ("trigger", documents)]:
            if step == "trigger":
                items = [
                    TriggerItem(
                        "work", None, TriggerOptions(metadata=document or None, tags=["t"] * (not document))
                    )
                    for document in argument
                ]
                ids += world.trigger_batch(*items).run_ids
            elif step == "write" and ids:
                world.write(ids[argument[0] % len(ids)], *argument[1])
            elif step == "index":
                world.do(IndexDocuments(argument))
            else:
                for run in worker.claim(2):
                    worker.finish(run, Set("n", argument))
        statuses = {run.id: run.status for run in world.reader.summaries(ids)}
        for _ in range(2):
            for filter in searches:
                meant = [
                    run_id
                    for run_id in reversed(ids)
                    if parse_filter(filter).matches(dict(world.document(run_id)[0]))
                ]
                assert find(world, filter, size) == meant, filter
                if not unindexed(world):
                    continue
                done = [run_id for run_id in meant if statuses[run_id] is RunStatus.COMPLETED]
                assert find(world, filter, size, statuses=(RunStatus.COMPLETED,), tasks=("work",)) == done
                tagged = world.reader.page(RunFilter(tags=("t",)), size=100).data
                known = {run.id for run in tagged}
                assert find(world, filter, size, tags=("t",)) == [
                    run_id for run_id in meant if run_id in known
                ]
            index_all(world)
            rows = rows_of(world)
            assert {run_id: rows.get(run_id, set()) for run_id in ids} == {
                run_id: values_of(world.document(run_id)[0]) for run_id in ids
            }


def test_a_run_without_metadata_costs_the_index_nothing(world: World, worker: WorkerDouble) -> None:
    run_id = world.trigger()
    worker.finish(worker.claim_one())
    assert unindexed(world) == []
    assert world.do(IndexDocuments(10)) == 0
    assert rows_of(world) == {}
    assert find(world, {"a": {"$exists": False}}) == [run_id]


def test_an_empty_document_costs_the_index_nothing(world: World, worker: WorkerDouble) -> None:
    run_id = world.trigger(metadata={})
    assert unindexed(world) == []
    assert find(world, {"a": {"$exists": False}}) == [run_id]
    world.write(run_id, Set("a", 1))
    assert unindexed(world) == [run_id]
    assert find(world, {"a": 1}) == [run_id]


@pytest.mark.parametrize(
    "filter",
    [{"user": "u 77"}, {"n": 77}, {"tags": {"$contains": "t 77"}}, {"odd": True}, {"deep.x": {"$gt": 76}}],
)
def test_a_search_straight_after_many_runs_reads_few_documents(
    world: World, worker: WorkerDouble, filter: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not indexed yet is ruled out by its text; nobody waits for the index."""
    items = [
        TriggerItem("work", None, TriggerOptions(metadata={"user": f"u {n}", "n": n, "tags": [f"t {n}"]}))
        for n in range(1000)
    ]
    ids = world.trigger_batch(*items[:700]).run_ids
    for run in worker.claim(200):
        worker.finish(run, Set("done", True))
    ids += world.trigger_batch(*items[700:]).run_ids
    world.write(ids[77], Set("odd", True), Set("$.deep.x", 76), Increment("$.deep.x", 1))
    looked_at: list[Any] = []
    monkeypatch.setattr(
        reading_search,
        "is_meant",
        lambda document, filter: looked_at.append(document) or is_meant(document, filter),
    )
    assert find(world, filter) == [ids[77]]
    assert len(looked_at) <= 20


is_meant = reading_search.is_meant


def test_one_step_of_indexing_is_bounded_by_what_it_writes(
    world: World, worker: WorkerDouble, limits: str
) -> None:
    """Whoever writes waits for one step: a few hundred small documents, or a few large ones."""
    many = {f"k{number}": number for number in range(900)}
    ids = world.trigger_batch(
        *(TriggerItem("work", None, TriggerOptions(metadata=many)) for _ in range(20))
    ).run_ids
    at_once = world.do(IndexDocuments(1000))
    assert at_once == (20 if limits == "small limits" else 1)
    index_all(world)
    assert find(world, {"k3": 3}) == ids[::-1]
    texts = {"t": "x" * 200_000}
    world.trigger_batch(*(TriggerItem("work", None, TriggerOptions(metadata=texts)) for _ in range(20)))
    assert world.do(IndexDocuments(1000)) == 3


def test_a_write_in_the_group_of_the_indexing_is_not_missed(world: World, worker: WorkerDouble) -> None:
    run_id = world.trigger(metadata={"a": 1})
    run = worker.claim_one()
    report = worker.next_report(run, Set("a", 2))
    world.submit(IndexDocuments(10), Report(worker.id, [report]))
    assert find(world, {"a": 2}) == [run_id]
    assert find(world, {"a": 1}) == []
    index_all(world)
    assert rows_of(world)[run_id] == values_of({"a": 2})


def test_indexing_changes_nothing_that_readers_see(world: World, worker: WorkerDouble) -> None:
    run_id = world.trigger(metadata={"a": 1})
    world.write(run_id, Set("b", 2))
    before = world.reader.run(run_id)
    announced = len(world.announcements)
    index_all(world)
    assert world.reader.run(run_id) == before
    assert not any(announcement.runs for announcement in world.announcements[announced:])


def test_a_second_write_after_indexing_is_noticed(world: World, worker: WorkerDouble) -> None:
    run_id = world.trigger(metadata={"a": 1})
    index_all(world)
    for value in (2, 3):
        world.write(run_id, Set("a", value))
        assert unindexed(world) == [run_id]
        assert find(world, {"a": value}) == [run_id]
        assert find(world, {"a": value - 1}) == []
        index_all(world)
        assert find(world, {"a": value}) == [run_id]
        assert find(world, {"a": value - 1}) == []


@pytest.mark.sqlite_only("its trigger is written for it")
def test_rows_that_stay_are_not_written_again(world: World, worker: WorkerDouble) -> None:
    run_id = world.trigger(metadata={"a": 1, "b": 2})
    index_all(world)
    world.write(run_id, Set("b", 3))
    with world.store.write() as connection:
        connection.exec_driver_sql("CREATE TEMP TABLE written (path TEXT)")
        for event, side in (("INSERT", "NEW"), ("DELETE", "OLD")):
            connection.exec_driver_sql(
                f"CREATE TEMP TRIGGER on_{event} AFTER {event} ON main.metadata_values "
                f"BEGIN INSERT INTO written VALUES ({side}.path); END"
            )
    index_all(world)
    with world.store.write() as connection:
        assert set(connection.exec_driver_sql("SELECT path FROM written").scalars()) == {'["b"]'}


@pytest.mark.parametrize("name", ["a" * 3000, "\0", "é\0", '"', "\\", "null", "0", "😀"])
def test_odd_names_and_texts_are_found(world: World, worker: WorkerDouble, name: str) -> None:
    run_id = world.trigger(metadata={name: {name: name}})
    world.trigger(metadata={name: {name: name + "x"}})
    for _ in range(2):
        assert find(world, {name: {"$eq": {name: name}}}) == [run_id]
        assert find(world, {name: {"$exists": False}}) == []
        index_all(world)


def test_a_large_document_is_found_although_it_is_not_indexed_as_a_whole(
    world: World, worker: WorkerDouble
) -> None:
    deep: Any = "bottom"
    for _ in range(30):
        deep = {"d": deep}
    run_id = world.trigger(
        metadata={
            "many": {f"k{n}": n for n in range(1500)},
            "long": list(range(3000)),
            "deep": deep,
            "last": 1,
        }
    )
    world.trigger(metadata={"last": 2})
    index_all(world)
    assert len(rows_of(world)[run_id]) <= metadata_values.ROWS_MAX + 10
    for filter in (
        {"many.k1499": 1499},
        {"long": {"$contains": 2999}},
        {"$.long[-1]": 2999},
        {"$.deep" + ".d" * 30: "bottom"},
        {"last": 1},
        {"last": {"$lt": 2}, "many.k3": {"$exists": True}},
    ):
        assert find(world, filter) == [run_id], filter


@pytest.mark.sqlite_only("its trigger is written for it")
def test_a_full_disk_stops_the_index_and_no_search(world: World, worker: WorkerDouble) -> None:
    run_id = world.trigger(metadata={"a": 1})
    with world.store.write() as connection:
        connection.exec_driver_sql(
            "CREATE TEMP TRIGGER no_space BEFORE INSERT ON main.metadata_values BEGIN SELECT RAISE(ABORT, 'full'); END"
        )
    with pytest.raises(UnavailableError):
        world.do(IndexDocuments(10))
    assert unindexed(world) == [run_id]
    assert find(world, {"a": 1}) == [run_id]
