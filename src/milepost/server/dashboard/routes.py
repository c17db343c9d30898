"""The dashboard's routes: signing in and out, the pages, their files.

The pages are shells without data. What they show they read in the browser, through the HTTP API, with the session cookie.
"""

import asyncio
import math
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, urlencode

from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Message, Scope

from milepost.model.run import RunStatus
from milepost.protocol.endpoints import GET_METADATA, RETRIEVE_TASK
from milepost.server.attempts import SignInAttempts
from milepost.server.auth import CODE_SECONDS, SESSION_SECONDS, Authenticator, is_from_own_page
from milepost.server.requests import SLASH
from milepost.server.sessions import Sessions

if TYPE_CHECKING:
    from jinja2 import Environment

FORM_BYTES_MAX = 16 * 1024
FORM_SECONDS = 10.0
_FOLDER = Path(__file__).parent
_STATUSES = frozenset(status.value for status in RunStatus)
_FILTERS = ("status", "task", "tag", "queue", "schedule", "batch", "parent", "root", "metadata", "level")
# Statuses that a person thinks of as one.
_TABS: dict[str, tuple[RunStatus, ...]] = {
    "Queued": (RunStatus.PENDING_VERSION, RunStatus.DELAYED, RunStatus.QUEUED),
    "Executing": (RunStatus.EXECUTING,),
    "Waiting": (RunStatus.WAITING,),
    "Completed": (RunStatus.COMPLETED,),
    "Failed": tuple(status for status in RunStatus if status.is_failure),
    "Cancelled": (RunStatus.CANCELED,),
}
_SECTIONS = {
    "Runs": "/",
    "Tasks": "/tasks",
    "Queues": "/queues",
    "Schedules": "/schedules",
    "Workers": "/workers",
}
# Of each page that is one table: its columns, and what is said and advised where there is nothing.
_OVERVIEWS = {
    "tasks": (
        ["Task", "Queue", "Limit", "Attempts", "Workers online", "Last offered"],
        "No tasks yet.",
        "A task is known as soon as a worker has offered it: milepost worker tasks.py",
    ),
    "queues": (
        ["Queue", "State", "Queued", "Running", "Limit", "Rate", "Actions"],
        "No queues yet.",
        "Each task has one, unless it names another.",
    ),
    "schedules": (
        ["Task", "Times", "Next", "Last", "Runs", "Actions"],
        "No schedules yet.",
        "Give a task cron= or every=, or make one: milepost schedules create --help",
    ),
    "workers": (
        ["Worker", "Since", "Executing", "Waiting", "Tasks"],
        "No worker is online.",
        "Start one: milepost worker tasks.py",
    ),
}
# Whoever asks for one of these asks for children.
_FAMILY = ("batch", "parent", "root")
_PAGE_HEADERS = {
    "content-security-policy": (
        "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
    ),
    "x-content-type-options": "nosniff",
    # With "no-referrer" browsers do not say which page a form comes from.
    "referrer-policy": "same-origin",
    "cache-control": "no-store",
}
# By name, because what Python knows of types depends on the machine, and a browser runs no module of another type.
_FILE_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_USED_LINK = "This sign-in link has been used or has expired."
_WRONG_KEY = "This is not the secret key of this server."
_LONG_FORM = "This is too long for a secret key."
_SLOW_FORM = "The form came too slowly."
_FOREIGN_FORM = "This form did not come from this page. Try again here."
_TOO_OFTEN = "Too many wrong keys. Try again in {seconds:,} s, or open a sign-in link: `milepost dashboard` prints one."
# A page of this server with its query, percent-encoded: where signing in may lead to.
_PLACE = re.compile(r"/(?:tasks|queues|schedules|workers|runs/(?!\.{1,2}(?:\?|$))[^/?#\\]+)?(?:\?[^#\\]*)?")
PLACE_CHARACTERS_MAX = 16 * 1024


def dashboard_routes(authenticator: Authenticator, sessions: Sessions) -> list[BaseRoute]:
    """Routes of the pages, to be mounted beside the API."""
    pages = _Pages(authenticator, sessions)
    return [
        Route("/", pages.signed_in(pages.runs)),
        Route("/runs/{run}", pages.signed_in(pages.run)),
        Route("/tasks", pages.signed_in(pages.tasks)),
        *(
            Route(f"/{name}", pages.signed_in(pages.overview(name)))
            for name in ("queues", "schedules", "workers")
        ),
        Route("/sign-in", pages.sign_in_with_code, methods=["GET"]),
        Route("/sign-in", pages.sign_in_with_key, methods=["POST"]),
        Route("/sign-out", pages.sign_out, methods=["POST"]),
        Mount("/static", _Files(directory=_FOLDER / "static"), name="static"),
    ]


class _Pages:
    def __init__(self, authenticator: Authenticator, sessions: Sessions) -> None:
        self._authenticator = authenticator
        self._sessions = sessions
        self._attempts = SignInAttempts(time.monotonic)

    @cached_property
    def _templates(self) -> "Environment":
        # Only now: a server whose dashboard nobody opens does without.
        import jinja2

        return jinja2.Environment(
            loader=jinja2.FileSystemLoader(_FOLDER / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def signed_in(
        self, page: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """The page for whoever has a session; the others are asked to sign in and come back."""

        async def guarded(request: Request) -> Response:
            if await self._sessions.of(request) is not None:
                return await page(request)
            place = _place_of(request)
            query = f"?{urlencode({'next': place})}" if place != "/" else ""
            return RedirectResponse(f"/sign-in{query}", 303, headers=_PAGE_HEADERS)

        return guarded

    async def runs(self, request: Request) -> Response:
        """The list of runs."""
        filters = {name: value for name in _FILTERS if (value := request.query_params.get(name))}
        asked = frozenset(filters.get("status", "").split(","))
        if not asked <= _STATUSES:
            filters.pop("status", None)
        if filters.get("level") != "all":
            filters.pop("level", None)
        is_family = any(name in filters for name in _FAMILY)
        everything = _runs_href({**filters, "level": "all"})
        levels = [
            {
                "word": "Top level",
                "href": _runs_href({**filters, "level": None}),
                "current": "level" not in filters,
            },
            {"word": "With children", "href": everything, "current": "level" in filters},
        ]
        tabs = [
            {
                "word": word,
                "statuses": ",".join(statuses),
                "href": _runs_href({**filters, "status": ",".join(statuses)}),
                "current": asked == frozenset(statuses),
            }
            for word, statuses in _TABS.items()
        ]
        tabs.insert(
            0,
            {
                "word": "All",
                "statuses": "",
                "href": _runs_href({**filters, "status": None}),
                "current": "status" not in filters,
            },
        )
        has_tab = any(tab["current"] for tab in tabs)
        chips = [
            {"name": name, "value": value, "href": _runs_href({**filters, name: None})}
            for name, value in filters.items()
            if name != "level" and not (name == "status" and has_tab)
        ]
        return self._page(
            "runs.html",
            here="Runs",
            tabs=tabs,
            chips=chips,
            levels=[] if is_family else levels,
            filters={"task": "", "metadata": "", **filters},
            filtered=any(name != "level" for name in filters),
            everywhere=None if is_family or "level" in filters else everything,
            newest=_runs_href(filters),
        )

    async def run(self, request: Request) -> Response:
        """One run; 404 when there is no such run."""
        run_id = request.path_params["run"]
        if await _status_of(request, GET_METADATA.name, run=run_id) == 404:
            return self._page("not_found.html", 404, run_id=run_id)
        return self._page("run.html", run_id=run_id, children=_runs_href({"parent": run_id}))

    async def tasks(self, request: Request) -> Response:
        """The list of tasks, or one of them."""
        task = request.query_params.get("task")
        if not task:
            return await self.overview("tasks")(request)
        # A slash in an id is no slash of the path.
        status = await _status_of(request, RETRIEVE_TASK.name, task=task.replace("/", SLASH))
        if status == 404:
            return self._page("no_task.html", 404, task=task)
        runs = _runs_href({"task": task, "level": "all"})
        return self._page("task.html", here="Tasks", task=task, runs=runs)

    def overview(self, name: str) -> Callable[[Request], Awaitable[Response]]:
        """A page that is one table."""
        columns, nothing, cure = _OVERVIEWS[name]
        title = name.capitalize()

        async def page(request: Request) -> Response:
            return self._page(
                "overview.html",
                here=title,
                section=name,
                title=title,
                columns=columns,
                nothing=nothing,
                cure=cure,
            )

        return page

    async def sign_in_with_code(self, request: Request) -> Response:
        """Follow a sign-in link, or be asked for the key."""
        place = _safe_place(request.query_params.get("next", "/"))
        if await self._sessions.of(request) is not None:
            return RedirectResponse(place, 303, headers=_PAGE_HEADERS)
        code = request.query_params.get("code")
        # Whatever only looks at the link (HEAD) does not use it up.
        if code is None or request.method != "GET":
            return self._sign_in_page(place)
        session = await self._sessions.begin_with_code(code)
        if session is None:
            return self._sign_in_page(place, 401, _USED_LINK)
        return self._begin_session(request, session, place)

    async def sign_in_with_key(self, request: Request) -> Response:
        """Sign in with the secret key, sent as a form."""
        if not is_from_own_page(request):
            return self._sign_in_page("/", 403, _FOREIGN_FORM)
        try:
            async with asyncio.timeout(FORM_SECONDS):
                form = await _form(request)
        except TimeoutError:
            return self._sign_in_page("/", 408, _SLOW_FORM)
        except ClientDisconnect:
            return Response(status_code=499)
        if form is None:
            return self._sign_in_page("/", 413, _LONG_FORM)
        place = _safe_place(form.get("next", "/"))
        address = request.client.host if request.client else ""
        seconds = math.ceil(self._attempts.wait_seconds(address))
        if seconds > 0:
            page = self._sign_in_page(place, 429, _TOO_OFTEN.format(seconds=seconds))
            page.headers["retry-after"] = str(seconds)
            return page
        session = self._authenticator.session_for_key(form.get("key", "").strip())
        if session is None:
            self._attempts.failed(address)
            return self._sign_in_page(place, 401, _WRONG_KEY)
        return self._begin_session(request, session, place)

    async def sign_out(self, request: Request) -> Response:
        """End the session, and go to the sign-in page."""
        if not is_from_own_page(request):
            return self._sign_in_page("/", 403, _FOREIGN_FORM)
        await self._sessions.sign_out(request)
        response = RedirectResponse("/sign-in", 303, headers=_PAGE_HEADERS)
        response.delete_cookie(self._authenticator.cookie, path="/", httponly=True, samesite="strict")
        return response

    def _sign_in_page(self, place: str, status: int = 200, problem: str | None = None) -> Response:
        minutes = CODE_SECONDS // 60
        return self._page("sign_in.html", status, next=place, problem=problem, minutes=minutes)

    def _begin_session(self, request: Request, session: str, place: str) -> Response:
        response = RedirectResponse(place, 303, headers=_PAGE_HEADERS)
        response.set_cookie(
            self._authenticator.cookie,
            session,
            max_age=SESSION_SECONDS,
            path="/",
            # Whoever claims to come over https wrongly makes a cookie that their own browser does not send.
            secure="https" in (request.scope["scheme"], request.headers.get("x-forwarded-proto")),
            httponly=True,
            samesite="strict",
        )
        return response

    def _page(self, name: str, status: int = 200, **values: Any) -> Response:
        values = {"sections": list(_SECTIONS.items()), "here": "", **values}
        return HTMLResponse(self._templates.get_template(name).render(values), status, _PAGE_HEADERS)


class _Files(StaticFiles):
    """The pages' files. A browser asks each time whether its copy is the newest, which after an update it is not."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        full_path = kwargs["full_path"] if "full_path" in kwargs else args[0]
        file_type = _FILE_TYPES.get(Path(full_path).suffix)
        if file_type is not None and "content-type" in response.headers:
            response.headers["content-type"] = file_type
        response.headers["cache-control"] = "no-cache"
        response.headers["x-content-type-options"] = "nosniff"
        return response


def _place_of(request: Request) -> str:
    """The page that is asked for, filters included."""
    query = request.scope["query_string"].decode("latin-1")
    path = quote(request.scope["path"])
    return _safe_place(f"{path}?{query}" if query else path)


def _safe_place(place: str) -> str:
    """The page to go to after signing in, or else the list. Never another site."""
    is_plain = (
        len(place) <= PLACE_CHARACTERS_MAX and place.isascii() and place.isprintable() and " " not in place
    )
    return place if is_plain and _PLACE.fullmatch(place) else "/"


def _runs_href(filters: Mapping[str, str | None]) -> str:
    query = urlencode({name: value for name, value in filters.items() if value})
    return f"/?{query}" if query else "/"


async def _form(request: Request) -> dict[str, str] | None:
    """The fields of a form, None when it is longer than any that the pages send."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > FORM_BYTES_MAX:
            return None
    fields = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True)
    return {name: values[-1] for name, values in fields.items()}


async def _status_of(request: Request, endpoint: str, **parameters: str) -> int:
    """What the API answers to the same browser: asked in this process, so the pages need nothing that the API does not offer."""
    path = request.app.url_path_for(endpoint, **parameters)
    scope: Scope = {
        **request.scope,
        "method": "GET",
        "path": path,
        "raw_path": quote(path).replace(quote(SLASH), "%2F").encode(),
        "query_string": b"",
    }
    scope.pop("path_params", None)
    status = 500

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]

    await request.app(scope, receive, send)
    return status
