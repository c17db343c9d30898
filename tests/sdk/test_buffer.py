"""The buffer against a sequential model: whatever is lost, repeated, delayed or written by others, nothing is lost or doubled."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from milepost.errors import MetadataError
from milepost.model.document import Document
from milepost.model.jsonvalue import json_equal
from milepost.model.operations import Append, Delete, Increment, Operation, Remove, Set, Update, collapse
from milepost.protocol.metadata import MetadataChange, MetadataDelta, Refused
from milepost.sdk.buffer import Batch, Buffer

RUN, ATTEMPT, PARENT = "run_self", 3, "run_parent"


@dataclass
class Step:
    """One committed change of the model server."""

    version: int
    operations: list[Operation]
    sequence: int | None = None
    refused: list[int] = field(default_factory=list)


class ModelServer:
    """The truth: a document, its log, and what each batch was answered with."""

    def __init__(self, value: dict[str, Any] | None = None, *, limit: int = 262_144) -> None:
        self.document = Document(value, limit=limit)
        self.start = copy.deepcopy(self.document.value)
        self.steps: list[Step] = []
        self.others: dict[str, list[Operation]] = {}
        self.answers: dict[int, list[Refused]] = {}

    def write(self, operations: list[Operation], sequence: int | None = None) -> list[Refused]:
        refused: list[Refused] = []
        applied: list[Operation] = []
        for index, operation in enumerate(operations):
            try:
                self.document.apply(operation)
            except MetadataError as error:
                refused.append(Refused(RUN, index, error.code, error.message))
            else:
                applied.append(operation)
        if applied:
            self.document.version += 1
            indexes = [item.index for item in refused]
            self.steps.append(Step(self.document.version, applied, sequence, indexes))
        return refused

    def receive(self, batch: Batch) -> list[Refused]:
        if batch.sequence not in self.answers:
            assert batch.sequence == len(self.answers) + 1, "a batch was left out"
            refused: list[Refused] = []
            for target in batch.changes:
                if target.run == RUN:
                    refused += self.write(target.operations, batch.sequence)
                else:
                    self.others.setdefault(target.run, []).extend(target.operations)
            self.answers[batch.sequence] = refused
        return self.answers[batch.sequence]

    def delta(self, since: int, until: int | None = None) -> MetadataDelta | None:
        until = self.document.version if until is None else until
        if since >= until:
            return None
        changes: list[MetadataChange] = []
        foreign: list[Operation] = []
        version = since
        for step in self.steps[since:until]:
            if step.sequence is not None:
                if foreign:
                    changes.append(MetadataChange(version, collapse(foreign)))
                    foreign = []
                changes.append(
                    MetadataChange(step.version, [], attempt=ATTEMPT, sequence=step.sequence, refused=step.refused)
                )
            else:
                foreign += step.operations
                version = step.version
        if foreign:
            changes.append(MetadataChange(version, collapse(foreign)))
        return MetadataDelta(RUN, since, until, changes=changes)

    def snapshot(self, version: int | None = None) -> MetadataDelta:
        document = Document(self.start)
        for step in self.steps[: self.document.version if version is None else version]:
            document.apply_all(step.operations)
            document.version = step.version
        return MetadataDelta(
            RUN, -1, document.version, metadata=copy.deepcopy(document.value), counted=sorted(document.counted)
        )


def buffer_for(server: ModelServer) -> Buffer:
    document = Document(server.document.value, version=server.document.version, limit=server.document.limit)
    return Buffer(RUN, ATTEMPT, document)


def deliver(buffer: Buffer, server: ModelServer) -> None:
    """Send everything, as a link without trouble would."""
    while (batch := buffer.next_batch()) is not None:
        since = buffer.version
        refused = server.receive(batch)
        buffer.acknowledged(batch.sequence, refused=refused, delta=server.delta(since))


NAMES = ["a", "b", "n", "list", "$.deep.x", "$.deep.y[0]", "$.list[-1]", "$.n.z"]
VALUES = st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.sampled_from(["", "text", "é"]), st.lists(st.integers(0, 3), max_size=3))
OPERATIONS = st.one_of(
    st.builds(Set, st.sampled_from(NAMES), VALUES),
    st.builds(Delete, st.sampled_from(NAMES)),
    st.builds(Append, st.sampled_from(NAMES), VALUES, st.sampled_from([None, None, 1, 2])),
    st.builds(Remove, st.sampled_from(NAMES), VALUES),
    st.builds(Increment, st.sampled_from(NAMES), st.integers(-9, 9), st.sampled_from([None, None, "once-1", "once-2"])),
    st.builds(Update, st.dictionaries(st.sampled_from(["a", "b", "n", "list"]), VALUES, max_size=2)),
)


class BufferMachine(RuleBasedStateMachine):
    """Random interleavings of the user, the link, others, and a network that loses, repeats, delays and reorders."""

    @initialize(limit=st.sampled_from([80, 262_144]), value=st.sampled_from([{}, {"n": 1, "list": [1, 2], "deep": {}}]))
    def begin(self, limit: int, value: dict[str, Any]) -> None:
        self.server = ModelServer(value, limit=limit)
        self.buffer = buffer_for(self.server)
        self.foreign: list[Operation] = []
        self.parent: list[Operation] = []
        self.inbox: list[MetadataDelta] = []
        self.told = 0

    @rule(operation=OPERATIONS)
    def add(self, operation: Operation) -> None:
        before = self.buffer.current()
        version_before = self.buffer.has_unacknowledged
        try:
            self.buffer.add(RUN, operation)
        except MetadataError:
            assert json_equal(self.buffer.current(), before)
            assert self.buffer.has_unacknowledged == version_before

    @rule(operations=st.lists(OPERATIONS, max_size=3))
    def add_all(self, operations: list[Operation]) -> None:
        before = self.buffer.current()
        try:
            self.buffer.add_all(RUN, operations)
        except MetadataError:
            assert json_equal(self.buffer.current(), before)

    @rule(operation=OPERATIONS)
    def add_to_parent(self, operation: Operation) -> None:
        self.buffer.add(PARENT, operation)
        self.parent.append(operation)

    @rule(operation=OPERATIONS)
    def others_write(self, operation: Operation) -> None:
        self.server.write([operation])

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
        delta = {"delta": self.server.delta(since), "none": None, "snapshot": self.server.snapshot()}[with_delta]
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
        assert Document_like(self.server.others.get(PARENT, [])) == Document_like(self.parent)


def Document_like(operations: list[Operation]) -> Any:
    """What operations make of an empty document, refusals aside."""
    document = Document(limit=10**9)
    for operation in operations:
        try:
            document.apply(operation)
        except MetadataError:
            continue
    return document.value


TestBuffer = BufferMachine.TestCase
TestBuffer.settings = settings(
    max_examples=300, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


class OwnWritesMachine(BufferMachine):
    """Nobody else touches two of the keys, so what was written to them is what is read, at every moment (M42)."""

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


class _WithoutUpdate(OwnWritesMachine):
    pass


TestBuffer = BufferMachine.TestCase
TestBuffer.settings = settings(
    max_examples=300, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
