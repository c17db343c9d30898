"""The commands: names, arguments, options, help. What they do is in the modules beside this package, each imported when it is called.

So a command costs what it needs itself, and `--help` next to nothing.
"""

from collections.abc import Callable
from typing import Any

import click

from milepost.cli.grammar import HELP_COLUMNS_MAX, Group

_HERE = "milepost.cli.commands"


def _instead(show: Callable[[], None]) -> Callable[[click.Context, click.Parameter, bool], None]:
    """The callback of an option that does something in place of a command."""

    def callback(ctx: click.Context, parameter: click.Parameter, asked: bool) -> None:
        if asked and not ctx.resilient_parsing:
            show()
            ctx.exit()

    return callback


def _show_version() -> None:
    from importlib.metadata import version

    click.echo(f"milepost {version('milepost')}")


def _install_completion() -> None:
    from milepost.cli.completion import install

    install(app)


def _show_completion() -> None:
    from milepost.cli.completion import show

    show(app)


def _option(
    name: str, show: Callable[[], None], help: str
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(
        name, is_flag=True, is_eager=True, expose_value=False, callback=_instead(show), help=help
    )


@click.group(
    "milepost",
    cls=Group,
    context_settings={"max_content_width": HELP_COLUMNS_MAX, "show_default": True},
    places={
        "Run tasks": {
            "dev": f"{_HERE}.running:dev",
            "worker": f"{_HERE}.running:worker",
            "server": f"{_HERE}.running:server",
            "dashboard": f"{_HERE}.asking:dashboard",
            "demo": f"{_HERE}.running:demo",
        },
        "Trigger and look": {
            "trigger": f"{_HERE}.asking:trigger",
            "tasks": f"{_HERE}.asking:tasks",
            "workers": f"{_HERE}.asking:workers",
            "runs": f"{_HERE}.runs:runs",
            "metadata": f"{_HERE}.metadata:metadata",
        },
        "Set up": {
            "schedules": f"{_HERE}.schedules:schedules",
            "queues": f"{_HERE}.queues:queues",
            "db": f"{_HERE}.db:db",
        },
    },
)
@_option("--version", _show_version, "Print the version.")
@_option(
    "--install-completion",
    _install_completion,
    "Let your shell complete commands, options and ids: bash, zsh or fish.",
)
@_option("--show-completion", _show_completion, "Print what --install-completion would install.")
def app() -> None:
    """Background tasks for Python whose runs carry live metadata.

    Start with:  milepost demo   or   milepost dev tasks.py
    """
