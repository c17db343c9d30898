"""`milepost runs list`."""

from collections.abc import Sequence
from itertools import islice
from typing import Any

from milepost.cli.console import fail, print_json, say
from milepost.cli.given import object_from_json, time_of
from milepost.cli.progress import bars_of
from milepost.cli.tables import print_table
from milepost.cli.text import error_text, first_line, moment
from milepost.client.client import Client
from milepost.client.run import Run


def list_runs(
    *,
    statuses: Sequence[str],
    tasks: Sequence[str],
    tags: Sequence[str],
    queues: Sequence[str],
    parent: str | None,
    top_level: bool,
    since: str | None,
    metadata: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """Print the newest runs."""
    if parent is not None and top_level:
        fail("give either --parent or --top-level: runs at the top level have no parent")
    filters: dict[str, Any] = {
        "status": [status.upper() for status in statuses],
        "task": list(tasks),
        "tag": list(tags),
        "queue": list(queues),
        "parent": parent,
        "top_level": top_level,
        "created_after": None if since is None else time_of("--since", since),
        "metadata": None if metadata is None else object_from_json(metadata),
    }
    given = {name: values for name, values in filters.items() if values}
    runs = list(islice(Client().runs.list(page_size=min(limit, 100), **given), limit))
    if as_json:
        for run in runs:
            print_json(run)
        return
    if not runs:
        say("no runs")
        return
    print_table([("run", "task", "status", "created", "progress"), *map(_row, runs)])


def _row(run: Run) -> tuple[str, ...]:
    bars, _ = bars_of(run.metadata)
    told = [*map(str, bars)]
    if run.error is not None:
        told.append(first_line(error_text(run.error)))
    created = moment(run.created_at)
    return run.id, run.task_id, run.status, created, ", ".join(told)
