"""`milepost runs logs`: what a run has logged and printed."""

from typing import Any

from rich.text import Text

from milepost.cli.console import print_json
from milepost.cli.terminal import err, out
from milepost.cli.text import visible
from milepost.client.client import Client
from milepost.client.logs import LogLine

LEVEL_STYLES = {"debug": "dim", "info": "", "warning": "yellow", "error": "red"}
# The end of an id tells runs apart; its beginning is the time.
ID_CHARACTERS = 8


def show_log(run_id: str, *, follow: bool, tree: bool, as_json: bool, **filters: Any) -> None:
    """Print the lines of a log, oldest first."""
    shown = 0
    for line in Client().runs.logs(run_id, follow=follow, tree=tree, **filters):
        shown += 1
        if as_json:
            print_json(line)
        else:
            out.print(told(line, with_run=tree), soft_wrap=True, highlight=False)
    if not shown and not as_json:
        err.print("no lines")


def told(line: LogLine, *, with_run: bool) -> Text:
    """A line for a terminal: local time, run (in a tree), attempt, level, text; further lines of the text are indented."""
    time = line.at.astimezone().strftime("%H:%M:%S.%f")[:-3]
    style = LEVEL_STYLES.get(line.level, "")
    text = Text()
    text.append(f"{time} ", "dim")
    if with_run:
        text.append(f"…{line.run_id[-ID_CHARACTERS:]} ", "cyan")
    text.append(f"#{line.attempt} ", "dim")
    text.append(f"{line.level:<7} ", style)
    first, *rest = line.message.splitlines() or [""]
    text.append(visible(first), style)
    for further in rest:
        text.append(f"\n    {visible(further)}", style)
    if line.logger:
        text.append(f"  {visible(line.logger)}", "dim")
    return text
