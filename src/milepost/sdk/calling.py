"""What calls have to know of the code that makes them: no blocking call stops a worker's event loop, and each names its attempt."""

from __future__ import annotations

from milepost.client.calling import CallingAttempt, set_calling_code
from milepost.client.default import default_client
from milepost.errors import ConfigurationError
from milepost.sdk.scope import live_scope, scope_at_work

_ITERATED = frozenset({"subscribe", "list", "metadata_history"})


class RunCode:
    """The code of runs, as it is known here."""

    def refuse_blocking(self, form: str) -> None:
        """See `CallingCode`."""
        scope = live_scope()
        if scope is None:
            return
        scope.heed()
        owner, dot, name = form.rpartition(".")
        twin = f"{owner}{dot}{'await_' if name == 'wait' else f'a{name}'}(...)"
        scope.refuse_blocking(
            f"{form}(...)", f"`async for run in {twin}`" if name in _ITERATED else f"`await {twin}`"
        )

    def attempt_at(self, api_url: str, secret_key: str) -> CallingAttempt | None:
        """See `CallingCode`. A run may also speak to other servers, and with other keys: there it is nobody's attempt."""
        scope = scope_at_work()
        if scope is None:
            return None
        try:
            own = default_client().connection
        except ConfigurationError:
            return None
        return scope if own.is_to(api_url, secret_key) else None


def know_runs() -> None:
    """From now on calls know which run makes them."""
    set_calling_code(RunCode())
