"""Signing in, and tokens."""

from collections.abc import Callable
from typing import Any

from starlette.requests import Request

from milepost.errors import InvalidRequestError
from milepost.model.scopes import parse_scope
from milepost.protocol.dashboard import SignInLink
from milepost.protocol.tokens import (
    ENVIRONMENT_ID,
    LIFE_SECONDS,
    CommonClaims,
    PublicTokenRequest,
    PublicTokenResponse,
    expiry_of,
)
from milepost.server import requests
from milepost.server.auth import CODE_SECONDS, Authenticator

SERVER_LIFE_SECONDS_MAX = 30 * 24 * 3600


class Tokens:
    """The endpoints about who may call the others."""

    def __init__(self, authenticator: Authenticator, clock: Callable[[], int]) -> None:
        self._authenticator = authenticator
        self._clock = clock

    async def create_sign_in_link(self, request: Request) -> Any:
        """A link that signs a browser in."""
        return SignInLink(sign_in_path(self._authenticator), CODE_SECONDS)

    async def token_claims(self, request: Request) -> Any:
        """What clients put into the tokens that they sign."""
        return CommonClaims(ENVIRONMENT_ID, True)

    async def create_public_token(self, request: Request) -> Any:
        """A token for whoever cannot sign it."""
        body: PublicTokenRequest = await requests.body(request, PublicTokenRequest)
        now = self._clock() // 1_000_000
        try:
            expires_at = expiry_of(
                LIFE_SECONDS if body.expiration_time is None else body.expiration_time, now
            )
        except ValueError as error:
            raise InvalidRequestError(f"expirationTime: {error}", field="expirationTime") from None
        if expires_at - now > SERVER_LIFE_SECONDS_MAX:
            raise InvalidRequestError(
                "expirationTime: a token that the server signs lives for at most 30 days",
                field="expirationTime",
                limit=SERVER_LIFE_SECONDS_MAX,
            )
        for index, scope in enumerate(body.scopes):
            if parse_scope(scope) is None:
                raise InvalidRequestError(
                    f"scopes[{index}]: {scope!r:.100} is no scope; write action:resource or action:resource:id",
                    field=f"scopes[{index}]",
                )
        token = self._authenticator.sign_token(
            body.scopes,
            expires_at=expires_at,
            one_time=body.one_time_use or None,
            metadata_keys=body.metadata_keys,
            realtime=body.realtime,
        )
        return PublicTokenResponse(token)


def sign_in_path(authenticator: Authenticator) -> str:
    """The path of a link that signs a browser in, once and soon."""
    return f"/sign-in?code={authenticator.new_code()}"
