"""What a shell offers while a command is typed: the ids of tasks and of the newest runs, asked from the server.

A shell that waits is worse than one that offers nothing: whatever goes wrong, and whatever takes long, there is nothing to offer.
"""

import json
from collections.abc import Callable
from typing import Any

ANSWER_SECONDS = 1.0
RUNS_OFFERED = 50


def task_ids(incomplete: str) -> list[str]:
    """Ids of tasks that begin so."""
    return _offered(incomplete, "/api/v1/tasks?perPage=100", lambda task: str(task["id"]))


def run_ids(incomplete: str) -> list[tuple[str, str]]:
    """Ids of the newest runs that begin so, each with task and status."""
    return _offered(
        incomplete,
        f"/api/v1/runs?page[size]={RUNS_OFFERED}",
        lambda run: (str(run["id"]), f"{run['taskIdentifier']} {run['status']}"),
    )


def _offered(incomplete: str, path: str, told: Callable[[dict[str, Any]], Any]) -> list[Any]:
    import urllib.request

    from milepost.client.settings import find_address

    try:
        address = find_address()
        request = urllib.request.Request(
            address.api_url.rstrip("/") + path, headers={"authorization": f"Bearer {address.secret_key}"}
        )
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
            found = json.load(answer)["data"]
        return [told(thing) for thing in found if thing["id"].startswith(incomplete)]
    except Exception:  # whatever it is: nobody could read of it while typing
        return []
