"""Pages of other origins (CORS): which of them may use the API, with a token. The dashboard's cookie is never honoured for them.

By the setting `MILEPOST_CORS_ORIGINS`; without it no other origin reads an answer. Preflights are answered here, before anything else
is looked at: browsers send one before each request that carries a token. No answer ever allows credentials, so a page reads nothing
that was sent with cookies.
"""

import re
from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

ANY_ORIGIN = "*"
# A path of one of these is for programs; the dashboard's own pages are for no other origin. The browser client is for every origin,
# and says so itself.
_OPEN_PATHS = ("/api/", "/realtime/")
_METHODS = b"GET,HEAD,PUT,PATCH,POST,DELETE"
_PREFLIGHT_SECONDS = b"300"
# Names of headers, joined with commas (RFC 9110, 5.6.2).
_NAMES = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+(?: *, *[!#$%&'*+.^_`|~0-9A-Za-z-]+)*")
_NAMES_BYTES_MAX = 4096


class Cors:
    """Answers preflights, and says with every other answer, refusals included, that pages of these origins may read it.

    Args:
        origins: such as `https://app.example`; `*` for every one; empty for none.
    """

    def __init__(self, inner: ASGIApp, origins: Collection[str]) -> None:
        self.inner = inner
        self._allows_all = ANY_ORIGIN in origins
        self._origins = frozenset(origin.encode() for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http" or not self._origins or not scope["path"].startswith(_OPEN_PATHS):
            await self.inner(scope, receive, send)
            return
        sent: dict[bytes, bytes] = dict(scope["headers"])
        origin = sent.get(b"origin")
        is_allowed = origin is not None and (self._allows_all or origin in self._origins)
        headers: list[tuple[bytes, bytes]] = []
        if not self._allows_all:
            # Also without an origin: a cache must not give a page what another one was told.
            headers.append((b"vary", b"origin"))
        if is_allowed and origin is not None:
            headers.append((b"access-control-allow-origin", b"*" if self._allows_all else origin))
        if scope["method"] == "OPTIONS" and is_allowed and b"access-control-request-method" in sent:
            await _answer_preflight(headers, sent.get(b"access-control-request-headers", b""), send)
            return
        if is_allowed:
            headers.append((b"access-control-expose-headers", b"*"))

        async def send_openly(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *headers]
            await send(message)

        await self.inner(scope, receive, send_openly)


async def _answer_preflight(headers: list[tuple[bytes, bytes]], names: bytes, send: Send) -> None:
    headers = [
        *headers,
        (b"access-control-allow-methods", _METHODS),
        (b"access-control-max-age", _PREFLIGHT_SECONDS),
    ]
    if len(names) <= _NAMES_BYTES_MAX and _NAMES.fullmatch(names):
        # Echoed, because `*` does not stand for `authorization`, and a list that lacks one name blocks the request.
        headers.append((b"access-control-allow-headers", names))
        headers.append((b"vary", b"access-control-request-headers"))
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
