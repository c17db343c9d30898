"""`milepost dev`, `worker`, `server` and `demo`: what runs until it has done its work or somebody ends it."""

import gc
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from milepost.cli.commands import options
from milepost.cli.console import fail
from milepost.cli.grammar import Command, argument, flag, number

if TYPE_CHECKING:
    from milepost.worker.settings import LogFormat, LogLevel


@contextmanager
def _importing() -> Generator[None]:
    """Nobody looks for garbage while a server is imported, nor in what was imported later on, as all of that stays."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _tell_with_time(level: "LogLevel", form: "LogFormat") -> None:
    """The executors learn it by their environment."""
    from milepost.cli.console import tell_with_time

    os.environ["MILEPOST_LOG_LEVEL"], os.environ["MILEPOST_LOG_FORMAT"] = level, form
    tell_with_time(level=level, form=form)


@click.command(cls=Command)
@options.sources
@options.host
@options.port
@options.data
@options.processes
@options.concurrency
@options.isolated
@number("--grace", default=10, help="Seconds that runs may go on after Ctrl-C.", at_least=0)
@click.option("--reload/--no-reload", default=True, help="Start anew when a file of the tasks changes.")
@flag("--json", help="Print one line of JSON (url, secret_key, dashboard) once tasks can run.")
@options.log_level
@options.log_format
def dev(
    *,
    tasks: tuple[str, ...],
    host: str,
    port: int,
    data: Path,
    processes: int | None,
    concurrency: int,
    isolated: int | None,
    grace: float,
    reload: bool,
    json: bool,
    log_level: "LogLevel",
    log_format: "LogFormat",
) -> None:
    """Run server, dashboard and tasks on this machine, for development.

    Example:  milepost dev tasks.py
    """
    with _importing():
        from milepost.cli import dev as command
        from milepost.cli.working import processes_default, run_worker_command
        from milepost.worker.settings import load_settings

    _tell_with_time(log_level, log_format)
    options = command.DevOptions(
        sources=tasks,
        host=host,
        port=port,
        data=data,
        processes=processes or processes_default(),
        concurrency=concurrency,
        isolated=isolated if isolated is not None else load_settings().isolated_processes,
        grace_seconds=grace,
        reload=reload,
        json=json,
    )
    run_worker_command(tasks, lambda: command.dev(options))


@click.command(cls=Command)
@options.sources
@options.processes
@options.concurrency
@options.isolated
@number("--grace", default=30, help="Seconds that runs may go on after Ctrl-C or SIGTERM.", at_least=0)
@click.option("--reload/--no-reload", default=False, help="Start anew when a file of the tasks changes.")
@options.log_level
@options.log_format
def worker(
    *,
    tasks: tuple[str, ...],
    processes: int | None,
    concurrency: int,
    isolated: int | None,
    grace: float,
    reload: bool,
    log_level: "LogLevel",
    log_format: "LogFormat",
) -> None:
    """Run tasks for a server that runs elsewhere.

    It is found by MILEPOST_API_URL and MILEPOST_SECRET_KEY.  Example:  milepost worker tasks.py
    """
    from milepost.cli.settings import name_unknown_settings
    from milepost.cli.working import processes_default, run_worker_command, work
    from milepost.client.settings import checked_address, checked_key, find_address
    from milepost.worker.settings import load_settings
    from milepost.worker.supervisor import WorkerOptions

    _tell_with_time(log_level, log_format)
    name_unknown_settings()
    # A wrong setting would stop every executor: it is told once, here.
    settings = load_settings()
    address = find_address()
    options = WorkerOptions(
        sources=tasks,
        api_url=checked_address(address.api_url),
        secret_key=checked_key(address.secret_key),
        processes=processes or processes_default(),
        concurrency=concurrency,
        isolated=isolated if isolated is not None else settings.isolated_processes,
        grace_seconds=grace,
        reload=reload,
    )
    run_worker_command(tasks, lambda: work(options))


@click.command(cls=Command)
@options.host
@options.port
@options.data
@options.database
@number(
    "--drain",
    help="Seconds to go on serving after Ctrl-C or SIGTERM while /api/v1/ready says 503, so that a load balancer notices. "
    "Default: MILEPOST_DRAIN_SECONDS, or 0.",
    at_least=0,
    at_most=3600,
)
@options.log_level
@options.log_format
def server(
    *,
    host: str,
    port: int,
    data: Path,
    database: str | None,
    drain: float | None,
    log_level: "LogLevel",
    log_format: "LogFormat",
) -> None:
    """Run the server and its dashboard; workers connect to it.

    MILEPOST_SECRET_KEY must be set: clients and workers use the same key.
    """
    with _importing():
        from milepost.cli import serving, stopping

    _tell_with_time(log_level, log_format)
    stopping.run(
        lambda: serving.serve(host=host, port=port, data=data, database=database, drain_seconds=drain)
    )


@click.command(cls=Command)
@argument(
    "file",
    required=False,
    type=click.Path(path_type=Path, readable=False),
    help="A CSV file with the columns id, name, email, age. Default: 10,000 made-up people.",
)
@options.processes
@options.concurrency
@click.option(
    "--stay/--no-stay",
    default=None,
    help="Keep the dashboard open at the end, until Enter or Ctrl-C. Default: when somebody watches in a terminal.",
)
def demo(*, file: Path | None, processes: int | None, concurrency: int, stay: bool | None) -> None:
    """Watch 10,000 rows being handled as 10,000 runs.

    Everything happens in a temporary folder, on this machine.
    """
    with _importing():
        from milepost.cli import demo as command
        from milepost.cli.stopping import run
        from milepost.worker.supervisor import WorkerFailed

    options = command.DemoOptions(file=file, processes=processes, concurrency=concurrency, stay=stay)
    try:
        code = run(lambda: command.demo(options))
    except WorkerFailed as error:
        fail(str(error))
    raise click.exceptions.Exit(code)
