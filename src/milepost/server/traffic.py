"""What is counted of requests: by endpoint and status, how long they took, and which event streams are open."""

from collections.abc import Mapping
from time import perf_counter
from typing import Any

from milepost.engine.measures import SECONDS, Histogram

ROUTE = "milepost.route"
"""Where in the scope of a request stands which route has answered it."""


class RouteMeasures:
    """Of one endpoint. Written by the event loop.

    Attributes:
        statuses: how many answers had each status.
        seconds: how long they took, from the first byte of the head to the last of the answer; an event stream is not timed.
        open: how many event streams are open.
    """

    def __init__(self, method: str, path: str, *, is_stream: bool) -> None:
        self.method = method
        self.path = path
        self.is_stream = is_stream
        self.statuses: dict[int, int] = {}
        self.seconds = Histogram(SECONDS)
        self.open = 0


class Traffic:
    """All requests of a server.

    Attributes:
        routes: the endpoints; what is none of them (pages, their files, paths that there are not) stands under an empty path.
    """

    def __init__(self) -> None:
        self._other = RouteMeasures("", "", is_stream=False)
        self.routes = [self._other]

    def route(self, method: str, path: str, *, is_stream: bool) -> RouteMeasures:
        """What is counted of an endpoint."""
        route = RouteMeasures(method, path, is_stream=is_stream)
        self.routes.append(route)
        return route

    def answered(self, scope: Mapping[str, Any], status: int, began: float) -> None:
        """A request has been answered; with 0 it was not, because its client has gone."""
        route: RouteMeasures = scope.get(ROUTE, self._other)
        route.statuses[status] = route.statuses.get(status, 0) + 1
        if not route.is_stream:
            route.seconds.observe(perf_counter() - began)
