"""`milepost runs cancel`, `replay`, `reschedule`, `tag`, `delete`: what is done to runs that there are."""

from collections.abc import Callable, Sequence
from typing import Any

from click.exceptions import Exit

from milepost.cli.console import fail, note, print_line, say, say_error
from milepost.cli.given import object_from_json, payload_of, time_of
from milepost.cli.grammar import EXIT_INTERRUPTED
from milepost.client.bulk import BulkProgress
from milepost.client.client import Client
from milepost.client.requests import NO_PAYLOAD
from milepost.errors import RequestError


def cancel(run_ids: Sequence[str], filters: dict[str, Any]) -> None:
    """Ask runs to end: those that are named, or those that a filter finds."""
    client = Client()
    if _has_either(run_ids, filters, "cancel"):
        _bulk(client.runs.cancel_all, filters, "cancelled or asked to end")
    for run_id in run_ids:
        client.runs.cancel(run_id)
        print_line(run_id)


def _has_either(run_ids: Sequence[str], filters: dict[str, Any], command: str) -> bool:
    """True for filters; ends the command where there are both or neither."""
    if bool(run_ids) == bool(filters):
        fail(
            f"give the ids of runs, or filters such as --status and --task: milepost runs {command} run_..., "
            f"milepost runs {command} --status QUEUED --task my-task"
        )
    return bool(filters)


def _bulk(carry_out: Callable[..., BulkProgress], filters: dict[str, Any], what: str) -> None:
    """Carry out a bulk, and say how far it is."""
    last: BulkProgress | None = None

    def tell(progress: BulkProgress) -> None:
        nonlocal last
        last = progress
        if progress.done:
            note(f"{progress.done:,} runs {what}")

    try:
        progress = carry_out(on_progress=tell, **filters)
    except KeyboardInterrupt:
        done = 0 if last is None else last.done
        resume = "the same command goes on"
        if "resume" in filters and last is not None and last.resume is not None:
            resume = f"add --resume {last.resume} to go on"
        say(f"interrupted; {done:,} runs had been {what}; {resume}")
        raise Exit(EXIT_INTERRUPTED) from None
    for run_id, error in progress.refused.items():
        say(f"{run_id}: {error.message}", style="red")
    print_line(str(progress.done))
    if progress.refused:
        raise Exit(1)


def filters_of(
    *,
    statuses: Sequence[str],
    tasks: Sequence[str],
    tags: Sequence[str],
    since: str | None,
    metadata: str | None,
) -> dict[str, Any]:
    """The filters that a person gave, without those that were left out."""
    filters: dict[str, Any] = {
        "status": [status.upper() for status in statuses],
        "task": list(tasks),
        "tag": list(tags),
        "created_after": None if since is None else time_of("--since", since),
        "metadata": None if metadata is None else object_from_json(metadata),
    }
    return {name: values for name, values in filters.items() if values}


def replay(
    run_id: str | None,
    payload: str | None,
    *,
    watch: bool,
    filters: dict[str, Any],
    resume: str | None,
) -> None:
    """Trigger the same again; the id of the new run goes to standard output, or how many there are."""
    client = Client()
    if _has_either([run_id] if run_id else [], filters, "replay"):
        _bulk(client.runs.replay_all, {**filters, "resume": resume}, "replayed")
        return
    assert run_id is not None
    handle = client.runs.replay(run_id, NO_PAYLOAD if payload is None else payload_of(payload))
    print_line(handle.id)
    if watch:
        from milepost.cli.watching import follow

        follow(client, handle.id, as_json=False)


def reschedule(run_id: str, delay: str) -> None:
    """Delay a run to another time."""
    run = Client().runs.reschedule(run_id, delay)
    print_line(f"{run.id} {run.status}" + (f" until {run.delayed_until}" if run.delayed_until else ""))


def add_tags(run_id: str, tags: Sequence[str]) -> None:
    """Add tags to a run; prints all that it has now."""
    print_line(" ".join(Client().runs.add_tags(run_id, tags)))


def delete_runs(run_ids: Sequence[str]) -> None:
    """Delete finished runs; those that cannot be are told, and the others are deleted all the same."""
    client = Client()
    failed = 0
    for run_id in run_ids:
        try:
            count = client.runs.delete(run_id)
        except RequestError as error:
            failed += 1
            say_error(str(error))
            continue
        below = f", with {count - 1:,} below it" if count > 1 else ""
        note(f"{run_id} is deleted{below}")
    if failed:
        raise Exit(1)
