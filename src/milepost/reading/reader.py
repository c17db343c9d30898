"""The reader: what is committed, for server and feed. Works in their threads, never in the committer's."""

import time
from collections.abc import Callable, Container, Sequence

from sqlalchemy import Connection

from milepost.errors import RunNotFoundError
from milepost.model.run import QueuedReason
from milepost.model.scopes import WHOLE_VIEW, RunScope, View
from milepost.model.shown_keys import Keys, shown_document
from milepost.protocol.queues import QueueObject, QueuePage, QueueWait
from milepost.protocol.runs import RunLog, RunObject, RunPage, RunResult, RunSummary, RunTree
from milepost.protocol.schedules import ScheduleObject, SchedulePage
from milepost.protocol.streams import StreamSummary
from milepost.protocol.tasks import TaskObject, TaskPage, WorkerPage
from milepost.protocol.triggering import BatchObject, BatchResults
from milepost.protocol.waitpoints import TokenObject, TokenPage
from milepost.reading import (
    batches,
    documents,
    lists,
    logs,
    queues,
    runs,
    schedules,
    streams,
    tasks,
    trees,
    waitpoints,
)
from milepost.reading.history import History
from milepost.reading.lists import RunMatch
from milepost.reading.logs import EVERY_LINE, LogFilter
from milepost.reading.queues import KnownQueues
from milepost.reading.runs import StoredRun
from milepost.reading.streams import StreamPage
from milepost.store import records
from milepost.store import runs as run_store
from milepost.store import trees as tree_store
from milepost.store.batches import BatchRow
from milepost.store.database import Store
from milepost.store.runs import RunFilter, RunRecord, RunRow
from milepost.store.streams import OUTPUT
from milepost.store.waitpoints import WaitpointFilter


class Reader:
    """Reads for the server. Every method takes one consistent look at the store; thread-safe.

    Who is shown a part only says so by a `View`, or by `RunFilter.shown` and the `keys` of documents.

    Args:
        queued_reason: why nobody can take a run of a task, as the engine knows it.
        known_queues: what the engine knows of queues; without it no run says where it stands in its queue.
        clock: microseconds since 1970.

    Attributes:
        queued_reason: the same.
        history: what documents were before.
    """

    def __init__(
        self,
        store: Store,
        *,
        queued_reason: Callable[[str], QueuedReason | None] = lambda task: None,
        known_queues: Callable[[], KnownQueues] | None = None,
        clock: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._store = store
        self._known_queues = known_queues
        self._clock = clock
        self.queued_reason = queued_reason
        self.history = History(store)

    def check_place(self) -> None:
        """Raise UnavailableError when the database is no longer where it was opened."""
        self._store.check_place()

    def shows(self, shown: RunScope, run_id: str) -> bool:
        """Whether a run is among those that a token shows; one that does not exist is not."""
        with self._store.read() as connection:
            return bool(run_store.matching_ids(connection, RunFilter(shown=shown), [run_id]))

    def is_used(self, token_id: str) -> bool:
        """Whether a token works no more: it works once and was used, or it is a session that was signed out."""
        with self._store.read() as connection:
            return records.load_used_token(connection, token_id) is not None

    # --- schedules ---------------------------------------------------------------------------------------------

    def schedule(self, schedule_id: str, *, upcoming: int) -> ScheduleObject:
        """A schedule with so many of its next times. Raises NotFoundError."""
        with self._store.read() as connection:
            return schedules.whole(connection, schedule_id, upcoming, self.queued_reason)

    def schedules(self, *, page: int, size: int, task: str | None) -> SchedulePage:
        """A page of schedules, newest first; pages are counted from 1."""
        with self._store.read() as connection:
            return schedules.page(connection, page, size, task, self.queued_reason)

    # --- tokens ------------------------------------------------------------------------------------------------

    def token(self, token_id: str, url_of: Callable[[str], str]) -> TokenObject:
        """A wait token. `url_of` gives the callback address. Raises NotFoundError."""
        with self._store.read() as connection:
            return waitpoints.token(connection, token_id, url_of)

    def tokens(
        self,
        filter: WaitpointFilter,
        *,
        size: int,
        after: str | None,
        before: str | None,
        url_of: Callable[[str], str],
    ) -> TokenPage:
        """One page of wait tokens, newest first."""
        with self._store.read() as connection:
            return waitpoints.page(connection, filter, size=size, after=after, before=before, url_of=url_of)

    # --- one run -----------------------------------------------------------------------------------------------

    def run(self, run_id: str, view: View = WHOLE_VIEW) -> RunObject:
        """A whole run. Of its relatives those that are shown. Raises RunNotFoundError."""
        with self._store.read() as connection:
            return runs.whole(
                connection,
                run_id,
                view,
                with_family=True,
                queued_reason=self.queued_reason,
                queue_wait=self._queue_wait,
            )

    def snapshot(self, run_id: str, view: View = WHOLE_VIEW) -> RunObject:
        """A whole run as its feed begins with it: parent and root without their documents, no children. Raises RunNotFoundError."""
        with self._store.read() as connection:
            return runs.whole(
                connection,
                run_id,
                view,
                with_family=False,
                queued_reason=self.queued_reason,
                queue_wait=None,
            )

    def stored_run(self, run_id: str, keys: Keys = None) -> StoredRun:
        """A run with its payload and output as the texts that are stored. Raises RunNotFoundError."""
        for found in self.stored_runs([run_id], keys):
            return found
        raise RunNotFoundError(f"there is no run {run_id!r}")

    def stored_runs(self, run_ids: Sequence[str], keys: Keys = None) -> list[StoredRun]:
        """The same of several runs, in the order asked for; those that are not there are left out."""
        with self._store.read() as connection:
            return runs.stored(connection, run_ids, keys)

    def newest_ids(self, filter: RunFilter, *, limit: int) -> list[str]:
        """The ids of the newest matching runs, newest first. The filter's `metadata` is not looked at."""
        with self._store.read() as connection:
            return run_store.list_ids(connection, filter, limit=limit)

    def row(self, run_id: str) -> RunRow:
        """The state of a run. Raises RunNotFoundError."""
        with self._store.read() as connection:
            return runs.row_of(connection, run_id)

    def triggered(self, run_id: str) -> RunRecord:
        """A run with its payload, and the document that it was triggered with. Raises RunNotFoundError."""
        with self._store.read() as connection:
            record = runs.record_of(connection, run_id)
            record.trigger_metadata = run_store.load_trigger_metadata(connection, [run_id])[run_id]
        return record

    def result(self, run_id: str) -> RunResult | None:
        """The result of a run; None while it has none. Raises RunNotFoundError."""
        with self._store.read() as connection:
            record = runs.record_of(connection, run_id)
        return runs.result_of(record) if record.row.status.is_final else None

    def is_settled(self, run_id: str, view: View = WHOLE_VIEW) -> bool:
        """True when the run and all its children that are shown have finished. Raises RunNotFoundError."""
        with self._store.read() as connection:
            return runs.is_settled(connection, run_id, view)

    def child_counts(self, run_id: str, view: View = WHOLE_VIEW) -> dict[str, int]:
        """How many children of a run have each status."""
        with self._store.read() as connection:
            return run_store.count_by_status(connection, RunFilter(parent_id=run_id, shown=view.runs))

    def log(self, run_id: str, *, after: int, filter: LogFilter = EVERY_LINE, tree: bool = False) -> RunLog:
        """Lines above the cursor, of a run's log or of the whole tree below it. Raises RunNotFoundError."""
        with self._store.read() as connection:
            is_final = runs.row_of(connection, run_id).status.is_final
            told = logs.page(connection, run_id, after=after, filter=filter, tree=tree)
            if told.next is None and is_final:
                told.has_ended = not (tree and tree_store.has_unfinished(connection, run_id))
            return told

    def tree(self, run_id: str, *, size: int) -> RunTree:
        """A run and the runs below it, `size` of all at most. Raises RunNotFoundError."""
        with self._store.read() as connection:
            runs.row_of(connection, run_id)
            return trees.tree(connection, run_id, size=size)

    def _queue_wait(
        self, connection: Connection, row: RunRow, nobody: QueuedReason | None
    ) -> QueueWait | None:
        if self._known_queues is None:
            return None
        return queues.why_queued(connection, row, nobody, self._known_queues(), self._clock())

    # --- queues ------------------------------------------------------------------------------------------------

    def queue_page(self, *, number: int, size: int) -> QueuePage:
        """One page of queues, in the order of their names; pages are counted from 1."""
        assert self._known_queues is not None, "a server's reader knows of them"
        with self._store.read() as connection:
            return queues.page(connection, self._known_queues(), number=number, size=size, now=self._clock())

    def queue(self, name: str) -> QueueObject:
        """A queue, with its concurrency keys. Raises QueueNotFoundError."""
        assert self._known_queues is not None, "a server's reader knows of them"
        with self._store.read() as connection:
            return queues.one(connection, self._known_queues(), name, now=self._clock())

    # --- tasks and workers -------------------------------------------------------------------------------------

    def task_page(self, *, number: int, size: int) -> TaskPage:
        """One page of the tasks that workers have offered; pages are counted from 1."""
        with self._store.read() as connection:
            return tasks.task_page(connection, number=number, size=size)

    def task(self, task_id: str) -> TaskObject:
        """A task. Raises NotFoundError."""
        with self._store.read() as connection:
            return tasks.task(connection, task_id)

    def worker_page(self, *, number: int, size: int) -> WorkerPage:
        """One page of the workers that are online; pages are counted from 1."""
        with self._store.read() as connection:
            return tasks.worker_page(connection, number=number, size=size)

    # --- documents ---------------------------------------------------------------------------------------------

    def metadata(self, run_id: str, keys: Keys = None) -> tuple[bytes, int]:
        """The document of a run as JSON, and its version. Raises RunNotFoundError."""
        with self._store.read() as connection:
            value, version = documents.newest(connection, run_id)
        return shown_document(value, keys), version

    def document(self, run_id: str) -> tuple[bytes, int, list[bytes]]:
        """The document of a run as JSON, its version, and some of the `once` ids that it has counted. Raises RunNotFoundError."""
        with self._store.read() as connection:
            value, version = documents.newest(connection, run_id)
            return value, version, documents.some_counted(connection, run_id)

    # --- lists -------------------------------------------------------------------------------------------------

    def summaries(self, run_ids: Sequence[str], keys: Keys = None) -> list[RunSummary]:
        """The runs that exist, in the order asked for."""
        with self._store.read() as connection:
            found = lists.summaries(connection, run_ids, keys)
        return [found[run_id] for run_id in run_ids if run_id in found]

    def page(
        self,
        filter: RunFilter,
        *,
        size: int,
        after: str | None = None,
        before: str | None = None,
        keys: Keys = None,
    ) -> RunPage:
        """One page of matching runs, newest first; `before` wins over `after` (protocol, section 5.3)."""
        with self._store.read() as connection:
            return lists.page(connection, filter, size=size, after=after, before=before, keys=keys)

    def first_page(
        self, filter: RunFilter, *, size: int, urgent_first: bool = False
    ) -> tuple[list[str], dict[str, int]]:
        """The ids of the newest matching runs, and how many runs match by status; no counts where documents decide.

        Args:
            urgent_first: the runs that a person wants to see first; not with a filter by status or document.
        """
        with self._store.read() as connection:
            return lists.first_page(connection, filter, size=size, urgent_first=urgent_first)

    def matching(
        self, filter: RunFilter, run_ids: Sequence[str], among: Container[str], keys: Keys = None
    ) -> dict[str, RunMatch]:
        """Which of these runs match. Runs that cannot match by what they are, whatever is in their documents, are read only where
        they are `among` others that are of interest."""
        with self._store.read() as connection:
            return lists.matches(connection, filter, run_ids, among, keys)

    # --- streams -----------------------------------------------------------------------------------------------

    def streams(self, run_id: str, kind: str = OUTPUT) -> list[StreamSummary]:
        """The streams of a run, in the order in which they were begun. Raises RunNotFoundError."""
        with self._store.read() as connection:
            return streams.summaries(connection, runs.row_of(connection, run_id), kind)

    def stream_page(self, run_id: str, name: str, *, start: int, bytes_max: int) -> StreamPage:
        """Chunks of a stream from an index on, and how it stands. A stream that nobody has written to yet is empty.

        Args:
            bytes_max: about; there is at least one row of chunks when there are any.
        Raises: RunNotFoundError.
        """
        with self._store.read() as connection:
            row = runs.row_of(connection, run_id)
            return streams.page(connection, row, name, start=start, bytes_max=bytes_max)

    def stream_position(self, run_id: str, name: str, writer: str) -> int:
        """The number of the first chunk of a writer that is not stored. Raises RunNotFoundError."""
        with self._store.read() as connection:
            runs.row_of(connection, run_id)
            return streams.position(connection, run_id, name, writer)

    # --- batches -----------------------------------------------------------------------------------------------

    def batch(self, batch_id: str) -> BatchObject:
        """A batch. Raises BatchNotFoundError."""
        with self._store.read() as connection:
            return batches.whole(connection, batch_id)

    def batch_row(self, batch_id: str) -> BatchRow:
        """The counts of a batch. Raises BatchNotFoundError."""
        with self._store.read() as connection:
            return batches.row_of(connection, batch_id)

    def batch_results(self, batch_id: str, *, after: int = -1) -> BatchResults:
        """The results of the runs behind an index that have ended, in index order: a page of at most `RESULTS_MAX` runs, and of not
        much more than `RESULTS_CHARACTERS_MAX` of outputs (`reading/batches.py`). Raises BatchNotFoundError."""
        with self._store.read() as connection:
            return batches.results(connection, batch_id, after=after)
