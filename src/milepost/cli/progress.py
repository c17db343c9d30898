"""A run's metadata as something to look at: progress bars where numbers say how far it is, a table of the rest."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard, cast

from milepost.cli.text import visible

if TYPE_CHECKING:
    from rich.console import RenderableType

DONE_KEYS = ("processed", "done", "completed", "current")
TOTAL_KEY = "total"
VALUE_CHARACTERS_MAX = 200
BAR_COLUMNS = 40

STATUS_STYLES = {
    "PENDING_VERSION": "dim",
    "DELAYED": "dim",
    "QUEUED": "dim",
    "EXECUTING": "cyan",
    "WAITING": "yellow",
    "COMPLETED": "green",
    "CANCELED": "magenta",
    "FAILED": "red",
    "CRASHED": "red",
    "SYSTEM_FAILURE": "red",
    "EXPIRED": "red",
    "TIMED_OUT": "red",
}


@dataclass(frozen=True)
class Bar:
    """One progress bar; `done` and `total` are in the same unit."""

    label: str
    done: float
    total: float

    @property
    def share(self) -> float:
        """How far it is, from 0 to 1."""
        return min(1.0, max(0.0, self.done / self.total))

    def __str__(self) -> str:
        if self.total == 1:
            return f"{show(self.label)} {self.share:.0%}"
        return f"{show(self.label)} {_number(self.done)} of {_number(self.total)} ({self.share:.0%})"


def bars_of(metadata: Mapping[str, Any]) -> tuple[list[Bar], dict[str, Any]]:
    """The bars in a document, and the keys that are not shown by them.

    A number from 0 to 1 under `progress` is a bar, and so are a count and its `total`: at the top (`processed` and `total`) or
    inside an object (`{"rows": {"done": 3, "total": 10}}`).
    """
    bars: list[Bar] = []
    rest = dict(metadata)
    counted = _counted("", metadata)
    if counted is not None:
        bar, key = counted
        bars.append(Bar(key, bar.done, bar.total))
        del rest[key], rest[TOTAL_KEY]
    progress = metadata.get("progress")
    if _is_number(progress) and 0 <= progress <= 1:
        bars.append(Bar("progress", progress, 1))
        del rest["progress"]
    for key, value in metadata.items():
        if isinstance(value, dict):
            inner = _counted(key, cast("dict[str, Any]", value))
            if inner is not None:
                bars.append(inner[0])
                del rest[key]
    return bars, rest


def draw(*, task: str, run_id: str, status: str, metadata: Mapping[str, Any]) -> "RenderableType":
    """The whole picture of a run, for a terminal."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    bars, rest = bars_of(metadata)
    heading = Text.assemble(
        (visible(task), "bold"), "  ", (status, STATUS_STYLES.get(status, "")), "  ", (run_id, "dim")
    )
    parts: list[RenderableType] = [heading]
    if bars:
        grid = Table.grid(padding=(0, 2))
        for bar in bars:
            amount = "" if bar.total == 1 else f"{_number(bar.done)} of {_number(bar.total)}"
            grid.add_row(
                show(bar.label),
                ProgressBar(total=1, completed=bar.share, width=BAR_COLUMNS),
                f"{bar.share:4.0%}",
                amount,
            )
        parts.append(grid)
    if rest:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim")
        table.add_column(overflow="fold")
        for key, value in rest.items():
            table.add_row(Text(show(key)), Text(show(value)))
        parts.append(table)
    return Group(*parts)


def describe(*, status: str, metadata: Mapping[str, Any]) -> str:
    """The same in one line, for output that is no terminal."""
    bars, rest = bars_of(metadata)
    parts = [status, *map(str, bars), *(f"{show(key)}={show(value, 60)}" for key, value in rest.items())]
    return "  ".join(parts)


def show(value: Any, characters_max: int = VALUE_CHARACTERS_MAX) -> str:
    """A value as short JSON; plain text without quotes. Control characters are made visible."""
    text = visible(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    if len(text) <= characters_max:
        return text
    count = f", {len(cast('list[Any]', value)):,} items" if isinstance(value, list) else ""
    return f"{text[:characters_max]}… ({len(text):,} characters{count})"


def _counted(label: str, value: Mapping[str, Any]) -> tuple[Bar, str] | None:
    """A count and its total, and the key of the count."""
    total = value.get(TOTAL_KEY)
    if _is_number(total) and total > 0:
        for key in DONE_KEYS:
            done = value.get(key)
            if _is_number(done):
                return Bar(label, done, total), key
    return None


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: float) -> str:
    return f"{value:,.2f}".rstrip("0").rstrip(".")
