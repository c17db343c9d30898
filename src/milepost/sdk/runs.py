"""`runs`, through the default client; and the rule that no blocking call stops a worker's event loop."""

from milepost.client.default import default_client
from milepost.client.runs import Runs
from milepost.client.transport import set_blocking_guard
from milepost.sdk.scope import live_scope

runs = Runs(default_client)
"""Reading and watching runs."""


def _refuse_blocking(form: str) -> None:
    scope = live_scope()
    if scope is not None:
        owner, _, name = form.rpartition(".")
        twin = "await_" if name == "wait" else f"a{name}"
        scope.refuse_blocking(
            f"{form}(...)", f"`await {owner}.{twin}(...)`" if owner else f"`await {twin}(...)`"
        )


set_blocking_guard(_refuse_blocking)
