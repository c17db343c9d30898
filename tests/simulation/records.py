"""What the writers did, as it is noted where their calls enter the system; the oracle compares it with what was committed."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from milepost.errors import MetadataError
from milepost.model.operations import Operation
from milepost.model.run import Outcome
from milepost.protocol.metadata import MetadataDelta, Refused
from milepost.sdk.buffer import Batch, Buffer

if TYPE_CHECKING:
    from simulation.stream_code import Writer


@dataclass
class Sent:
    """One batch of an attempt: what it carried, and which calls these were. `calls` is None where one round became several batches."""

    operations: dict[str, list[Operation]]
    calls: dict[str, list[Operation]] | None


@dataclass(eq=False)
class Attempt:
    """One attempt as one process ran it.

    Attributes:
        calls: every call that was taken, with the run it is for, in order.
        batches: for each call the batches that it may be in; empty while it is in none, and when it cancelled out.
        acknowledged: so many calls were acknowledged by a flush that returned.
        label: what its outcome says.
        refused: what the replies said was refused, by batch.
        lines: what the code has logged, in order.
        has_ended: the code came to its end.
        started_at: when the process began to run it, on the clock that nobody sets; None when it never did.
        begun_at: when the user's code began.
        alone_seconds: for how long it has a process to itself where it is apart.
        waits: it waits for another run, and executes nothing.
        was_killed: its process died while it was running.
        outcome: what its process reports.
        returned: what its code has returned, whose hooks may still run; it counts if the worker gives it up then.
        can_be_retried: what it raised is worth another attempt.
        hooks: the hooks that were run, in order.
        is_over_early: the worker gave it up before its code had ended.
        writers: what it writes into streams, by the names of the writers.
        is_closing: it runs the hooks of a run whose process is dead, and nothing else.
        received: what it was given of what was sent to it, in order.
    """

    run_id: str
    number: int
    process: str
    worker_id: str = ""
    charged_before: int = 0
    queue: str = ""
    is_apart: bool = False
    alone_seconds: float = 0.0
    is_closing: bool = False
    started_at: int | None = None
    begun_at: int | None = None
    waits: bool = False
    was_killed: bool = False
    outcome: Outcome | None = None
    returned: Outcome | None = None
    can_be_retried: bool = True
    is_over_early: bool = False
    hooks: list[str] = field(default_factory=list[str])
    calls: list[tuple[str, Operation]] = field(default_factory=list)
    batches: list[range] = field(default_factory=list)
    sent: dict[int, Sent] = field(default_factory=dict)
    acknowledged: int = 0
    label: str = ""
    refused: dict[int, list[Refused]] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    has_ended: bool = False
    writers: "dict[str, Writer]" = field(default_factory=dict)
    received: list[Any] = field(default_factory=list)

    def __str__(self) -> str:
        return f"attempt {self.number} of {self.run_id} in {self.process}"


class RecordingBuffer(Buffer):
    """The real one, with a witness at its doors."""

    attempt: Attempt

    def add(self, run_id: str, operation: Operation) -> bool:
        was_clean = super().add(run_id, operation)
        self.attempt.calls.append((run_id, operation))
        return was_clean

    def add_all(self, run_id: str, operations: Any) -> bool:
        was_clean = super().add_all(run_id, operations)
        self.attempt.calls += [(run_id, operation) for operation in operations]
        return was_clean

    def next_batch(self, *, anyway: bool = False, patience_seconds: float = 0.0) -> Batch | None:
        attempt = self.attempt
        rounds = self._rounds_taken
        batch = super().next_batch(anyway=anyway, patience_seconds=patience_seconds)
        taken = attempt.calls[len(attempt.batches) :] if self._rounds_taken > rounds else []
        if batch is not None and batch.sequence not in attempt.sent:
            operations = {change.run: list(change.operations) for change in batch.changes}
            is_whole = not self._waiting and (bool(taken) or not operations)
            calls: dict[str, list[Operation]] = {}
            for run_id, operation in taken:
                calls.setdefault(run_id, []).append(operation)
            attempt.sent[batch.sequence] = Sent(operations, calls if is_whole else None)
            if taken:
                attempt.batches += [range(batch.sequence, batch.sequence + 1)] * len(taken)
            elif operations:
                # One more part of the last round: its calls may be in any of them.
                last = attempt.batches[-1]
                for index in range(len(attempt.batches) - 1, -1, -1):
                    if attempt.batches[index] != last:
                        break
                    attempt.batches[index] = range(last.start, batch.sequence + 1)
        else:
            attempt.batches += [range(0)] * len(taken)
        return batch

    def divide(self, **given: Any) -> Batch | None:
        batch = super().divide(**given)
        if batch is not None:
            operations = {change.run: list(change.operations) for change in batch.changes}
            self.attempt.sent[batch.sequence] = Sent(operations, None)
        return batch

    def acknowledged(self, sequence: int, *, refused: Any = (), delta: MetadataDelta | None = None) -> None:
        if sequence:
            self.attempt.refused[sequence] = list(refused)
        super().acknowledged(sequence, refused=refused, delta=delta)


@dataclass(eq=False)
class Group:
    """What an outside writer called before one `send`, the last call being the append of its token.

    Attributes:
        fate: "acknowledged", "refused" as a whole, or "" while nobody knows.
        has_refused: some operation was reported as refused.
        read_version: the version of the document that was read after the answer, from any server; None where nobody has read.
    """

    run_id: str
    token: str
    operations: list[Operation] = field(default_factory=list)
    fate: str = ""
    has_refused: bool = False
    read_version: int | None = None


@dataclass
class Seen:
    """A state that a reader saw."""

    reader: str
    run_id: str
    version: int
    value: dict[str, Any]
    is_final: bool


@dataclass(eq=False)
class SeenStream:
    """What one reader saw of a stream.

    Attributes:
        first: the index that it begins at; None while that is not known, because it reads what is new.
        chunks: index, attempt and text of each chunk, in order.
        end: at how many chunks it was told that the stream has ended, how, and why the source has failed.
        is_whole: it has seen the run's last state, which comes behind all chunks.
    """

    reader: str
    run_id: str
    name: str
    first: int | None
    chunks: list[tuple[int, int, bytes]] = field(default_factory=list[tuple[int, int, bytes]])
    end: tuple[int, str, str | None] | None = None
    is_whole: bool = False


@dataclass(eq=False)
class SentInput:
    """Something that was sent to a run. `fate` is "acknowledged", "refused", or "" while nobody knows."""

    run_id: str
    value: str
    fate: str = ""


@dataclass
class Records:
    """Everything that was noted in one simulation.

    Attributes:
        wanted: the names of all runs that somebody has tried to trigger.
        runs: those whose trigger was acknowledged, by name; several where an earlier one has failed.
        scheduled: the names of the runs that schedules trigger.
        keys: the idempotency key by which a run of this name is triggered, and for how many seconds it stands for the run.
        debounced: the names of the runs that are triggered by the debounce key.
        gone: worker processes that were killed, or have left.
        clock_went_back: a server has gone by an earlier time than it, or another one, did before.
        seen_streams: what readers of streams saw.
        inputs: what was sent to runs, in the order of each sender.
        cancelled: the runs whose cancel somebody has asked for.
        delays: seconds for which runs were to be delayed, by name.
        ttls: seconds for which runs were to wait for a worker at most, by name.
        tokens: the tokens that runs have made and know of.
        places: which token each run has made with each timeout, for the first time, the second time, and so on.
        told: how many lines workers themselves have added to the log of an attempt.
        told_bytes: how much room these need, at most.
    """

    attempts: list[Attempt] = field(default_factory=list)
    groups: list[list[Group]] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    wanted: set[str] = field(default_factory=set)
    runs: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    scheduled: set[str] = field(default_factory=set[str])
    keys: dict[str, tuple[str, int | None]] = field(default_factory=dict[str, tuple[str, int | None]])
    debounced: set[str] = field(default_factory=set[str])
    gone: set[str] = field(default_factory=set)
    clock_went_back: bool = False
    cancelled: set[str] = field(default_factory=set[str])
    delays: dict[str, int] = field(default_factory=dict[str, int])
    ttls: dict[str, int] = field(default_factory=dict[str, int])
    tokens: dict[str, None] = field(default_factory=dict[str, None])
    places: dict[tuple[str, float | None, int], str] = field(
        default_factory=dict[tuple[str, float | None, int], str]
    )
    seen_streams: list[SeenStream] = field(default_factory=list[SeenStream])
    inputs: list[SentInput] = field(default_factory=list[SentInput])
    told: Counter[tuple[str, int]] = field(default_factory=Counter[tuple[str, int]])
    told_bytes: Counter[tuple[str, int]] = field(default_factory=Counter[tuple[str, int]])

    @property
    def run_ids(self) -> list[str]:
        """All runs whose trigger was acknowledged."""
        return [run_id for ids in self.runs.values() for run_id in ids]

    def attempts_of(self, run_id: str, number: int) -> list[Attempt]:
        """The executions of one attempt; more than one is a mistake, unless all but one never began."""
        return [one for one in self.attempts if one.run_id == run_id and one.number == number]

    def saw(self, reader: str, run_id: str, version: int, value: dict[str, Any], is_final: bool) -> None:
        self.seen.append(Seen(reader, run_id, version, value, is_final))


def line_size(line: str) -> int:
    """How much room a line of a log needs, at most."""
    return len(line.encode("utf-8", "backslashreplace")) * 6 + 100


def outcome_of(operation: Operation, document: Any) -> str | None:
    """Apply an operation to a document; the code of the refusal, None when it was applied."""
    try:
        document.apply(operation)
    except MetadataError as error:
        return error.code
    return None
