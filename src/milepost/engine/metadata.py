"""Deciding on writes to documents: which run a relation means, whether it still accepts writes, what is refused and why."""

import zlib
from collections.abc import Sequence
from typing import Any

import msgspec

from milepost.engine import logs
from milepost.engine.commands import UpdateMetadata
from milepost.engine.documents import Writer
from milepost.engine.state import EngineState
from milepost.engine.transaction import Transaction
from milepost.errors import (
    ConflictError,
    ForbiddenError,
    MetadataError,
    RunFinishedError,
    RunNotFoundError,
    VersionConflictError,
)
from milepost.model import jsonvalue
from milepost.model.document import Document
from milepost.model.jsonvalue import check_json
from milepost.model.operations import Operation, Refusal, Update
from milepost.model.typed import check_document
from milepost.protocol.endpoints import REQUEST_ID_HEADER
from milepost.protocol.metadata import ChangeWriter, Refused
from milepost.protocol.work import RunReport, TargetOperations
from milepost.store.runs import RunRow

# Refused operations of one report that get a line of their own in the run's log; the rest is counted.
REFUSED_LINES_MAX = 100


class _Answered(msgspec.Struct, frozen=True, gc=False):
    """What is kept for a repeat: which request it was, and what was refused of it."""

    checksum: int
    refused: list[Refused]


_ANSWERED = msgspec.json.Decoder(_Answered)


class MetadataUpdated(msgspec.Struct, frozen=True):
    """The run's own document after an update, its version, and what was refused."""

    value: bytes
    version: int
    refused: list[Refused]


def update_metadata(command: UpdateMetadata, transaction: Transaction, state: EngineState) -> MetadataUpdated:
    """Apply what an outside caller sends to a run, its parent and its root; operations are refused one by one (M29).

    A caller that is part of a run writes as that run: to it and to its ancestors only, and its log says what was refused.
    """
    row = transaction.run(command.run_id)
    if row is None:
        raise RunNotFoundError(f"there is no run {command.run_id!r}")
    writing, writer = row, Writer()
    if command.attempt is not None:
        # `fencing.check` has seen that there is such a run.
        writing = transaction.run(command.attempt.run) or row
        writer = Writer(command.attempt.run, command.attempt.number)
    earlier = transaction.earlier_answer(command.request_id)
    if earlier is not None:
        answered = _ANSWERED.decode(earlier)
        if answered.checksum != _checksum(command):
            raise ConflictError(
                "this request id was used for other operations on the same run: each request needs an id of its own",
                field=REQUEST_ID_HEADER,
            )
        return _updated(row, answered.refused, transaction)
    if not _accepts_writes(row, transaction, state):
        raise RunFinishedError(_finished_message(row, state))
    if command.if_version is not None:
        version = transaction.document(row).document.version
        if version != command.if_version:
            raise VersionConflictError(
                f"the metadata of run {row.id!r} is at version {version}, not at {command.if_version}: read it again and decide anew",
                version=version,
                field="ifVersion",
            )
    refused: list[Refused] = []
    if command.document is not None:
        if not is_ancestor(row.id, writing, transaction):
            raise ForbiddenError(not_an_ancestor(row.id, writing))
        # A whole document is accepted or refused as one: what is wrong with it is the request's error.
        Document.from_json(command.document, limit=state.settings.metadata_size_max)
        declared = transaction.catalog.declared_of(row.task)
        if declared is not None:
            check_document(command.document, declared, f"the metadata of task {row.task!r}")
        write(TargetOperations(row.id, [Update(command.document)]), writing, writer, transaction, state)
    related = {"self": row.id, "parent": row.parent_id or row.id, "root": row.root_id}
    for relation, raw in command.targets:
        operations, bad = _decode(related[relation], raw)
        target = TargetOperations(related[relation], [operation for _, operation in operations])
        written = write(target, writing, writer, transaction, state)
        bad += [_at(refusal, operations[refusal.index][0], raw) for refusal in written]
        refused += sorted(bad, key=lambda refusal: refusal.index)
    if command.attempt is not None:
        logs.tell(writing.id, command.attempt.number, "warning", refused_lines(refused), transaction, state)
    if command.request_id is not None:
        answered = _Answered(_checksum(command), refused)
        transaction.keep_answer(command.request_id, msgspec.json.encode(answered))
    return _updated(row, refused, transaction)


def _checksum(command: UpdateMetadata) -> int:
    """What a request says, in short: a repeat says the same."""
    said = (command.targets, command.document, command.if_version)
    if command.attempt is None:
        return zlib.crc32(msgspec.json.encode(said))
    writer = ChangeWriter(command.attempt.run, command.attempt.number)
    return zlib.crc32(msgspec.json.encode((*said, writer)))


def _updated(row: RunRow, refused: list[Refused], transaction: Transaction) -> MetadataUpdated:
    document = transaction.document(row).document
    return MetadataUpdated(jsonvalue.encode(document.value), document.version, refused)


def write_reported(
    report: RunReport, row: RunRow, transaction: Transaction, state: EngineState
) -> list[Refused]:
    """Apply what a run's attempt has written to its own document and to its ancestors'."""
    writer = Writer(row.id, report.attempt, report.sequence)
    refused: list[Refused] = []
    for target in report.changes:
        refused += write(target, row, writer, transaction, state)
    return refused


def write(
    target: TargetOperations, writing: RunRow, writer: Writer, transaction: Transaction, state: EngineState
) -> list[Refused]:
    """Apply operations to one document as one version. The target must be the run itself or one of its ancestors."""
    if not target.operations:
        return []
    row = transaction.run(target.run) if is_ancestor(target.run, writing, transaction) else None
    if row is None:
        return _refuse_all(target, "not_an_ancestor", not_an_ancestor(target.run, writing))
    if not _accepts_writes(row, transaction, state):
        return _refuse_all(target, RunFinishedError.code, _finished_message(row, state))
    refusals = transaction.write_document(
        row, target.operations, writer, transaction.catalog.declared_of(row.task)
    )
    return [_refused(target, refusal) for refusal in refusals]


def refused_lines(refused: Sequence[Refused]) -> list[str]:
    """What the log of the writing run says of refused operations (M29, M85), in the transaction that refused them: also of the last
    report."""
    lines = [
        f"an operation on the metadata of {one.run} was refused: {one.message}"
        for one in refused[:REFUSED_LINES_MAX]
    ]
    if len(refused) > REFUSED_LINES_MAX:
        lines.append(f"{len(refused) - REFUSED_LINES_MAX:,} more operations of the same report were refused")
    return lines


def not_an_ancestor(target_id: str, writing: RunRow) -> str:
    """Why a run may not write to another one."""
    return f"run {target_id!r} is neither run {writing.id!r} itself nor one of its ancestors"


def is_ancestor(target_id: str, writing: RunRow, transaction: Transaction) -> bool:
    """True when a run may write to another one: it is the same, or stands above it."""
    if target_id in (writing.id, writing.parent_id, writing.root_id):
        return True
    row: RunRow | None = writing
    while row is not None and row.parent_id is not None:
        if row.parent_id == target_id:
            return True
        row = transaction.run(row.parent_id)
    return False


def has_typed_ancestor(row: RunRow, transaction: Transaction) -> bool:
    """Whether the document of a run above has a declared type (M76)."""
    if not transaction.catalog.has_types:
        return False
    above = transaction.run(row.parent_id) if row.parent_id is not None else None
    while above is not None:
        if transaction.catalog.declared_of(above.task) is not None:
            return True
        above = transaction.run(above.parent_id) if above.parent_id is not None else None
    return False


def _accepts_writes(row: RunRow, transaction: Transaction, state: EngineState) -> bool:
    ended_at = row.ended_at
    if ended_at is None:
        return True
    # It is not younger than what it has to decide on.
    transaction.age_now = max(transaction.age_now, ended_at)
    return transaction.age_now <= ended_at + state.settings.grace_seconds * 1_000_000


def _finished_message(row: RunRow, state: EngineState) -> str:
    return (
        f"run {row.id!r} has finished, and its document accepts writes only for {state.settings.grace_seconds:g} s after "
        f"the end (MILEPOST_METADATA_GRACE_SECONDS)"
    )


def _decode(run_id: str, raw: Sequence[Any]) -> tuple[list[tuple[int, Operation]], list[Refused]]:
    operations: list[tuple[int, Operation]] = []
    bad: list[Refused] = []
    for index, item in enumerate(raw):
        try:
            operation: Operation = msgspec.convert(item, Operation)
            _check_fields(item, operation)
        except msgspec.ValidationError as error:
            bad.append(
                Refused(
                    run=run_id, index=index, code="bad_operation", message=str(error), operation=told(item)
                )
            )
        else:
            operations.append((index, operation))
    return operations, bad


def _check_fields(item: dict[str, Any], operation: Operation) -> None:
    """A field that is not known was meant to do something: `max_items` for `maxItems` would leave a list without its cap."""
    known = {"type", *operation.__struct_encode_fields__}
    for name in item:
        if name not in known:
            kind = operation.__struct_config__.tag
            raise msgspec.ValidationError(
                f"there is no field {name!r:.100} in {kind!r}; there are {', '.join(sorted(known))}"
            )


def _at(refused: Refused, index: int, raw: Sequence[Any]) -> Refused:
    return msgspec.structs.replace(refused, index=index, operation=told(raw[index]))


def _refused(target: TargetOperations, refusal: Refusal) -> Refused:
    return Refused(
        run=target.run,
        index=refusal.index,
        code=refusal.code,
        message=refusal.message,
        operation=told(target.operations[refusal.index]),
    )


def told(operation: Any) -> Any:
    """A refused operation as it is told again in the answer; nothing when it was refused for what no reader can read."""
    try:
        check_json(msgspec.to_builtins(operation))
    except (MetadataError, RecursionError):
        return None
    return operation


def _refuse_all(target: TargetOperations, code: str, message: str) -> list[Refused]:
    return [_refused(target, Refusal(index, code, message)) for index in range(len(target.operations))]
