"""The judge: reads what was committed and compares it with what the writers did and the readers saw."""

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import select

from milepost.model.document import Document
from milepost.model.operations import Append, Operation, decode_operations, encode_operations
from milepost.protocol.metadata import Refused
from milepost.protocol.work import log_line_size
from milepost.reading.reader import Reader
from milepost.store import schema
from milepost.store.database import Store
from simulation.records import Attempt, Group, Records, Sent, line_size, outcome_of
from simulation.worker import LOGGER

_exactly = msgspec.json.Encoder(order="sorted").encode
_numbers = msgspec.json.Decoder(list[int])
_refused = msgspec.json.Decoder(list[Refused])
LIMITLESS = 10**9
# As workers say it. The server says it of what it tells itself, and never of a worker that keeps to the bounds.
LEFT_OUT = re.compile(r"([\d,]+) lines \(")


@dataclass
class Row:
    """One committed step."""

    run_id: str
    version: int
    operations: list[Operation]
    writer: tuple[str, int, int] | None
    refused: list[int]


class Oracle:
    """Judges one simulation, once nothing moves any more. Raises AssertionError.

    Args:
        size_max: the limit of a document in bytes.
        is_exact: calls and batches come to the same, so the model is given the calls. Otherwise a refusal may depend on how calls were
            collapsed and divided, and the model is given what was sent.
        log_bytes_max: what the server keeps of the log of an attempt.
        lines_wait_max: how many bytes of a log may wait in a worker before lines give way.
    """

    def __init__(
        self,
        store: Store,
        records: Records,
        *,
        size_max: int,
        is_exact: bool,
        log_bytes_max: int,
        lines_wait_max: int,
    ) -> None:
        self._records = records
        self._log_bytes_max = log_bytes_max
        self._lines_wait_max = lines_wait_max
        self._is_exact = is_exact
        self._size_max = size_max
        self._reader = Reader(store)
        self._attempts: dict[tuple[str, int], list[Attempt]] = defaultdict(list)
        for attempt in records.attempts:
            self._attempts[attempt.run_id, attempt.number].append(attempt)
        self._groups = {group.token: group for groups in records.groups for group in groups}
        self._load(store)

    def _load(self, store: Store) -> None:
        with store.read() as connection:
            self._runs = {row.id: row for row in connection.execute(select(schema.runs))}
            changes = connection.execute(
                select(schema.changes).order_by(schema.changes.c.run_id, schema.changes.c.version)
            ).all()
            refusals = connection.execute(select(schema.refusals)).all()
            lines = connection.execute(select(schema.logs).order_by(schema.logs.c.number)).all()
        self._lines: dict[tuple[str, int], list[Any]] = defaultdict(list)
        for line in lines:
            self._lines[line.run_id, line.attempt].append(line)
        self._rows: dict[str, list[Row]] = defaultdict(list)
        for change in changes:
            writer = (change.writer_id, change.writer_attempt, change.writer_sequence)
            self._rows[change.run_id].append(
                Row(
                    change.run_id,
                    change.version,
                    decode_operations(change.operations),
                    None if change.writer_id is None else writer,
                    _numbers.decode(change.refused) if change.refused else [],
                )
            )
        self._refusals = {
            (row.writer_id, row.writer_attempt, row.writer_sequence): _refused.decode(row.refused)
            for row in refusals
        }

    def judge(self) -> None:
        """Everything."""
        self._judge_runs()
        # For each run, each of its states; for each batch, whose it was.
        self._states: dict[str, list[bytes]] = {}
        self._committed: dict[tuple[str, int, int], Attempt] = {}
        self._written: set[tuple[str, tuple[str, int, int]]] = set()
        self._groups_seen: dict[str, int] = {}
        for run_id in self._runs:
            self._judge_log(run_id)
        self._judge_refusals()
        for attempt in self._records.attempts:
            self._judge_attempt(attempt)
        for groups in self._records.groups:
            self._judge_groups(groups)
        self._judge_readers()
        for (run_id, number), lines in self._lines.items():
            self._judge_lines(run_id, number, lines)
        for attempt in self._records.attempts:
            if attempt.lines and (attempt.run_id, attempt.number) not in self._lines:
                self._judge_lines(attempt.run_id, attempt.number, [])

    # --- runs --------------------------------------------------------------------------------------------------

    def _judge_runs(self) -> None:
        missing = set(self._records.run_ids) - self._runs.keys()
        assert not missing, f"{missing} were triggered and are missing"
        for row in self._runs.values():
            assert row.finished_at is not None, f"{row.id} has not ended"

    # --- the log -----------------------------------------------------------------------------------------------

    def _judge_log(self, run_id: str) -> None:
        """The log has no gap and nothing twice, leads to the document that is served, and is what the sequential model says."""
        start = self._runs[run_id].trigger_metadata or b"{}"
        folded = Document.load(start, limit=LIMITLESS)
        model = Document.load(start, limit=LIMITLESS if self._is_exact else self._size_max)
        states = self._states[run_id] = [_exactly(folded.value)]
        last: dict[tuple[str, int], int] = {}
        for place, row in enumerate(self._rows[run_id], 1):
            assert row.version == place, f"{run_id} has version {row.version} in place of {place}"
            folded.apply_all(row.operations)
            if row.writer is not None:
                writer = row.writer[:2]
                assert row.writer[2] > last.get(writer, 0), f"{row.writer} is in {run_id} twice, or late"
                last[writer] = row.writer[2]
                self._written.add((run_id, row.writer))
                sent = self._sent(row)
                calls = sent.operations if sent.calls is None or not self._is_exact else sent.calls
                self._model(model, calls[run_id], row)
            else:
                self._model_group(model, row)
            states.append(_exactly(folded.value))
            assert _exactly(model.value) == states[-1], (
                f"{run_id} at version {row.version}, written by {row.writer}:\n  is        {states[-1]!r}\n"
                f"  should be {_exactly(model.value)!r}"
            )
        value, version = self._reader.metadata(run_id)
        assert version == len(states) - 1, f"{run_id} is served at version {version} of {len(states) - 1}"
        assert _exactly(msgspec.json.decode(value)) == states[-1], f"{run_id} is served as {value!r}"

    def _sent(self, row: Row) -> Sent:
        """The batch that this step is; there must be one that says the same."""
        assert row.writer is not None
        run_id, number, sequence = row.writer
        logged = encode_operations(row.operations)
        for attempt in self._attempts[run_id, number]:
            sent = attempt.sent.get(sequence)
            operations = sent.operations.get(row.run_id) if sent else None
            if sent is None or operations is None:
                continue
            applied = [item for index, item in enumerate(operations) if index not in row.refused]
            if encode_operations(applied) == logged:
                other = self._committed.setdefault(row.writer, attempt)
                assert other is attempt, f"{row.writer} is of {other} and of {attempt}"
                return sent
        raise AssertionError(f"nobody sent what {row.writer} is said to have written: {row.operations}")

    def _model(self, model: Document, operations: list[Operation], row: Row) -> None:
        for operation in operations:
            outcome_of(operation, model)
        model.version = row.version

    def _model_group(self, model: Document, row: Row) -> None:
        tokens = [
            operation.value
            for operation in row.operations
            if isinstance(operation, Append) and operation.key == "out"
        ]
        groups: list[Group] = []
        for token in tokens:
            group = self._groups[str(token)]
            assert group.token not in self._groups_seen, f"{token} was committed twice"
            self._groups_seen[group.token] = row.version
            groups.append(group)
        if not self._is_exact:
            self._model(model, row.operations, row)
            return
        assert groups, f"nobody wrote version {row.version} of {row.run_id}: {row.operations}"
        for group in groups:
            refused = [outcome_of(operation, model) for operation in group.operations]
            if any(refused) and group.fate == "acknowledged":
                assert group.has_refused, f"{group.token} was not told of {refused}"

    # --- writers -----------------------------------------------------------------------------------------------

    def _judge_refusals(self) -> None:
        """What was refused of a batch was told to who sent it, unless it was too late to tell."""
        for key, stored in self._refusals.items():
            attempt = self._committed.get(key)
            told = None if attempt is None else attempt.refused.get(key[2])
            if told is not None:
                assert [(item.run, item.index, item.code) for item in told] == [
                    (item.run, item.index, item.code) for item in stored
                ], f"{key} was told {told} instead of {stored}"

    def _is_committed(self, attempt: Attempt, target: str, sequence: int) -> bool:
        """The batch is in the log of that run, or every operation of it for that run was refused."""
        key = (attempt.run_id, attempt.number, sequence)
        if (target, key) in self._written:
            return self._committed[key] is attempt
        refused = {item.index for item in self._refusals.get(key, ()) if item.run == target}
        return refused == set(range(len(attempt.sent[sequence].operations[target])))

    def _judge_attempt(self, attempt: Attempt) -> None:
        run = self._runs[attempt.run_id]
        # The outcome is the last word of its attempt, and all others came before it (M38).
        has_ended = attempt.label and attempt.label == said_by(run.output, run.error)
        counts = len(attempt.calls) if has_ended else attempt.acknowledged
        missing_from: int | None = None
        for index, (target, operation) in enumerate(attempt.calls):
            sequences = attempt.batches[index] if index < len(attempt.batches) else None
            if sequences is None:
                committed = False
            else:
                carried = [number for number in sequences if target in attempt.sent[number].operations]
                committed = all(self._is_committed(attempt, target, number) for number in carried)
            if index < counts:
                assert committed, (
                    f"{attempt}: call {index} of {counts} acknowledged ones is missing from {target}: {operation} "
                    f"(batch {sequences}, run {run.status})"
                )
            # What was not acknowledged may be missing, but then so is all that came later.
            if not committed and missing_from is None:
                missing_from = index
            elif committed and missing_from is not None and sequences is not None and len(sequences):
                earlier = attempt.batches[missing_from]
                assert earlier.start >= sequences.start, f"{attempt}: call {missing_from} was left out"

    def _judge_groups(self, groups: list[Group]) -> None:
        last = 0
        for group in groups:
            version = self._groups_seen.get(group.token)
            if group.fate == "refused" and self._records.clock_went_back:
                # The time in which a finished run takes writes is by the clock: what was too late may come again in time.
                continue
            if version is not None:
                assert version >= last, f"{group.token} is out of order"
                last = version
            if group.fate == "acknowledged" and not group.has_refused:
                assert version is not None, f"{group.token} was acknowledged and is missing"
            assert group.fate, f"{group.token} never got an answer"
            if version is not None and group.read_version is not None:
                assert group.read_version >= version, (
                    f"{group.token} is version {version}, and its writer has read version {group.read_version} after the answer"
                )

    # --- logs --------------------------------------------------------------------------------------------------

    def _judge_lines(self, run_id: str, number: int, lines: list[Any]) -> None:
        """What was logged is in the log once and in order; what is missing is counted there, and missing for a reason."""
        attempts = self._attempts[run_id, number]
        said = [clean(line) for attempt in attempts for line in attempt.lines]
        places = {line: place for place, line in enumerate(said)}
        stored = [line.message for line in lines if line.logger == LOGGER]
        for line in stored:
            assert line in places, f"nobody logged {line!r} in attempt {number} of {run_id}"
        assert len(set(stored)) == len(stored), f"a line of attempt {number} of {run_id} is there twice"
        for attempt in attempts:
            own = [places[line] for line in stored if line in {clean(text) for text in attempt.lines}]
            assert own == sorted(own), f"lines of {attempt} are out of order"
        size = sum(log_line_size(line) for line in lines if line.logger != "milepost.metadata")
        most = len(attempts) * self._log_bytes_max + 1000
        assert size <= most, f"the log of attempt {number} of {run_id} has {size} bytes"
        if len(attempts) != 1 or attempts[0].process in self._records.gone or not attempts[0].has_ended:
            return
        counted = [
            int(found[1].replace(",", "")) for line in lines if (found := LEFT_OUT.match(line.message))
        ]
        # Some of those that are missing may be the worker's own.
        own = self._records.told[run_id, number]
        assert len(said) <= len(stored) + sum(counted) <= len(said) + own, (
            f"{len(said)} lines were logged in {attempts[0]}, {len(stored)} are there and {counted} were left out"
        )
        size = sum(map(line_size, said)) + self._records.told_bytes[run_id, number]
        if size < min(self._log_bytes_max // 2, self._lines_wait_max):
            needless = [
                line for line in lines if LEFT_OUT.match(line.message) and "not take" not in line.message
            ]
            assert not needless, f"lines of {attempts[0]} were left out without need"

    # --- readers -----------------------------------------------------------------------------------------------

    def _judge_readers(self) -> None:
        """Every state that anybody saw was committed, and nobody saw a finished run without the last word of its attempt."""
        for seen in self._records.seen:
            states = self._states[seen.run_id]
            assert seen.version < len(states), (
                f"{seen.reader} saw a version of {seen.run_id} that does not exist"
            )
            assert _exactly(seen.value) == states[seen.version], (
                f"{seen.reader} saw {seen.run_id} at version {seen.version} as {seen.value}\n  it was {states[seen.version]!r}"
            )
            if seen.is_final:
                for row in self._rows[seen.run_id][seen.version :]:
                    assert row.writer is None or row.writer[0] != seen.run_id, (
                        f"{seen.reader} saw {seen.run_id} finished at version {seen.version}, and its attempt wrote {row.version}"
                    )


def said_by(output: str | None, error: str | None) -> str | None:
    """The label of the execution that has ended so; None where none has said anything."""
    if output is not None:
        value = msgspec.json.decode(output)
        return value["label"] if isinstance(value, dict) else value
    return None if error is None else msgspec.json.decode(error)["message"]


def clean(line: str) -> str:
    """A line as it can be stored."""
    return line.encode("utf-8", "backslashreplace").decode()


def describe(value: Any) -> str:
    """A part of a trace, short."""
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return text if len(text) <= 600 else f"{text[:600]}... ({len(text)})"
