"""Who may ask: the secret key, or a browser that was signed in by a link or by the key.

A link carries a code that works once and soon expires; the browser gets a signed cookie for it. So the key itself never stands in a
URL. What a session may call, the table of endpoints says. A page of another site could not send the cookie (`SameSite=Strict`); one
that another server of the same host has served could, so a request that changes something has to come from this server's own pages.
"""

import hmac
import secrets
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import jwt
from starlette.requests import HTTPConnection

from milepost.errors import ForbiddenError, UnauthorizedError
from milepost.protocol.endpoints import Access

SESSION_SECONDS = 30 * 24 * 3600
CODE_SECONDS = 15 * 60
# Of the oldest ones beyond this nobody has made use.
CODES_MAX = 1000
SIGNED_OUT_MAX = 10_000
_ALGORITHM = "HS256"
_AUDIENCE = "milepost-dashboard"
_READING = ("GET", "HEAD")


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
        # Not the key itself: a cookie must never pass where a token signed with the key is expected.
        self._session_key = hmac.digest(secret_key.encode(), b"milepost dashboard session", "sha256")
        self.cookie = f"milepost_session_{hmac.digest(self._session_key, b'cookie', 'sha256').hex()[:8]}"
        self._clock = clock
        self._codes: dict[str, float] = {}
        # Sessions that were ended before their time, with that time.
        self._signed_out: dict[str, float] = {}

    def new_code(self) -> str:
        """A code for a sign-in link; it works once, within `CODE_SECONDS`."""
        now = self._clock()
        self._codes = {code: expires_at for code, expires_at in self._codes.items() if expires_at > now}
        while len(self._codes) >= CODES_MAX:
            del self._codes[next(iter(self._codes))]
        code = secrets.token_urlsafe(24)
        self._codes[code] = now + CODE_SECONDS
        return code

    def session_for_code(self, code: str) -> str | None:
        """The cookie for a code, which is used up; None for a code that is unknown, used or expired."""
        expires_at = self._codes.pop(code, 0.0)
        return self._session() if expires_at > self._clock() else None

    def session_for_key(self, key: str) -> str | None:
        """The cookie for whoever knows the secret key."""
        return self._session() if self._is_key(key) else None

    def sign_out(self, connection: HTTPConnection) -> None:
        """End the session that the request carries, also where its cookie was copied. The server forgets it at its own end."""
        claims = self._claims(connection)
        if claims is not None:
            now = self._clock()
            kept = {session: ends_at for session, ends_at in self._signed_out.items() if ends_at > now}
            while len(kept) >= SIGNED_OUT_MAX:
                del kept[next(iter(kept))]
            kept[claims["jti"]] = claims["exp"]
            self._signed_out = kept

    def check(self, connection: HTTPConnection, access: Access, method: str) -> None:
        """Make sure that whoever sends this request may do so.

        Raises: UnauthorizedError without credentials or with wrong ones, ForbiddenError when a session is not enough.
        """
        if access.anyone:
            return
        header = connection.headers.get("authorization", "")
        scheme, _, token = header.partition(" ")
        if scheme.lower() == "bearer":
            if self._is_key(token.strip()):
                return
            raise UnauthorizedError(
                "the secret key is wrong: it must be the one the server was started with (MILEPOST_SECRET_KEY)"
            )
        if not self.has_session(connection):
            raise UnauthorizedError(
                "this needs the secret key: send it as 'Authorization: Bearer <key>'; `milepost dev` prints it (MILEPOST_SECRET_KEY)"
            )
        if not access.session:
            raise ForbiddenError("a session of the dashboard may not do this, it needs the secret key")
        if method not in _READING and not is_from_own_page(connection):
            raise ForbiddenError("a request with a session has to come from the dashboard's own pages")

    def has_session(self, connection: HTTPConnection) -> bool:
        """True when the browser has signed in."""
        return self._claims(connection) is not None

    def _claims(self, connection: HTTPConnection) -> dict[str, Any] | None:
        cookie = connection.cookies.get(self.cookie)
        if not cookie:
            return None
        try:
            claims: dict[str, Any] = jwt.decode(  # pyright: ignore[reportUnknownMemberType]
                cookie,
                self._session_key,
                algorithms=[_ALGORITHM],
                audience=_AUDIENCE,
                options={"require": ["exp", "jti"]},
            )
        except jwt.InvalidTokenError:
            return None
        return None if claims["jti"] in self._signed_out else claims

    def _session(self) -> str:
        claims = {
            "aud": _AUDIENCE,
            "exp": int(self._clock() + SESSION_SECONDS),
            "jti": secrets.token_urlsafe(12),
        }
        return jwt.encode(claims, self._session_key, algorithm=_ALGORITHM)  # pyright: ignore[reportUnknownMemberType]

    def _is_key(self, key: str) -> bool:
        # Digests have one length, so the time tells neither the key nor how long it is.
        return hmac.compare_digest(_digest(key), self._key_digest)


def is_from_own_page(connection: HTTPConnection) -> bool:
    """True when the browser says that one of this server's pages sends the request, or when no browser does."""
    site = connection.headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = connection.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == connection.headers.get("host", "")


def _digest(key: str) -> bytes:
    return hmac.digest(b"milepost key", key.encode("utf-8", "surrogateescape"), "sha256")
