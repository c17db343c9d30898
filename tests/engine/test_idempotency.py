"""The same trigger, said again: by idempotency keys, and by later attempts of a parent. One run, and every count exact."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.engine import children
from milepost.engine.commands import (
    AddBatchItems,
    AttemptRef,
    BatchKey,
    CreateBatch,
    PruneKeys,
    ResetKey,
    Trigger,
    TriggerBatch,
    Triggered,
    TriggerItem,
)
from milepost.errors import ConflictError, InvalidRequestError, NotFoundError
from milepost.model.operations import Increment
from milepost.model.run import RunStatus
from milepost.protocol.triggering import BatchLine, TriggerOptions
from milepost.protocol.work import ClaimedRun, TargetOperations
from milepost.store.runs import INLINE_CHARACTERS, RunFilter
from support.many import world_of
from support.world import WorkerDouble, World, item, offered, result_of

pytestmark = pytest.mark.several_servers(postgres=True)

KEY = "k" * 64


class Family:
    """A run, attempt after attempt, and those who do what it triggers."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.parents = WorkerDouble(world, "parents", offered("parent"))
        self.children = WorkerDouble(world, "children", offered("work"), offered("other"))
        self.id = world.trigger("parent")
        self.run = self.parents.claim_one()
        self.parents.begin(self.run)

    @property
    def attempt(self) -> AttemptRef:
        return AttemptRef(self.run.id, self.run.attempt)

    def retry(self) -> None:
        """The attempt fails, and the next one begins."""
        self.parents.fail(self.run, retry_after_ms=0)
        self.run = self.parents.claim_one()
        self.parents.begin(self.run)

    def item(self, payload: str | None = "1", task: str = "work", **options: Any) -> TriggerItem:
        return item(task, payload, parent_run_id=self.id, **options)

    def command(self, payload: str | None = "1", task: str = "work", **options: Any) -> Trigger:
        return Trigger(self.item(payload, task, **options), attempt=self.attempt)

    def trigger(self, payload: str | None = "1", task: str = "work", **options: Any) -> tuple[str, bool]:
        """A child, and whether it was there before."""
        triggered: Triggered = self.world.do(self.command(payload, task, **options))
        return triggered.run_ids[0], bool(triggered.found)

    def batch(self, *payloads: str, resume: bool = True, **options: Any) -> Triggered:
        items = [item("work", payload, **options) for payload in payloads]
        return self.world.do(TriggerBatch(items, self.id, resume, attempt=self.attempt))

    def work(self, failing: Sequence[str] = ()) -> list[str]:
        """Do every child that is queued, those with one of these payloads in vain; their payloads."""
        claimed = self.children.claim(1000)
        for run in claimed:
            count = [TargetOperations(self.id, [Increment("done", 1)])]
            if run.payload in failing:
                self.children.fail(run)
            else:
                self.children.report(run, changes=count)
                self.children.finish(run, output=run.payload)
        return [str(run.payload) for run in claimed]


def _children(world: World, parent_id: str) -> int:
    return sum(1 for _ in _ids(world, RunFilter(parent_id=parent_id)))


def _ids(world: World, filter: RunFilter) -> list[str]:
    found: list[str] = []
    page = world.reader.page(filter, size=100)
    found += [run.id for run in page.data]
    while page.pagination.next is not None:
        page = world.reader.page(filter, size=100, after=page.pagination.next)
        found += [run.id for run in page.data]
    return found


@pytest.fixture
def family(world: World) -> Family:
    return Family(world)


# --- without a word ----------------------------------------------------------------------------------------


def test_a_later_attempt_is_given_what_is_done_and_what_is_under_way(world: World, family: Family) -> None:
    done, _ = family.trigger("1")
    family.work()
    under_way, _ = family.trigger("2")
    [claimed] = family.children.claim(1)
    family.retry()
    assert family.trigger("2") == (under_way, True)
    assert family.trigger("1") == (done, True)
    assert family.trigger("3")[1] is False
    family.children.finish(claimed)
    assert family.work() == ["3"]
    assert world.document(family.id)[0] == {"done": 2}


@pytest.mark.one_server("the memory of one")
def test_nothing_is_remembered_of_a_run_that_has_ended(world: World, family: Family) -> None:
    family.trigger()
    family.retry()
    family.trigger()
    remembered = world.engine.state.children
    assert len(remembered) == 1
    family.parents.finish(family.run)
    assert (len(remembered), remembered._count) == (0, 0)  # pyright: ignore[reportPrivateUsage]


def test_what_has_failed_for_good_is_triggered_anew_and_found_from_then_on(family: Family) -> None:
    failed, _ = family.trigger("1")
    family.work(failing=["1"])
    family.retry()
    anew, is_found = family.trigger("1")
    assert (anew != failed, is_found) == (True, False)
    family.work()
    family.retry()
    assert family.trigger("1") == (anew, True)


def test_equal_children_are_each_given_once_in_an_attempt(family: Family) -> None:
    first = [family.trigger("1")[0] for _ in range(3)]
    family.retry()
    again = [family.trigger("1") for _ in range(4)]
    assert sorted(run_id for run_id, is_found in again if is_found) == first
    assert again[3][1] is False
    family.retry()
    assert sorted(family.trigger("1")[0] for _ in range(4)) == sorted(run_id for run_id, _ in again)


@pytest.mark.parametrize(
    "other",
    [{"payload": "2"}, {"task": "other"}, {"payload": None}, {"payload": '"1"'}, {"payload": "1", "payload_type": "text/plain"}],
)  # fmt: skip
def test_another_task_or_payload_is_another_child(family: Family, other: dict[str, Any]) -> None:
    family.trigger("1")
    family.retry()
    assert family.trigger(**{"payload": "1", **other})[1] is False
    assert family.trigger("1")[1] is True


@pytest.mark.parametrize(
    ("one", "other", "are_same"),
    [
        ('{"a":1,"b":[2]}', '{"b": [2], "a": 1}', True),
        ("[1,2]", "[2,1]", False),
        ("1", "1.0", False),
        ("1e400", "1e500", False),
        ("123456789012345678901", "123456789012345678902", False),
        ("[" * 5000 + "]" * 5000, "[" * 5000 + "]" * 5000, True),
    ],
)
def test_payloads_are_compared_as_values(one: str, other: str, are_same: bool) -> None:
    kinds = {children.kind_of("work", payload, "application/json") for payload in (one, other)}
    assert (len(kinds) == 1) is are_same


def test_large_payloads_are_found_too(family: Family) -> None:
    payloads = [f'"{letter * (INLINE_CHARACTERS + 1)}"' for letter in "abcdefghijklmnopqrstuvwxyz"]
    first = dict(zip(payloads, family.batch(*payloads).run_ids, strict=True))
    family.retry()
    for payload in reversed(payloads):
        assert family.trigger(payload) == (first[payload], True)
    assert family.trigger(payloads[0])[1] is False


def test_none_of_it_holds_for_what_is_always_new(family: Family) -> None:
    marked, _ = family.trigger("1", always_new=True)
    plain, _ = family.trigger("1")
    family.retry()
    assert family.trigger("1", always_new=True)[1] is False
    assert family.trigger("1") == (plain, True)
    assert marked != plain
    assert family.trigger("1")[1] is False


def test_what_others_trigger_is_no_child_that_is_found(world: World, family: Family) -> None:
    """From outside, also with the run named as parent: nobody knows whether it is meant to be the same."""
    world.do(Trigger(family.item("1")))
    family.retry()
    assert family.trigger("1")[1] is False
    assert world.do(Trigger(family.item("1"))).found == ()


def test_a_found_child_keeps_its_document_and_its_place(world: World, family: Family) -> None:
    child, _ = family.trigger("1", metadata={"a": 1})
    before = world.reader.run(child)
    family.retry()
    assert family.trigger("1", metadata={"a": 2}, tags=["x"]) == (child, True)
    assert world.document(child) == ({"a": 1}, 0)
    after = world.reader.run(child)
    assert (after.tags, after.updated_at, after.attempt_count) == (before.tags, before.updated_at, 0)


def test_concurrent_equal_triggers_of_a_later_attempt_get_one_child_each(
    world: World, family: Family
) -> None:
    first = family.batch("1", "1").run_ids
    family.retry()
    tickets = world.submit(*[family.command("1") for _ in range(3)])
    results = [result_of(ticket) for ticket in tickets]
    found = [result.run_ids[0] for result in results if result.found]
    assert sorted(found) == sorted(first)
    assert len({result.run_ids[0] for result in results}) == 3


def test_an_attempt_that_is_over_finds_nothing(world: World, family: Family) -> None:
    command = family.command("1")
    family.retry()
    [ticket] = world.submit(command)
    assert isinstance(ticket.result, ConflictError)


# --- batches -----------------------------------------------------------------------------------------------


def test_an_equal_batch_of_a_later_attempt_has_the_runs_of_the_first(world: World, family: Family) -> None:
    first = family.batch("1", "2", "3", "2")
    [one, two, *_] = family.children.claim(2)
    family.children.finish(one, output="10")
    family.retry()
    again = family.batch("1", "2", "3", "2")
    assert again.batch_id != first.batch_id
    assert again.run_ids == first.run_ids
    assert list(again.found) == [0, 1, 2, 3]
    assert _counts(world, again) == ("PROCESSING", 4, 1)
    family.children.finish(two, output="20")
    family.work()
    assert _counts(world, again) == _counts(world, first) == ("COMPLETED", 4, 4)
    assert again.batch_id is not None
    results = world.reader.batch_results(again.batch_id).items
    assert [result.id for result in results] == first.run_ids
    assert sorted(_ids(world, RunFilter(batch_id=again.batch_id))) == sorted(first.run_ids)
    assert _ends_told(world, again.batch_id) == 1


def test_a_batch_all_of_whose_runs_have_ended_is_done_at_once(world: World, family: Family) -> None:
    family.batch("1", "2")
    family.work()
    family.retry()
    again = family.batch("2", "1")
    assert again.batch_id is not None
    assert _counts(world, again) == ("COMPLETED", 2, 2)
    assert _ends_told(world, again.batch_id) == 1
    assert family.work() == []


def test_what_failed_in_a_batch_is_done_anew_in_the_next(world: World, family: Family) -> None:
    first = family.batch("1", "2", "3")
    family.work(failing=["2"])
    family.retry()
    again = family.batch("1", "2", "3")
    assert list(again.found) == [0, 2]
    assert family.work() == ["2"]
    assert _counts(world, again) == ("COMPLETED", 3, 3)
    assert again.batch_id is not None
    oks = [result.ok for result in world.reader.batch_results(again.batch_id).items]
    assert oks == [True, True, True]
    assert world.document(family.id)[0] == {"done": 3}
    assert set(again.run_ids) & set(first.run_ids) == {first.run_ids[0], first.run_ids[2]}


def test_a_stream_of_items_that_broke_off_is_found_and_goes_on(world: World, family: Family) -> None:
    def add(batch_id: str, payloads: Sequence[int], count: int | None = None) -> Any:
        lines = [BatchLine(index, "work", str(index), TriggerOptions()) for index in payloads]
        return world.do(AddBatchItems(batch_id, lines, count, attempt=family.attempt))

    first = world.do(CreateBatch(None, family.id, True, attempt=family.attempt))
    sent = add(first, range(6)).run_ids
    family.work()
    family.retry()
    second = world.do(CreateBatch(None, family.id, True, attempt=family.attempt))
    part = add(second, range(4))
    assert (part.run_ids, list(part.found)) == (sent[:4], [0, 1, 2, 3])
    # A part that comes twice.
    repeated = add(second, range(4))
    assert (repeated.run_ids, list(repeated.found), repeated.deduplicated) == (sent[:4], [], 4)
    rest = add(second, range(4, 8), 8)
    assert (rest.run_ids[:2], list(rest.found)) == (sent[4:], [0, 1])
    assert world.reader.batch(second).finished_count == 6
    assert sorted(family.work()) == ["6", "7"]
    whole = world.reader.batch(second)
    assert (whole.status, whole.finished_count, whole.runs) == ("COMPLETED", 8, [*sent, *rest.run_ids[2:]])
    assert _ends_told(world, second) == 1


def test_a_refused_batch_takes_no_child_away(world: World, family: Family) -> None:
    first = family.batch("1", "1").run_ids
    family.retry()
    bad = TriggerBatch(
        [item("work", "1"), item("work", "1"), item("work", "1", tags=[""])],
        family.id,
        attempt=family.attempt,
    )
    [ticket] = world.submit(bad)
    assert isinstance(ticket.result, InvalidRequestError)
    assert family.batch("1", "1").run_ids == first


def test_a_child_of_an_earlier_batch_is_waited_for_alone(world: World, family: Family) -> None:
    [child] = family.batch("1").run_ids
    family.retry()
    assert family.trigger("1", resume_parent_on_completion=True) == (child, True)
    family.work()
    assert _ends_told(world, child) == 1


def _counts(world: World, triggered: Triggered) -> tuple[str, int, int]:
    assert triggered.batch_id is not None
    batch = world.reader.batch(triggered.batch_id)
    return batch.status, batch.run_count, batch.finished_count


def _ends_told(world: World, ended_id: str) -> int:
    """How often a worker was told that something has ended."""
    return sum(
        ended_id in told.ids
        for announcement in world.announcements
        for told in announcement.children_finished
    )


# --- keys --------------------------------------------------------------------------------------------------


def test_one_key_is_one_run_whatever_is_said_with_it(world: World, family: Family) -> None:
    def trigger(payload: str, **options: Any) -> Triggered:
        return world.do(Trigger(item("work", payload, idempotency_key=KEY, **options)))

    first = trigger("1", metadata={"a": 1})
    again = trigger("2", metadata={"a": 2})
    assert (again.run_ids, list(again.found)) == (first.run_ids, [0])
    assert world.document(first.run_ids[0])[0] == {"a": 1}
    other = world.do(Trigger(item("other", "1", idempotency_key=KEY)))
    assert other.run_ids != first.run_ids
    world.restart()
    assert trigger("1").run_ids == first.run_ids
    family.work()
    assert trigger("1").run_ids == first.run_ids


def test_concurrent_duplicates_are_one_run(world: World, family: Family) -> None:
    commands = [Trigger(item("work", str(number), idempotency_key=KEY)) for number in range(5)]
    results = [result_of(ticket) for ticket in world.submit(*commands)]
    assert len({result.run_ids[0] for result in results}) == 1
    assert [list(result.found) for result in results] == [[], [0], [0], [0], [0]]
    assert len(family.work()) == 1


def test_a_failed_run_frees_its_key(world: World, family: Family) -> None:
    command = Trigger(item("work", "1", idempotency_key=KEY))
    first = world.do(command)
    family.work(failing=["1"])
    second = world.do(command)
    assert (second.run_ids != first.run_ids, list(second.found)) == (True, [])
    assert world.do(command).run_ids == second.run_ids


def test_a_key_is_kept_for_its_time_and_not_longer(world: World, family: Family) -> None:
    command = Trigger(item("work", "1", idempotency_key=KEY, idempotency_key_ttl="1h"))
    first = world.do(command)
    world.clock.advance(3590)
    assert world.do(command).run_ids == first.run_ids
    world.clock.advance(20)
    second = world.do(command)
    assert second.run_ids != first.run_ids
    assert world.do(PruneKeys(10)) == 0
    world.clock.advance(3700)
    assert world.do(PruneKeys(10)) == 1
    assert world.dump()["idempotency_keys"] == []


@pytest.mark.parametrize("ttl", ["", "x", "-1s", -1, 0, "0s", 1e12, "99999999999w"])
def test_a_time_to_live_that_is_none_is_refused(world: World, family: Family, ttl: Any) -> None:
    [ticket] = world.submit(Trigger(item("work", idempotency_key=KEY, idempotency_key_ttl=ttl)))
    assert isinstance(ticket.result, InvalidRequestError)
    assert ticket.result.field == "options.idempotencyKeyTTL"


@pytest.mark.parametrize("key", ["", "k" * 2049, "a\n"])
def test_a_key_that_is_none_is_refused(world: World, family: Family, key: str) -> None:
    [ticket] = world.submit(TriggerBatch([item("work"), item("work", idempotency_key=key)]))
    assert isinstance(ticket.result, InvalidRequestError)
    assert ticket.result.field == "items[1].options.idempotencyKey"


def test_a_key_that_is_reset_stands_for_nothing(world: World, family: Family) -> None:
    command = Trigger(item("work", "1", idempotency_key=KEY))
    first = world.do(command)
    world.do(ResetKey(KEY, "work"))
    assert world.do(command).run_ids != first.run_ids
    world.do(ResetKey(KEY, "work"))
    for task in ("work", "other", ""):
        [ticket] = world.submit(ResetKey(KEY, task))
        assert isinstance(ticket.result, NotFoundError)


def test_items_of_a_batch_with_one_key_are_one_run(world: World, family: Family) -> None:
    items = [
        item("work", "1", idempotency_key=KEY),
        item("work", "2"),
        item("work", "3", idempotency_key=KEY),
    ]
    batch = world.do(TriggerBatch(items))
    assert batch.run_ids[0] == batch.run_ids[2]
    assert list(batch.found) == [2]
    other = world.do(TriggerBatch(items))
    assert list(other.found) == [0, 2]
    assert len(family.work()) == 3
    assert _counts(world, batch) == _counts(world, other) == ("COMPLETED", 3, 3)
    assert other.batch_id is not None
    assert len(world.reader.batch_results(other.batch_id).items) == 3


def test_a_key_goes_before_what_earlier_attempts_have_triggered(family: Family) -> None:
    plain, _ = family.trigger("1")
    keyed, _ = family.trigger("1", idempotency_key=KEY)
    family.retry()
    assert family.trigger("1", idempotency_key=KEY) == (keyed, True)
    assert family.trigger("1") == (plain, True)
    assert family.trigger("1")[1] is False


def test_who_waits_for_the_run_of_another_is_told_of_its_end(world: World, family: Family) -> None:
    child = world.do(Trigger(item("work", "1", idempotency_key=KEY))).run_ids[0]
    assert family.trigger("1", idempotency_key=KEY, resume_parent_on_completion=True) == (child, True)
    family.work()
    assert _ends_told(world, child) == 1


def test_a_run_does_not_wait_for_itself(world: World, family: Family) -> None:
    command = Trigger(item("parent", idempotency_key=KEY))
    top = world.do(command).run_ids[0]
    [run] = [run for run in family.parents.claim(5) if run.id == top]
    waits = item("parent", idempotency_key=KEY, parent_run_id=top, resume_parent_on_completion=True)
    [ticket] = world.submit(Trigger(waits, attempt=AttemptRef(top, run.attempt)))
    assert isinstance(ticket.result, InvalidRequestError)
    assert "wait for itself" in ticket.result.message


def test_the_key_of_a_whole_batch(world: World, family: Family) -> None:
    command = TriggerBatch([item("work", "1"), item("work", "2")], key=BatchKey(KEY))
    first = world.do(command)
    other = TriggerBatch([item("work", "3")], key=BatchKey(KEY))
    again, same = (result_of(ticket) for ticket in world.submit(command, other))
    assert (again.batch_id, again.run_ids, again.found_batch) == (first.batch_id, first.run_ids, True)
    assert same.run_ids == first.run_ids
    assert world.do(CreateBatch(5, key=BatchKey(KEY))) == first.batch_id
    world.do(ResetKey(KEY))
    assert world.do(command).batch_id != first.batch_id
    assert len(family.work()) == 4


def test_the_key_of_an_announced_batch_lets_its_items_be_sent_by_whoever_comes(
    world: World, family: Family
) -> None:
    announced = world.do(CreateBatch(2, key=BatchKey(KEY)))
    [ticket] = world.submit(TriggerBatch([item("work")], key=BatchKey(KEY)))
    assert isinstance(ticket.result, ConflictError)
    world.do(AddBatchItems(announced, [BatchLine(0, "work", "0")]))
    assert world.do(CreateBatch(2, key=BatchKey(KEY))) == announced
    added = world.do(AddBatchItems(announced, [BatchLine(0, "work", "0"), BatchLine(1, "work", "1")]))
    assert (added.accepted, added.deduplicated) == (1, 1)


# --- against a plain model ---------------------------------------------------------------------------------


@dataclass
class Child:
    """What the model knows of a run; `given`: the newest attempt that has it, None where it is not to be found again."""

    id: str
    kind: str
    given: int | None
    status: str = "QUEUED"

    @property
    def stands(self) -> bool:
        return self.status != RunStatus.FAILED


@dataclass
class Model:
    """Keys and children, as plain lists."""

    attempt: int = 1
    now: float = 0
    runs: list[Child] = field(default_factory=list)
    keys: dict[str, tuple[Child, float]] = field(default_factory=dict)

    def expect(self, kind: str, key: str | None) -> Child | None:
        """The run that is meant; None: a new one."""
        if key is not None:
            child, expires_at = self.keys.get(key, (None, 0.0))
            return child if child is not None and expires_at > self.now and child.stands else None
        for child in self.runs:
            if child.kind == kind and child.given is not None and child.given < self.attempt and child.stands:
                return child
        return None

    def take(self, kind: str, key: str | None, run_id: str, is_found: bool) -> None:
        """A trigger was answered like this."""
        expected = self.expect(kind, key)
        assert is_found is (expected is not None), (kind, key)
        if expected is None:
            expected = Child(run_id, kind, None if key is not None else self.attempt)
            assert run_id not in {child.id for child in self.runs}
            self.runs.append(expected)
            if key is not None:
                self.keys[key] = expected, self.now + 60
        assert run_id == expected.id
        if key is None:
            expected.given = self.attempt


_TRIGGER = st.tuples(st.sampled_from("123"), st.none() | st.sampled_from(["a", "b"]))
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("trigger"), _TRIGGER),
        st.tuples(st.just("group"), st.lists(_TRIGGER, min_size=2, max_size=3)),
        st.tuples(st.just("batch"), st.lists(_TRIGGER, min_size=1, max_size=4)),
        st.tuples(st.just("end"), st.tuples(st.integers(0, 5), st.booleans())),
        st.tuples(st.just("retry"), st.none()),
        st.tuples(st.just("restart"), st.none()),
        st.tuples(st.just("advance"), st.sampled_from([1, 40])),
        st.tuples(st.just("bad"), _TRIGGER),
    ),
    max_size=25,
)


@given(steps=_STEPS)
def test_the_engine_agrees_with_the_model(
    deployment: str, tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, Any]]
) -> None:
    path: Path = tmp_path_factory.mktemp("model")
    with world_of(deployment, path / "milepost.db") as world:
        family, model = Family(world), Model()
        start = world.clock()
        claimed: list[ClaimedRun] = []
        batches: list[Triggered] = []

        def wire(kind: str, key: str | None) -> TriggerItem:
            options: dict[str, Any] = (
                {} if key is None else {"idempotency_key": key, "idempotency_key_ttl": 60}
            )
            return family.item(kind, **options)

        for name, value in steps:
            # A group happens a millisecond later; nothing expires within so little.
            model.now = (world.clock() - start) / 1_000_000 + 0.001
            if name == "trigger":
                found = world.do(Trigger(wire(*value), attempt=family.attempt))
                model.take(*value, found.run_ids[0], bool(found.found))
            elif name == "group":
                tickets = world.submit(*(Trigger(wire(*each), attempt=family.attempt) for each in value))
                for each, ticket in zip(value, tickets, strict=True):
                    found = result_of(ticket)
                    model.take(*each, found.run_ids[0], bool(found.found))
            elif name == "batch":
                command = TriggerBatch([wire(*each) for each in value], family.id, attempt=family.attempt)
                found = world.do(command)
                batches.append(found)
                for place, each in enumerate(value):
                    model.take(*each, found.run_ids[place], place in found.found)
            elif name == "bad":
                items = [wire(*value), family.item("1", tags=[""])]
                [ticket] = world.submit(TriggerBatch(items, family.id, attempt=family.attempt))
                assert isinstance(ticket.result, InvalidRequestError)
            elif name == "end":
                place, is_good = value
                claimed += family.children.claim(100)
                if claimed:
                    run = claimed.pop(place % len(claimed))
                    [child] = [child for child in model.runs if child.id == run.id]
                    child.status = "COMPLETED" if is_good else "FAILED"
                    family.children.finish(run) if is_good else family.children.fail(run)
            elif name == "retry":
                family.retry()
                model.attempt += 1
            elif name == "restart":
                world.restart()
            else:
                world.clock.advance(value)
                family.parents.begin(family.run)
                family.children.begin(*claimed)
            ended = {child.id for child in model.runs if child.status != "QUEUED"}
            for batch in batches:
                _, count, finished = _counts(world, batch)
                assert (count, finished) == (len(batch.run_ids), sum(id in ended for id in batch.run_ids))
        assert _children(world, family.id) == len(model.runs)
