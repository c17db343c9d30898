"""A server as a sequential model: a document, its log, and the answer that each batch was given. No I/O."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

from milepost.errors import MetadataError
from milepost.model.counted import id_of, pack
from milepost.model.document import Document
from milepost.model.operations import Operation, collapse
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
        left_out: list[int] = []
        for index, operation in enumerate(operations):
            try:
                if self._was_counted(operation):
                    left_out.append(index)
                    continue
                self.document.apply(operation)
            except MetadataError as error:
                refused.append(Refused(RUN, index, error.code, error.message))
            else:
                applied.append(operation)
        if applied or left_out:
            self.document.version += 1
            indexes = sorted([*left_out, *(item.index for item in refused)])
            self.steps.append(Step(self.document.version, applied, sequence, indexes))
        return refused

    def _was_counted(self, operation: Operation) -> bool:
        once = getattr(operation, "once", None)
        assert self.document.counted is not None
        return once is not None and id_of(getattr(operation, "key", ""), once) in self.document.counted

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
                    MetadataChange(
                        step.version, [], attempt=ATTEMPT, sequence=step.sequence, refused=step.refused
                    )
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
            RUN,
            -1,
            document.version,
            metadata=copy.deepcopy(document.value),
            counted=pack(document.counted or ()),
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


def effect_of(operations: list[Operation]) -> Any:
    """What operations make of an empty document, refusals aside."""
    document = Document(limit=10**9)
    for operation in operations:
        try:
            document.apply(operation)
        except MetadataError:
            continue
    return document.value
