"""Who may ask: the secret key, a public token that was signed with it, or a browser that was signed in by a link or by the key.

A public token says in its scopes what it opens; the table of endpoints names the rule, and `access.py` carries it out. It is looked
for in the `authorization` header only, and a session in its cookie only; they are signed with different keys, so that neither passes
for the other.

A link carries a code that works once and soon expires; the browser gets a signed cookie for it. So the key itself never stands in a
URL. What a session may call, the table of endpoints says. A page of another site could not send the cookie (`SameSite=Strict`); one
that another server of the same host has served could, so a session counts only in requests that come from this server's own pages.

Nothing is remembered here. What is signed is valid at every server with the same key; which codes have been used and which sessions
were signed out is in the database (`sessions.py`).
"""

import hmac
import secrets
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import jwt
import msgspec
from starlette.requests import HTTPConnection

from milepost.errors import ForbiddenError, UnauthorizedError
from milepost.model.scopes import WHOLE_VIEW, Scopes, View
from milepost.protocol import tokens
from milepost.protocol.endpoints import Access
from milepost.protocol.tokens import TokenError

SESSION_SECONDS = 30 * 24 * 3600
CODE_SECONDS = 15 * 60
# Of a code: until when it works, in seconds; what tells it apart; its signature.
_TIME_BYTES, _ID_BYTES, _SIGNATURE_BYTES = 5, 16, 16
_CODE_BYTES = _TIME_BYTES + _ID_BYTES + _SIGNATURE_BYTES
_ALGORITHM = "HS256"
_AUDIENCE = "milepost-dashboard"
# Whom the guard has let in, for the endpoint, in the scope of the request.
_CALLER = "milepost.caller"


class _Realtime(msgspec.Struct, rename="camel"):
    """What feeds do for the bearer of a token."""

    skip_columns: list[str] = []


class _Claims(msgspec.Struct, rename="camel"):
    """What is looked at of a token's claims, beside what every token is checked for. A restriction that cannot be read is an error:
    passed over, it would show too much."""

    exp: float
    scopes: list[str] = []
    otu: bool = False
    metadata_keys: list[str] | None = None
    realtime: _Realtime | None = None


class _SessionClaims(msgspec.Struct):
    exp: float
    jti: str


class PublicToken(msgspec.Struct, frozen=True):
    """A token that is valid.

    Attributes:
        id: tells it apart from every other one.
        expires_at: seconds since 1970.
        scopes: what it opens.
        view: what its bearer is shown.
        is_one_time: it triggers once.
    """

    id: str
    expires_at: float
    scopes: Scopes
    view: View
    is_one_time: bool


class Ticket(msgspec.Struct, frozen=True):
    """A session or the code of a sign-in link, rightly signed and not expired.

    Attributes:
        id: tells it apart from everything else that works only for a while.
        expires_at: seconds since 1970.
    """

    id: str
    expires_at: float


class Caller(msgspec.Struct, frozen=True):
    """Whoever sends a request: with a public token, or with the key or a session (`token` is None), which see everything."""

    token: PublicToken | None = None
    session: Ticket | None = None

    @property
    def view(self) -> View:
        """What the caller is shown."""
        return WHOLE_VIEW if self.token is None else self.token.view


_ANYONE = Caller()


def caller_of(connection: HTTPConnection) -> Caller:
    """Whom the guard has let in with this request."""
    return connection.scope[_CALLER]


class Authenticator:
    """Checks requests against one secret key.

    Attributes:
        cookie: the name of the session's cookie. Browsers keep cookies by host and not by port, so two servers of one host would
            take each other's away if they had the same name.

    Args:
        clock: seconds since 1970.
    """

    def __init__(self, secret_key: str, clock: Callable[[], float] = time.time) -> None:
        self._key_digest = _digest(secret_key)
        self._token_key = secret_key.encode("utf-8", "surrogateescape")
        # Not the key itself: a cookie must never pass where a token signed with the key is expected.
        self._session_key = hmac.digest(secret_key.encode(), b"milepost dashboard session", "sha256")
        self.cookie = f"milepost_session_{hmac.digest(self._session_key, b'cookie', 'sha256').hex()[:8]}"
        self._code_key = hmac.digest(secret_key.encode(), b"milepost sign-in code", "sha256")
        self._callback_key = hmac.digest(secret_key.encode(), b"milepost callback address", "sha256")
        self._clock = clock

    def new_code(self) -> str:
        """A code for a sign-in link; it works once, at any server with this key, within `CODE_SECONDS`."""
        expires_at = int(self._clock() + CODE_SECONDS)
        content = expires_at.to_bytes(_TIME_BYTES) + secrets.token_bytes(_ID_BYTES)
        return urlsafe_b64encode(content + self._signature(content)).rstrip(b"=").decode()

    def read_code(self, code: str) -> Ticket | None:
        """A code that works, unless it was used before; None for one that was not made with this key, or has expired."""
        if not code.isascii():
            return None
        try:
            sent = urlsafe_b64decode(code + "=" * (-len(code) % 4))
        except ValueError:
            return None
        content, signature = sent[:-_SIGNATURE_BYTES], sent[-_SIGNATURE_BYTES:]
        if len(sent) != _CODE_BYTES or not hmac.compare_digest(self._signature(content), signature):
            return None
        expires_at = int.from_bytes(content[:_TIME_BYTES])
        # By what is signed, so that another spelling of the same code is no other code.
        return Ticket(f"sign-in/{content.hex()}", expires_at) if self._clock() < expires_at else None

    def callback_secret(self, waitpoint_id: str) -> str:
        """The part of a token's callback address that nobody can guess."""
        return hmac.digest(
            self._callback_key, waitpoint_id.encode("utf-8", "surrogateescape"), "sha256"
        ).hex()

    def is_callback(self, waitpoint_id: str, secret: str) -> bool:
        """Whether a callback address is the one of this token."""
        return hmac.compare_digest(
            self.callback_secret(waitpoint_id).encode(), secret.encode("utf-8", "surrogateescape")
        )

    def new_session(self) -> str:
        """The cookie of a new session."""
        claims = {
            "aud": _AUDIENCE,
            "exp": int(self._clock() + SESSION_SECONDS),
            "jti": secrets.token_urlsafe(12),
        }
        return jwt.encode(claims, self._session_key, algorithm=_ALGORITHM)  # pyright: ignore[reportUnknownMemberType]

    def session_for_key(self, key: str) -> str | None:
        """The cookie for whoever knows the secret key."""
        return self.new_session() if self._is_key(key) else None

    def check(self, connection: HTTPConnection, access: Access) -> Caller:
        """Find out who sends this request, and make sure that such a caller may come here; what a token's scopes say is not looked at,
        and neither is whether a session was signed out.

        Raises: UnauthorizedError without credentials or with wrong ones, ForbiddenError when a session is not enough.
        """
        caller = self._caller(connection, access)
        connection.scope[_CALLER] = caller
        return caller

    def _caller(self, connection: HTTPConnection, access: Access) -> Caller:
        if access.anyone:
            return _ANYONE
        header = connection.headers.get("authorization", "")
        scheme, _, credentials = header.partition(" ")
        if scheme.lower() == "bearer":
            return self.bearer(credentials.strip())
        session = self.session_of(connection)
        if session is None:
            raise no_credentials()
        if not is_from_own_page(connection, must_be_said=access.from_own_page):
            raise ForbiddenError("a request with a session has to come from the dashboard's own pages")
        if not access.session:
            raise ForbiddenError("a session of the dashboard may not do this, it needs the secret key")
        return Caller(session=session)

    def bearer(self, credentials: str) -> Caller:
        """Who has these credentials, the key or a public token. Raises UnauthorizedError that says what is wrong with them."""
        if self._is_key(credentials):
            return _ANYONE
        if tokens.looks_like_token(credentials):
            return Caller(self.read_token(credentials))
        raise UnauthorizedError(
            "the secret key is wrong: it must be the one the server was started with (MILEPOST_SECRET_KEY)"
        )

    def read_token(self, token: str) -> PublicToken:
        """A public token, checked. Raises UnauthorizedError that says what is wrong with it."""
        try:
            found, token_id = tokens.verify(token, self._token_key, now=self._clock())
            claims = msgspec.convert(found, _Claims)
        except TokenError as error:
            raise UnauthorizedError(f"Public Access Token is invalid: {error}") from None
        except msgspec.ValidationError as error:
            raise UnauthorizedError(
                f"Public Access Token is invalid: its claims cannot be read: {error}"
            ) from None
        scopes = Scopes(tuple(claims.scopes))
        keys = None if claims.metadata_keys is None else frozenset(claims.metadata_keys)
        skipped = frozenset[str]() if claims.realtime is None else frozenset(claims.realtime.skip_columns)
        view = View(scopes.readable, keys, skipped)
        return PublicToken(token_id, claims.exp, scopes, view, claims.otu)

    def sign_token(
        self,
        scopes: Sequence[str],
        *,
        expires_at: int | None = None,
        one_time: bool | None = None,
        metadata_keys: Sequence[str] | None = None,
        realtime: dict[str, Any] | None = None,
    ) -> str:
        """A public token; without `expires_at` (seconds since 1970) it lives for an hour."""
        now = int(self._clock())
        claims = tokens.claims_of(
            scopes,
            now=now,
            expires_at=now + tokens.HANDED_OUT_SECONDS if expires_at is None else expires_at,
            one_time=one_time,
            metadata_keys=metadata_keys,
            realtime=realtime,
            # Two of them that say the same in the same second are still two.
            token_id=secrets.token_urlsafe(12) if one_time else None,
        )
        return tokens.sign(claims, self._token_key)

    def session_of(self, connection: HTTPConnection) -> Ticket | None:
        """The session that a request carries, unless it was signed out."""
        cookie = connection.cookies.get(self.cookie)
        if not cookie:
            return None
        try:
            claims: dict[str, Any] = jwt.decode(  # pyright: ignore[reportUnknownMemberType]
                cookie,
                self._session_key,
                algorithms=[_ALGORITHM],
                audience=_AUDIENCE,
                # By the clock that the servers share, and not by that of this machine.
                options={"require": ["exp", "jti"], "verify_exp": False},
            )
            session = msgspec.convert(claims, _SessionClaims)
        except (jwt.InvalidTokenError, msgspec.ValidationError):
            return None
        return Ticket(f"session/{session.jti}", session.exp) if self._clock() < session.exp else None

    def _signature(self, content: bytes) -> bytes:
        return hmac.digest(self._code_key, content, "sha256")[:_SIGNATURE_BYTES]

    def _is_key(self, key: str) -> bool:
        # Digests have one length, so the time tells neither the key nor how long it is.
        return hmac.compare_digest(_digest(key), self._key_digest)


def no_credentials() -> UnauthorizedError:
    """What whoever comes without a key, a token or a session is told."""
    return UnauthorizedError(
        "this needs the secret key: send it as 'Authorization: Bearer <key>'; `milepost dev` prints it (MILEPOST_SECRET_KEY)"
    )


def is_from_own_page(connection: HTTPConnection, *, must_be_said: bool = False) -> bool:
    """True when the browser says that one of this server's pages sends the request, or when no browser does.

    Args:
        must_be_said: no word of a browser is not enough then, and neither is that a person has typed the address.
    """
    site, origin = connection.headers.get("sec-fetch-site"), connection.headers.get("origin")
    is_own_origin = origin is not None and urlsplit(origin).netloc == connection.headers.get("host", "")
    if must_be_said:
        return site in (None, "same-origin") and (is_own_origin or (origin is None and site is not None))
    if site is not None:
        return site in ("same-origin", "none")
    return origin is None or is_own_origin


def _digest(key: str) -> bytes:
    return tokens.signature_of(key.encode("utf-8", "surrogateescape"), b"milepost key")
