"""Who may ask: the secret key, or a browser that was signed in by a link.

A link carries a code that works once and soon expires; the browser gets a signed cookie for it. So the key itself never stands in a
URL. The cookie opens reading only: a page of another origin could not even send it (`SameSite=Strict`), and nothing changes by GET.
"""

import hmac
import secrets
import time
from collections.abc import Callable

import jwt
from starlette.requests import HTTPConnection

from milepost.errors import UnauthorizedError

COOKIE = "milepost_session"
SESSION_SECONDS = 30 * 24 * 3600
CODE_SECONDS = 24 * 3600
_ALGORITHM = "HS256"
_AUDIENCE = "milepost-dashboard"


class Authenticator:
    """Checks requests against one secret key.

    Args:
        clock: seconds since 1970.
    """

    def __init__(self, secret_key: str, clock: Callable[[], float] = time.time) -> None:
        self._secret_key = secret_key
        self._clock = clock
        self._codes: dict[str, float] = {}

    def new_code(self) -> str:
        """A code for a sign-in link; it works once, within a day."""
        code = secrets.token_urlsafe(24)
        self._codes[code] = self._clock() + CODE_SECONDS
        return code

    def session_for_code(self, code: str) -> str | None:
        """The cookie for a code, which is used up; None for a code that is unknown, used or expired."""
        expires_at = self._codes.pop(code, 0.0)
        return self._session() if expires_at > self._clock() else None

    def session_for_key(self, key: str) -> str | None:
        """The cookie for whoever knows the secret key."""
        return self._session() if self._is_key(key) else None

    def check(self, connection: HTTPConnection, *, allow_session: bool) -> None:
        """Raise UnauthorizedError unless the request carries the secret key or, where it may only read, a session."""
        header = connection.headers.get("authorization", "")
        scheme, _, token = header.partition(" ")
        if scheme.lower() == "bearer":
            if self._is_key(token.strip()):
                return
            raise UnauthorizedError(
                "the secret key is wrong: it must be the one the server was started with (MILEPOST_SECRET_KEY)"
            )
        if allow_session and self.has_session(connection):
            return
        raise UnauthorizedError(
            "this needs the secret key: send it as 'Authorization: Bearer <key>'; `milepost dev` prints it (MILEPOST_SECRET_KEY)"
        )

    def has_session(self, connection: HTTPConnection) -> bool:
        """True when the browser has signed in."""
        cookie = connection.cookies.get(COOKIE)
        if not cookie:
            return False
        try:
            jwt.decode(cookie, self._session_key, algorithms=[_ALGORITHM], audience=_AUDIENCE)  # pyright: ignore[reportUnknownMemberType]
        except jwt.InvalidTokenError:
            return False
        return True

    @property
    def _session_key(self) -> bytes:
        # Not the key itself: a cookie must never pass where a token signed with the key is expected.
        return hmac.digest(self._secret_key.encode(), b"milepost dashboard session", "sha256")

    def _session(self) -> str:
        claims = {"aud": _AUDIENCE, "exp": int(self._clock() + SESSION_SECONDS)}
        return jwt.encode(claims, self._session_key, algorithm=_ALGORITHM)  # pyright: ignore[reportUnknownMemberType]

    def _is_key(self, key: str) -> bool:
        return bool(key) and hmac.compare_digest(key.encode(), self._secret_key.encode())
