"""`runs`, through the default client."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from typing import Any

from milepost.client.calling import check_blocking
from milepost.client.default import default_client
from milepost.client.run import Run
from milepost.client.runs import Runs
from milepost.sdk.aside import await_aside, wait_aside
from milepost.sdk.scope import live_scope


class RunsOfCode(Runs):
    """Calls about runs, of code that may be part of a run itself."""

    def wait_for(
        self, run_id: str, *, metadata: Mapping[str, Any], timeout: timedelta | float | str | None = None
    ) -> Run:
        """See `Runs.wait_for`."""
        check_blocking("runs.wait_for")
        look = partial(super().wait_for, run_id, metadata=metadata, timeout=timeout)
        return wait_aside(live_scope(), look)

    async def await_for(
        self,
        run_id: str,
        *,
        metadata: Mapping[str, Any],
        timeout: timedelta | float | str | None = None,  # noqa: ASYNC109 - the twin of `wait_for`
    ) -> Run:
        """See `Runs.await_for`."""
        look = partial(super().await_for, run_id, metadata=metadata, timeout=timeout)
        return await await_aside(live_scope(), look)


runs = RunsOfCode(lambda: default_client().connection)
"""Reading and watching runs."""
