"""Serves the browser client. It holds no data, so every page of every origin may load it."""

import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_FOLDER = Path(__file__).parent
# By name, because what Python knows of types depends on the machine, and a browser runs no module of another type.
_FILES = {
    "milepost.js": "text/javascript; charset=utf-8",
    "milepost.d.ts": "text/plain; charset=utf-8",
}


def client_routes() -> list[Route]:
    """`/client/milepost.js` and `/client/milepost.d.ts`."""
    return [
        Route(f"/client/{name}", _served(_FOLDER / name, kind), methods=["GET"])
        for name, kind in _FILES.items()
    ]


def _served(path: Path, kind: str) -> Callable[[Request], Awaitable[Response]]:
    content = path.read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {
        "etag": tag,
        # A browser asks each time whether its copy is the newest, which after an update it is not.
        "cache-control": "no-cache",
        "access-control-allow-origin": "*",
        "cross-origin-resource-policy": "cross-origin",
        "x-content-type-options": "nosniff",
    }

    async def answer(request: Request) -> Response:
        known = request.headers.get("if-none-match", "")
        if known.strip() == "*" or tag in (one.strip().removeprefix("W/") for one in known.split(",")):
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=kind)

    return answer
