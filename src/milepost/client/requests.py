"""What a trigger says: payload and options become a message, checked as far as that can be told before the request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, TypedDict

from milepost.client.queue import Queue
from milepost.errors import MetadataValueError, PayloadValidationError
from milepost.model.document import SIZE_LIMIT, Document
from milepost.model.jsonvalue import encode, to_json
from milepost.protocol.triggering import JSON_TYPE, QueueOption, TriggerOptions, TriggerRequest

NO_PAYLOAD: Final[Any] = object()
"""Stands for a payload that was left out, which is not the same as None."""


class RunOptions(TypedDict, total=False):
    """Options of one triggered run.

    metadata: the run's first document: a mapping, or a model that becomes an object (M2).
    tags: up to ten texts of up to 128 characters, to find and watch runs by; one text alone counts as one tag.
    max_attempts: attempts in all, the first included; wins over the task's retry rule.
    queue: another queue than the task's, or its name.
    """

    metadata: object
    tags: str | Iterable[str]
    max_attempts: int
    queue: str | Queue


OPTION_NAMES: Final = frozenset(RunOptions.__annotations__)


def payload_text(payload: object) -> str | None:
    """Any payload as JSON text; None for one that was left out. Raises PayloadValidationError."""
    if payload is NO_PAYLOAD:
        return None
    try:
        return encode(to_json(payload, place="payload")).decode()
    except MetadataValueError as error:
        raise PayloadValidationError(error.message, field="payload") from None


def trigger_options(
    options: Mapping[str, Any],
    *,
    has_payload: bool,
    metadata_limit: int = SIZE_LIMIT,
    parent_run_id: str | None = None,
    resume: bool = False,
) -> TriggerOptions:
    """The options as they travel.

    Args:
        metadata_limit: bytes that a document may have.
        parent_run_id: the run that triggers.
        resume: the parent waits for the new run.
    Raises: MetadataError for a document that cannot be one (M73, M85); TypeError for an option that there is not.
    """
    unknown = options.keys() - OPTION_NAMES
    if unknown:
        raise TypeError(
            f"there is no trigger option {sorted(unknown)[0]!r}; there are {', '.join(sorted(OPTION_NAMES))}"
        )
    metadata = options.get("metadata")
    tags = options.get("tags")
    queue = options.get("queue")
    return TriggerOptions(
        payload_type=JSON_TYPE if has_payload else None,
        metadata=None if metadata is None else Document.from_json(metadata, limit=metadata_limit).value,
        tags=[tags] if isinstance(tags, str) else None if tags is None else list(tags),
        max_attempts=options.get("max_attempts"),
        queue=None if queue is None else QueueOption(queue.name if isinstance(queue, Queue) else queue),
        parent_run_id=parent_run_id,
        resume_parent_on_completion=resume,
    )


def trigger_request(
    payload: object, options: Mapping[str, Any], *, metadata_limit: int = SIZE_LIMIT
) -> TriggerRequest:
    """One run outside of any other run. Raises as `payload_text` and `trigger_options`."""
    text = payload_text(payload)
    return TriggerRequest(
        text, trigger_options(options, has_payload=text is not None, metadata_limit=metadata_limit)
    )
