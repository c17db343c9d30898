"""Scopes: what a public token lets its bearer do (protocol, section 2.3). Pure.

    scope = action [":" resource [":" id]]

The id is everything behind the second colon, so it may have colons itself. A scope without an id means every id of its resource, the
resource `all` means every resource, the action `*` every action, and `admin` alone means everything that a token can be given. What
is none of that grants nothing: an action without a resource, or an empty id.
"""

from collections.abc import Iterable
from functools import cached_property

import msgspec

READ, WRITE, TRIGGER, BATCH_TRIGGER = "read", "write", "trigger", "batchTrigger"
RUNS, TASKS, TAGS, BATCH, METADATA = "runs", "tasks", "tags", "batch", "metadata"
INPUT_STREAMS, WAITPOINTS = "inputStreams", "waitpoints"
ADMIN, ANY_ACTION, ANY_RESOURCE = "admin", "*", "all"


class Scope(msgspec.Struct, frozen=True):
    """One scope. `id` is None where every id is meant."""

    action: str
    resource: str
    id: str | None = None

    def allows(self, action: str, resource: str, id: str | None = None) -> bool:
        """Whether it covers an action on one thing, or on all things of a resource (`id` None)."""
        return (
            self.action in (action, ANY_ACTION)
            and self.resource in (resource, ANY_RESOURCE)
            and (self.id is None or self.id == id)
        )

    def __str__(self) -> str:
        return f"{self.action}:{self.resource}" + ("" if self.id is None else f":{self.id}")


EVERYTHING = Scope(ANY_ACTION, ANY_RESOURCE)


def parse_scope(text: str) -> Scope | None:
    """Read a scope; None for a text that grants nothing."""
    if text == ADMIN:
        return EVERYTHING
    action, _, rest = text.partition(":")
    resource, colon, id = rest.partition(":")
    if not action or not resource or (colon and not id):
        return None
    return Scope(action, resource, id if colon else None)


class RunScope(msgspec.Struct, frozen=True):
    """Which runs a token shows: those with one of these ids, of these tasks, with any of these tags, of these batches.

    `any_tag` and `any_batch`: runs with a tag, whichever it is, and runs of a batch.
    """

    runs: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    batches: tuple[str, ...] = ()
    any_tag: bool = False
    any_batch: bool = False

    def shows(self, run_id: str, task: str, tags: Iterable[str], batch_id: str | None) -> bool:
        """Whether a run is among them."""
        return (
            run_id in self.runs
            or task in self.tasks
            or (batch_id is not None and (self.any_batch or batch_id in self.batches))
            or any(self.any_tag or tag in self.tags for tag in tags)
        )


class View(msgspec.Struct, frozen=True):
    """What a reader is shown: which runs, and which top-level keys of their documents; None for all of them. `skipped` are fields of
    runs that feeds leave out for it, under the names that tokens have for them (protocol, section 2.2)."""

    runs: RunScope | None = None
    keys: frozenset[str] | None = None
    skipped: frozenset[str] = frozenset()

    def in_feeds(self) -> "View":
        """What feeds show of documents: nothing, where `metadata` is skipped."""
        return msgspec.structs.replace(self, keys=frozenset[str]()) if "metadata" in self.skipped else self


WHOLE_VIEW = View()


class Scopes(msgspec.Struct, frozen=True, dict=True):
    """The scopes of one token. Texts that grant nothing are passed over."""

    texts: tuple[str, ...]

    @cached_property
    def parsed(self) -> tuple[Scope, ...]:
        """The scopes that grant something."""
        return tuple(scope for scope in map(parse_scope, self.texts) if scope is not None)

    def allows(self, action: str, resource: str, id: str | None = None) -> bool:
        """Whether an action on one thing is granted, or on all things of a resource (`id` None)."""
        return any(scope.allows(action, resource, id) for scope in self.parsed)

    @cached_property
    def readable(self) -> RunScope | None:
        """The runs that may be read; None for every run. An empty `RunScope` shows none."""
        if self.allows(READ, RUNS) or self.allows(READ, TASKS):
            return None
        return RunScope(
            runs=self._ids(READ, RUNS),
            tasks=self._ids(READ, TASKS),
            tags=self._ids(READ, TAGS),
            batches=self._ids(READ, BATCH),
            any_tag=self.allows(READ, TAGS),
            any_batch=self.allows(READ, BATCH),
        )

    def written_keys(self, run_id: str) -> frozenset[str] | None:
        """The top-level keys of a run's document that may be written; None for all of them.

        The id of such a scope is that of a run, alone or with one key behind a colon: `write:metadata:run_1234:approved`. A key may
        have colons, the id of a run has none.
        """
        if self.allows(WRITE, METADATA) or self.allows(WRITE, METADATA, run_id):
            return None
        start = f"{run_id}:"
        ids = self._ids(WRITE, METADATA)
        return frozenset(id.removeprefix(start) for id in ids if id.startswith(start))

    @cached_property
    def written_tasks(self) -> tuple[str, ...] | None:
        """The tasks whose runs may be cancelled; None for every task."""
        return None if self.allows(WRITE, TASKS) else self._ids(WRITE, TASKS)

    def _ids(self, action: str, resource: str) -> tuple[str, ...]:
        return tuple(
            sorted(
                {
                    scope.id
                    for scope in self.parsed
                    if scope.id is not None
                    and scope.action in (action, ANY_ACTION)
                    and scope.resource in (resource, ANY_RESOURCE)
                }
            )
        )
