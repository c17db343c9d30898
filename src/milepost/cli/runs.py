"""`milepost trigger` and `milepost runs ...`: the client half on the command line."""

import json
import time
from collections.abc import Sequence
from itertools import islice
from typing import Any, cast

import msgspec
import typer
from rich.live import Live
from rich.table import Table
from rich.text import Text

from milepost.cli.console import err, fail, out, print_line
from milepost.cli.progress import STATUS_STYLES, bars_of, describe, draw, show
from milepost.client.client import Client
from milepost.client.requests import NO_PAYLOAD
from milepost.client.run import Run

FRAME_SECONDS = 0.1
EXIT_INTERRUPTED = 130


def trigger(
    task_id: str, payload: str | None, *, metadata: str | None, tags: Sequence[str], watch: bool
) -> None:
    """Trigger a run; its id goes to standard output."""
    value = (
        NO_PAYLOAD
        if payload is None
        else _from_json(payload, "the payload", f"text needs quotes: '\"{payload}\"'")
    )
    document = None if metadata is None else _object_from_json(metadata)
    client = Client()
    handle = client.trigger(task_id, value, metadata=document, tags=list(tags))
    print_line(handle.id)
    if watch:
        _watch(client, handle.id, as_json=False)


def list_runs(
    *,
    statuses: Sequence[str],
    tasks: Sequence[str],
    tags: Sequence[str],
    metadata: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """Print the newest runs."""
    filters: dict[str, Any] = {
        "status": [status.upper() for status in statuses],
        "task": list(tasks),
        "tag": list(tags),
        "metadata": None if metadata is None else _object_from_json(metadata),
    }
    given = {name: values for name, values in filters.items() if values}
    runs = list(islice(Client().runs.list(page_size=min(limit, 100), **given), limit))
    if as_json:
        for run in runs:
            print_line(_as_json(run))
        return
    if not runs:
        err.print("no runs")
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("run", "task", "status", "created", "progress"):
        table.add_column(heading, no_wrap=heading != "progress")
    for run in runs:
        bars, _ = bars_of(run.metadata)
        created = run.created_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        status = Text(run.status, style=STATUS_STYLES.get(run.status, ""))
        table.add_row(run.id, Text(run.task_id), status, created, Text(", ".join(map(str, bars))))
    out.print(table)


def get_run(run_id: str, *, as_json: bool) -> None:
    """Print one run."""
    run = Client().runs.retrieve(run_id)
    if as_json:
        print_line(_as_json(run))
        return
    out.print(draw(task=run.task_id, run_id=run.id, status=run.status, metadata=run.metadata))
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim")
    facts.add_row("created", run.created_at.astimezone().strftime("%Y-%m-%d %H:%M:%S"))
    facts.add_row("attempts", str(run.attempt_count))
    facts.add_row("metadata", f"version {run.metadata_version}")
    if run.tags:
        facts.add_row("tags", Text(", ".join(run.tags)))
    if run.parent_id:
        facts.add_row("parent", run.parent_id)
    if run.child_counts:
        facts.add_row(
            "children", ", ".join(f"{count:,} {status}" for status, count in run.child_counts.items())
        )
    if run.payload is not None:
        facts.add_row("payload", Text(show(run.payload)))
    if run.output is not None:
        facts.add_row("output", Text(show(run.output)))
    out.print()
    out.print(facts)
    _tell_error(run)


def watch_run(run_id: str, *, as_json: bool) -> None:
    """Show one run until it has finished; exit code 1 when it failed."""
    _watch(Client(), run_id, as_json=as_json)


def _watch(client: Client, run_id: str, *, as_json: bool) -> None:
    try:
        if as_json:
            run = _follow_as_json(client, run_id)
        elif out.is_terminal:
            run = _follow_on_terminal(client, run_id)
        else:
            run = _follow_as_lines(client, run_id)
    except KeyboardInterrupt:
        err.print("not watching any more; the run goes on")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if not as_json:
        if run.output is not None:
            out.print(Text(f"output: {show(run.output)}"), soft_wrap=True)
        _tell_error(run)
    if not run.is_success:
        raise typer.Exit(1)


def _follow_on_terminal(client: Client, run_id: str) -> Run:
    last: Run | None = None
    shown_at = 0.0
    with Live(console=out, auto_refresh=False) as live:
        for run in client.runs.subscribe(run_id):
            last = run
            now = time.monotonic()
            if now - shown_at >= FRAME_SECONDS or run.is_completed:
                shown_at = now
                live.update(
                    draw(task=run.task_id, run_id=run.id, status=run.status, metadata=run.metadata),
                    refresh=True,
                )
    return _ended(last)


def _follow_as_lines(client: Client, run_id: str) -> Run:
    last: Run | None = None
    shown = ""
    for run in client.runs.subscribe(run_id):
        last = run
        line = describe(status=run.status, metadata=run.metadata)
        if line != shown:
            shown = line
            print_line(line)
    return _ended(last)


def _follow_as_json(client: Client, run_id: str) -> Run:
    last: Run | None = None
    for run in client.runs.subscribe(run_id):
        last = run
        print_line(_as_json(run))
    return _ended(last)


def _ended(run: Run | None) -> Run:
    if run is None or not run.is_completed:
        fail("the server ended the feed before the run had finished")
    return run


def _tell_error(run: Run) -> None:
    if run.error is not None:
        name = f"{run.error.name}: " if run.error.name else ""
        err.print(f"{name}{run.error.message}", style="red", markup=False, soft_wrap=True)


def _as_json(run: Run) -> str:
    return msgspec.json.encode(run).decode()


def _object_from_json(text: str) -> dict[str, Any]:
    example = '\'{"user": "u1"}\''
    value = _from_json(text, "--metadata", f"it is an object such as {example}")
    if not isinstance(value, dict):
        fail(f"--metadata is not a JSON object; write for example {example}")
    return cast("dict[str, Any]", value)


def _from_json(text: str, name: str, advice: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        fail(f"{name} is not JSON ({error}); {advice}")
