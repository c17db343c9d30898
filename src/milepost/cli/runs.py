"""`milepost trigger` and `milepost runs ...`: the client half on the command line."""

import base64
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any, cast

import typer
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from milepost.cli.console import fail, note, print_json, print_line, say_error
from milepost.cli.progress import STATUS_STYLES, bars_of, describe, draw, show
from milepost.cli.terminal import err, out
from milepost.cli.text import json_text, moment, visible
from milepost.client import calls
from milepost.client.bulk import BulkProgress
from milepost.client.client import Client
from milepost.client.requests import NO_PAYLOAD
from milepost.client.run import Run
from milepost.client.streams import reader
from milepost.errors import RequestError
from milepost.model.run import AttemptEnd, QueuedReason, RunError
from milepost.protocol.runs import RunAttempt

FRAME_SECONDS = 0.1
LAST_COLUMN_CHARACTERS_MIN = 30
UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
EXIT_INTERRUPTED = 130
DEFAULT_KEY = "default"
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


def trigger(
    task_id: str, payload: str | None, *, metadata: str | None, tags: Sequence[str], watch: bool
) -> None:
    """Trigger a run; its id goes to standard output."""
    value = NO_PAYLOAD if payload is None else payload_of(payload)
    document = None if metadata is None else object_from_json(metadata)
    client = Client()
    handle = client.trigger(task_id, value, metadata=document, tags=list(tags))
    print_line(handle.id)
    # That nobody has ever offered the task, the client has warned of.
    if handle.queued_reason is QueuedReason.NO_WORKER_ONLINE and not watch:
        err.print(_why_queued(task_id, handle.queued_reason), markup=False, soft_wrap=True)
    if watch:
        _watch(client, handle.id, as_json=False)


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
        err.print(f"interrupted; {done:,} runs had been {what}; {resume}", soft_wrap=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    for run_id, error in progress.refused.items():
        err.print(visible(f"{run_id}: {error.message}"), style="red", markup=False, soft_wrap=True)
    print_line(str(progress.done))
    if progress.refused:
        raise typer.Exit(1)


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
        _watch(client, handle.id, as_json=False)


def reschedule(run_id: str, delay: str) -> None:
    """Delay a run to another time."""
    run = Client().runs.reschedule(run_id, delay)
    print_line(f"{run.id} {run.status}" + (f" until {run.delayed_until}" if run.delayed_until else ""))


def add_tags(run_id: str, tags: Sequence[str]) -> None:
    """Add tags to a run; prints all that it has now."""
    print_line(" ".join(Client().runs.add_tags(run_id, tags)))


def print_sign_in_link() -> None:
    """Print a link to the dashboard that signs a browser in."""
    client = Client()
    link = client.send(calls.create_sign_in_link())
    print_line(client.api_url.rstrip("/") + link.path)
    note(f"it works once, within {link.expires_in_seconds // 60} minutes")


def list_runs(
    *,
    statuses: Sequence[str],
    tasks: Sequence[str],
    tags: Sequence[str],
    queues: Sequence[str],
    parent: str | None,
    top_level: bool,
    since: str | None,
    metadata: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """Print the newest runs."""
    if parent is not None and top_level:
        fail("give either --parent or --top-level: runs at the top level have no parent")
    filters: dict[str, Any] = {
        "status": [status.upper() for status in statuses],
        "task": list(tasks),
        "tag": list(tags),
        "queue": list(queues),
        "parent": parent,
        "top_level": top_level,
        "created_after": None if since is None else time_of("--since", since),
        "metadata": None if metadata is None else object_from_json(metadata),
    }
    given = {name: values for name, values in filters.items() if values}
    runs = list(islice(Client().runs.list(page_size=min(limit, 100), **given), limit))
    if as_json:
        for run in runs:
            print_json(run)
        return
    if not runs:
        err.print("no runs")
        return
    print_table([("run", "task", "status", "created", "progress"), *map(_row, runs)])


def _row(run: Run) -> tuple[str, ...]:
    bars, _ = bars_of(run.metadata)
    told = [*map(str, bars)]
    if run.error is not None:
        told.append(_first_line(_error_text(run.error)))
    created = moment(run.created_at)
    return run.id, run.task_id, run.status, created, ", ".join(told)


def print_table(rows: Sequence[tuple[str, ...]]) -> None:
    """Print columns that are as wide as they have to be. Only the last one is cut where a terminal ends; an id never is."""
    shown = [[visible(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*shown, strict=True)]
    before_last = sum(widths[:-1]) + 2 * (len(widths) - 1)
    for row in shown:
        line = Text(no_wrap=True, overflow="ellipsis")
        for index, (cell, width) in enumerate(zip(row, widths, strict=True)):
            is_last = index == len(row) - 1
            style = "dim" if row is shown[0] else STATUS_STYLES.get(cell, "")
            line.append(cell, style)
            if not is_last:
                line.append(" " * (width - cell_len(cell) + 2))
        line.truncate(max(out.width, before_last + LAST_COLUMN_CHARACTERS_MIN), overflow="ellipsis")
        line.rstrip()
        out.print(line, soft_wrap=True)


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
        raise typer.Exit(1)


def get_run(run_id: str, *, as_json: bool) -> None:
    """Print one run."""
    run = Client().runs.retrieve(run_id)
    if as_json:
        print_json(run)
        return
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
    _tell_error(run)


def watch_run(run_id: str, *, as_json: bool) -> None:
    """Show one run until it has finished; exit code 1 when it failed."""
    _watch(Client(), run_id, as_json=as_json)


def read_stream(run_id: str, key: str | None, *, start: int, follow: bool) -> None:
    """Print the values of a stream: text as it is, everything else as one line of JSON each."""
    client = Client()
    run = client.runs.retrieve(run_id)
    known = {stream.key: stream for stream in run.streams}
    if key is None:
        if len(known) != 1 and not (follow and not known):
            _list_streams(run)
            return
        key = next(iter(known), DEFAULT_KEY)
    written = known[key].chunk_count if key in known else 0
    if not follow and start >= written:
        note(f"stream {key!r} has {written:,} values so far; add -f to wait for more")
        return
    reading = reader(client.connection, run_id, key, start, None, False)
    is_inside_line = False
    try:
        for value in reading:
            if isinstance(value, str):
                out.file.write(visible(value))
                is_inside_line = not value.endswith("\n")
            else:
                text = base64.b64encode(value).decode() if isinstance(value, bytes) else json_text(value)
                out.file.write(("\n" if is_inside_line else "") + text + "\n")
                is_inside_line = False
            out.file.flush()
            if not follow and reading.index + 1 >= written:
                break
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    finally:
        if is_inside_line:
            out.file.write("\n")
            out.file.flush()
    if reading.error is not None:
        err.print(visible(f"the source of the stream has failed: {reading.error}"), style="red", markup=False)
        raise typer.Exit(1)


def send_input(run_id: str, key: str, given: str) -> None:
    """Send a value to a run."""
    client = Client()
    client.send(calls.send_input(run_id, key, json.dumps(payload_of(given)).encode()))


def _list_streams(run: Run) -> None:
    if not run.streams:
        err.print("the run has no streams")
        return
    rows = [("stream", "state", "values", "bytes", "error")]
    for stream in run.streams:
        error = _first_line(stream.error or "")
        rows.append((stream.key, stream.state, f"{stream.chunk_count:,}", f"{stream.size_bytes:,}", error))
    print_table(rows)


def _watch(client: Client, run_id: str, *, as_json: bool) -> None:
    try:
        if as_json:
            run = _follow_as_json(client, run_id)
        elif out.is_terminal:
            run = _follow_on_terminal(client, run_id)
        else:
            run = _follow_as_lines(client, run_id)
    except KeyboardInterrupt:
        err.print("not watching any more; the run goes on")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if not as_json:
        if run.output is not None:
            out.print(Text(f"output: {show(run.output)}"), soft_wrap=True)
        _tell_error(run)
    if not run.is_success:
        raise typer.Exit(1)


def _follow_on_terminal(client: Client, run_id: str) -> Run:
    last: Run | None = None
    shown_at = 0.0
    reasons = _Reasons()
    from rich.live import Live

    with Live(console=out, auto_refresh=False) as live:
        for run in client.runs.subscribe(run_id):
            last = run
            reasons.tell(run)
            now = time.monotonic()
            if now - shown_at >= FRAME_SECONDS or run.is_completed:
                shown_at = now
                live.update(
                    draw(task=run.task_id, run_id=run.id, status=run.status, metadata=run.metadata),
                    refresh=True,
                )
    return _ended(last)


def _follow_as_lines(client: Client, run_id: str) -> Run:
    last: Run | None = None
    shown = ""
    reasons = _Reasons()
    for run in client.runs.subscribe(run_id):
        last = run
        reasons.tell(run)
        line = describe(status=run.status, metadata=run.metadata)
        if line != shown:
            shown = line
            print_line(line)
    return _ended(last)


def _follow_as_json(client: Client, run_id: str) -> Run:
    last: Run | None = None
    for run in client.runs.subscribe(run_id):
        last = run
        print_json(run)
    return _ended(last)


class _Reasons:
    """Says why nobody can take a queued run, each time that it is another reason."""

    def __init__(self) -> None:
        self._told: QueuedReason | None = None

    def tell(self, run: Run) -> None:
        if run.queued_reason not in (None, self._told):
            err.print(_why_queued(run.task_id, run.queued_reason), markup=False, soft_wrap=True)
        self._told = run.queued_reason


def _why_queued(task_id: str, reason: QueuedReason) -> str:
    return visible(f"the run stays queued: {reason.describe(task_id)}")


def _ended(run: Run | None) -> Run:
    if run is None or not run.is_completed:
        fail("the server ended the feed before the run had finished")
    return run


def _told_attempt(attempt: RunAttempt) -> str:
    """One line: how it ended, what it cost, and why."""
    at = attempt.ended_at or attempt.begun_at or attempt.claimed_at
    when = f" {at.astimezone():%H:%M:%S}" if at is not None else ""
    what = "under way" if attempt.end is None else ATTEMPT_ENDS[attempt.end]
    cost = "" if attempt.end in (None, AttemptEnd.RETURNED) or attempt.is_charged else ", not charged"
    error = f": {_first_line(_error_text(attempt.error))}" if attempt.error is not None else ""
    return visible(f"attempt {attempt.number}{when} {what}{cost}{error}")


def _tell_error(run: Run) -> None:
    if run.error is not None:
        err.print(_error_text(run.error), style="red", markup=False, soft_wrap=True)


def _error_text(error: RunError) -> str:
    return f"{error.name}: {error.message}" if error.name else error.message


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]


def time_of(option: str, text: str) -> datetime:
    """A time that a person gave: how long ago (`90s`, `10m`, `2h`, `3d`), or a date and time, local without a time zone."""
    ago = re.fullmatch(r"(\d{1,9})\s*([smhdw])", text.strip())
    try:
        if ago is not None:
            return datetime.now(UTC) - timedelta(seconds=int(ago[1]) * UNIT_SECONDS[ago[2]])
        return datetime.fromisoformat(text.strip()).astimezone()
    except (ValueError, OverflowError):
        fail(
            f"{option} {text!r} is no time; write for example 2h, 3d, 2026-01-31T14:05 (local) or 2026-01-31T14:05Z"
        )


def payload_of(given: str) -> Any:
    """The payload that an argument means: JSON, a file with JSON in it (`@people.json`), or standard input (`-`)."""
    if given == "-":
        return _from_json(
            _read("standard input", sys.stdin.buffer.read), "standard input", "it holds one JSON value"
        )
    if given.startswith("@"):
        path = Path(given[1:]).expanduser()
        return _from_json(_read(str(path), path.read_bytes), str(path), "the file holds one JSON value")
    return _from_json(given, "the payload", f"text needs quotes: '{json.dumps(given, ensure_ascii=False)}'")


def _read(name: str, read: Callable[[], bytes]) -> str:
    try:
        return read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        fail(f"{name} is not UTF-8 ({error.reason} at byte {error.start:,}), and JSON is")
    except OSError as error:
        fail(f"{name} cannot be read: {error.strerror}")


def object_from_json(text: str) -> dict[str, Any]:
    """The JSON object that `--metadata` means."""
    example = '\'{"user": "u1"}\''
    value = _from_json(text, "--metadata", f"it is an object such as {example}")
    if not isinstance(value, dict):
        fail(f"--metadata is not a JSON object; write for example {example}")
    return cast("dict[str, Any]", value)


def _from_json(text: str, name: str, advice: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        fail(f"{name} is not JSON ({error}); {advice}")
