"""The commands: names, options, help. Each imports what it needs when it is called, so that `--help` is quick."""

import copy as copying
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer.main import get_command_name
from typer.models import CommandInfo

from milepost.cli import completing, metadata_commands, schedules
from milepost.cli.console import fail

if TYPE_CHECKING:
    from milepost.worker.settings import LogFormat, LogLevel

app = typer.Typer(
    name="milepost",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Sources = Annotated[
    list[str],
    typer.Argument(help="Python files, folders or module names with tasks in them.", show_default=False),
]
Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every network.")]
Port = Annotated[int, typer.Option(help="Port to listen on; 0 picks a free one.", min=0, max=65535)]
Data = Annotated[
    Path, typer.Option(help="Folder for the database and the key.", envvar="MILEPOST_DATA_FOLDER")
]
Database = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="PostgreSQL database in place of the folder's: postgresql://user@host:5432/name. It is better named by "
        "MILEPOST_DATABASE_URL: other users of this machine can see the options of a command.",
        show_default=False,
    ),
]
Processes = Annotated[
    int | None,
    typer.Option(help="Processes that run tasks. Default: one per core.", min=1, max=256, show_default=False),
]
Isolated = Annotated[
    int | None,
    typer.Option(
        help='Processes kept ready for tasks with isolation="process", beside the others. Default: MILEPOST_ISOLATED_PROCESSES, or '
        "as many as --processes.",
        min=1,
        max=256,
        show_default=False,
    ),
]
Concurrency = Annotated[
    int,
    typer.Option(
        help="Runs at once in each process. A run that waits for other runs does not count.",
        min=1,
        max=10_000,
    ),
]


LogLevelOption = Annotated[
    Literal["debug", "info", "warning", "error", "critical"],
    typer.Option(
        "--log-level",
        help="Say this and what is graver on standard error. At debug every run is told, at critical no run that fails.",
        envvar="MILEPOST_LOG_LEVEL",
        case_sensitive=False,
    ),
]
LogFormatOption = Annotated[
    Literal["text", "json"],
    typer.Option(
        "--log-format",
        help="How lines on standard error look: text, or json (one object each).",
        envvar="MILEPOST_LOG_FORMAT",
        case_sensitive=False,
    ),
]


def _tell_with_time(level: "LogLevel", form: "LogFormat") -> None:
    """The executors learn it by their environment."""
    from milepost.cli.console import tell_with_time

    os.environ["MILEPOST_LOG_LEVEL"], os.environ["MILEPOST_LOG_FORMAT"] = level, form
    tell_with_time(level=level, form=form)


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"milepost {version('milepost')}")
        raise typer.Exit


@app.callback()
def milepost(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Background tasks for Python whose runs carry live metadata.

    Start with:  milepost demo   or   milepost dev tasks.py
    """


@app.command()
def dev(
    tasks: Sources,
    host: Host = "127.0.0.1",
    port: Port = 3030,
    data: Data = Path(".milepost"),
    processes: Processes = None,
    concurrency: Concurrency = 100,
    isolated: Isolated = None,
    grace: Annotated[float, typer.Option(help="Seconds that runs may go on after Ctrl-C.", min=0)] = 10,
    reload: Annotated[
        bool, typer.Option("--reload/--no-reload", help="Start anew when a file of the tasks changes.")
    ] = True,
    json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print one line of JSON (url, secret_key, dashboard) once tasks can run."
        ),
    ] = False,
    log_level: LogLevelOption = "info",
    log_format: LogFormatOption = "text",
) -> None:
    """Run server, dashboard and tasks on this machine, for development.

    Example:  milepost dev tasks.py
    """
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


@app.command()
def worker(
    tasks: Sources,
    processes: Processes = None,
    concurrency: Concurrency = 100,
    isolated: Isolated = None,
    grace: Annotated[
        float, typer.Option(help="Seconds that runs may go on after Ctrl-C or SIGTERM.", min=0)
    ] = 30,
    reload: Annotated[
        bool, typer.Option("--reload/--no-reload", help="Start anew when a file of the tasks changes.")
    ] = False,
    log_level: LogLevelOption = "info",
    log_format: LogFormatOption = "text",
) -> None:
    """Run tasks for a server that runs elsewhere.

    It is found by MILEPOST_API_URL and MILEPOST_SECRET_KEY.  Example:  milepost worker tasks.py
    """
    from milepost.cli.settings import name_unknown_settings
    from milepost.cli.working import processes_default, run_worker_command, work
    from milepost.client.settings import find_address
    from milepost.worker.settings import load_settings
    from milepost.worker.supervisor import WorkerOptions

    _tell_with_time(log_level, log_format)
    name_unknown_settings()
    # A wrong setting would stop every executor: it is told once, here.
    settings = load_settings()
    address = find_address()
    options = WorkerOptions(
        sources=tasks,
        api_url=address.api_url,
        secret_key=address.secret_key,
        processes=processes or processes_default(),
        concurrency=concurrency,
        isolated=isolated if isolated is not None else settings.isolated_processes,
        grace_seconds=grace,
        reload=reload,
    )
    run_worker_command(tasks, lambda: work(options))


@app.command()
def server(
    host: Host = "127.0.0.1",
    port: Port = 3030,
    data: Data = Path(".milepost"),
    database: Database = None,
    drain: Annotated[
        float | None,
        typer.Option(
            help="Seconds to go on serving after Ctrl-C or SIGTERM while /api/v1/ready says 503, so that a load balancer notices. "
            "Default: MILEPOST_DRAIN_SECONDS, or 0.",
            min=0,
            max=3600,
            show_default=False,
        ),
    ] = None,
    log_level: LogLevelOption = "info",
    log_format: LogFormatOption = "text",
) -> None:
    """Run the server and its dashboard; workers connect to it.

    MILEPOST_SECRET_KEY must be set: clients and workers use the same key.
    """
    from milepost.cli import serving, stopping

    _tell_with_time(log_level, log_format)
    stopping.run(
        lambda: serving.serve(host=host, port=port, data=data, database=database, drain_seconds=drain)
    )


@app.command()
def dashboard() -> None:
    """Print a link that signs a browser in to the dashboard, once and soon.

    The server is found as by every command: MILEPOST_API_URL and MILEPOST_SECRET_KEY, or the `milepost dev` of this folder.
    """
    from milepost.cli import runs as command

    command.print_sign_in_link()


@app.command()
def demo(
    file: Annotated[
        Path | None,
        typer.Argument(
            help="A CSV file with the columns id, name, email, age. Default: 10,000 made-up people.",
            show_default=False,
        ),
    ] = None,
    processes: Processes = None,
    concurrency: Concurrency = 100,
    stay: Annotated[
        bool | None,
        typer.Option(
            "--stay/--no-stay",
            help="Keep the dashboard open at the end, until Enter or Ctrl-C. Default: when somebody watches in a terminal.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Watch 10,000 rows being handled as 10,000 runs.

    Everything happens in a temporary folder, on this machine.
    """
    from milepost.cli import demo as command
    from milepost.cli.stopping import run
    from milepost.worker.supervisor import WorkerFailed

    options = command.DemoOptions(file=file, processes=processes, concurrency=concurrency, stay=stay)
    try:
        code = run(lambda: command.demo(options))
    except WorkerFailed as error:
        fail(str(error))
    raise typer.Exit(code)


@app.command()
def trigger(
    task_id: Annotated[
        str, typer.Argument(help="The task's id.", show_default=False, autocompletion=completing.task_ids)
    ],
    payload: Annotated[
        str | None,
        typer.Argument(
            help="The payload as JSON; @FILE for a file with JSON in it, - for standard input; nothing for a task without one.",
            show_default=False,
        ),
    ] = None,
    metadata: Annotated[
        str | None, typer.Option(help="The first metadata of the run, a JSON object.", show_default=False)
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option(help="A tag; may be given several times.", show_default=False)
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show the run until it has finished.")] = False,
) -> None:
    """Trigger a run of a task, and print its id.

    Example:  milepost trigger handle-upload '"people.csv"' --metadata '{"user": "u1"}' --watch
    """
    from milepost.cli import runs as command

    command.trigger(task_id, payload, metadata=metadata, tags=tag or [], watch=watch)


@app.command("tasks")
def list_tasks(
    json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """List the tasks that workers have offered, and how many workers offer them now."""
    from milepost.cli import looking as command

    command.list_tasks(as_json=json)


@app.command("workers")
def list_workers(
    json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """List the workers that are online, what they offer, and how many runs each holds."""
    from milepost.cli import looking as command

    command.list_workers(as_json=json)


runs = typer.Typer(help="Look at runs.", no_args_is_help=True)
app.add_typer(runs, name="runs")

RunId = Annotated[
    str,
    typer.Argument(help="The run's id (run_...).", show_default=False, autocompletion=completing.run_ids),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


@runs.command("list")
def list_runs(
    status: Annotated[
        list[str] | None,
        typer.Option(
            help="Such as QUEUED, EXECUTING, COMPLETED or FAILED; may be given several times.",
            show_default=False,
        ),
    ] = None,
    task: Annotated[list[str] | None, typer.Option(help="Runs of this task.", show_default=False)] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Runs with this tag.", show_default=False)] = None,
    queue: Annotated[list[str] | None, typer.Option(help="Runs of this queue.", show_default=False)] = None,
    parent: Annotated[
        str | None, typer.Option(help="Runs that this run has triggered.", show_default=False)
    ] = None,
    top_level: Annotated[
        bool, typer.Option("--top-level", help="Only runs that no other run has triggered.")
    ] = False,
    since: Annotated[
        str | None,
        typer.Option(
            help="Runs triggered since then: 90s, 10m, 2h or 3d ago, or a time such as 2026-01-31T14:05.",
            show_default=False,
        ),
    ] = None,
    metadata: Annotated[
        str | None,
        typer.Option(help="Runs whose metadata has these values, a JSON object.", show_default=False),
    ] = None,
    limit: Annotated[int, typer.Option(help="How many.", min=1, max=10_000)] = 20,
    json: AsJson = False,
) -> None:
    """List runs, newest first.

    Example:  milepost runs list --metadata '{"user.id": "u1", "progress": {"$gte": 50}}'
    """
    from milepost.cli import runs as command

    command.list_runs(
        statuses=status or [],
        tasks=task or [],
        tags=tag or [],
        queues=queue or [],
        parent=parent,
        top_level=top_level,
        since=since,
        metadata=metadata,
        limit=limit,
        as_json=json,
    )


@runs.command("get")
def get_run(run_id: RunId, json: AsJson = False) -> None:
    """Show one run: status, metadata, output, or error with its traceback."""
    from milepost.cli import runs as command

    command.get_run(run_id, as_json=json)


Statuses = Annotated[
    list[str] | None,
    typer.Option("--status", help="Runs of this status; may be given several times.", show_default=False),
]
Tasks = Annotated[list[str] | None, typer.Option("--task", help="Runs of this task.", show_default=False)]
Tags = Annotated[list[str] | None, typer.Option("--tag", help="Runs with this tag.", show_default=False)]
Since = Annotated[
    str | None,
    typer.Option("--since", help="Runs triggered since then: 10m, 2h, or a time.", show_default=False),
]
WithMetadata = Annotated[
    str | None,
    typer.Option(
        "--metadata", help="Runs whose metadata has these values, a JSON object.", show_default=False
    ),
]


@runs.command("cancel")
def cancel_runs(
    run_ids: Annotated[
        list[str] | None, typer.Argument(help="The ids of the runs (run_...).", show_default=False)
    ] = None,
    status: Statuses = None,
    task: Tasks = None,
    tag: Tags = None,
    since: Since = None,
    metadata: WithMetadata = None,
) -> None:
    """Cancel runs and their children: those that are named, or all that a filter finds and that have not ended.

    What executes is asked to end; what has ended stays as it is.  Example:  milepost runs cancel --status QUEUED --task mail
    """
    from milepost.cli import runs as command

    command.cancel(
        run_ids or [],
        command.filters_of(
            statuses=status or [], tasks=task or [], tags=tag or [], since=since, metadata=metadata
        ),
    )


@runs.command("replay")
def replay_run(
    run_id: Annotated[str | None, typer.Argument(help="The run's id (run_...).", show_default=False)] = None,
    payload: Annotated[str | None, typer.Argument(help="Another payload, JSON.", show_default=False)] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show the new run until it has finished.")] = False,
    status: Statuses = None,
    task: Tasks = None,
    tag: Tags = None,
    since: Since = None,
    metadata: WithMetadata = None,
    resume: Annotated[
        str | None,
        typer.Option(help="Go on with a replay by filter that was interrupted.", show_default=False),
    ] = None,
) -> None:
    """Trigger the same again, as a run of its own, and print its id; or each run that a filter finds, and print how many.

    Example:  milepost runs replay --status FAILED --since 2h
    """
    from milepost.cli import runs as command

    filters = command.filters_of(
        statuses=status or [], tasks=task or [], tags=tag or [], since=since, metadata=metadata
    )
    command.replay(run_id, payload, watch=watch, filters=filters, resume=resume)


@runs.command("reschedule")
def reschedule_run(
    run_id: RunId,
    delay: Annotated[
        str, typer.Argument(help="From now on (10m, 2h), or a time (2030-01-31T14:05Z).", show_default=False)
    ],
) -> None:
    """Delay a run that is DELAYED to another time."""
    from milepost.cli import runs as command

    command.reschedule(run_id, delay)


@runs.command("tag")
def tag_run(
    run_id: RunId,
    tags: Annotated[list[str], typer.Argument(help="Tags to add.", show_default=False)],
) -> None:
    """Add tags to a run, and print all that it has."""
    from milepost.cli import runs as command

    command.add_tags(run_id, tags)


@runs.command("delete")
def delete_runs(
    run_ids: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Finished runs.", show_default=False)
    ],
) -> None:
    """Delete finished runs, each with all runs below it and everything that belongs to them. Nothing brings them back."""
    from milepost.cli import runs as command

    command.delete_runs(run_ids)


@runs.command("stream")
def read_stream(
    run_id: RunId,
    key: Annotated[
        str | None,
        typer.Argument(
            help="The stream; without it the run's only one, or a list of them.", show_default=False
        ),
    ] = None,
    start: Annotated[int, typer.Option(min=0, help="The index of the first value.")] = 0,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Wait for more until the stream has ended.")
    ] = False,
) -> None:
    """Print the values of a run's stream: text as it is, everything else as one line of JSON each."""
    from milepost.cli import runs as command

    command.read_stream(run_id, key, start=start, follow=follow)


@runs.command("send")
def send_input(
    run_id: RunId,
    stream: Annotated[str, typer.Argument(help="The key that the task waits for: streams.input(KEY).")],
    value: Annotated[str, typer.Argument(help="A JSON value, @FILE, or - for standard input.")],
) -> None:
    """Send a value to a run that waits for it, or will.

    Example:  milepost runs send run_1234 approvals '{"approved": true}'
    """
    from milepost.cli import runs as command

    command.send_input(run_id, stream, value)


@runs.command("watch")
def watch_run(run_id: RunId, json: AsJson = False) -> None:
    """Show one run live until it has finished. Ends with exit code 1 if the run failed."""
    from milepost.cli import runs as command

    command.watch_run(run_id, as_json=json)


@runs.command("logs")
def show_log(
    run_id: RunId,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Wait for more until the run has ended.")
    ] = False,
    tree: Annotated[
        bool, typer.Option("--tree", help="The lines of the run and of all runs below it.")
    ] = False,
    level: Annotated[
        str | None,
        typer.Option(
            help="Only lines of this level and of more severe ones: debug, info, warning or error.",
            show_default=False,
        ),
    ] = None,
    search: Annotated[
        str | None,
        typer.Option(help="Only lines with this text; upper and lower case are alike.", show_default=False),
    ] = None,
    attempt: Annotated[
        int | None, typer.Option(help="Only the lines of this attempt.", min=1, show_default=False)
    ] = None,
    json: AsJson = False,
) -> None:
    """Print what a run has logged and printed, oldest first.

    Example:  milepost runs logs run_1234 -f --tree --level warning
    """
    from milepost.cli import logs as command

    command.show_log(
        run_id, follow=follow, tree=tree, as_json=json, level=level, search=search, attempt=attempt
    )


@runs.command("tree")
def show_tree(
    run_id: RunId,
    limit: Annotated[int, typer.Option(help="How many runs at most.", min=1, max=1000)] = 1000,
    json: AsJson = False,
) -> None:
    """Show a run with all runs below it: status, how long each took, attempts."""
    from milepost.cli import looking as command

    command.show_tree(run_id, limit=limit, as_json=json)


@runs.command("history")
def show_history(
    run_id: RunId,
    after: Annotated[int, typer.Option(help="Only the changes after this version.", min=0)] = 0,
    limit: Annotated[int, typer.Option(help="How many changes.", min=1, max=1_000_000)] = 100,
    version: Annotated[
        int | None,
        typer.Option(
            help="Print the metadata as it was at this version; 0 is what was given at trigger.",
            min=0,
            show_default=False,
        ),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(
            help="Print the metadata as it was at this time, such as 2026-01-31T14:05 (local) or 2026-01-31T14:05Z.",
            show_default=False,
        ),
    ] = None,
    json: AsJson = False,
) -> None:
    """Show what was changed in a run's metadata, when and by whom; or the metadata as it was.

    One line per change, oldest first: version, local time, the run that wrote it and its attempt (or "outside"), what was done.
    """
    from milepost.cli import history as command

    if version is None and at is None:
        command.show_changes(run_id, after=after, limit=limit, as_json=json)
    else:
        command.show_document(run_id, version=version, at=at, as_json=json)


app.add_typer(metadata_commands.app, name="metadata")
app.add_typer(schedules.app, name="schedules")

queues = typer.Typer(help="Look at queues, pause them, change their limits.", no_args_is_help=True)
app.add_typer(queues, name="queues")

QueueName = Annotated[
    str,
    typer.Argument(help="The queue's name; task/<id> is that of a task that names none.", show_default=False),
]


@queues.command("list")
def list_queues(json: AsJson = False) -> None:
    """List the queues: what is queued, running and waiting to go on, with limits and rates."""
    from milepost.cli import queues as command

    command.list_queues(as_json=json)


@queues.command("show")
def show_queue(name: QueueName, json: AsJson = False) -> None:
    """Show a queue with its concurrency keys."""
    from milepost.cli import queues as command

    command.show_queue(name, as_json=json)


@queues.command("pause")
def pause_queue(name: QueueName, json: AsJson = False) -> None:
    """Let none of a queue's queued runs begin. What has begun goes on, and new runs may be triggered."""
    from milepost.cli import queues as command

    command.pause(name, as_json=json)


@queues.command("resume")
def resume_queue(name: QueueName, json: AsJson = False) -> None:
    """Let the queued runs of a paused queue begin again."""
    from milepost.cli import queues as command

    command.resume(name, as_json=json)


@queues.command("limit")
def limit_queue(
    name: QueueName,
    limit: Annotated[
        int | None, typer.Argument(help="How many of its runs may execute at once.", show_default=False)
    ] = None,
    reset: Annotated[bool, typer.Option("--reset", help="Go by what the tasks say again.")] = False,
    json: AsJson = False,
) -> None:
    """Set another limit than the tasks say, until it is reset. Nothing that runs is ended."""
    from milepost.cli import queues as command

    command.set_limit(name, limit, reset=reset, as_json=json)


db = typer.Typer(help="Care for the database.", no_args_is_help=True)
app.add_typer(db, name="db")


@db.command()
def upgrade(data: Data = Path(".milepost"), database: Database = None) -> None:
    """Bring the database to the schema of this version. `milepost dev` and `milepost server` do it by themselves."""
    from milepost.cli import database as command

    command.upgrade(data, database)


@db.command()
def status(data: Data = Path(".milepost"), database: Database = None) -> None:
    """Say which database is used and whether its schema is the one of this version. Changes nothing."""
    from milepost.cli import database as command

    command.show_status(data, database)


@db.command()
def copy(
    source: Annotated[
        str, typer.Argument(metavar="FROM", help="A data folder, or the URL of a PostgreSQL database.")
    ],
    target: Annotated[str, typer.Argument(metavar="TO", help="Likewise; it must be empty or new.")],
) -> None:
    """Copy everything into another database: from SQLite to PostgreSQL, back, or between two of a kind.

    No server may use them meanwhile. Leave passwords out of the URLs: PGPASSWORD and ~/.pgpass are read.
    Example:  milepost db copy .milepost postgresql://milepost@db.example/milepost
    """
    from milepost.cli import database as command

    command.copy(source, target)


@db.command()
def backup(
    file: Annotated[
        Path, typer.Argument(help="The file to write, or a folder for milepost.db.", show_default=False)
    ],
    data: Data = Path(".milepost"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")] = False,
) -> None:
    """Copy the database to a file, also while a server uses it.

    To use the copy, put it into the data folder of a server that does not run, as milepost.db, and remove milepost.db-wal and
    milepost.db-shm there.  Example:  milepost db backup monday.db
    """
    from milepost.cli.backup import back_up

    back_up(data, file, overwrite=overwrite)


def app_for(arguments: Sequence[str]) -> typer.Typer:
    """The command line as far as these arguments need it: the options of one command are made, and not those of all.

    Where nothing is named that there is (for help, a misspelt command or a shell's completion), that is all of it.
    """
    if not arguments or "_MILEPOST_COMPLETE" in os.environ:
        return app
    needed = copying.copy(app)
    name = arguments[0]
    if name == "--version":
        needed.registered_commands, needed.registered_groups = [], []
        return needed
    needed.registered_commands = [each for each in app.registered_commands if _name_of(each) == name]
    needed.registered_groups = [each for each in app.registered_groups if each.name == name]
    return needed if needed.registered_commands or needed.registered_groups else app


def _name_of(command: CommandInfo) -> str:
    assert command.callback is not None, command
    return command.name or get_command_name(command.callback.__name__)
