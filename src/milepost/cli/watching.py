"""`milepost runs watch`, and `--watch`: a run until it has finished."""

import sys
import time

from click.exceptions import Exit

from milepost.cli.console import fail, is_drawn, print_json, print_line, say
from milepost.cli.grammar import EXIT_INTERRUPTED
from milepost.cli.progress import describe, draw, show
from milepost.cli.text import error_text, why_queued
from milepost.client.client import Client
from milepost.client.run import Run
from milepost.model.run import QueuedReason

FRAME_SECONDS = 0.1


def watch_run(run_id: str, *, as_json: bool) -> None:
    """Show one run until it has finished; exit code 1 when it failed."""
    follow(Client(), run_id, as_json=as_json)


def follow(client: Client, run_id: str, *, as_json: bool) -> None:
    """The same with a client that there is."""
    try:
        if as_json:
            run = _follow_as_json(client, run_id)
        elif is_drawn(sys.stdout):
            run = _follow_on_terminal(client, run_id)
        else:
            run = _follow_as_lines(client, run_id)
    except KeyboardInterrupt:
        say("not watching any more; the run goes on")
        raise Exit(EXIT_INTERRUPTED) from None
    if not as_json:
        if run.output is not None:
            print_line(f"output: {show(run.output)}")
        if run.error is not None:
            say(error_text(run.error), style="red")
    if not run.is_success:
        raise Exit(1)


def _follow_on_terminal(client: Client, run_id: str) -> Run:
    last: Run | None = None
    shown_at = 0.0
    reasons = _Reasons()
    from rich.live import Live

    from milepost.cli.terminal import out

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
            say(why_queued(run.task_id, run.queued_reason))
        self._told = run.queued_reason


def _ended(run: Run | None) -> Run:
    if run is None or not run.is_completed:
        fail("the server ended the feed before the run had finished")
    return run
