"""`milepost runs`."""

from collections.abc import Callable
from typing import Any

import click

from milepost.cli.commands import options
from milepost.cli.grammar import Command, Group, argument, flag, several, whole_number


def _filters(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that name runs by what they have."""
    for option in (options.with_metadata, options.since, options.tags, options.tasks, options.statuses):
        command = option(command)
    return command


@click.group(cls=Group)
def runs() -> None:
    """Look at runs."""


@runs.command("list", cls=Command)
@several(
    "--status",
    "statuses",
    help="Such as QUEUED, EXECUTING, COMPLETED or FAILED; may be given several times.",
)
@options.tasks
@options.tags
@several("--queue", "queues", help="Runs of this queue; may be given several times.")
@click.option(
    "--parent", metavar="RUN_ID", help="Runs that this run has triggered.", shell_complete=options.run_ids
)
@flag("--top-level", help="Only runs that no other run has triggered.")
@options.since
@options.with_metadata
@whole_number("--limit", default=20, help="How many.", at_least=1, at_most=10_000)
@options.as_json
def list_runs(
    *,
    statuses: tuple[str, ...],
    tasks: tuple[str, ...],
    tags: tuple[str, ...],
    queues: tuple[str, ...],
    parent: str | None,
    top_level: bool,
    since: str | None,
    metadata: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """List runs, newest first.

    Example:  milepost runs list --metadata '{"user.id": "u1", "progress": {"$gte": 50}}'
    """
    from milepost.cli import runs as command

    command.list_runs(
        statuses=statuses,
        tasks=tasks,
        tags=tags,
        queues=queues,
        parent=parent,
        top_level=top_level,
        since=since,
        metadata=metadata,
        limit=limit,
        as_json=as_json,
    )


@runs.command("get", cls=Command)
@options.run_id
@options.as_json
def get_run(*, run_id: str, as_json: bool) -> None:
    """Show one run: status, metadata, output, or error with its traceback."""
    from milepost.cli import run as command

    command.get_run(run_id, as_json=as_json)


@runs.command("cancel", cls=Command)
@argument("run_ids", nargs=-1, help="The ids of the runs (run_...).", shell_complete=options.run_ids)
@_filters
def cancel_runs(
    *,
    run_ids: tuple[str, ...],
    statuses: tuple[str, ...],
    tasks: tuple[str, ...],
    tags: tuple[str, ...],
    since: str | None,
    metadata: str | None,
) -> None:
    """Cancel runs and their children: those that are named, or all that a filter finds and that have not ended.

    What executes is asked to end; what has ended stays as it is.  Example:  milepost runs cancel --status QUEUED --task mail
    """
    from milepost.cli import steering as command

    filters = command.filters_of(statuses=statuses, tasks=tasks, tags=tags, since=since, metadata=metadata)
    command.cancel(run_ids, filters)


@runs.command("replay", cls=Command)
@argument("run_id", required=False, help="The run's id (run_...).", shell_complete=options.run_ids)
@argument("payload", required=False, help="Another payload, JSON.")
@flag("--watch", help="Show the new run until it has finished.")
@_filters
@click.option("--resume", metavar="TEXT", help="Go on with a replay by filter that was interrupted.")
def replay_run(
    *,
    run_id: str | None,
    payload: str | None,
    watch: bool,
    statuses: tuple[str, ...],
    tasks: tuple[str, ...],
    tags: tuple[str, ...],
    since: str | None,
    metadata: str | None,
    resume: str | None,
) -> None:
    """Trigger the same again, as a run of its own, and print its id; or each run that a filter finds, and print how many.

    Example:  milepost runs replay --status FAILED --since 2h
    """
    from milepost.cli import steering as command

    filters = command.filters_of(statuses=statuses, tasks=tasks, tags=tags, since=since, metadata=metadata)
    command.replay(run_id, payload, watch=watch, filters=filters, resume=resume)


@runs.command("reschedule", cls=Command)
@options.run_id
@argument("delay", help="From now on (10m, 2h), or a time (2030-01-31T14:05Z).")
def reschedule_run(*, run_id: str, delay: str) -> None:
    """Delay a run that is DELAYED to another time."""
    from milepost.cli import steering as command

    command.reschedule(run_id, delay)


@runs.command("tag", cls=Command)
@options.run_id
@argument("tags", nargs=-1, required=True, help="Tags to add.")
def tag_run(*, run_id: str, tags: tuple[str, ...]) -> None:
    """Add tags to a run, and print all that it has."""
    from milepost.cli import steering as command

    command.add_tags(run_id, tags)


@runs.command("delete", cls=Command)
@argument("run_ids", nargs=-1, required=True, help="Finished runs.", shell_complete=options.run_ids)
def delete_runs(*, run_ids: tuple[str, ...]) -> None:
    """Delete finished runs, each with all runs below it and everything that belongs to them. Nothing brings them back."""
    from milepost.cli import steering as command

    command.delete_runs(run_ids)


@runs.command("stream", cls=Command)
@options.run_id
@argument("key", required=False, help="The stream; without it the run's only one, or a list of them.")
@whole_number("--start", default=0, help="The index of the first value.", at_least=0)
@flag("--follow", "-f", help="Wait for more until the stream has ended.")
def read_stream(*, run_id: str, key: str | None, start: int, follow: bool) -> None:
    """Print the values of a run's stream: text as it is, everything else as one line of JSON each."""
    from milepost.cli import streams as command

    command.read_stream(run_id, key, start=start, follow=follow)


@runs.command("send", cls=Command)
@options.run_id
@argument("stream", help="The key that the task waits for: streams.input(KEY).")
@argument("value", help="A JSON value, @FILE, or - for standard input.")
def send_input(*, run_id: str, stream: str, value: str) -> None:
    """Send a value to a run that waits for it, or will.

    Example:  milepost runs send run_1234 approvals '{"approved": true}'
    """
    from milepost.cli import streams as command

    command.send_input(run_id, stream, value)


@runs.command("watch", cls=Command)
@options.run_id
@options.as_json
def watch_run(*, run_id: str, as_json: bool) -> None:
    """Show one run live until it has finished. Ends with exit code 1 if the run failed."""
    from milepost.cli import watching as command

    command.watch_run(run_id, as_json=as_json)


@runs.command("logs", cls=Command)
@options.run_id
@flag("--follow", "-f", help="Wait for more until the run has ended.")
@flag("--tree", help="The lines of the run and of all runs below it.")
@click.option(
    "--level", help="Only lines of this level and of more severe ones: debug, info, warning or error."
)
@click.option("--search", help="Only lines with this text; upper and lower case are alike.")
@whole_number("--attempt", help="Only the lines of this attempt.", at_least=1)
@options.as_json
def show_log(
    *,
    run_id: str,
    follow: bool,
    tree: bool,
    level: str | None,
    search: str | None,
    attempt: int | None,
    as_json: bool,
) -> None:
    """Print what a run has logged and printed, oldest first.

    Example:  milepost runs logs run_1234 -f --tree --level warning
    """
    from milepost.cli import logs as command

    command.show_log(
        run_id, follow=follow, tree=tree, as_json=as_json, level=level, search=search, attempt=attempt
    )


@runs.command("tree", cls=Command)
@options.run_id
@whole_number("--limit", default=1000, help="How many runs at most.", at_least=1, at_most=1000)
@options.as_json
def show_tree(*, run_id: str, limit: int, as_json: bool) -> None:
    """Show a run with all runs below it: status, how long each took, attempts."""
    from milepost.cli import looking as command

    command.show_tree(run_id, limit=limit, as_json=as_json)


@runs.command("history", cls=Command)
@options.run_id
@whole_number("--after", default=0, help="Only the changes after this version.", at_least=0)
@whole_number("--limit", default=100, help="How many changes.", at_least=1, at_most=1_000_000)
@whole_number(
    "--version",
    help="Print the metadata as it was at this version; 0 is what was given at trigger.",
    at_least=0,
)
@click.option(
    "--at",
    metavar="TIME",
    help="Print the metadata as it was at this time, such as 2026-01-31T14:05 (local) or 2026-01-31T14:05Z.",
)
@options.as_json
def show_history(
    *, run_id: str, after: int, limit: int, version: int | None, at: str | None, as_json: bool
) -> None:
    """Show what was changed in a run's metadata, when and by whom; or the metadata as it was.

    One line per change, oldest first: version, local time, the run that wrote it and its attempt (or "outside"), what was done.
    """
    from milepost.cli import history as command

    if version is None and at is None:
        command.show_changes(run_id, after=after, limit=limit, as_json=as_json)
    else:
        command.show_document(run_id, version=version, at=at, as_json=as_json)
