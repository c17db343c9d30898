"""Columns of text, for people: with colours on a terminal, plain in a pipe."""

import os
import sys
from collections.abc import Sequence

from milepost.cli.console import is_drawn, print_line
from milepost.cli.progress import STATUS_STYLES
from milepost.cli.text import visible

LAST_COLUMN_CHARACTERS_MIN = 30
_GAP = 2


def print_table(rows: Sequence[tuple[str, ...]]) -> None:
    """Print columns that are as wide as they have to be. Only the last one is cut where a terminal ends; an id never is."""
    shown = [[visible(cell) for cell in row] for row in rows]
    widths = [max(map(_columns, column)) for column in zip(*shown, strict=True)]
    if is_drawn(sys.stdout) or os.environ.get("COLUMNS"):
        _draw(shown, widths)
        return
    for row in shown:
        cells = [cell + " " * (width - _columns(cell)) for cell, width in zip(row, widths, strict=True)]
        print_line((" " * _GAP).join(cells).rstrip())


def _columns(text: str) -> int:
    """How many columns of a terminal it takes."""
    # What Milepost itself puts into a text takes one.
    if text.replace("…", ".").isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _draw(shown: Sequence[Sequence[str]], widths: Sequence[int]) -> None:
    from rich.text import Text

    from milepost.cli.terminal import out

    before_last = sum(widths[:-1]) + _GAP * (len(widths) - 1)
    for row in shown:
        line = Text(no_wrap=True, overflow="ellipsis")
        for index, (cell, width) in enumerate(zip(row, widths, strict=True)):
            is_last = index == len(row) - 1
            style = "dim" if row is shown[0] else STATUS_STYLES.get(cell, "")
            line.append(cell, style)
            if not is_last:
                line.append(" " * (width - _columns(cell) + _GAP))
        line.truncate(max(out.width, before_last + LAST_COLUMN_CHARACTERS_MIN), overflow="ellipsis")
        line.rstrip()
        out.print(line, soft_wrap=True)
