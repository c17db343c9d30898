"""Wait tokens as a caller sees them, and how they end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar, cast

import msgspec

from milepost.client import calls
from milepost.client.calls import TokenPage
from milepost.client.connection import Connection
from milepost.client.results import UNTYPED
from milepost.client.shape import Shape
from milepost.errors import PayloadValidationError, TaskFailedError
from milepost.model.run import RunError
from milepost.model.typed import Misfit
from milepost.model.waitpoints import WaitpointStatus, timed_out
from milepost.protocol.waitpoints import TokenObject

OutputT = TypeVar("OutputT")


@dataclass(frozen=True)
class WaitToken:
    """A token that runs wait for until somebody completes it.

    Attributes:
        id: the token's id.
        url: its callback address: a POST there completes it, without credentials, with the body as the output. Whoever knows it can.
        public_access_token: lets others complete this token, by its id, and nothing else. It lives for an hour.
        is_cached: the token was there before, made with the same key, or at the same place of an earlier attempt of this run.
    """

    id: str
    url: str
    public_access_token: str | None
    is_cached: bool


@dataclass(frozen=True)
class TokenState:
    """A token as it is now. Times are aware UTC.

    Attributes:
        status: `WAITING`, `COMPLETED` or `TIMED_OUT`.
        timeout_at: when it times out; None for one that never does.
        completed_at: when it was completed, or has timed out.
        output: what it was completed with, plain JSON. Lists leave it out: there it is None.
        run_id: the run that has made it.
    """

    id: str
    url: str
    status: WaitpointStatus
    tags: list[str]
    created_at: datetime
    timeout_at: datetime | None = None
    completed_at: datetime | None = None
    idempotency_key: str | None = None
    output: Any = None
    run_id: str | None = None


@dataclass(frozen=True)
class TokenResult(Generic[OutputT]):
    """How a token has ended. One that has timed out is a result like any other; `unwrap()` is for those who want it to raise.

    Attributes:
        ok: whether somebody has completed it.
        token_id: the token.
        output: what it was completed with; None for one that has timed out.
        error: why there is no output (`WaitTimeoutError`); None for one that was completed.
    """

    ok: bool
    token_id: str
    output: OutputT | None = None
    error: RunError | None = None

    def unwrap(self) -> OutputT:
        """The output. Raises TaskFailedError when the token has timed out."""
        if not self.ok:
            error = self.error or timed_out(self.token_id)
            raise TaskFailedError(
                f"{error.name}: {error.message}", error_name=error.name, error_message=error.message
            )
        return cast("OutputT", self.output)


def token_result(token: TokenObject, shape: Shape[Any] | None) -> TokenResult[Any]:
    """The result of a token that has ended. Raises PayloadValidationError for an output that does not fit."""
    if token.status is not WaitpointStatus.COMPLETED:
        return TokenResult(ok=False, token_id=token.id, error=timed_out(token.id))
    try:
        output = (shape or UNTYPED).read(token.output if token.output is not None else "null")
    except Misfit as misfit:
        raise PayloadValidationError(
            f"token {token.id} was completed with something else than was waited for: {misfit.describe('output')}",
            field="output",
        ) from None
    return TokenResult(ok=True, token_id=token.id, output=output)


def token_state(token: TokenObject) -> TokenState:
    """A token out of a message."""
    is_completed = token.status is WaitpointStatus.COMPLETED
    return TokenState(
        id=token.id,
        url=token.url,
        status=token.status,
        tags=token.tags,
        created_at=datetime.fromisoformat(token.created_at),
        timeout_at=_time(token.timeout_at),
        completed_at=_time(token.completed_at),
        idempotency_key=token.idempotency_key,
        output=msgspec.json.decode(token.output) if is_completed and token.output is not None else None,
        run_id=token.run_id,
    )


class TokenList:
    """Tokens, newest first, fetched page by page while they are iterated over."""

    def __init__(
        self, connection: Callable[[], Connection], filters: Mapping[str, Any], page_size: int
    ) -> None:
        self._connection = connection
        self._filters = filters
        self._page_size = page_size

    def __iter__(self) -> Iterator[TokenState]:
        after: str | None = None
        while True:
            page: TokenPage = self._connection().send(
                calls.list_tokens(self._filters, page_size=self._page_size, after=after)
            )
            yield from map(token_state, page.data)
            after = page.pagination.next
            if after is None:
                return

    async def __aiter__(self) -> AsyncIterator[TokenState]:
        after: str | None = None
        while True:
            page: TokenPage = await self._connection().asend(
                calls.list_tokens(self._filters, page_size=self._page_size, after=after)
            )
            for token in page.data:
                yield token_state(token)
            after = page.pagination.next
            if after is None:
                return


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
