"""`milepost schedules`."""

from collections.abc import Callable
from typing import Any

import click

from milepost.cli.commands import options
from milepost.cli.grammar import Command, Group, argument, several, whole_number

_schedule_id = argument("schedule_id", help="The schedule's id (sched_...).")


def _settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """What is set for a schedule when it is made, and may be changed later."""
    for option in reversed(
        (
            click.option(
                "--cron", metavar="LINE", help="A cron line of five fields, or @daily and its like."
            ),
            click.option("--every", metavar="PERIOD", help="How often: 30s, 5m, 1h30m."),
            click.option(
                "--timezone", metavar="ZONE", help="The zone of the cron line, such as Europe/Berlin."
            ),
            click.option(
                "--payload",
                metavar="JSON",
                help="What its runs are given: JSON, @FILE, or - for standard input.",
            ),
            click.option("--metadata", metavar="JSON", help="The first metadata of its runs, a JSON object."),
            several("--tag", "tags", help="A tag of its runs; may be given several times."),
            click.option("--external-id", help="What you call it."),
        )
    ):
        command = option(command)
    return command


@click.group(cls=Group)
def schedules() -> None:
    """Look at schedules, make and change them."""


@schedules.command("list", cls=Command)
@click.option("--task", help="Only those of this task.")
@options.as_json
def list_schedules(*, task: str | None, as_json: bool) -> None:
    """List schedules, newest first."""
    from milepost.cli import schedules as command

    command.list_schedules(task=task, as_json=as_json)


@schedules.command(cls=Command)
@argument("task", help="The task's id.")
@_settings
@click.option(
    "--deduplication-key",
    metavar="KEY",
    help="Change the schedule that has this key, if there is one, and make no second one.",
)
def create(*, task: str, deduplication_key: str | None, **settings: Any) -> None:
    """Have a task triggered at set times; prints the schedule's id.

    Example:  milepost schedules create report --cron '0 5 * * *' --timezone Europe/Berlin
    """
    from milepost.cli import schedules as command

    command.create(task, deduplication_key=deduplication_key, settings=command.Settings(**settings))


@schedules.command(cls=Command)
@_schedule_id
@_settings
def update(*, schedule_id: str, **settings: Any) -> None:
    """Change a schedule; what is left out stays.

    Example:  milepost schedules update sched_1234 --cron '30 5 * * *'
    """
    from milepost.cli import schedules as command

    command.update(schedule_id, command.Settings(**settings))


@schedules.command(cls=Command)
@_schedule_id
def pause(*, schedule_id: str) -> None:
    """Let a schedule fire no more until it is resumed."""
    from milepost.cli import schedules as command

    command.pause(schedule_id)


@schedules.command(cls=Command)
@_schedule_id
def resume(*, schedule_id: str) -> None:
    """Let a paused schedule go on from its next time; what it has missed does not fire."""
    from milepost.cli import schedules as command

    command.resume(schedule_id)


@schedules.command(cls=Command)
@_schedule_id
def delete(*, schedule_id: str) -> None:
    """Forget a schedule; its runs go on."""
    from milepost.cli import schedules as command

    command.delete(schedule_id)


@schedules.command("next", cls=Command)
@_schedule_id
@whole_number("--count", "-n", default=10, help="How many.", at_least=1, at_most=100)
def show_next(*, schedule_id: str, count: int) -> None:
    """Print the next times of a schedule, one a line, in its time zone."""
    from milepost.cli import schedules as command

    command.show_next(schedule_id, count)
