"""Wait tokens, and times that runs wait for."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
from starlette.requests import Request

from milepost.engine import commands
from milepost.engine.commands import AttemptRef, CompleteToken, CreatedWaitpoint, CreateWaitpoint
from milepost.engine.triggering import check_tags
from milepost.errors import BadRequestError, InvalidRequestError, TooLargeError, UnauthorizedError
from milepost.model.durations import parse_delay, parse_duration
from milepost.model.jsontext import JSONTextError, read_text
from milepost.model.names import check_name
from milepost.model.waitpoints import WaitpointKind, WaitpointStatus
from milepost.protocol.endpoints import ATTEMPT_HEADER
from milepost.protocol.triggering import PAYLOAD_BYTES_MAX
from milepost.protocol.waitpoints import (
    CompleteTokenRequest,
    TimeRequest,
    TokenCompleted,
    TokenCreated,
    TokenRequest,
    WaitpointState,
)
from milepost.reading import waitpoints as telling
from milepost.reading.reader import Reader
from milepost.server import access, requests
from milepost.server.auth import Authenticator, caller_of
from milepost.server.handlers.answers import Submit, WithToken

WAIT_MICROSECONDS_MAX = 10 * 366 * 86_400_000_000
TIMEOUT = "10m"
KEY_TTL = "30d"
KEY_CHARACTERS_MAX = 2048


class Waitpoints:
    """The endpoints about what runs wait for beside other runs.

    Args:
        public_url: where others reach the server; "" for the address that each request names.
    """

    def __init__(
        self,
        submit: Submit,
        reader: Reader,
        authenticator: Authenticator,
        clock: Callable[[], int],
        *,
        public_url: str,
    ) -> None:
        self._submit = submit
        self._reader = reader
        self._authenticator = authenticator
        self._clock = clock
        self._public_url = public_url.rstrip("/")

    async def create_token(self, request: Request) -> Any:
        """A token."""
        caller = caller_of(request)
        attempt = access.attempt_of(caller, request)
        body: TokenRequest = await requests.body(request, TokenRequest)
        if body.no_timeout and body.timeout is not None:
            raise InvalidRequestError(
                "a token has a timeout, or noTimeout: leave one of them out", field="noTimeout"
            )
        pause_ms, at = (None, None) if body.no_timeout else self._span(body.timeout or TIMEOUT, "timeout")
        if body.idempotency_key is not None:
            check_name(
                body.idempotency_key,
                "an idempotency key",
                field="idempotencyKey",
                characters_max=KEY_CHARACTERS_MAX,
            )
        given = [body.tags] if isinstance(body.tags, str) else body.tags or []
        created: CreatedWaitpoint = await self._submit(
            CreateWaitpoint(
                kind=WaitpointKind.TOKEN,
                timeout_ms=pause_ms,
                timeout_at=at,
                tags=check_tags(given, field="tags"),
                key=body.idempotency_key,
                key_ttl_ms=None if body.idempotency_key is None else _key_ttl(body.idempotency_key_ttl),
                place=_place(body.place, attempt),
                request_id=access.request_id(request),
                attempt=attempt,
            )
        )
        answer = TokenCreated(
            id=created.id, is_cached=created.is_cached, url=self._url_of(request)(created.id)
        )
        return WithToken(answer, self._authenticator.sign_token([f"write:waitpoints:{created.id}"]))

    async def list_tokens(self, request: Request) -> Any:
        """One page of tokens."""
        query = request.query_params
        filter = requests.token_filter(request, self._clock())
        size = requests.page_size(request)
        return await asyncio.to_thread(
            self._reader.tokens,
            filter,
            size=size,
            after=query.get("page[after]"),
            before=query.get("page[before]"),
            url_of=self._url_of(request),
        )

    async def retrieve_token(self, request: Request) -> Any:
        """A token."""
        return await asyncio.to_thread(
            self._reader.token, request.path_params["waitpoint"], self._url_of(request)
        )

    async def complete_token(self, request: Request) -> Any:
        """Somebody who may, completes a token."""
        attempt = access.attempt_of(caller_of(request), request)
        body: CompleteTokenRequest = await requests.body(request, CompleteTokenRequest)
        try:
            text = None if isinstance(body.data, msgspec.UnsetType) else bytes(body.data).decode()
        except UnicodeDecodeError as error:
            raise BadRequestError(f"data is not UTF-8: {error}", field="data") from None
        return await self._complete(request, _output(text), attempt)

    async def call_back(self, request: Request) -> Any:
        """Somebody who knows the address completes a token."""
        token_id, secret = request.path_params["waitpoint"], request.path_params["secret"]
        if not self._authenticator.is_callback(token_id, secret):
            raise UnauthorizedError("this is not the callback address of a token: its last part is wrong")
        content = await requests.read_body(request)
        _check_size(len(content))
        try:
            text = content.decode()
            await asyncio.to_thread(read_text, text, place="body")
        except (UnicodeDecodeError, JSONTextError):
            text = "{}"
        return await self._complete(request, text, None)

    async def await_waitpoint(self, request: Request) -> Any:
        """A run waits."""
        attempt = _needed(access.attempt_of(caller_of(request), request))
        row = await self._submit(commands.AwaitWaitpoint(request.path_params["waitpoint"], attempt))
        return telling.token_object(row, self._url_of(request))

    async def wait_for_time(self, request: Request) -> Any:
        """A run waits for a time."""
        attempt = _needed(access.attempt_of(caller_of(request), request))
        body: TimeRequest = await requests.body(request, TimeRequest)
        pause_ms, at = self._span(body.until, "until")
        created: CreatedWaitpoint = await self._submit(
            CreateWaitpoint(
                kind=WaitpointKind.TIME,
                timeout_ms=pause_ms,
                timeout_at=at,
                place=_place(body.place, attempt),
                attempt=attempt,
            )
        )
        return WaitpointState(id=created.id, status=created.status)

    async def _complete(self, request: Request, output: str | None, attempt: AttemptRef | None) -> Any:
        token_id = request.path_params["waitpoint"]
        done = await self._submit(CompleteToken(token_id, output, access.request_id(request), attempt))
        return TokenCompleted(is_first=done.is_first, status=WaitpointStatus(done.status))

    def _url_of(self, request: Request) -> Callable[[str], str]:
        base = self._public_url or f"{request.scope['scheme']}://{request.headers.get('host', 'localhost')}"
        secret_of = self._authenticator.callback_secret
        return lambda id: f"{base}/api/v1/waitpoints/tokens/{id}/callback/{secret_of(id)}"

    def _span(self, text: str, field: str) -> tuple[int | None, int | None]:
        """A pause in milliseconds, or a time in microseconds since 1970. Raises InvalidRequestError."""
        try:
            delay = parse_delay(text)
        except ValueError as error:
            raise InvalidRequestError(f"{field}: {error}", field=field) from None
        now = self._clock()
        if delay.due_at(now) - now > WAIT_MICROSECONDS_MAX:
            raise InvalidRequestError(
                f"{field}: one can wait for ten years at most, and {text!r:.100} is later", field=field
            )
        return delay.pause_ms, None if delay.at is None else max(delay.at, 0)


def _key_ttl(text: str | None) -> int:
    try:
        ttl = parse_duration(KEY_TTL if text is None else text)
    except ValueError as error:
        raise InvalidRequestError(f"idempotencyKeyTTL: {error}", field="idempotencyKeyTTL") from None
    milliseconds = int(ttl.total_seconds() * 1000)
    if milliseconds * 1000 > WAIT_MICROSECONDS_MAX:
        raise InvalidRequestError(
            "idempotencyKeyTTL: a key is kept for ten years at most", field="idempotencyKeyTTL"
        )
    return milliseconds


def _place(place: str | None, attempt: AttemptRef | None) -> str | None:
    if place is not None and attempt is None:
        raise BadRequestError(
            f"a place is one in a run: say by {ATTEMPT_HEADER} which attempt asks", field="place"
        )
    if place is not None:
        check_name(place, "a place", field="place")
    return place


def _needed(attempt: AttemptRef | None) -> AttemptRef:
    if attempt is None:
        raise BadRequestError(
            f"only a run can wait: {ATTEMPT_HEADER} says which attempt it is", field=ATTEMPT_HEADER
        )
    return attempt


def _output(text: str | None) -> str | None:
    """What a token is completed with. Raises InvalidRequestError, TooLargeError."""
    if text is None:
        return None
    _check_size(len(text.encode()))
    try:
        read_text(text, place="data")
    except JSONTextError as error:
        raise InvalidRequestError(str(error), field="data") from None
    return text


def _check_size(size: int) -> None:
    if size > PAYLOAD_BYTES_MAX:
        raise TooLargeError(
            f"a token takes up to {PAYLOAD_BYTES_MAX:,} bytes of JSON, and this is {size:,}; store it elsewhere and send where",
            field="data",
            limit=PAYLOAD_BYTES_MAX,
        )
