"""`milepost trigger`, `tasks`, `workers` and `dashboard`: what a server is asked for."""

import click

from milepost.cli.commands import options
from milepost.cli.grammar import Command, argument, flag, several


@click.command(cls=Command)
def dashboard() -> None:
    """Print a link that signs a browser in to the dashboard, once and soon.

    The server is found as by every command: MILEPOST_API_URL and MILEPOST_SECRET_KEY, or the `milepost dev` of this folder.
    """
    from milepost.cli.looking import print_sign_in_link

    print_sign_in_link()


@click.command(cls=Command)
@options.task_id
@argument(
    "payload",
    required=False,
    help="The payload as JSON; @FILE for a file with JSON in it, - for standard input; nothing for a task without one.",
)
@click.option("--metadata", metavar="JSON", help="The first metadata of the run, a JSON object.")
@several("--tag", "tags", help="A tag; may be given several times.")
@flag("--watch", help="Show the run until it has finished.")
def trigger(
    *, task_id: str, payload: str | None, metadata: str | None, tags: tuple[str, ...], watch: bool
) -> None:
    """Trigger a run of a task, and print its id.

    Example:  milepost trigger handle-upload '"people.csv"' --metadata '{"user": "u1"}' --watch
    """
    from milepost.cli import triggering as command

    command.trigger(task_id, payload, metadata=metadata, tags=tags, watch=watch)


@click.command(cls=Command)
@options.as_json
def tasks(*, as_json: bool) -> None:
    """List the tasks that workers have offered, and how many workers offer them now."""
    from milepost.cli import looking as command

    command.list_tasks(as_json=as_json)


@click.command(cls=Command)
@options.as_json
def workers(*, as_json: bool) -> None:
    """List the workers that are online, what they offer, and how many runs each holds."""
    from milepost.cli import looking as command

    command.list_workers(as_json=as_json)
