"""`wait`: for a time, and for tokens that somebody completes.

In a run, a wait gives the run's slot back, and the run is WAITING. What is waited for is stored with its place in the run, so a later
attempt that comes to the same place goes on with it: with the time that is left, with the same token. See `docs/waits.md`.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict, TypeVar, Unpack, overload

import msgspec

from milepost.client import calls
from milepost.client.calling import check_blocking
from milepost.client.connection import Connection
from milepost.client.default import default_client
from milepost.client.requests import payload_text
from milepost.client.shape import Shape, shape_of
from milepost.client.steps import Steps, arun, run
from milepost.client.waitpoints import (
    TokenList,
    TokenResult,
    TokenState,
    WaitToken,
    token_result,
    token_state,
)
from milepost.errors import AttemptOverError, TooLargeError, UsageError
from milepost.model.durations import delay_text, parse_duration
from milepost.model.waitpoints import WaitpointStatus
from milepost.protocol.triggering import PAYLOAD_BYTES_MAX
from milepost.protocol.waitpoints import TimeRequest, TokenRequest
from milepost.sdk.scope import RunScope, live_scope, surroundings
from milepost.sdk.triggering import WaitForEnd

OutputT = TypeVar("OutputT")

SHORT_SECONDS = 5.0
"""A shorter wait keeps its slot and is not stored: giving the slot back and taking it again would cost more than it brings."""

LOOK_SECONDS = 0.2
POLL_SECONDS_MIN, POLL_SECONDS_MAX = 0.1, 2.0
TIMEOUT = "10m"


class TokenFilters(TypedDict, total=False):
    """Which tokens a list shows; all conditions hold together.

    status: one or several of "WAITING", "COMPLETED", "TIMED_OUT".
    tag: one tag or several; tokens with any of them.
    idempotency_key: the key that a token was made with.
    created_after: an aware datetime.
    created_before: an aware datetime.
    """

    status: str | Sequence[str]
    tag: str | Sequence[str]
    idempotency_key: str
    created_after: datetime
    created_before: datetime


@dataclass(frozen=True, slots=True)
class _Sleep:
    """A pause that keeps the run's slot; an attempt that was given up ends it."""

    seconds: float
    scope: RunScope | None = None

    def carry_out(self, connection: Connection, until: float | None) -> None:
        """See `Step`."""
        end = time.monotonic() + self.seconds
        while (left := end - time.monotonic()) > 0:
            if self.scope is not None and self.scope.has_ended:
                raise AttemptOverError(f"attempt {self.scope.run.attempt} of run {self.scope.run.id} is over")
            time.sleep(left if self.scope is None else min(left, LOOK_SECONDS))

    async def acarry_out(self, connection: Connection) -> None:
        """See `Step`."""
        await asyncio.sleep(self.seconds)


class Wait:
    """`wait`: for a time, and for tokens."""

    # --- time --------------------------------------------------------------------------------------------------

    def for_(
        self,
        duration: timedelta | float | str | None = None,
        *,
        seconds: float = 0,
        minutes: float = 0,
        hours: float = 0,
        days: float = 0,
    ) -> None:
        """Wait for a while: `wait.for_(minutes=10)`, `wait.for_("10m")`, `wait.for_(timedelta(hours=1))`.

        In a run, a wait of five seconds or more gives the run's slot back, outlives its worker, and a later attempt at the same place
        waits only for what is left. A shorter one, and any outside of a run, is a plain sleep.

        Args:
            duration: a `timedelta`, seconds, or a text such as `1h30m`; or else the units by name, which add up.
        Raises: UsageError for what is no duration, and on a running event loop (there is `afor_`); AttemptOverError.
        """
        check_blocking("wait.for_")
        pause = _pause(duration, seconds=seconds, minutes=minutes, hours=hours, days=days)
        _run(_waiting_for(live_scope(), pause))

    async def afor_(
        self,
        duration: timedelta | float | str | None = None,
        *,
        seconds: float = 0,
        minutes: float = 0,
        hours: float = 0,
        days: float = 0,
    ) -> None:
        """As `for_`, without blocking."""
        pause = _pause(duration, seconds=seconds, minutes=minutes, hours=hours, days=days)
        await _arun(_waiting_for(live_scope(), pause))

    def until(self, at: datetime) -> None:
        """Wait until a time, an aware datetime; one that is over is not waited for. Otherwise as `for_`.

        Raises: UsageError for a time without a zone.
        """
        check_blocking("wait.until")
        _run(_waiting_until(live_scope(), _aware(at)))

    async def auntil(self, at: datetime) -> None:
        """As `until`, without blocking."""
        await _arun(_waiting_until(live_scope(), _aware(at)))

    # --- tokens ------------------------------------------------------------------------------------------------

    def create_token(
        self,
        *,
        timeout: timedelta | float | str | datetime | None = TIMEOUT,
        idempotency_key: str | None = None,
        idempotency_key_ttl: timedelta | float | str | None = None,
        tags: str | Sequence[str] = (),
    ) -> WaitToken:
        """Make a token that can be waited for until somebody completes it.

        In a run, without a key, a later attempt that comes to the same place gets the same token, completed or not.

        Args:
            timeout: from now on, or an aware datetime; ten minutes if nothing is said, and None for a token that never times out.
            idempotency_key: another call with this key, from anywhere, gets the same token.
            idempotency_key_ttl: for how long; 30 days if nothing is said.
            tags: up to ten, to find it by.
        Raises: UsageError for a duration that is none; InvalidRequestError for tags or a key that cannot be.
        """
        request = _token_request(timeout, idempotency_key, idempotency_key_ttl, tags)
        return _run(_creating(request))

    async def acreate_token(
        self,
        *,
        timeout: timedelta | float | str | datetime | None = TIMEOUT,  # noqa: ASYNC109 - the token's own
        idempotency_key: str | None = None,
        idempotency_key_ttl: timedelta | float | str | None = None,
        tags: str | Sequence[str] = (),
    ) -> WaitToken:
        """As `create_token`, without blocking."""
        request = _token_request(timeout, idempotency_key, idempotency_key_ttl, tags)
        return await _arun(_creating(request))

    @overload
    def for_token(self, token: WaitToken | str) -> TokenResult[Any]: ...
    @overload
    def for_token(self, token: WaitToken | str, output_type: type[OutputT]) -> TokenResult[OutputT]: ...
    def for_token(self, token: WaitToken | str, output_type: Any = None) -> TokenResult[Any]:
        """Wait until somebody has completed a token, or it has timed out; several may wait for one. In a run this gives the slot back.

        Args:
            token: the token, or its id.
            output_type: what it is to be completed with.
        Returns: `ok`, `output`, `error`; a token that has timed out does not raise, `unwrap()` does.
        Raises: NotFoundError; PayloadValidationError when it was completed with something else than `output_type`.
        """
        check_blocking("wait.for_token")
        return _run(_waiting_for_token(live_scope(), _id_of(token), _shape(output_type)))

    @overload
    async def afor_token(self, token: WaitToken | str) -> TokenResult[Any]: ...
    @overload
    async def afor_token(
        self, token: WaitToken | str, output_type: type[OutputT]
    ) -> TokenResult[OutputT]: ...
    async def afor_token(self, token: WaitToken | str, output_type: Any = None) -> TokenResult[Any]:
        """As `for_token`, without blocking."""
        return await _arun(_waiting_for_token(live_scope(), _id_of(token), _shape(output_type)))

    def complete_token(self, token: WaitToken | str, data: Any = None) -> bool:
        """Complete a token: whoever waits for it, now or later, gets `data`.

        Args:
            token: the token, or its id.
            data: any JSON, up to 3 MB.
        Returns: True when this call has completed it. False when it was over before, completed by somebody else or timed out: nothing
            has changed then, and `data` is not kept; `retrieve_token` tells what had been.
        Raises: NotFoundError; PayloadValidationError for what cannot be JSON; TooLargeError.
        """
        return _run(_completing(_id_of(token), data))

    async def acomplete_token(self, token: WaitToken | str, data: Any = None) -> bool:
        """As `complete_token`, without blocking."""
        return await _arun(_completing(_id_of(token), data))

    def retrieve_token(self, token: WaitToken | str) -> TokenState:
        """A token as it is now. Raises NotFoundError."""
        return token_state(default_client().send(calls.retrieve_token(_id_of(token))))

    async def aretrieve_token(self, token: WaitToken | str) -> TokenState:
        """As `retrieve_token`, without blocking."""
        return token_state(await default_client().asend(calls.retrieve_token(_id_of(token))))

    def list_tokens(self, *, page_size: int = 100, **filters: Unpack[TokenFilters]) -> TokenList:
        """Tokens, newest first; further pages are fetched while iterating, by `for` or `async for`.

        Args:
            page_size: tokens fetched at once, 1 to 100.
            filters: see `TokenFilters`.
        """
        return TokenList(lambda: default_client().connection, calls.token_filters(**filters), page_size)


wait = Wait()
"""Waiting for a time, and for tokens."""


# --- the steps -------------------------------------------------------------------------------------------------


def _waiting_for(scope: RunScope | None, pause: timedelta) -> Steps[None]:
    if scope is None or _is_short(pause.total_seconds()):
        yield _Sleep(pause.total_seconds(), scope)
        return
    text = delay_text(pause)
    yield from _waiting_for_time(scope, text, f"for/{text}")


def _now() -> datetime:
    sandbox_now = surroundings.sandbox_now
    return (
        datetime.now(UTC) if sandbox_now is None else datetime.fromtimestamp(sandbox_now() / 1_000_000, UTC)
    )


def _is_short(seconds: float) -> bool:
    return seconds < SHORT_SECONDS and surroundings.sandbox_now is None


def _waiting_until(scope: RunScope | None, at: datetime) -> Steps[None]:
    left = (at - _now()).total_seconds()
    if left <= 0:
        return
    if scope is None or _is_short(left):
        yield _Sleep(left, scope)
        return
    text = delay_text(at.astimezone(UTC))
    yield from _waiting_for_time(scope, text, f"until/{text}")


def _waiting_for_time(scope: RunScope, text: str, what: str) -> Steps[None]:
    time = yield calls.wait_for_time(TimeRequest(until=text, place=scope.place(what)))
    if time.status is WaitpointStatus.WAITING:
        yield WaitForEnd(scope, time.id)


def _creating(request: TokenRequest) -> Steps[WaitToken]:
    created, token = yield calls.create_token(request)
    return WaitToken(created.id, created.url, token, created.is_cached)


def _waiting_for_token(
    scope: RunScope | None, token_id: str, shape: Shape[Any] | None
) -> Steps[TokenResult[Any]]:
    if scope is not None:
        token = yield calls.await_waitpoint(token_id)
        if token.status is WaitpointStatus.WAITING:
            yield WaitForEnd(scope, token_id)
    pause = POLL_SECONDS_MIN
    while (token := (yield calls.retrieve_token(token_id))).status is WaitpointStatus.WAITING:
        yield _Sleep(pause, scope)
        pause = min(pause * 2, POLL_SECONDS_MAX)
    return token_result(token, shape)


def _completing(token_id: str, data: object) -> Steps[bool]:
    text = (payload_text(data) or "null").encode()
    if len(text) > PAYLOAD_BYTES_MAX:
        raise TooLargeError(
            f"a token takes up to {PAYLOAD_BYTES_MAX:,} bytes of JSON, and this is {len(text):,}; store it elsewhere and send where",
            field="data",
            limit=PAYLOAD_BYTES_MAX,
        )
    return (yield calls.complete_token(token_id, text)).is_first


def _run(steps: Steps[OutputT]) -> OutputT:
    return run(default_client().connection, steps)


async def _arun(steps: Steps[OutputT]) -> OutputT:
    return await arun(default_client().connection, steps)


# --- what users write ------------------------------------------------------------------------------------------


def _pause(duration: timedelta | float | str | None, **units: float) -> timedelta:
    if duration is not None and any(unit != 0 for unit in units.values()):
        raise UsageError("wait.for_ takes a duration, or its units by name, and not both")
    try:
        return parse_duration(timedelta(**units) if duration is None else duration)
    except (ValueError, TypeError, OverflowError) as error:
        raise UsageError(f"wait.for_: {error}") from None


def _aware(at: datetime) -> datetime:
    if not isinstance(at, datetime) or at.utcoffset() is None:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(
            f"wait.until takes a time with its zone, such as datetime.now(UTC) + timedelta(hours=1), not {at!r:.100}"
        )
    return at


def _token_request(
    timeout: timedelta | float | str | datetime | None,
    idempotency_key: str | None,
    idempotency_key_ttl: timedelta | float | str | None,
    tags: str | Sequence[str],
) -> TokenRequest:
    given = [tags] if isinstance(tags, str) else list(tags)
    try:
        timeout_text = None if timeout is None else delay_text(timeout)
        ttl = None if idempotency_key_ttl is None else delay_text(parse_duration(idempotency_key_ttl))
    except ValueError as error:
        raise UsageError(f"wait.create_token: {error}") from None
    if ttl is not None and idempotency_key is None:
        raise UsageError(
            "wait.create_token: idempotency_key_ttl says how long a key is kept, and there is no key"
        )
    scope, place = live_scope(), None
    # A child process counts for itself, so it could not say where in the run it is.
    if scope is not None and scope is not surroundings.attached and idempotency_key is None:
        # A time that was reckoned from now is another one in the next attempt.
        is_given = isinstance(timeout, datetime)
        what = msgspec.json.encode([None if is_given else timeout_text, given])
        place = scope.place(f"token/{hashlib.sha256(what).hexdigest()[:16]}")
    return TokenRequest(
        timeout=timeout_text,
        no_timeout=timeout is None,
        tags=given or None,
        idempotency_key=idempotency_key,
        idempotency_key_ttl=ttl,
        place=place,
    )


def _id_of(token: WaitToken | str) -> str:
    return token.id if isinstance(token, WaitToken) else token


def _shape(output_type: Any) -> Shape[Any] | None:
    return None if output_type is None else shape_of(output_type)
