"""`runs`, through the default client; and the rule that no blocking call stops a worker's event loop."""

from milepost.client.default import default_client
from milepost.client.runs import Runs
from milepost.client.transport import set_blocking_guard
from milepost.sdk.scope import live_scope

runs = Runs(default_client)
"""Reading and watching runs."""

_ITERATED = frozenset({"subscribe", "list", "metadata_history"})


def _refuse_blocking(form: str) -> None:
    scope = live_scope()
    if scope is None:
        return
    owner, dot, name = form.rpartition(".")
    twin = f"{owner}{dot}{'await_' if name == 'wait' else f'a{name}'}(...)"
    scope.refuse_blocking(
        f"{form}(...)", f"`async for run in {twin}`" if name in _ITERATED else f"`await {twin}`"
    )


set_blocking_guard(_refuse_blocking)
