"""Tokens, as they are told."""

from collections.abc import Callable

import msgspec
from sqlalchemy import Connection

from milepost.errors import NotFoundError
from milepost.model.waitpoints import WaitpointStatus, timed_out
from milepost.protocol.runs import Pagination
from milepost.protocol.triggering import JSON_TYPE
from milepost.protocol.waitpoints import TokenObject, TokenPage
from milepost.reading.fields import text_of
from milepost.store import waitpoints as store
from milepost.store.waitpoints import USER_KEY, WaitpointFilter, WaitpointRow

UrlOf = Callable[[str], str]
"""The callback address of a token."""


def token_object(row: WaitpointRow, url_of: UrlOf, *, with_output: bool = True) -> TokenObject:
    """A token as it is told."""
    has_key = row.key is not None and row.key.startswith(USER_KEY)
    is_late = row.status == WaitpointStatus.TIMED_OUT
    output = row.output
    if is_late:
        output = msgspec.json.encode(timed_out(row.id)).decode()
    if not with_output:
        output = None
    return TokenObject(
        id=row.id,
        url=url_of(row.id),
        status=WaitpointStatus(row.status),
        tags=msgspec.json.decode(row.tags, type=list[str]) if row.tags else [],
        created_at=text_of(row.created_at),
        completed_at=None if row.ended_at is None else text_of(row.ended_at),
        timeout_at=None if row.timeout_at is None else text_of(row.timeout_at),
        idempotency_key=row.key.removeprefix(USER_KEY) if row.key is not None and has_key else None,
        idempotency_key_expires_at=None if row.key_expires_at is None else text_of(row.key_expires_at),
        output=output,
        output_type=JSON_TYPE if output is not None else None,
        output_is_error=True if is_late and with_output else None,
        run_id=row.run_id,
    )


def token(connection: Connection, waitpoint_id: str, url_of: UrlOf) -> TokenObject:
    """A token, or a time that a run waits for. Raises NotFoundError."""
    row = store.load_waitpoint(connection, waitpoint_id)
    if row is None:
        raise NotFoundError(f"there is no wait token {waitpoint_id!r:.100}")
    return token_object(row, url_of)


def page(
    connection: Connection,
    filter: WaitpointFilter,
    *,
    size: int,
    after: str | None,
    before: str | None,
    url_of: UrlOf,
) -> TokenPage:
    """One page of tokens, newest first; `before` wins over `after`."""
    # One more than asked tells whether there is a further page.
    rows = store.list_tokens(connection, filter, limit=size + 1, after=after, before=before)
    has_more = len(rows) > size
    rows = rows[-size:] if before is not None else rows[:size]
    has_next = has_more if before is None else True
    has_previous = has_more if before is not None else after is not None
    return TokenPage(
        data=[token_object(row, url_of, with_output=False) for row in rows],
        pagination=Pagination(
            next=rows[-1].id if rows and has_next else None,
            previous=rows[0].id if rows and has_previous else None,
        ),
    )
