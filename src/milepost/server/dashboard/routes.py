"""The dashboard's routes: signing in, the pages, their files."""

from starlette.routing import BaseRoute

from milepost.server.auth import Authenticator


def dashboard_routes(authenticator: Authenticator) -> list[BaseRoute]:
    """Routes of the pages, to be mounted beside the API."""
    return []
