"""Metadata on the wire (protocol, section 6) and the pieces that carry a document forward."""

from typing import Any

import msgspec

from milepost.model.operations import Operation

OPERATIONS_MAX = 10_000
"""Operations that one request, or one run's part of a report, may hold. One group of commands must not hold up the others."""


class MetadataRequest(
    msgspec.Struct, omit_defaults=True, rename="camel", kw_only=True, forbid_unknown_fields=True
):
    """Operations for the run, its parent and its root; or, without `operations`, a whole new document.

    Each operation is decoded by itself, so that a bad one is refused alone (M29): the lists are any JSON here. With `ifVersion`
    nothing is applied unless the run's own document has that version.
    """

    metadata: Any = None
    operations: list[Any] | None = None
    parent_operations: list[Any] | None = None
    root_operations: list[Any] | None = None
    if_version: int | None = None


class Refused(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", gc=False):
    """One operation that was not applied. `run` is the run whose document refused it, `index` its place in its list."""

    run: str
    index: int
    code: str
    message: str
    operation: Any = None


class MetadataResponse(msgspec.Struct, omit_defaults=True, rename="camel", kw_only=True):
    """The document after the request, its version, and what was refused."""

    metadata: msgspec.Raw
    version: int
    refused: list[Refused] | None = None


class ChangeWriter(msgspec.Struct, frozen=True):
    """The attempt of a run that wrote a change."""

    run: str
    attempt: int


class CommittedChange(msgspec.Struct, frozen=True, kw_only=True):
    """One change of a document: the version that it reached, when (microseconds since 1970), what was applied, and who wrote it.

    `writer` is null for a writer from outside. What was refused is not part of it.
    """

    version: int
    at: int
    operations: list[Operation]
    writer: ChangeWriter | None


class MetadataHistory(msgspec.Struct, omit_defaults=True, rename="camel", kw_only=True):
    """Changes of a document, oldest first.

    `earliest_version` is the earliest version that can still be shown: older changes were pruned. `next` is the cursor of the next
    page, absent at the end.
    """

    data: list[CommittedChange]
    earliest_version: int
    next: int | None = None


class MetadataChange(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One step of a document's log: the version that it reaches and the operations that lead there.

    `attempt` and `sequence` are set when the reader itself wrote the step; the operations are then the ones it sent, less
    `refused` (places in the list that was sent), and are not repeated. Neighbouring steps of other writers may be one step here.
    """

    version: int
    operations: list[Operation] = []
    attempt: int | None = None
    sequence: int | None = None
    refused: list[int] = []


class MetadataDelta(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", gc=False):
    """What brings a reader from `from_version` to the newest version: steps without a gap, or a whole document.

    With a document come up to 5,000 of the `once` ids that were counted, as `ClaimedRun.counted` has them.
    """

    run: str
    from_version: int
    version: int
    changes: list[MetadataChange] | None = None
    metadata: dict[str, Any] | None = None
    counted: bytes | None = None
