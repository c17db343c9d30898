"""`milepost schedules ...`: what is triggered at set times."""

from typing import Annotated, Any

import typer

from milepost.cli.console import fail, note, print_json, print_line
from milepost.cli.text import moment

app = typer.Typer(help="Look at schedules, make and change them.", no_args_is_help=True)

ScheduleId = Annotated[str, typer.Argument(help="The schedule's id (sched_...).", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
CronLine = Annotated[
    str | None,
    typer.Option("--cron", help="A cron line of five fields, or @daily and its like.", show_default=False),
]
Period = Annotated[str | None, typer.Option("--every", help="How often: 30s, 5m, 1h30m.", show_default=False)]
Zone = Annotated[
    str | None,
    typer.Option("--timezone", help="The zone of the cron line, such as Europe/Berlin.", show_default=False),
]
Payload = Annotated[
    str | None,
    typer.Option(help="What its runs are given: JSON, @FILE, or - for standard input.", show_default=False),
]
Metadata = Annotated[
    str | None, typer.Option(help="The first metadata of its runs, a JSON object.", show_default=False)
]
Tags = Annotated[
    list[str] | None,
    typer.Option("--tag", help="A tag of its runs; may be given several times.", show_default=False),
]
ExternalId = Annotated[
    str | None, typer.Option("--external-id", help="What you call it.", show_default=False)
]


@app.command("list")
def list_schedules(
    task: Annotated[str | None, typer.Option(help="Only those of this task.", show_default=False)] = None,
    json: AsJson = False,
) -> None:
    """List schedules, newest first."""
    from milepost.cli.runs import print_table
    from milepost.client.client import Client

    found = list(Client().schedules.list(task=task, page_size=100))
    if json:
        for schedule in found:
            print_json(schedule)
        return
    if not found:
        from milepost.cli.terminal import err

        err.print("no schedules")
        return
    rows = [("schedule", "task", "times", "next", "last", "")]
    for schedule in found:
        told = [
            "declared" if schedule.is_declared else "",
            schedule.queued_reason.replace("_", " ") if schedule.queued_reason else "",
            schedule.note or "",
        ]
        rows.append(
            (
                schedule.id,
                schedule.task_id,
                _times(schedule),
                moment(schedule.next_at) if schedule.next_at else "paused",
                moment(schedule.last_at) if schedule.last_at else "never",
                ", ".join(filter(None, told)),
            )
        )
    print_table(rows)


@app.command()
def create(
    task: Annotated[str, typer.Argument(help="The task's id.", show_default=False)],
    cron: CronLine = None,
    every: Period = None,
    timezone: Zone = None,
    payload: Payload = None,
    metadata: Metadata = None,
    tag: Tags = None,
    external_id: ExternalId = None,
    deduplication_key: Annotated[
        str | None,
        typer.Option(
            "--deduplication-key",
            help="Change the schedule that has this key, if there is one, and make no second one.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Have a task triggered at set times; prints the schedule's id.

    Example:  milepost schedules create report --cron '0 5 * * *' --timezone Europe/Berlin
    """
    from milepost.client.client import Client

    if (cron is None) == (every is None):
        fail("give either --cron '0 5 * * *' or --every 5m")
    given = _given(cron, every, timezone, payload, metadata, tag, external_id)
    schedule = Client().schedules.create(task, deduplication_key=deduplication_key, **given)
    print_line(schedule.id)
    _tell_next(schedule)


@app.command()
def update(
    schedule_id: ScheduleId,
    cron: CronLine = None,
    every: Period = None,
    timezone: Zone = None,
    payload: Payload = None,
    metadata: Metadata = None,
    tag: Tags = None,
    external_id: ExternalId = None,
) -> None:
    """Change a schedule; what is left out stays.

    Example:  milepost schedules update sched_1234 --cron '30 5 * * *'
    """
    from milepost.client.client import Client

    given = _given(cron, every, timezone, payload, metadata, tag, external_id)
    if not given:
        fail("nothing to change was given; see milepost schedules update --help")
    _tell_next(Client().schedules.update(schedule_id, **given))


@app.command()
def pause(schedule_id: ScheduleId) -> None:
    """Let a schedule fire no more until it is resumed."""
    from milepost.client.client import Client

    Client().schedules.deactivate(schedule_id)
    note(f"{schedule_id} is paused")


@app.command()
def resume(schedule_id: ScheduleId) -> None:
    """Let a paused schedule go on from its next time; what it has missed does not fire."""
    from milepost.client.client import Client

    _tell_next(Client().schedules.activate(schedule_id))


@app.command()
def delete(schedule_id: ScheduleId) -> None:
    """Forget a schedule; its runs go on."""
    from milepost.client.client import Client

    Client().schedules.delete(schedule_id)
    note(f"{schedule_id} is deleted")


@app.command("next")
def show_next(
    schedule_id: ScheduleId,
    count: Annotated[int, typer.Option("--count", "-n", help="How many.", min=1, max=100)] = 10,
) -> None:
    """Print the next times of a schedule, one a line, in its time zone."""
    from zoneinfo import ZoneInfo

    from milepost.client.client import Client

    schedule = Client().schedules.retrieve(schedule_id, upcoming=count)
    if not schedule.is_active:
        fail(f"{schedule_id} is paused: milepost schedules resume {schedule_id}")
    for at in schedule.upcoming:
        print_line(at.astimezone(ZoneInfo(schedule.timezone)).isoformat(timespec="seconds"))


def _given(
    cron: str | None,
    every: str | None,
    timezone: str | None,
    payload: str | None,
    metadata: str | None,
    tags: list[str] | None,
    external_id: str | None,
) -> dict[str, Any]:
    from milepost.cli.runs import object_from_json, payload_of

    given = {
        "cron": cron,
        "every": every,
        "timezone": timezone,
        "payload": None if payload is None else payload_of(payload),
        "metadata": None if metadata is None else object_from_json(metadata),
        "tags": tags or None,
        "external_id": external_id,
    }
    return {name: value for name, value in given.items() if value is not None}


def _times(schedule: Any) -> str:
    from milepost.model.durations import duration_text

    if schedule.every is not None:
        return f"every {duration_text(schedule.every)}"
    return schedule.cron if schedule.timezone == "UTC" else f"{schedule.cron} {schedule.timezone}"


def _tell_next(schedule: Any) -> None:
    if schedule.next_at is None:
        note(f"{schedule.id} is paused: milepost schedules resume {schedule.id}")
        return
    note(f"it fires next at {moment(schedule.next_at)}")
