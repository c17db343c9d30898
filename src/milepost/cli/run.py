"""`milepost runs get`: one run, as a picture for people or as JSON."""

from milepost.cli.console import print_json, say
from milepost.cli.progress import draw, show
from milepost.cli.text import error_text, first_line, moment, visible
from milepost.client.client import Client
from milepost.model.run import AttemptEnd
from milepost.protocol.runs import RunAttempt

ATTEMPT_ENDS = {
    AttemptEnd.RETURNED: "returned",
    AttemptEnd.RAISED: "raised",
    AttemptEnd.CRASHED: "crashed",
    AttemptEnd.BESIDE: "was lost beside others",
    AttemptEnd.LOST: "was lost",
    AttemptEnd.HANDED_BACK: "was handed back",
    AttemptEnd.NEVER_BEGUN: "never began",
    AttemptEnd.CANCELLED: "was cancelled",
    AttemptEnd.TIMED_OUT: "took too long",
    AttemptEnd.BROKEN: "could not be stored",
    AttemptEnd.WAITING: "was lost while it waited",
    AttemptEnd.CLOSED: "ran the last hooks",
}


def get_run(run_id: str, *, as_json: bool) -> None:
    """Print one run."""
    run = Client().runs.retrieve(run_id)
    if as_json:
        print_json(run)
        return
    from rich.table import Table
    from rich.text import Text

    from milepost.cli.terminal import out

    out.print(draw(task=run.task_id, run_id=run.id, status=run.status, metadata=run.metadata))
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim")
    facts.add_row("created", moment(run.created_at))
    if run.cancel_asked_at is not None and not run.is_completed:
        facts.add_row("cancel", f"asked {moment(run.cancel_asked_at)}; it is to end")
    if run.is_queued and run.delayed_until is not None:
        facts.add_row("delayed", f"until {moment(run.delayed_until)}")
    if run.schedule is not None:
        facts.add_row("schedule", f"{run.schedule.id}, for {moment(run.schedule.timestamp)}")
    if run.replay_of is not None:
        facts.add_row("replay of", run.replay_of)
    facts.add_row("attempts", str(run.attempt_count))
    facts.add_row("metadata", f"version {run.metadata_version}")
    if run.queue_wait is not None:
        told = run.queue_wait.describe(run.task_id, run.queue, run.concurrency_key)
        facts.add_row("queued", Text(told))
    elif run.queued_reason is not None:
        facts.add_row("queued", Text(run.queued_reason.describe(run.task_id)))
    if run.tags:
        facts.add_row("tags", Text(", ".join(run.tags)))
    if run.parent_id:
        facts.add_row("parent", run.parent_id)
    if run.child_counts:
        facts.add_row(
            "children", ", ".join(f"{count:,} {status}" for status, count in run.child_counts.items())
        )
    if run.is_payload_deleted:
        facts.add_row(
            "payload", "deleted: the server keeps payloads for a time only (MILEPOST_KEEP_PAYLOADS)"
        )
    if run.payload is not None:
        facts.add_row("payload", Text(show(run.payload)))
    if run.output is not None:
        facts.add_row("output", Text(show(run.output)))
    out.print()
    out.print(facts)
    if any(attempt.end not in (None, AttemptEnd.RETURNED) for attempt in run.attempts):
        out.print()
        for attempt in run.attempts:
            out.print(
                Text(_told_attempt(attempt), style="dim" if attempt.error is None else ""), soft_wrap=True
            )
    if run.error is not None and run.error.stack_trace:
        out.print()
        out.print(Text(run.error.stack_trace.rstrip(), style="dim"), soft_wrap=True)
    if run.error is not None:
        say(error_text(run.error), style="red")


def _told_attempt(attempt: RunAttempt) -> str:
    """One line: how it ended, what it cost, and why."""
    at = attempt.ended_at or attempt.begun_at or attempt.claimed_at
    when = f" {at.astimezone():%H:%M:%S}" if at is not None else ""
    what = "under way" if attempt.end is None else ATTEMPT_ENDS[attempt.end]
    cost = "" if attempt.end in (None, AttemptEnd.RETURNED) or attempt.is_charged else ", not charged"
    error = f": {first_line(error_text(attempt.error))}" if attempt.error is not None else ""
    return visible(f"attempt {attempt.number}{when} {what}{cost}{error}")
