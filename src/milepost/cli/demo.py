"""`milepost demo`: a file of people, every row a run of its own, watched live; and the sums checked at the end."""

import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rich.live import Live

from milepost.cli.console import note
from milepost.cli.demo_file import check_file, write_people
from milepost.cli.demo_tasks import handle_upload, problem_of, read_rows
from milepost.cli.hosting import HostedServer, bind, development_key, hosted, owned_folder
from milepost.cli.progress import describe, draw
from milepost.cli.stopping import StopSignals, first_of
from milepost.cli.terminal import err, out
from milepost.cli.working import Announcer, processes_default, supervise
from milepost.client.client import Client
from milepost.client.run import Run
from milepost.server.settings import load_settings
from milepost.worker.control import Order
from milepost.worker.supervisor import Supervisor, WorkerOptions

GRACE_SECONDS = 2.0
# A person cannot read faster, and drawing takes time from the runs.
FRAME_SECONDS = 0.1
LINE_SECONDS = 0.5
BROKEN_SHOWN_MAX = 40
EXIT_INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """The options of the command; `--help` explains them."""

    file: Path | None
    processes: int | None
    concurrency: int
    stay: bool | None


async def demo(options: DemoOptions) -> int:
    """Run the demo; the exit code: 0 when every sum is right, 1 when one is not, 130 when it was interrupted.

    Raises: DemoFileError, ConfigurationError, WorkerFailed.
    """
    with (
        StopSignals() as signals,
        tempfile.TemporaryDirectory(prefix="milepost-demo-") as folder,
        bind("127.0.0.1", 0) as listener,
        owned_folder(Path(folder)),
    ):
        path = options.file or Path(folder) / "people.csv"
        if options.file is None:
            write_people(path)
        check_file(path)
        # Other users of this machine can reach the port.
        key = development_key(Path(folder))
        settings = load_settings(data_folder=Path(folder), database_url="", secret_key=key)
        async with hosted(settings, listener) as server:
            ready = asyncio.Event()
            worker = WorkerOptions(
                sources=["milepost.cli.demo_tasks"],
                api_url=server.url,
                secret_key=key,
                processes=options.processes or processes_default(),
                concurrency=options.concurrency,
                grace_seconds=GRACE_SECONDS,
            )
            stay = options.stay if options.stay is not None else err.is_terminal and sys.stdin.isatty()
            work = asyncio.create_task(_work(server, key, path.resolve(), ready, signals, stay=stay))
            # What becomes of 10,000 runs, the broken rows too, is shown as a picture.
            os.environ.setdefault("MILEPOST_LOG_LEVEL", "critical")
            supervisor = Supervisor(worker, Announcer(lambda tasks: ready.set()))
            try:
                await supervise(supervisor, signals, ended=[server.ended, work], order=Order.STOP)
            finally:
                work.cancel()
                await asyncio.wait({work})
            if work.cancelled():
                note("interrupted; the demo's data is removed")
                return EXIT_INTERRUPTED
            return work.result()


async def _work(
    server: HostedServer, key: str, path: Path, ready: asyncio.Event, signals: StopSignals, *, stay: bool
) -> int:
    """Trigger the upload, watch it, check it. Returns the exit code."""
    await ready.wait()
    client = Client(server.url, key)
    rows = read_rows(str(path))
    broken = [row.id for row in rows if problem_of(row) is not None]
    user = {"id": "user_1234", "name": os.environ.get("USER", "you")}
    handle = await client.atrigger(handle_upload.id, str(path), metadata={"user": user})
    link = f"{server.sign_in_link()}&next=/runs/{handle.id}"
    err.print(f"\n[bold]handle-upload[/] works on {path.name}, one run for each of {len(rows):,} rows")
    err.print(f"its page: [link]{link}[/]\n", soft_wrap=True)
    run = await _follow(handle.asubscribe())
    problems = _problems(run, len(rows), broken, user)
    _tell(run, problems)
    if stay:
        note("the run's page stays open; Enter or Ctrl-C ends the demo")
        await first_of(signals.asked.wait(), _enter())
    return 1 if problems else 0


async def _enter() -> None:
    """Wait until somebody presses Enter. Without an open standard input nobody ever does."""
    pressed = asyncio.Event()
    loop = asyncio.get_running_loop()
    try:
        loop.add_reader(sys.stdin, pressed.set)
    except (OSError, ValueError):
        await asyncio.Event().wait()
    try:
        await pressed.wait()
        # Not for the shell that comes next.
        sys.stdin.readline()
    finally:
        loop.remove_reader(sys.stdin)


async def _follow(states: AsyncIterator[Run]) -> Run:
    """Show the run until it has ended: a live picture on a terminal, a line now and then elsewhere."""
    last: Run | None = None
    with _screen() as (show, pause_seconds):
        shown_at = 0.0
        async for run in states:
            last = run
            now = time.monotonic()
            if now - shown_at >= pause_seconds or run.is_completed:
                shown_at = now
                show(run)
    assert last is not None
    assert last.is_completed, last
    return last


@contextlib.contextmanager
def _screen() -> Generator[tuple[Callable[[Run], None], float]]:
    """What draws a state, and how many seconds should lie between two of them."""
    if not err.is_terminal:
        yield (lambda run: note(describe(status=run.status, metadata=_short(run)))), LINE_SECONDS
        return
    with Live(console=err, auto_refresh=False) as live:

        def show(run: Run) -> None:
            picture = draw(task=run.task_id, run_id=run.id, status=run.status, metadata=_short(run))
            live.update(picture, refresh=True)

        yield show, FRAME_SECONDS


def _short(run: Run) -> dict[str, Any]:
    """The document without the long list, of which only the length is worth watching."""
    document = dict(run.metadata)
    if "broken_rows" in document:
        count = f"{len(_ids(document.pop('broken_rows'))):,}"
        document["broken_rows"] = count if run.is_completed else f"{count} so far"
    return document


def _ids(value: Any) -> list[str]:
    return [str(each) for each in cast("list[Any]", value)] if isinstance(value, list) else []


def _problems(run: Run, rows: int, broken: Sequence[str], user: Any) -> list[str]:
    """What does not add up; empty when everything does."""
    document = run.metadata
    expected = {
        "status": "complete",
        "user": user,
        "total": rows,
        "processed": rows,
        "failed": len(broken),
        "broken_rows": sorted(broken),
    }
    found = {key: document.get(key) for key in expected}
    found["broken_rows"] = sorted(_ids(found["broken_rows"]))
    problems = [
        f"{key} is {_cut(found[key])} and should be {_cut(expected[key])}"
        for key in expected
        if found[key] != expected[key]
    ]
    totals = {"rows": rows, "ok": rows - len(broken), "failed": len(broken)}
    if run.output != totals:
        error = f" ({run.error.message})" if run.error else ""
        problems.append(f"the upload returned {run.output}{error} and should have returned {totals}")
    return problems


def _tell(run: Run, problems: Sequence[str]) -> None:
    """The end of it: the final document, the sums, the speed."""
    document = dict(run.metadata)
    out.print("\nThe run's metadata at its end:\n")
    for key, value in document.items():
        if key != "broken_rows":
            out.print(f"  {key:<12} {json.dumps(value, ensure_ascii=False)}", markup=False, soft_wrap=True)
    ids = sorted(_ids(document.get("broken_rows")), key=_natural)
    out.print(f"  {'broken_rows':<12} {_listed(ids)}", markup=False, soft_wrap=True)
    for problem in problems:
        out.print(f"\n[bold red]wrong:[/] {problem}", soft_wrap=True)
    total, failed = document.get("total"), document.get("failed")
    if not problems and isinstance(total, int) and isinstance(failed, int):
        out.print(
            f"\n{total - failed:,} rows are fine and {failed:,} are broken: {total:,} in all, every one counted once."
        )
    if run.finished_at is not None and isinstance(total, int):
        seconds = (run.finished_at - run.created_at).total_seconds()
        out.print(f"{total:,} runs in {seconds:.2f} s: {total / seconds:,.0f} runs per second.\n")


def _natural(text: str) -> tuple[int, str]:
    return (int(text), "") if text.isdecimal() else (1 << 62, text)


def _listed(ids: Sequence[str]) -> str:
    shown = ", ".join(ids[:BROKEN_SHOWN_MAX])
    more = len(ids) - BROKEN_SHOWN_MAX
    return f"{len(ids):,} rows: {shown}" + (f" and {more:,} more" if more > 0 else "")


def _cut(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else text[:120] + "…"
