"""`milepost schedules ...`: what is triggered at set times."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from milepost.cli.console import fail, note, print_json, print_line, say
from milepost.cli.given import object_from_json, payload_of
from milepost.cli.tables import print_table
from milepost.cli.text import moment
from milepost.client.client import Client
from milepost.client.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is given for a schedule, as it stands on the command line."""

    cron: str | None
    every: str | None
    timezone: str | None
    payload: str | None
    metadata: str | None
    tags: Sequence[str]
    external_id: str | None

    def read(self) -> dict[str, Any]:
        """What was given, without what was left out."""
        given = {
            "cron": self.cron,
            "every": self.every,
            "timezone": self.timezone,
            "payload": None if self.payload is None else payload_of(self.payload),
            "metadata": None if self.metadata is None else object_from_json(self.metadata),
            "tags": list(self.tags) or None,
            "external_id": self.external_id,
        }
        return {name: value for name, value in given.items() if value is not None}


def list_schedules(*, task: str | None, as_json: bool) -> None:
    """Print schedules, newest first."""
    found = list(Client().schedules.list(task=task, page_size=100))
    if as_json:
        for schedule in found:
            print_json(schedule)
        return
    if not found:
        say("no schedules")
        return
    print_table([("schedule", "task", "times", "next", "last", ""), *map(_row, found)])


def create(task: str, *, deduplication_key: str | None, settings: Settings) -> None:
    """Make a schedule; its id goes to standard output."""
    if (settings.cron is None) == (settings.every is None):
        fail("give either --cron '0 5 * * *' or --every 5m")
    given = settings.read()
    schedule = Client().schedules.create(task, deduplication_key=deduplication_key, **given)
    print_line(schedule.id)
    _tell_next(schedule)


def update(schedule_id: str, settings: Settings) -> None:
    """Change a schedule."""
    given = settings.read()
    if not given:
        fail("nothing to change was given; see milepost schedules update --help")
    _tell_next(Client().schedules.update(schedule_id, **given))


def pause(schedule_id: str) -> None:
    """Let it fire no more."""
    Client().schedules.deactivate(schedule_id)
    note(f"{schedule_id} is paused")


def resume(schedule_id: str) -> None:
    """Let it fire again."""
    _tell_next(Client().schedules.activate(schedule_id))


def delete(schedule_id: str) -> None:
    """Forget it."""
    Client().schedules.delete(schedule_id)
    note(f"{schedule_id} is deleted")


def show_next(schedule_id: str, count: int) -> None:
    """Print its next times."""
    from zoneinfo import ZoneInfo

    schedule = Client().schedules.retrieve(schedule_id, upcoming=count)
    if not schedule.is_active:
        fail(f"{schedule_id} is paused: milepost schedules resume {schedule_id}")
    for at in schedule.upcoming:
        print_line(at.astimezone(ZoneInfo(schedule.timezone)).isoformat(timespec="seconds"))


def _row(schedule: Schedule) -> tuple[str, ...]:
    told = [
        "declared" if schedule.is_declared else "",
        schedule.queued_reason.replace("_", " ") if schedule.queued_reason else "",
        schedule.note or "",
    ]
    return (
        schedule.id,
        schedule.task_id,
        _times(schedule),
        moment(schedule.next_at) if schedule.next_at else "paused",
        moment(schedule.last_at) if schedule.last_at else "never",
        ", ".join(filter(None, told)),
    )


def _times(schedule: Schedule) -> str:
    from milepost.model.durations import duration_text

    if schedule.every is not None:
        return f"every {duration_text(schedule.every)}"
    assert schedule.cron is not None, schedule.id
    return schedule.cron if schedule.timezone == "UTC" else f"{schedule.cron} {schedule.timezone}"


def _tell_next(schedule: Schedule) -> None:
    if schedule.next_at is None:
        note(f"{schedule.id} is paused: milepost schedules resume {schedule.id}")
        return
    note(f"it fires next at {moment(schedule.next_at)}")
