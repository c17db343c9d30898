"""`milepost runs cancel-all` and `replay-all`: the same for every run that a filter matches, with progress."""

import time
from collections.abc import Callable
from typing import Any, cast

import typer

from milepost.cli.console import err, fail, note, print_line
from milepost.client.client import Client
from milepost.client.run import Run
from milepost.client.runs import RunFilters
from milepost.errors import RequestError
from milepost.model.run import RunStatus

TOLD_SECONDS = 2.0
UNFINISHED = [status.value for status in RunStatus if not status.is_final]
FINISHED = [status.value for status in RunStatus if status.is_final]


def cancel_all(filters: dict[str, Any], *, is_sure: bool) -> None:
    """Cancel every unfinished run that matches."""
    client = Client()
    _check(filters)
    filters["status"] = filters.get("status") or UNFINISHED
    _each(client, filters, "cancelled", lambda run: client.runs.cancel(run.id), is_sure=is_sure)


def replay_all(filters: dict[str, Any], *, is_sure: bool) -> None:
    """Replay every finished run that matches; the ids of the new runs go to standard output."""
    client = Client()
    _check(filters)
    filters["status"] = filters.get("status") or FINISHED
    _each(client, filters, "replayed", lambda run: print_line(client.runs.replay(run.id).id), is_sure=is_sure)


def _check(filters: dict[str, Any]) -> None:
    if not any(filters.values()):
        fail("say which runs: give --status, --task, --tag, --queue, --parent or --metadata")


def _each(
    client: Client, filters: dict[str, Any], word: str, act: Callable[[Run], Any], *, is_sure: bool
) -> None:
    given = cast("RunFilters", {name: value for name, value in filters.items() if value})
    count = sum(1 for _ in client.runs.list(**given))
    if count == 0:
        err.print("no run matches")
        return
    if not is_sure and not typer.confirm(f"{count:,} runs will be {word}. Go on?", err=True):
        raise typer.Exit(1)
    done = failed = 0
    told_at = time.monotonic()
    # From the newest back: what begins meanwhile, by a replay of its own making too, is not among them.
    for run in client.runs.list(**given):
        try:
            act(run)
            done += 1
        except RequestError as error:
            failed += 1
            err.print(f"{run.id}: {error}", markup=False)
        if time.monotonic() - told_at > TOLD_SECONDS:
            told_at = time.monotonic()
            err.print(f"{done + failed:,} of {count:,}")
    note(f"{done:,} runs were {word}" + (f", {failed:,} could not be" if failed else ""))
    if failed:
        raise typer.Exit(1)
