"""The buffer against a sequential model: whatever is lost, repeated, delayed or written by others, nothing is lost or doubled."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from milepost.client import portions
from milepost.errors import MetadataError, MetadataTypeError
from milepost.model.document import Document
from milepost.model.jsonvalue import json_equal
from milepost.model.operations import Append, Delete, Increment, Operation, Remove, Set, Update
from milepost.protocol.metadata import MetadataChange, MetadataDelta
from milepost.sdk import buffer as buffer_module
from milepost.sdk.buffer import Buffer
from sdk.model_server import ATTEMPT, PARENT, RUN, ModelServer, buffer_for, deliver, effect_of

NAMES = ["a", "b", "n", "list", "$.deep.x", "$.deep.y[0]", "$.list[-1]", "$.n.z"]
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.sampled_from(["", "text", "é"]),
    st.lists(st.integers(0, 3), max_size=3),
)
WITHOUT_UPDATE = st.one_of(
    st.builds(Set, st.sampled_from(NAMES), VALUES),
    st.builds(Delete, st.sampled_from(NAMES)),
    st.builds(Append, st.sampled_from(NAMES), VALUES, st.sampled_from([None, None, 1, 2])),
    st.builds(Remove, st.sampled_from(NAMES), VALUES),
    st.builds(
        Increment,
        st.sampled_from(NAMES),
        st.integers(-9, 9),
        st.sampled_from([None, None, "once-1", "once-2"]),
    ),
)
OPERATIONS = st.one_of(
    WITHOUT_UPDATE,
    st.builds(Update, st.dictionaries(st.sampled_from(["a", "b", "n", "list"]), VALUES, max_size=2)),
)


class BufferMachine(RuleBasedStateMachine):
    """Random interleavings of the user, the link, others, and a network that loses, repeats, delays and reorders."""

    operations = OPERATIONS
    limits = (80, 262_144)

    @initialize(
        data=st.data(),
        value=st.sampled_from([{}, {"n": 1, "list": [1, 2], "deep": {}}]),
    )
    def begin(self, data: st.DataObject, value: dict[str, Any]) -> None:
        self.server = ModelServer(value, limit=data.draw(st.sampled_from(self.limits)))
        self.buffer = buffer_for(self.server)
        self.foreign: list[Operation] = []
        self.parent: list[Operation] = []
        self.inbox: list[MetadataDelta] = []
        self.told = 0

    @rule(data=st.data())
    def add(self, data: st.DataObject) -> None:
        operation = data.draw(self.operations)
        before = self.buffer.current()
        version_before = self.buffer.has_unacknowledged
        try:
            self.buffer.add(RUN, operation)
        except MetadataError:
            assert json_equal(self.buffer.current(), before)
            assert self.buffer.has_unacknowledged == version_before

    @rule(data=st.data())
    def add_all(self, data: st.DataObject) -> None:
        operations = data.draw(st.lists(self.operations, max_size=3))
        before = self.buffer.current()
        try:
            self.buffer.add_all(RUN, operations)
        except MetadataError:
            assert json_equal(self.buffer.current(), before)

    @rule(operation=OPERATIONS)
    def add_to_parent(self, operation: Operation) -> None:
        self.buffer.add(PARENT, operation)
        self.parent.append(operation)

    @rule(data=st.data())
    def others_write(self, data: st.DataObject) -> None:
        self.server.write([data.draw(self.operations)])

    @rule(anyway=st.booleans())
    def take_batch(self, anyway: bool) -> None:
        first = self.buffer.next_batch(anyway=anyway)
        again = self.buffer.next_batch()
        assert first is again, "a batch that is not acknowledged is offered again unchanged"

    @rule()
    def lose_request(self) -> None:
        batch = self.buffer.next_batch()
        if batch is not None:
            self.buffer.failed(batch.sequence)

    @rule()
    def lose_reply(self) -> None:
        batch = self.buffer.next_batch()
        if batch is not None:
            self.server.receive(batch)
            self.buffer.failed(batch.sequence)

    @rule(repeats=st.integers(1, 2), with_delta=st.sampled_from(["delta", "delta", "none", "snapshot"]))
    def exchange(self, repeats: int, with_delta: str) -> None:
        batch = self.buffer.next_batch()
        if batch is None:
            return
        since = self.buffer.version
        for _ in range(repeats):
            refused = self.server.receive(batch)
        delta = {"delta": self.server.delta(since), "none": None, "snapshot": self.server.snapshot()}[
            with_delta
        ]
        for _ in range(repeats):
            self.buffer.acknowledged(batch.sequence, refused=refused, delta=delta)

    @rule()
    def announce(self) -> None:
        """The server puts what is new into the inbox; it may arrive much later."""
        delta = self.server.delta(self.told)
        if delta is not None:
            self.inbox.append(delta)
            self.told = self.server.document.version

    @rule(data=st.data())
    def announce_overlapping(self, data: st.DataObject) -> None:
        since = data.draw(st.integers(0, self.server.document.version))
        until = data.draw(st.integers(since, self.server.document.version))
        delta = self.server.delta(since, until)
        if delta is not None:
            self.inbox.append(delta)

    @rule(data=st.data())
    def announce_snapshot(self, data: st.DataObject) -> None:
        self.inbox.append(self.server.snapshot(data.draw(st.integers(0, self.server.document.version))))

    @precondition(lambda self: self.inbox)
    @rule(data=st.data(), keep=st.booleans())
    def read_inbox(self, data: st.DataObject, keep: bool) -> None:
        place = data.draw(st.integers(0, len(self.inbox) - 1))
        self.buffer.apply_delta(self.inbox[place] if keep else self.inbox.pop(place))

    @rule()
    def refresh(self) -> None:
        """What `metadata.refresh()` does."""
        holds_until = self.buffer.acknowledged_sequence
        newest = self.server.snapshot()
        assert newest.metadata is not None
        self.buffer.adopt(newest.metadata, newest.version, holds_until=holds_until)

    @rule()
    def empty_report(self) -> None:
        if self.buffer.next_batch() is None:
            self.buffer.acknowledged(0, delta=self.server.delta(self.buffer.version))
            assert not self.buffer.needs_refresh

    @invariant()
    def document_fits(self) -> None:
        assert self.buffer.version <= self.server.document.version

    def teardown(self) -> None:
        if not hasattr(self, "buffer"):
            return
        mark = self.buffer.mark()
        deliver(self.buffer, self.server)
        assert self.buffer.reached(mark)
        self.buffer.acknowledged(0, delta=self.server.delta(self.buffer.version))
        assert not self.buffer.has_unacknowledged
        assert self.buffer.version == self.server.document.version
        assert json_equal(self.buffer.current(), self.server.document.value)
        assert effect_of(self.server.others.get(PARENT, [])) == effect_of(self.parent)


class OwnWritesMachine(BufferMachine):
    """Nobody else touches two of the keys, so what was written to them is what is read, at every moment (M42)."""

    operations = WITHOUT_UPDATE
    limits = (262_144,)

    @initialize()
    def begin_own(self) -> None:
        self.mine: Any = None
        self.count = 0

    @rule(value=st.integers())
    def write_mine(self, value: int) -> None:
        self.buffer.add(RUN, Set("mine", value))
        self.mine = value

    @rule(by=st.integers(1, 9))
    def count_mine(self, by: int) -> None:
        self.buffer.add(RUN, Increment("count", by))
        self.count += by

    @invariant()
    def nothing_goes_backwards(self) -> None:
        if hasattr(self, "mine"):
            assert self.buffer.get("mine") == self.mine
            assert self.buffer.get("count", 0) == self.count


SETTINGS = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestBuffer = BufferMachine.TestCase
TestBuffer.settings = SETTINGS
TestOwnWrites = OwnWritesMachine.TestCase
TestOwnWrites.settings = SETTINGS


# --- the faults of section 14, one by one -----------------------------------------------------------------


def test_a_failed_flush_keeps_its_operations_fault_1() -> None:
    server = ModelServer()
    buffer = buffer_for(server)
    buffer.add(RUN, Increment("n", 1))
    batch = buffer.next_batch()
    assert batch is not None
    buffer.failed(batch.sequence)
    buffer.add(RUN, Increment("n", 10))
    assert buffer.next_batch() is batch
    assert buffer.get("n") == 11
    deliver(buffer, server)
    assert server.document.value == {"n": 11}


def test_a_flush_during_a_flush_waits_for_both_fault_2() -> None:
    buffer = buffer_for(ModelServer())
    buffer.add(RUN, Set("a", 1))
    first_mark = buffer.mark()
    first = buffer.next_batch()
    buffer.add(RUN, Set("b", 2))
    second_mark = buffer.mark()
    assert first is not None
    buffer.acknowledged(first.sequence)
    assert buffer.reached(first_mark)
    assert not buffer.reached(second_mark)
    second = buffer.next_batch()
    assert second is not None
    buffer.acknowledged(second.sequence)
    assert buffer.reached(second_mark)


def test_a_reply_hides_no_newer_writes_and_equal_sets_still_travel_fault_3() -> None:
    server = ModelServer()
    buffer = buffer_for(server)
    buffer.add(RUN, Set("a", 1))
    batch = buffer.next_batch()
    assert batch is not None
    buffer.add(RUN, Set("a", 2))
    refused = server.receive(batch)
    buffer.acknowledged(batch.sequence, refused=refused, delta=server.delta(0))
    assert buffer.get("a") == 2
    server.write([Set("a", 9)])
    # The local copy is stale and holds 2 already; the call counts nevertheless (M26).
    buffer.add(RUN, Set("a", 2))
    deliver(buffer, server)
    assert server.document.value == {"a": 2}


def test_the_order_of_the_calls_is_kept_fault_5() -> None:
    server = ModelServer()
    buffer = buffer_for(server)
    for operation in (Set("n", 0), Increment("n", 1), Increment("n", 1), Set("k", 1), Delete("k")):
        buffer.add(RUN, operation)
    deliver(buffer, server)
    assert server.document.value == {"n": 2}


def test_a_repeat_after_a_lost_reply_changes_nothing_fault_9() -> None:
    server = ModelServer()
    buffer = buffer_for(server)
    buffer.add(RUN, Increment("n", 1))
    buffer.add(RUN, Append("log", "x"))
    for _ in range(3):
        batch = buffer.next_batch()
        assert batch is not None
        server.receive(batch)
        buffer.failed(batch.sequence)
    deliver(buffer, server)
    assert server.document.value == {"n": 1, "log": ["x"]}
    assert buffer.current() == {"n": 1, "log": ["x"]}


# --- details ----------------------------------------------------------------------------------------------


def test_add_tells_when_there_was_nothing_to_send() -> None:
    buffer = buffer_for(ModelServer())
    assert buffer.add(RUN, Set("a", 1))
    assert not buffer.add(RUN, Set("a", 2))
    assert not buffer.add(PARENT, Set("a", 2))
    buffer.next_batch()
    assert buffer.add(PARENT, Set("a", 3))
    assert not buffer.add_all(PARENT, [])


def test_a_million_calls_travel_as_one_operation_M30_M36() -> None:
    buffer = buffer_for(ModelServer())
    for index in range(10_000):
        buffer.add(RUN, Increment("n", 1))
        buffer.add(RUN, Set("last", index))
    batch = buffer.next_batch()
    assert batch is not None
    assert batch.changes[0].operations == [Increment("n", 10_000), Set("last", 9999)]


def test_a_refused_operation_raises_and_queues_nothing_M85() -> None:
    server = ModelServer({"n": "text"}, limit=100)
    buffer = buffer_for(server)
    with pytest.raises(MetadataTypeError):
        buffer.add(RUN, Increment("n", 1))
    with pytest.raises(MetadataError):
        buffer.add(RUN, Set("big", "x" * 100))
    with pytest.raises(MetadataError):
        buffer.add_all(RUN, [Set("a", 1), Increment("n", 1)])
    assert buffer.next_batch() is None
    assert buffer.current() == {"n": "text"}


def test_remove_from_what_is_no_array_is_reported_not_raised_M22() -> None:
    server = ModelServer({"n": 1})
    buffer = buffer_for(server)
    buffer.add(RUN, Remove("n", 1))
    buffer.add(RUN, Set("a", 1))
    deliver(buffer, server)
    [refused] = buffer.take_refused()
    assert (refused.run_id, refused.code) == (RUN, MetadataTypeError.code)
    assert buffer.take_refused() == []
    assert server.document.value == {"n": 1, "a": 1}


def test_many_refusals_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffer_module, "REFUSED_MAX", 2)
    server = ModelServer({"n": 1})
    buffer = buffer_for(server)
    for index in range(5):
        buffer.add(RUN, Remove("n", index))
    deliver(buffer, server)
    refused = buffer.take_refused()
    assert len(refused) == 3
    assert "3 more" in refused[-1].message


def test_too_much_for_one_batch_travels_in_several_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portions, "BYTES_MAX", 1000)
    server = ModelServer()
    buffer = buffer_for(server)
    expected = [f"{index:0300}" for index in range(10)]
    for text in expected:
        buffer.add(PARENT, Append("log", text))
        buffer.add(RUN, Append("log", text))
    mark = buffer.mark()
    batches = 0
    while (batch := buffer.next_batch()) is not None:
        assert not buffer.reached(mark)
        buffer.add(RUN, Set("late", batches))
        batches += 1
        buffer.acknowledged(batch.sequence, refused=server.receive(batch), delta=server.delta(buffer.version))
        if buffer.reached(mark):
            break
    assert batches > 3
    assert effect_of(server.others[PARENT]) == {"log": expected}
    assert server.document.value["log"] == expected


def test_a_batch_has_no_more_operations_than_the_server_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portions, "OPERATIONS_MAX", 3)
    server = ModelServer()
    buffer = buffer_for(server)
    for index in range(8):
        buffer.add(PARENT if index % 2 else RUN, Append("log", index))
    sizes: list[int] = []
    while (batch := buffer.next_batch()) is not None:
        sizes.append(sum(len(change.operations) for change in batch.changes))
        buffer.acknowledged(batch.sequence, refused=server.receive(batch), delta=server.delta(buffer.version))
    assert sizes == [3, 3, 2]
    assert server.document.value["log"] == [0, 2, 4, 6]
    assert effect_of(server.others[PARENT]) == {"log": [1, 3, 5, 7]}


# --- a server that stays away ----------------------------------------------------------------------------


def test_a_full_backlog_takes_only_what_can_be_merged_and_tells_the_rest() -> None:
    """M44, M36: nothing is dropped silently, nothing is raised, and memory is bounded."""
    buffer = Buffer(RUN, 1, Document(), backlog_bytes_max=4000)
    for index in range(1000):
        buffer.add(PARENT, Append("log", f"row {index:0100}"))
        buffer.add(PARENT, Increment("done", 1))
        buffer.add(RUN, Set("progress", index))
    batch = buffer.next_batch()
    assert batch is not None
    [parent, own] = batch.changes
    taken = [operation for operation in parent.operations if isinstance(operation, Append)]
    assert [operation.value for operation in taken] == [f"row {index:0100}" for index in range(len(taken))]
    assert 10 < len(taken) < 100
    # An increment is merged with the one before it, and a set takes the place of the one before, so they go on.
    assert Increment("done", 1000) in parent.operations
    assert own.operations == [Set("progress", 999)]
    [remark] = buffer.take_remarks()
    assert remark.startswith(f"{1000 - len(taken)} metadata operations were refused: ")
    assert "4,000 bytes" in remark
    assert buffer.take_remarks() == []
    refused = buffer.take_refused()
    assert len(refused) == 1000 - len(taken)
    assert {(change.run_id, change.code) for change in refused} == {(PARENT, "metadata_backlog_full")}
    assert refused[0].operation == {"type": "append", "key": "log", "value": f"row {len(taken):0100}"}


def test_what_a_full_backlog_refuses_is_not_in_the_view_either() -> None:
    buffer = Buffer(RUN, 1, Document(), backlog_bytes_max=2000)
    for index in range(100):
        buffer.add(RUN, Append("log", f"{index:050}"))
    shown = buffer.current()["log"]
    assert 1 <= len(shown) == 100 - len(buffer.take_refused()) < 100
    assert not buffer.add_all(RUN, [Set("a", 1), Set("b", 2)])
    assert len(buffer.take_refused()) == 2
    assert not buffer.contains("a")


UNCLE = "run_uncle"


@pytest.mark.parametrize("full", [RUN, PARENT])
@pytest.mark.parametrize("taken", ["before a batch", "while a batch is in flight", "while the rest waits"])
def test_a_full_backlog_of_one_document_refuses_nothing_of_another(
    full: str, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M44: what one document's server, limit or volume holds up is no reason to lose updates of another one."""
    monkeypatch.setattr(portions, "BYTES_MAX", 1000 if taken == "while the rest waits" else 10**9)
    buffer = Buffer(RUN, 1, Document(), backlog_bytes_max=4000)
    for index in range(200):
        buffer.add(full, Append("log", f"row {index:0100}"))
    others = [run_id for run_id in (RUN, PARENT, UNCLE) if run_id != full]
    for run_id in others:
        buffer.add(run_id, Append("first", 1))
    buffer.take_refused()
    if taken != "before a batch":
        assert buffer.next_batch() is not None
    for run_id in others:
        buffer.add(run_id, Append("log", "x" * 50))
        buffer.add_all(run_id, [Append("log", "y" * 50), Append("log", "z" * 50)])
    assert buffer.take_refused() == []
    if taken == "while the rest waits":
        # Most of it has not left, so there is no room for more of the same document.
        buffer.add(full, Append("log", "late"))
        buffer.add(full, Append("log", "later"))
        assert {change.run_id for change in buffer.take_refused()} == {full}


def test_the_number_of_documents_that_wait_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffer_module, "DOCUMENTS_MAX", 3)
    buffer = Buffer(RUN, 1, Document())
    for index in range(5):
        buffer.add(f"run_{index}", Set("a", 1))
        buffer.add(f"run_{index}", Set("b", 1))
    buffer.add(RUN, Set("own", 1))
    assert [change.run_id for change in buffer.take_refused()] == ["run_3", "run_3", "run_4", "run_4"]
    [remark] = buffer.take_remarks()
    assert "4 metadata operations" in remark
    assert "3 documents" in remark
    buffer.next_batch()
    buffer.add("run_4", Set("a", 1))
    assert buffer.take_refused() == []


def test_after_the_backlog_has_left_everything_is_taken_again() -> None:
    server = ModelServer()
    buffer = Buffer(RUN, 1, Document(), backlog_bytes_max=2000)
    for index in range(100):
        buffer.add(RUN, Append("log", f"{index:050}"))
    kept = len(buffer.current()["log"])
    deliver(buffer, server)
    buffer.add(RUN, Append("log", "again"))
    deliver(buffer, server)
    assert len(server.document.value["log"]) == kept + 1
    assert buffer.current() == server.document.value


def test_only_the_last_batch_may_carry_the_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portions, "BYTES_MAX", 10)
    buffer = buffer_for(ModelServer())
    buffer.add(RUN, Append("log", "one"))
    buffer.add(RUN, Append("log", "two"))
    first = buffer.next_batch()
    assert first is not None
    assert not first.is_last
    buffer.acknowledged(first.sequence)
    last = buffer.next_batch()
    assert last is not None
    assert last.is_last
    buffer.acknowledged(last.sequence)
    empty = buffer.next_batch(anyway=True)
    assert empty is not None
    assert (empty.sequence, empty.changes, empty.is_last) == (3, [], True)


def test_a_reply_without_the_step_keeps_own_writes_until_it_comes() -> None:
    """A server that answers a repeat may have no delta at hand."""
    server = ModelServer()
    buffer = buffer_for(server)
    buffer.add(RUN, Increment("n", 5))
    batch = buffer.next_batch()
    assert batch is not None
    server.receive(batch)
    buffer.acknowledged(batch.sequence)
    assert buffer.get("n") == 5
    assert buffer.needs_refresh
    server.write([Increment("n", 1)])
    buffer.acknowledged(0, delta=server.delta(buffer.version))
    assert buffer.get("n") == 6
    assert not buffer.needs_refresh


def test_a_step_that_leads_past_a_known_version_asks_for_a_refresh() -> None:
    """Steps of others are merged on the way, and two channels may merge them differently."""
    server = ModelServer()
    buffer = buffer_for(server)
    for index in range(4):
        server.write([Append("log", index)])
    buffer.apply_delta(server.delta(0, 2) or pytest.fail("no delta"))
    overlapping = MetadataDelta(
        RUN, 1, 4, changes=[MetadataChange(4, [Append("log", index) for index in range(1, 4)])]
    )
    buffer.apply_delta(overlapping)
    assert buffer.current() == {"log": [0, 1]}
    assert buffer.needs_refresh
    buffer.acknowledged(0, delta=server.delta(buffer.version))
    assert buffer.current() == {"log": [0, 1, 2, 3]}
    assert not buffer.needs_refresh


def test_an_own_step_of_another_attempt_is_not_taken_for_ours() -> None:
    buffer = buffer_for(ModelServer())
    buffer.add(RUN, Set("a", 1))
    buffer.next_batch()
    buffer.apply_delta(
        MetadataDelta(RUN, 0, 1, changes=[MetadataChange(1, [], attempt=ATTEMPT - 1, sequence=1)])
    )
    assert buffer.needs_refresh
    assert buffer.version == 0


def test_the_server_may_raise_its_limit_while_the_attempt_runs() -> None:
    server = ModelServer(limit=50)
    buffer = buffer_for(server)
    server.document.limit = 1000
    server.write([Set("big", "x" * 100)])
    buffer.apply_delta(server.delta(0) or pytest.fail("no delta"))
    assert buffer.get("big") == "x" * 100


def test_a_gap_that_grows_without_end_takes_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffer_module, "STASH_MAX", 3)
    server = ModelServer()
    buffer = buffer_for(server)
    for index in range(20):
        server.write([Append("log", index)])
        if index:
            buffer.apply_delta(server.delta(index, index + 1) or pytest.fail("no delta"))
    assert buffer.needs_refresh
    buffer.acknowledged(0, delta=server.delta(buffer.version))
    assert buffer.current() == {"log": list(range(20))}
