"""What the engine tells the feed after a commit. Hints: the store is the truth, and an announcement may be lost or merged."""

from collections.abc import Sequence
from itertools import islice

import msgspec

from milepost.model.operations import Operation
from milepost.store.runs import RunRow
from milepost.store.streams import ChunkRow


class LoggedChange(msgspec.Struct, frozen=True, gc=False):
    """One committed step of a document's log, decoded. `size` is the length of its operations as JSON, in bytes."""

    version: int
    operations: Sequence[Operation]
    size: int
    writer_id: str | None = None
    attempt: int | None = None
    sequence: int | None = None
    # Places in the list that the writer sent which were refused or had been counted before.
    refused: Sequence[int] = ()


def steps_after(steps: Sequence[LoggedChange], version: int) -> list[LoggedChange] | None:
    """The steps above a version, in order; None when not all of them are at hand, or there are none.

    Takes time for these alone, however many older ones are at hand.

    Args:
        steps: in order and without a gap; a list or a deque.
    """
    count = steps[-1].version - version if steps else 0
    if not 0 < count <= len(steps):
        return None
    newest = list(islice(reversed(steps), count))
    newest.reverse()
    return newest if newest[0].version == version + 1 else None


class RunChanged(msgspec.Struct, gc=False):
    """A run has changed: its state (`state_changed`), its document (`changes`, without a gap), its log (`logged`), or all at once.

    `row` is the run as committed; `output` and `error` (JSON texts) and `tags` are there when this commit set them. `version` is that
    of the document when the run has finished: by it a reader notices that an earlier announcement has not reached it (M38).
    """

    row: RunRow
    state_changed: bool = False
    output: str | None = None
    error: str | None = None
    changes: list[LoggedChange] = []
    logged: bool = False
    version: int | None = None
    tags: list[str] | None = None


class BatchProgressed(msgspec.Struct, frozen=True):
    """More runs of a batch have ended."""

    batch_id: str
    run_count: int | None
    finished_count: int


class ChildrenFinished(msgspec.Struct, frozen=True):
    """Runs or whole batches have ended whose parent, held by this worker, may be waiting for them."""

    holder: str
    ids: list[str]


class RunsResumed(msgspec.Struct, frozen=True):
    """Runs that this worker holds may go on after a wait: their queues have room."""

    holder: str
    ids: list[str]


class CancelAsked(msgspec.Struct, frozen=True):
    """Runs that this worker holds are to end."""

    holder: str
    ids: list[str]


class StreamGrown(msgspec.Struct, gc=False):
    """Chunks were added to a stream, or a writer has ended. `next_index` is that behind the last chunk; `is_new`: there was no such
    stream before."""

    run_id: str
    name: str
    next_index: int
    rows: list[ChunkRow] = []
    has_ended: bool = False
    is_new: bool = False


class Announcement(msgspec.Struct):
    """Everything that one commit changed. `ended_sessions`: sessions of the dashboard that were signed out.
    `deleted_runs`: runs that are gone. `is_gap`: some commits of
    other servers could not be heard of, and have changed who knows what."""

    runs: list[RunChanged]
    batches: list[BatchProgressed]
    children_finished: list[ChildrenFinished]
    streams: list[StreamGrown] = []
    resumed: list[RunsResumed] = []
    cancel_asked: list[CancelAsked] = []
    ended_sessions: list[str] = []
    deleted_runs: list[str] = []
    is_gap: bool = False

    @property
    def is_empty(self) -> bool:
        """True when nobody need be told."""
        return not (
            self.runs
            or self.batches
            or self.children_finished
            or self.streams
            or self.resumed
            or self.cancel_asked
            or self.ended_sessions
            or self.deleted_runs
            or self.is_gap
        )
