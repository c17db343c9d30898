"""Steps: how a reader is led from one state of a run to a later one. Every feed that tells of runs does it in this way.

News of a run gather until a reader looks. What it gets is the operations from its version to the newest, joined and collapsed, and the
newest state if that is new to it. Where the operations are not at hand any more, only the whole run helps.
"""

from collections import deque
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import msgspec

from milepost.engine.announcements import LoggedChange, RunChanged, steps_after
from milepost.model.operations import Operation, collapse
from milepost.model.run import RunStatus
from milepost.model.shown_keys import Keys, shown_operations
from milepost.protocol.feed import RunDelta
from milepost.protocol.runs import RunObject, RunSummary
from milepost.reading.fields import state_fields
from milepost.store.runs import RunRow

# Steps of one document that are kept for who reads later; beyond them the reader gets the document.
RECENT_BYTES = 256 * 1024


class RunNews:
    """What has changed of one run since some moment: the newest steps of its document, bounded in bytes, and its newest state.

    Attributes:
        version: the newest version of the document that was heard of; -1 while none was.
        row: the newest state that was heard of; None while none was. `output` and `error` belong to it.
        size: bytes of the steps.
    """

    __slots__ = ("_steps", "error", "output", "row", "size", "tags", "version")

    def __init__(self) -> None:
        self.version = -1
        self.row: RunRow | None = None
        self.output: str | None = None
        self.error: str | None = None
        self.tags: list[str] | None = None
        self.size = 0
        self._steps: deque[LoggedChange] = deque()

    def take_in(self, changed: RunChanged) -> None:
        """A commit has changed the run."""
        if changed.state_changed:
            self.row = changed.row
            self.output = changed.output
            self.tags = changed.tags or self.tags
            # While the next attempt runs, why the last one failed is still to be seen, also by who skipped that state.
            self.error = changed.error or (None if changed.row.status is RunStatus.COMPLETED else self.error)
        if changed.version is not None:
            # The run has ended at this version, whatever was heard of the steps before.
            self.version = max(self.version, changed.version)
        if not changed.changes:
            return
        if leaves_gap(self._steps, changed.changes):
            self.drop_steps()
        for change in changed.changes:
            self._steps.append(change)
            self.size += change.size
        self.version = max(self.version, changed.changes[-1].version)
        while self.size > RECENT_BYTES and len(self._steps) > 1:
            self.size -= self._steps.popleft().size

    def newer_than(self, version: int) -> list[LoggedChange] | None:
        """The steps above a version, in order; None when the oldest of them is not at hand, so that only the document helps."""
        if self.version <= version:
            return []
        steps = steps_after(self._steps, version)
        # It may have been heard of later versions than of their steps.
        return steps if steps and steps[-1].version == self.version else None

    def drop_steps(self) -> None:
        """Let the steps go: who needs them reads the document."""
        self._steps.clear()
        self.size = 0


def leaves_gap(steps: Sequence[LoggedChange], further: Sequence[LoggedChange]) -> bool:
    """True when an announcement in between got lost: what is at hand cannot be joined."""
    return bool(steps and further) and further[0].version != steps[-1].version + 1


class Place(NamedTuple):
    """How far a reader of a run is: up to which version of the document it has been told what it is shown, and from when the state is
    that it has (microseconds). `told` is the version that it has heard of; what came between that and `version` is hidden from it."""

    version: int
    seen_at: int
    told: int

    def is_at(self, other: "Place") -> bool:
        """Whether nothing is between two places."""
        return (self.version, self.seen_at) == (other.version, other.seen_at)


class State(NamedTuple):
    """The state of a run, as it was when it was looked at: what is heard afterwards does not change it."""

    row: RunRow
    output: str | None
    error: str | None
    tags: list[str] | None


class Step(NamedTuple):
    """What leads a reader of a run on: the operations from its version to another one, the newest state if that is new to it.

    Attributes:
        begins_at: the version that the reader has heard of.
        place: where it is afterwards.
        changes: the steps of the document, in order, as far as they are shown.
        newest: the newest state; None when the reader has it.
    """

    begins_at: int
    place: Place
    changes: Sequence[LoggedChange]
    newest: State | None

    @property
    def is_empty(self) -> bool:
        """True when there is nothing to tell."""
        return not self.changes and self.newest is None

    @property
    def is_final(self) -> bool:
        """True when the run has ended."""
        return self.newest is not None and self.newest.row.status.is_final

    @property
    def from_version(self) -> int | None:
        """The version that the operations start from; None when there are none."""
        return self.begins_at if self.changes else None

    @property
    def operations(self) -> list[Operation] | None:
        """The operations, joined and collapsed; None when there are none."""
        return collapse([operation for change in self.changes for operation in change.operations]) or None

    def state(self, *, with_output: bool, with_error: bool = True) -> dict[str, Any] | None:
        """The changed fields of the run, named as on the wire; null takes a field away."""
        if self.newest is None:
            return None
        row, output, error, tags = self.newest
        fields = {camel(name): value for name, value in state_fields(row, error).items()}
        if fields["error"] is None and not row.status.is_final:
            # Not known here: the error of the attempt before stays.
            del fields["error"]
        if tags is not None:
            fields["tags"] = tags
        if not with_error:
            fields.pop("error", None)
        if with_output and output is not None:
            fields["output"] = msgspec.Raw(output.encode())
        return fields


def step_from(place: Place, news: RunNews, keys: Keys = None) -> Step | None:
    """What leads from a place to the newest; None when the steps between are not at hand, so that only the whole run helps.

    A step may be empty and still lead on: past what is hidden.

    Args:
        keys: the top-level keys of the document that the reader is shown; None for all.
    """
    changes = news.newer_than(place.version)
    if changes is None:
        return None
    version = changes[-1].version if changes else place.version
    changes = shown_changes(changes, keys)
    row = news.row if news.row is not None and news.row.updated_at > place.seen_at else None
    reached = Place(
        version,
        row.updated_at if row is not None else place.seen_at,
        version if changes else place.told,
    )
    newest = State(row, news.output, news.error, news.tags) if row is not None else None
    return Step(place.told, reached, changes, newest)


def shown_changes(changes: list[LoggedChange], keys: Keys) -> list[LoggedChange]:
    """The steps as far as they are about these keys."""
    if keys is None:
        return changes
    shown = [
        msgspec.structs.replace(change, operations=shown_operations(change.operations, keys))
        for change in changes
    ]
    return [change for change in shown if change.operations]


def place_of(run: RunSummary) -> Place:
    """Where a reader is who was given this."""
    version = run.metadata_version
    return Place(version, round(run.updated_at.timestamp() * 1_000_000), version)


def run_delta(
    run_id: str, step: Step, *, matches: bool = True, skipped: Collection[str] = frozenset()
) -> RunDelta:
    """The same for readers of several runs, without the skipped fields."""
    return RunDelta(
        id=run_id,
        from_version=step.from_version,
        version=step.place.told,
        operations=step.operations,
        run=step.state(with_output=False, with_error="error" not in skipped),
        matches=matches,
    )


def leave_out(run: RunSummary, skipped: Collection[str]) -> None:
    """Take the fields that a token leaves out of feeds from a whole run; its document is none of them (`View.in_feeds`)."""
    if "error" in skipped:
        run.error = None
    if not isinstance(run, RunObject):
        return
    if "payload" in skipped:
        run.payload = None
    if "output" in skipped:
        run.output = None
    if "error" in skipped:
        run.attempts = [msgspec.structs.replace(attempt, error=None) for attempt in run.attempts]
        for relative in (run.related_runs.root, run.related_runs.parent):
            if relative is not None:
                relative.error = None


def camel(name: str) -> str:
    """A name as it is on the wire."""
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)
