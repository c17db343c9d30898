"""`milepost runs logs`: what a run has logged and printed."""

import sys
from typing import Any

from milepost.cli.console import is_drawn, print_json, print_line, say
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
            _print(told(line, with_run=tree))
    if not shown and not as_json:
        say("no lines")


def told(line: LogLine, *, with_run: bool) -> list[tuple[str, str]]:
    """A line for people, in pieces with their styles: local time, run (in a tree), attempt, level, text; further lines of the text are
    indented."""
    time = line.at.astimezone().strftime("%H:%M:%S.%f")[:-3]
    style = LEVEL_STYLES.get(line.level, "")
    pieces = [(f"{time} ", "dim")]
    if with_run:
        pieces.append((f"…{line.run_id[-ID_CHARACTERS:]} ", "cyan"))
    first, *rest = line.message.splitlines() or [""]
    pieces += [(f"#{line.attempt} ", "dim"), (f"{line.level:<7} ", style), (visible(first), style)]
    pieces += [(f"\n    {visible(further)}", style) for further in rest]
    if line.logger:
        pieces.append((f"  {visible(line.logger)}", "dim"))
    return pieces


def _print(pieces: list[tuple[str, str]]) -> None:
    if is_drawn(sys.stdout):
        from rich.text import Text

        from milepost.cli.terminal import out

        out.print(Text.assemble(*pieces), soft_wrap=True, highlight=False)
    else:
        print_line("".join(text for text, _ in pieces))
