"""Options and arguments that several commands have."""

from pathlib import Path

import click
from click.shell_completion import CompletionItem

from milepost.cli.grammar import argument, flag, several, whole_number


def task_ids(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from milepost.cli.completing import task_ids

    return [CompletionItem(name) for name in task_ids(incomplete)]


def run_ids(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from milepost.cli.completing import run_ids

    return [CompletionItem(name, help=help) for name, help in run_ids(incomplete)]


def _files(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(incomplete, type="file")]


as_json = flag("--json", "as_json", help="Print JSON, for programs.")
task_id = argument("task_id", help="The task's id.", shell_complete=task_ids)
run_id = argument("run_id", help="The run's id (run_...).", shell_complete=run_ids)

# --- what runs until somebody ends it ---

sources = argument(
    "tasks",
    nargs=-1,
    required=True,
    shell_complete=_files,
    help="Python files, folders or module names with tasks in them.",
)
host = click.option(
    "--host", default="127.0.0.1", help="Address to listen on; 0.0.0.0 for every network.", metavar="ADDRESS"
)
port = whole_number(
    "--port", default=3030, help="Port to listen on; 0 picks a free one.", at_least=0, at_most=65535
)
data = click.option(
    "--data",
    type=click.Path(path_type=Path, readable=False),
    default=".milepost",
    metavar="FOLDER",
    envvar="MILEPOST_DATA_FOLDER",
    show_envvar=True,
    help="Folder for the database and the key.",
)
database = click.option(
    "--database",
    metavar="URL",
    help="PostgreSQL database in place of the folder's: postgresql://user@host:5432/name. It is better named by "
    "MILEPOST_DATABASE_URL: other users of this machine can see the options of a command.",
)
processes = whole_number(
    "--processes", help="Processes that run tasks. Default: one per core.", at_least=1, at_most=256
)
isolated = whole_number(
    "--isolated",
    help='Processes kept ready for tasks with isolation="process", beside the others. Default: MILEPOST_ISOLATED_PROCESSES, or '
    "as many as --processes.",
    at_least=1,
    at_most=256,
)
concurrency = whole_number(
    "--concurrency",
    default=100,
    help="Runs at once in each process. A run that waits for other runs does not count.",
    at_least=1,
    at_most=10_000,
)
log_level = click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error", "critical"], case_sensitive=False),
    default="info",
    envvar="MILEPOST_LOG_LEVEL",
    show_envvar=True,
    help="Say this and what is graver on standard error. At debug every run is told, at critical no run that fails.",
)
log_format = click.option(
    "--log-format",
    type=click.Choice(["text", "json"], case_sensitive=False),
    default="text",
    envvar="MILEPOST_LOG_FORMAT",
    show_envvar=True,
    help="How lines on standard error look: text, or json (one object each).",
)

# --- which runs ---

statuses = several("--status", "statuses", help="Runs of this status; may be given several times.")
tasks = several("--task", "tasks", help="Runs of this task; may be given several times.")
tags = several("--tag", "tags", help="Runs with this tag; may be given several times.")
since = click.option(
    "--since",
    metavar="TIME",
    help="Runs triggered since then: 90s, 10m, 2h or 3d ago, or a time such as 2026-01-31T14:05.",
)
with_metadata = click.option(
    "--metadata", metavar="JSON", help="Runs whose metadata has these values, a JSON object."
)
