"""`milepost tasks`, `workers`, `dashboard` and `runs tree`: what there is, as tables, trees and a link."""

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from milepost.cli.console import note, print_json, print_line, say
from milepost.cli.progress import STATUS_STYLES
from milepost.cli.tables import print_table
from milepost.cli.text import moment, visible
from milepost.client import calls
from milepost.client.calls import Call
from milepost.client.client import Client
from milepost.protocol.runs import TreeRun

if TYPE_CHECKING:
    from rich.text import Text

PAGE_SIZE = 100


def print_sign_in_link() -> None:
    """Print a link to the dashboard that signs a browser in."""
    client = Client()
    link = client.send(calls.create_sign_in_link())
    print_line(client.api_url.rstrip("/") + link.path)
    note(f"it works once, within {link.expires_in_seconds // 60} minutes")


def list_tasks(*, as_json: bool) -> None:
    """Print the tasks that workers have offered."""
    rows = [("task", "queue", "limit", "attempts", "workers online")]
    for task in _all(calls.list_tasks):
        if as_json:
            print_json(msgspec.to_builtins(task))
            continue
        limit = "-" if task.queue_concurrency is None else str(task.queue_concurrency)
        rows.append((task.id, task.queue, limit, str(task.max_attempts), str(task.workers_online)))
    _print(rows, "no tasks: no worker has offered one yet", as_json=as_json)


def list_workers(*, as_json: bool) -> None:
    """Print the workers that are online."""
    rows = [("worker", "since", "executing", "waiting", "tasks")]
    for worker in _all(calls.list_workers):
        if as_json:
            print_json(msgspec.to_builtins(worker))
            continue
        since = moment(worker.registered_at)
        name = f"{worker.name} {worker.id}" if worker.name else worker.id
        rows.append((name, since, str(worker.executing), str(worker.waiting), ", ".join(worker.tasks)))
    _print(rows, "no worker is online", as_json=as_json)


def show_tree(run_id: str, *, limit: int, as_json: bool) -> None:
    """Print a run with the runs below it."""
    found = Client().send(calls.run_tree(run_id, size=limit))
    if as_json:
        print_json(msgspec.to_builtins(found))
        return
    from rich.tree import Tree

    from milepost.cli.terminal import out

    nodes: dict[str, Tree] = {}
    for run in found.data:
        parent = nodes.get(run.parent_id or "")
        nodes[run.id] = Tree(_told(run)) if parent is None else parent.add(_told(run))
    out.print(nodes[run_id], soft_wrap=True, highlight=False)
    if found.is_cut:
        note(f"there are more runs below it: the first {len(found.data):,} are shown")


def _told(run: TreeRun) -> "Text":
    from rich.text import Text

    text = Text(visible(run.task_identifier))
    text.append(f" {run.id} ", "dim")
    text.append(run.status, STATUS_STYLES.get(run.status, ""))
    if run.started_at is not None:
        until = run.finished_at or datetime.now(run.started_at.tzinfo)
        seconds = max(0.0, round((until - run.started_at).total_seconds(), 1))
        text.append(f" {seconds:,.1f} s", "dim")
    if len(run.attempts) > 1:
        text.append(f" {run.attempts[-1].number} attempts", "yellow")
    return text


def _print(rows: list[tuple[str, ...]], nothing: str, *, as_json: bool) -> None:
    if as_json:
        return
    if len(rows) == 1:
        say(nothing)
        return
    print_table(rows)


def _all(call: Callable[..., Call[Any]]) -> Iterator[Any]:
    client, number = Client(), 1
    while True:
        page = client.send(call(number, page_size=PAGE_SIZE))
        yield from page.data
        if number >= page.pagination.total_pages:
            return
        number += 1
