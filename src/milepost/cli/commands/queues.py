"""`milepost queues`."""

import click

from milepost.cli.commands import options
from milepost.cli.grammar import Command, Group, argument, flag, reader_of_number

_name = argument("name", help="The queue's name; task/<id> is that of a task that names none.")


@click.group(cls=Group)
def queues() -> None:
    """Look at queues, pause them, change their limits."""


@queues.command("list", cls=Command)
@options.as_json
def list_queues(*, as_json: bool) -> None:
    """List the queues: what is queued, running and waiting to go on, with limits and rates."""
    from milepost.cli import queues as command

    command.list_queues(as_json=as_json)


@queues.command("show", cls=Command)
@_name
@options.as_json
def show_queue(*, name: str, as_json: bool) -> None:
    """Show a queue with its concurrency keys."""
    from milepost.cli import queues as command

    command.show_queue(name, as_json=as_json)


@queues.command("pause", cls=Command)
@_name
@options.as_json
def pause_queue(*, name: str, as_json: bool) -> None:
    """Let none of a queue's queued runs begin. What has begun goes on, and new runs may be triggered."""
    from milepost.cli import queues as command

    command.pause(name, as_json=as_json)


@queues.command("resume", cls=Command)
@_name
@options.as_json
def resume_queue(*, name: str, as_json: bool) -> None:
    """Let the queued runs of a paused queue begin again."""
    from milepost.cli import queues as command

    command.resume(name, as_json=as_json)


@queues.command("limit", cls=Command)
@_name
@argument(
    "limit",
    required=False,
    callback=reader_of_number(int, 0),
    help="How many of its runs may execute at once.",
)
@flag("--reset", help="Go by what the tasks say again.")
@options.as_json
def limit_queue(*, name: str, limit: int | None, reset: bool, as_json: bool) -> None:
    """Set another limit than the tasks say, until it is reset. Nothing that runs is ended."""
    from milepost.cli import queues as command

    command.set_limit(name, limit, reset=reset, as_json=as_json)
