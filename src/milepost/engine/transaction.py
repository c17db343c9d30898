"""One group of commands as one unit: what they load, change and announce. Saved at once with one statement per table."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain

import msgspec
from sqlalchemy import Connection

from milepost.engine.announcements import (
    Announcement,
    BatchProgressed,
    CancelAsked,
    ChildrenFinished,
    LoggedChange,
    RunChanged,
    RunsResumed,
    StreamGrown,
)
from milepost.engine.documents import DocumentCache, HotDocument, Writer, ids_of
from milepost.engine.state import EngineState, Worker
from milepost.model.counted import KNOWN_MAX
from milepost.model.operations import Operation, Refusal
from milepost.model.run import RunStatus
from milepost.model.typed import Declared
from milepost.store import attempts as attempt_store
from milepost.store import batches as batch_store
from milepost.store import documents as document_store
from milepost.store import idempotency as idempotency_store
from milepost.store import key_places, records
from milepost.store import queues as queue_store
from milepost.store import runs as run_store
from milepost.store import streams as stream_store
from milepost.store import workers as worker_store
from milepost.store.attempts import AttemptRow
from milepost.store.batches import BatchRow
from milepost.store.documents import ChangeRow, Snapshot
from milepost.store.idempotency import KeyRow
from milepost.store.key_places import KeyPlace
from milepost.store.queues import QueueKeyRow, QueueRow
from milepost.store.records import LogMark, LogRow, UsedToken
from milepost.store.run_counts import ALL, add_counts
from milepost.store.runs import NewRun, RunRow
from milepost.store.streams import ChunkRow, StreamCount, StreamRow, WriterRow
from milepost.store.workers import WorkerRow


class Transaction:
    """What a group of commands works on. Decisions change the rows here; `save` writes them, the caller commits."""

    def __init__(
        self,
        connection: Connection,
        documents: DocumentCache,
        state: EngineState,
        *,
        now: int,
        steady_now: int,
        age_now: int,
    ) -> None:
        self.connection = connection
        # As this group leaves them. The engine's memory learns of it after the commit.
        self.catalog = state.catalog
        self.registered_workers: dict[str, Worker] = {}
        # Those who have said something.
        self.heard_workers: set[str] = set()
        self._known_workers = state.workers
        self._held_rows = state.held_rows
        # Rows that were saved, and runs of which something was changed past their rows.
        self.saved_rows: dict[str, RunRow] = {}
        self.changed_otherwise: set[str] = set()
        # What is written down is by the wall clock; what is waited for, by the one that nobody sets.
        self.now = now
        self.steady_now = steady_now
        # And what must not come to life again by a clock that is set back, by one that never is: microseconds since 1970 as well.
        self.age_now = age_now
        self.touched: set[str] = set()
        # Runs that have ended and whose documents are indexed: nobody will ask for these soon.
        self.done_with: set[str] = set()
        # Where parked claims may have work now: due runs of these tasks were queued, these queues have a free slot, or anything.
        self.offered_tasks: set[str] = set()
        self.places: set[tuple[str, str]] = set()
        self.empty_places: set[tuple[str, str]] = set()
        # Tasks and queues with places of concurrency keys.
        self.keyed: set[tuple[str, str]] = set()
        self.empty_keyed: set[tuple[str, str]] = set()
        self._offered_keys: dict[KeyPlace, int] = {}
        # Queues, and their concurrency keys if there are any, in which there is room now.
        self.freed_queues: set[tuple[str, str | None]] = set()
        # When the next run may start of a queue whose rate is reached, or that has waited for long enough for an idle worker.
        self.next_start_at: int | None = None
        # How many runs were claimed, by queue and concurrency key.
        self.starts: list[tuple[str, str | None, int]] = []
        self.everything_offered = False
        # For how long each run that was claimed had been due, microseconds.
        self.claim_waits: list[int] = []
        # A run has to execute apart.
        self.has_apart = False
        # An attempt has ended, so its worker may have nothing else to do.
        self.has_ended_attempt = False
        # There is something to do that no command asks for (`engine/promoting.py`), and more of it than one group does.
        self.has_steps = False
        self.has_more_steps = False
        # Tasks that nobody had offered before, and those of which no run waits for that any more.
        self.newly_offered: set[str] = set()
        self.wholly_offered: set[str] = set()
        # A schedule has fired or was changed; then, when the next one fires.
        self.schedules_changed = False
        self.next_schedule_at: int | None = None
        self.new_runs: list[NewRun] = []
        self.new_batches: list[BatchRow] = []
        self._keys: dict[tuple[str, str], KeyRow | None] = {}
        self._dirty_keys: dict[tuple[str, str], KeyRow] = {}
        # How many children of earlier attempts need not be looked at any more, by run and kind (`children.py`).
        self.child_positions: dict[tuple[str, bytes], int] = {}
        self.ended_attempts: list[AttemptRow] = []
        self.logs: list[LogRow] = []
        self._log_marks: dict[tuple[str, int, str], LogMark] = {}
        self._marked_runs: set[str] = set()
        self._dirty_log_marks: dict[tuple[str, int, str], LogMark] = {}
        # Lines that tell what was left out of a log: the mark, and the line.
        self._log_notices: list[tuple[LogMark, LogRow]] = []
        self._refusals: dict[tuple[str, int, int], bytes] = {}
        self._earlier_refusals: dict[tuple[str, int, int], bytes] = {}
        # What these claims would be given, nobody would hear of.
        self.gone_workers: set[str] = set()
        self.withdrawn_claims: set[tuple[str, int]] = set()
        self._answers: dict[str, bytes] = {}
        self._known_answers: dict[str, bytes] = {}
        # Tokens that work once, used by this group; those that are not saved yet are in the second.
        self._used_tokens: dict[str, UsedToken] = {}
        self._new_used_tokens: list[UsedToken] = []
        self.deleted_runs: list[str] = []
        # Sessions of the dashboard that were signed out.
        self.ended_sessions: list[str] = []
        self._documents = documents
        self._rows: dict[str, RunRow] = {}
        self._absent: set[str] = set()
        self._dirty_rows: dict[str, RunRow] = {}
        # Rows of which only the newest report changed.
        self._reported_rows: dict[str, RunRow] = {}
        # Rows of which only changed what a claim changes.
        self._claimed_rows: dict[str, RunRow] = {}
        # Rows of which only the place in the line changed.
        self._placed_rows: dict[str, RunRow] = {}
        self._results: dict[str, tuple[RunRow, str | None, str | None]] = {}
        # Runs whose rows have the time of this group already.
        self._renewed: set[str] = set()
        # How many runs with this parent have gone from one status to another; None: they are new.
        self._moved: dict[tuple[str | None, RunStatus | None, RunStatus], int] = {}
        self._queues: dict[str, QueueRow | None] = {}
        self._dirty_queues: dict[str, QueueRow] = {}
        self._queue_keys: dict[tuple[str, str], QueueKeyRow] = {}
        self._dirty_queue_keys: dict[tuple[str, str], QueueKeyRow] = {}
        self._resumed: dict[str, list[str]] = {}
        self._cancel_asked: dict[str, list[str]] = {}
        self._batches: dict[str, BatchRow] = {}
        self._dirty_batches: dict[str, BatchRow] = {}
        self._changes: list[ChangeRow] = []
        # What stands for `once` ids that this group has counted and not saved, by run.
        self._counted: dict[str, set[bytes]] = {}
        self._snapshots: dict[str, Snapshot] = {}
        self._changed_runs: dict[str, RunChanged] = {}
        self._children_finished: dict[str, list[str]] = {}
        self._progressed: dict[str, BatchRow] = {}
        self._streams: dict[tuple[str, str], StreamRow | None] = {}
        self._writers: dict[tuple[str, str, str], WriterRow | None] = {}
        self._stream_counts: dict[str, StreamCount] = {}
        self._dirty_streams: dict[tuple[str, str], StreamRow] = {}
        self._dirty_writers: dict[tuple[str, str, str], WriterRow] = {}
        self._chunks: list[ChunkRow] = []
        self._grown: dict[tuple[str, str], StreamGrown] = {}

    def load_runs(self, ids: Iterable[str]) -> None:
        """Load rows that are not here yet, in one go; ids that nobody has are remembered as absent."""
        missing = {run_id for run_id in ids if run_id not in self._rows and run_id not in self._absent}
        if missing:
            found = self._held_rows.copies_of(missing - self.changed_otherwise)
            missing -= found.keys()
            if missing:
                stored = run_store.load_rows(self.connection, missing)
                found |= stored
                self._absent.update(missing - stored.keys())
            self._rows.update(found)

    def parents_of(self, ids: Iterable[str]) -> set[str]:
        """The parents of the loaded ones among these runs."""
        rows = (self._rows.get(run_id) for run_id in ids)
        return {row.parent_id for row in rows if row is not None and row.parent_id is not None}

    def run(self, run_id: str) -> RunRow | None:
        """A run's row, or None when there is no such run."""
        if run_id not in self._rows:
            self.load_runs([run_id])
        return self._rows.get(run_id)

    def run_made(self, run_id: str) -> RunRow | None:
        """As `run`, also one that this group has made."""
        row = self.run(run_id)
        if row is None and self.new_runs:
            run_store.insert_runs(self.connection, self.new_runs)
            self.new_runs.clear()
            self._absent.discard(run_id)
            row = self.run(run_id)
        return row

    def save_run(self, row: RunRow) -> None:
        """The row was changed."""
        self._touch(row)
        self._dirty_rows[row.id] = row

    def save_report(self, row: RunRow) -> None:
        """A report was applied or the document was written to; nothing else of the row was changed, or `save_run` says so too."""
        self._touch(row)
        self._reported_rows[row.id] = row

    def save_claim(self, row: RunRow) -> None:
        """The run was claimed; nothing else of the row was changed, or `save_run` says so too."""
        self._touch(row)
        self._claimed_rows[row.id] = row

    def _touch(self, row: RunRow) -> None:
        if row.id not in self._renewed:
            self._renewed.add(row.id)
            # Grows with each group, whatever the clock does: readers tell by it which of two states is newer.
            row.updated_at = max(self.now, row.updated_at + 1)
            row.reckoned_at = None if row.updated_at == self.now else self.now
        self.saved_rows[row.id] = row

    def adopt(self, row: RunRow) -> None:
        """Take in a row that was loaded by other means."""
        self._rows[row.id] = row

    def save_place(self, row: RunRow) -> None:
        """The run was queued, or is delayed to another time; nothing else of the row was changed, or `save_run` says so too."""
        self._touch(row)
        self._placed_rows[row.id] = row

    def save_result(self, row: RunRow, output: str | None, error: str | None) -> None:
        """The run's output or error, JSON texts. Of the row nothing else was changed than completes a run, or `save_run` says so."""
        self._touch(row)
        self._results[row.id] = (row, output, error)
        changed = self._announcement(row)
        changed.output, changed.error = output, error

    def count_moved(
        self, parent_id: str | None, before: RunStatus | None, after: RunStatus, *, runs: int = 1
    ) -> None:
        """Runs with this parent have gone from one status to another; without the first they are new."""
        moved = parent_id, before, after
        self._moved[moved] = self._moved.get(moved, 0) + runs

    def offer(self, task: str, queue: str, key: str | None, due_at: int) -> None:
        """A run of a task was queued in a queue, with this concurrency key, if any; it is due, or will be later."""
        if key is None:
            self.places.add((task, queue))
            self.empty_places.discard((task, queue))
        else:
            self.keyed.add((task, queue))
            self.empty_keyed.discard((task, queue))
            place = KeyPlace(queue, key, task)
            self._offered_keys[place] = min(due_at, self._offered_keys.get(place, due_at))
        if due_at <= self.now:
            self.offered_tasks.add(task)

    def queue(self, name: str) -> QueueRow | None:
        """A queue that has a rule, with how many of its runs execute; None for any other."""
        if name not in self.catalog.ruled_queues:
            return None
        if name not in self._queues:
            self._queues[name] = queue_store.load_queues(self.connection, [name]).get(name)
        return self._queues[name]

    def load_queues(self, names: Iterable[str]) -> None:
        """Load queues that are not here yet, in one go."""
        missing = {name for name in names if name in self.catalog.ruled_queues and name not in self._queues}
        if missing:
            found = queue_store.load_queues(self.connection, sorted(missing))
            self._queues.update((name, found.get(name)) for name in missing)

    def save_queue(self, row: QueueRow) -> None:
        """The queue was changed."""
        self._queues[row.name] = self._dirty_queues[row.name] = row

    def queue_key(self, queue: str, key: str) -> QueueKeyRow:
        """What is counted of a concurrency key, in a queue that has a rule."""
        self.load_queue_keys(queue, [key])
        return self._queue_keys[queue, key]

    def load_queue_keys(self, queue: str, keys: Iterable[str]) -> None:
        """Load what is counted of concurrency keys that are not here yet, in one go."""
        missing = sorted({key for key in keys if (queue, key) not in self._queue_keys})
        if missing:
            found = {row.key: row for row in queue_store.load_queue_keys(self.connection, queue, missing)}
            for key in missing:
                self._queue_keys[queue, key] = found.get(key) or QueueKeyRow(queue, key)

    def save_queue_key(self, row: QueueKeyRow) -> None:
        """What is counted of a concurrency key was changed."""
        self._queue_keys[row.queue, row.key] = self._dirty_queue_keys[row.queue, row.key] = row

    def look_again_at(self, at: int) -> None:
        """A run of a concurrency key is due then; or what stands in the way of one is over: the rate of its queue, or the time for
        which it waits for an idle worker."""
        self.next_start_at = at if self.next_start_at is None else min(self.next_start_at, at)

    def batch(self, batch_id: str) -> BatchRow | None:
        """A batch, or None when there is no such batch."""
        if batch_id not in self._batches:
            self._batches.update(batch_store.load_batches(self.connection, [batch_id]))
        return self._batches.get(batch_id)

    def add_batch(self, row: BatchRow) -> None:
        """A new batch."""
        self.new_batches.append(row)
        self._batches[row.id] = row

    def load_keys(self, keys: Iterable[str]) -> None:
        """Load what idempotency keys stand for, in one go."""
        wanted = set(keys)
        if wanted:
            for row in idempotency_store.load_keys(self.connection, wanted):
                self._keys.setdefault((row.key, row.task), row)

    def key(self, key: str, task: str) -> KeyRow | None:
        """What an idempotency key stands for, also an expired one; it has been loaded."""
        return self._keys.get((key, task))

    def save_key(self, row: KeyRow) -> None:
        """An idempotency key stands for this from now on."""
        self._keys[row.key, row.task] = self._dirty_keys[row.key, row.task] = row

    def forget_key(self, key: str, task: str) -> None:
        """An idempotency key stands for nothing from now on."""
        self._keys[key, task] = None
        self._dirty_keys.pop((key, task), None)
        idempotency_store.delete_key(self.connection, key, task)

    def save_batch(self, row: BatchRow) -> None:
        """The batch's counts were changed."""
        row.updated_at = self.now
        self._dirty_batches[row.id] = row

    def announce_batch(self, row: BatchRow) -> None:
        """More runs of the batch have ended."""
        self._progressed[row.id] = row

    def document(self, row: RunRow) -> HotDocument:
        """The document of a run at its newest version, this transaction's own changes included."""
        self.touched.add(row.id)
        return self._documents.newest(self.connection, row)

    def documents(self, rows: Sequence[RunRow]) -> dict[str, HotDocument]:
        """The documents of these runs at their newest version, this transaction's own changes included."""
        self.touched.update(row.id for row in rows)
        return self._documents.load(self.connection, rows)

    def load_documents(self, ids: Iterable[str]) -> None:
        """Load the documents of the loaded ones among these runs, in one go."""
        rows = [
            row for run_id in ids if (row := self._rows.get(run_id)) is not None and not row.status.is_final
        ]
        if len(rows) > 1:
            self.documents(rows)

    def write_document(
        self, row: RunRow, operations: Sequence[Operation], writer: Writer, declared: Declared | None = None
    ) -> list[Refusal]:
        """Apply operations to the document of a run as one new version; what was refused, with reasons.

        Args:
            declared: the type of the document, which every operation is held to (M76).
        """
        hot = self.document(row)
        ids = ids_of(operations)
        before = self._counted_before(row.id, ids) if any(ids) else set[bytes]()
        counted = set(before)
        type_name = f"the metadata of task {row.task!r}"
        change, refusals = hot.write(
            operations,
            writer,
            self.now,
            ids=ids,
            counted=counted,
            declared=declared,
            type_name=type_name,
        )
        if len(counted) > len(before):
            self._counted.setdefault(row.id, set()).update(counted - before)
        if change is not None:
            self._changes.append(change)
            row.metadata_version = change.version
            if row.metadata_unindexed:
                self.save_report(row)
            else:
                row.metadata_unindexed = 1
                self.save_run(row)
            if hot.wants_fold:
                self._snapshots[row.id] = hot.fold()
            self.announce_change(row, hot.last_change())
        return refusals

    def _counted_before(self, run_id: str, ids: Sequence[tuple[bytes, ...]]) -> set[bytes]:
        asked = set(chain.from_iterable(ids))
        counted = document_store.load_counted(self.connection, run_id, asked)
        return counted | (asked & self._counted.get(run_id, set()))

    def known_ids(self, run_id: str) -> list[bytes]:
        """Some of the `once` ids that were counted in a run, as many as a worker remembers."""
        unsaved = list(self._counted.get(run_id, ()))
        return [*document_store.some_counted(self.connection, run_id, limit=KNOWN_MAX), *unsaved][:KNOWN_MAX]

    def fold(self, row: RunRow) -> None:
        """The run has ended: readers from now on want one snapshot and no log."""
        self.touched.add(row.id)
        hot = self.document(row) if row.metadata_version else self._documents.at_hand(row.id)
        if hot is not None:
            self._announcement(row).version = hot.document.version
            if hot.snapshot_version < hot.document.version:
                self._snapshots[row.id] = hot.fold()
            if not row.metadata_unindexed:
                self.done_with.add(row.id)

    def at_hand(self, row: RunRow) -> HotDocument | None:
        """The newest document of a run when it is in memory; what this group has written may not be in the row yet."""
        hot = self._documents.at_hand(row.id)
        return hot if hot is not None and hot.document.version >= row.metadata_version else None

    def load_answers(self, request_ids: Sequence[str]) -> None:
        """Load what was answered to these request ids before, in one go."""
        if request_ids:
            self._known_answers.update(records.load_answers(self.connection, request_ids))

    def earlier_answer(self, request_id: str | None) -> bytes | None:
        """What was answered to this request id before, also earlier in this group; None for a new one."""
        return None if request_id is None else self._known_answers.get(request_id)

    def keep_answer(self, request_id: str | None, answer: bytes) -> None:
        """Remember the answer for a repeat of the request."""
        if request_id is not None:
            self._answers[request_id] = self._known_answers[request_id] = answer

    def keep_refusals(self, run_id: str, attempt: int, sequence: int, refused: bytes) -> None:
        """Remember what was refused of a report (JSON) for a repeat of it."""
        self._refusals[run_id, attempt, sequence] = self._earlier_refusals[run_id, attempt, sequence] = (
            refused
        )

    def earlier_refusals(self, run_id: str, attempt: int, sequence: int) -> bytes | None:
        """What was refused of a report that was applied before, also earlier in this group; None when nothing was."""
        found = self._earlier_refusals.get((run_id, attempt, sequence))
        return found or document_store.load_refusals(self.connection, run_id, attempt, sequence)

    def load_log_marks(self, run_ids: Iterable[str]) -> None:
        """Load how far the logs of these runs have come, in one go."""
        missing = {run_id for run_id in run_ids if run_id not in self._marked_runs}
        if missing:
            self._marked_runs |= missing
            for mark in records.load_log_marks(self.connection, missing):
                self._log_marks[mark.run_id, mark.attempt, mark.writer_id] = mark

    def log_mark(self, run_id: str, attempt: int, writer_id: str) -> LogMark:
        """How far this writer has come with the log of an attempt. Whoever changes it calls `save_log_mark`."""
        self.load_log_marks([run_id])
        key = run_id, attempt, writer_id
        mark = self._log_marks.get(key)
        if mark is None:
            mark = self._log_marks[key] = LogMark(*key)
        return mark

    def save_log_mark(self, mark: LogMark, notice: LogRow | None = None) -> None:
        """The mark was changed. `notice`: the line that tells what was left out has to be written, or to say something else."""
        self._dirty_log_marks[mark.run_id, mark.attempt, mark.writer_id] = mark
        if notice is not None:
            self._log_notices.append((mark, notice))

    def stream(self, run_id: str, name: str) -> StreamRow | None:
        """A stream of a run; None when nobody has written to it."""
        key = run_id, name
        if key not in self._streams:
            self._streams[key] = stream_store.load_stream(self.connection, run_id, name)
        return self._streams[key]

    def stream_writer(self, run_id: str, name: str, writer: str) -> WriterRow | None:
        """A writer of a stream; None when it has written nothing."""
        key = run_id, name, writer
        if key not in self._writers:
            self._writers[key] = stream_store.load_writer(self.connection, run_id, name, writer)
        return self._writers[key]

    def count_streams(self, run_id: str) -> StreamCount:
        """The streams of a run, counted, new ones included."""
        if run_id not in self._stream_counts:
            self._stream_counts[run_id] = stream_store.count_streams(self.connection, run_id)
        return self._stream_counts[run_id]

    def save_stream(
        self,
        row: RunRow,
        stream: StreamRow,
        writer: WriterRow,
        chunks: Sequence[ChunkRow],
        *,
        has_ended: bool,
    ) -> None:
        """A writer has added these chunks to a stream of a run. `has_ended`: it will add no more."""
        key = stream.run_id, stream.name
        is_new = self._streams.get(key) is None
        if is_new:
            self._streams[key] = stream
            count = self.count_streams(row.id).count + 1
            self._stream_counts[row.id] = StreamCount(count, stream.created_at)
        writer_key = (*key, writer.writer)
        self._writers[writer_key] = self._dirty_writers[writer_key] = writer
        self._dirty_streams[key] = stream
        self._chunks.extend(chunks)
        grown = self._grown.get(key)
        if grown is None:
            grown = self._grown[key] = StreamGrown(*key, next_index=0, rows=[])
        grown.next_index = stream.next_index
        grown.rows.extend(chunks)
        grown.has_ended = grown.has_ended or has_ended
        grown.is_new = grown.is_new or is_new

    def used_token(self, token_id: str) -> UsedToken | None:
        """What a token that works once was used for; None when it was not."""
        return self._used_tokens.get(token_id) or records.load_used_token(self.connection, token_id)

    def use_token(self, token: UsedToken) -> None:
        """The token is used up. Whoever says so has looked before."""
        self._used_tokens[token.id] = token
        self._new_used_tokens.append(token)

    def worker(self, worker_id: str) -> Worker | None:
        """A worker that holds a lease, as things stand in this group."""
        if worker_id in self.gone_workers:
            return None
        return self.registered_workers.get(worker_id) or self._known_workers.get(worker_id)

    def is_offered(self, task: str) -> bool:
        """Whether a worker that holds a lease offers the task, as things stand in this group."""
        return any(
            task in worker.tasks
            for worker in (*self._known_workers.values(), *self.registered_workers.values())
            if worker.id not in self.gone_workers
        )

    def register_worker(self, worker: Worker) -> None:
        """A worker presents itself."""
        self.gone_workers.discard(worker.id)
        self.registered_workers[worker.id] = worker
        worker_store.save_workers(
            self.connection,
            [
                WorkerRow(
                    worker.id,
                    worker.name,
                    msgspec.json.encode(worker.tasks).decode(),
                    worker.registration,
                    worker.newest_claim,
                    self.now,
                )
            ],
        )

    def remove_workers(self, worker_ids: Collection[str]) -> None:
        """These workers hold no lease any more."""
        if worker_ids:
            self.gone_workers.update(worker_ids)
            worker_store.delete_workers(self.connection, worker_ids)

    def may_claim(self, worker_id: str, sequence: int) -> bool:
        """False when the worker has left, or given up this claim, in this group."""
        return worker_id not in self.gone_workers and (worker_id, sequence) not in self.withdrawn_claims

    def delete_runs(self, ids: Collection[str]) -> None:
        """These runs are no longer in the store. Nothing of this group that is not saved yet may be about them."""
        self._documents.forget(ids)
        self.changed_otherwise.update(ids)
        for run_id in ids:
            self._rows.pop(run_id, None)
            self._absent.add(run_id)
            self._changed_runs.pop(run_id, None)
        self.deleted_runs += ids

    def announce_state(self, row: RunRow) -> None:
        """Subscribers should know that the run's state has changed."""
        self._announcement(row).state_changed = True

    def announce_change(self, row: RunRow, change: LoggedChange) -> None:
        """Subscribers should know the new step of the run's document."""
        self._announcement(row).changes.append(change)

    def announce_finished_child(self, holder: str, ended_id: str) -> None:
        """The worker that holds the parent should know that a child run or a whole batch has ended."""
        self._children_finished.setdefault(holder, []).append(ended_id)

    def announce_resumed(self, holder: str, run_id: str) -> None:
        """The worker that holds the run should know that it may go on."""
        self._resumed.setdefault(holder, []).append(run_id)

    def announce_cancel_asked(self, holder: str, run_id: str) -> None:
        """The worker that holds the run should know that it is to end."""
        self._cancel_asked.setdefault(holder, []).append(run_id)

    def announce_tags(self, row: RunRow, tags: list[str]) -> None:
        """Subscribers should know the tags that the run has now."""
        changed = self._announcement(row)
        changed.state_changed, changed.tags = True, tags

    def save(self) -> None:
        """Write everything that was changed, once. May be called again for what was changed since."""
        # Most groups are one command and have little to save, so nothing is done for what is empty.
        connection = self.connection
        if self.new_runs:
            run_store.insert_runs(connection, self.new_runs)
            self.new_runs.clear()
        if self.new_batches:
            batch_store.insert_batches(connection, self.new_batches)
            self.new_batches.clear()
        if self.ended_attempts:
            attempt_store.insert_attempts(connection, self.ended_attempts)
            self.ended_attempts.clear()
        self._save_rows()
        if self._moved:
            add_counts(connection, _counts_of(self._moved))
            self._moved.clear()
        if self._dirty_queues:
            queue_store.save_queues(connection, self._dirty_queues.values())
            self._dirty_queues.clear()
        if self._dirty_keys:
            idempotency_store.save_keys(connection, self._dirty_keys.values())
            self._dirty_keys.clear()
        if self._dirty_queue_keys:
            queue_store.save_queue_keys(connection, self._dirty_queue_keys.values())
            self._dirty_queue_keys.clear()
        if self._offered_keys:
            key_places.offer_keys(connection, self._offered_keys.items())
            self._offered_keys.clear()
        if self._dirty_batches:
            batch_store.save_batches(connection, list(self._dirty_batches.values()))
            self._dirty_batches.clear()
        if self._changes:
            document_store.append_changes(connection, self._changes)
            self._changes.clear()
        if self._counted:
            rows = [(run_id, id) for run_id, ids in self._counted.items() for id in sorted(ids)]
            document_store.save_counted(connection, rows)
            self._counted.clear()
        if self._snapshots:
            document_store.save_snapshots(connection, list(self._snapshots.values()))
            self._snapshots.clear()
        if self._refusals:
            document_store.save_refusals(
                connection, [(*report, refused) for report, refused in self._refusals.items()]
            )
            self._refusals.clear()
        if self.logs:
            records.append_logs(connection, self.logs)
            self._note_logged(line.run_id for line in self.logs)
            self.logs.clear()
        if self._dirty_log_marks:
            for mark, notice in self._log_notices:
                if mark.notice_number is None:
                    mark.notice_number = records.append_log(connection, notice)
                    self._note_logged([mark.run_id])
                else:
                    records.change_log(connection, mark.notice_number, notice.message)
            self._log_notices.clear()
            records.save_log_marks(connection, self._dirty_log_marks.values())
            self._dirty_log_marks.clear()
        if self._dirty_streams:
            stream_store.save_streams(connection, self._dirty_streams.values())
            stream_store.save_writers(connection, self._dirty_writers.values())
            stream_store.append_chunks(connection, self._chunks)
            self._dirty_streams.clear()
            self._dirty_writers.clear()
            self._chunks.clear()
        if self._new_used_tokens:
            records.save_used_tokens(connection, self._new_used_tokens)
            self._new_used_tokens.clear()
        if self._answers:
            records.save_answers(
                connection, [(request_id, answer, self.now) for request_id, answer in self._answers.items()]
            )
            self._answers.clear()

    def _save_rows(self) -> None:
        """Write each changed row once, by the statement that sets the least."""
        connection, dirty, claimed = self.connection, self._dirty_rows, self._claimed_rows
        results, reported = self._results, self._reported_rows
        if self._placed_rows:
            # `queue` is set by no other statement.
            run_store.save_places(connection, self._placed_rows.values())
            self._placed_rows.clear()
        if claimed:
            for run_id in claimed.keys() & (reported.keys() | results.keys()):
                dirty[run_id] = claimed[run_id]
            run_store.save_claims(connection, [row for row in claimed.values() if row.id not in dirty])
        if results:
            completions = [result for run_id, result in results.items() if run_id not in dirty]
            run_store.save_completions(connection, completions)
            if len(completions) < len(results):
                run_store.save_results(
                    connection, [result for run_id, result in results.items() if run_id in dirty]
                )
        if dirty:
            run_store.save_rows(connection, [row for row in dirty.values() if row.id not in results])
        if reported:
            saved = dirty.keys() | results.keys()
            run_store.save_reports(connection, [row for row in reported.values() if row.id not in saved])
        for changed in (dirty, claimed, results, reported, self._renewed):
            changed.clear()

    def _note_logged(self, run_ids: Iterable[str]) -> None:
        for run_id in set(run_ids) & self._rows.keys():
            self._announcement(self._rows[run_id]).logged = True

    def announcement(self) -> Announcement:
        """What to tell the feed once this is committed."""
        return Announcement(
            runs=list(self._changed_runs.values()),
            batches=[
                BatchProgressed(row.id, row.known_count, row.finished_count)
                for row in self._progressed.values()
            ],
            children_finished=[
                ChildrenFinished(holder, ids) for holder, ids in self._children_finished.items()
            ],
            streams=list(self._grown.values()),
            resumed=[RunsResumed(holder, ids) for holder, ids in self._resumed.items()],
            cancel_asked=[CancelAsked(holder, ids) for holder, ids in self._cancel_asked.items()],
            ended_sessions=self.ended_sessions,
            deleted_runs=self.deleted_runs,
        )

    def _announcement(self, row: RunRow) -> RunChanged:
        changed = self._changed_runs.get(row.id)
        if changed is None:
            changed = self._changed_runs[row.id] = RunChanged(row)
        # A run that was queued by this group may have been claimed by it too, as another copy of its row.
        changed.row = row
        return changed


def _counts_of(
    moved: Mapping[tuple[str | None, RunStatus | None, RunStatus], int],
) -> list[tuple[str, str, int]]:
    """How many runs more there are of each parent, and of all, by status."""
    counts: dict[tuple[str, RunStatus], int] = {}
    for (parent_id, before, after), runs in moved.items():
        for parent in (ALL,) if parent_id is None else (ALL, parent_id):
            counts[parent, after] = counts.get((parent, after), 0) + runs
            if before is not None:
                counts[parent, before] = counts.get((parent, before), 0) - runs
    return [(parent, status.value, more) for (parent, status), more in counts.items() if more]
