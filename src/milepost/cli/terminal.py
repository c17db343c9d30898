"""Standard output and standard error as Rich writes to them. Loaded by what draws, and by what has something to say."""

import os
import sys
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from milepost.cli.text import visible

# A pipe has no width: nothing that goes into one is cut or wrapped.
PIPE_COLUMNS = 1_000_000


class _SafeConsole(Console):
    """Shows text of others as text: control characters in it do nothing to the terminal (`text.visible`)."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False)
        if not self.is_terminal and not os.environ.get("COLUMNS"):
            self._width = PIPE_COLUMNS

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As in Rich. Colours and the like are no part of a segment's text, so what is unsafe in it came from outside."""
        for segment in super().render(renderable, options):
            safe = visible(segment.text) if segment.control is None else segment.text
            yield segment if safe == segment.text else Segment(safe, segment.style)


class _ErrorConsole(_SafeConsole):
    """Standard error. A server or worker does not end because nobody reads what it says (`milepost worker tasks.py 2>&1 | head`)."""

    def on_broken_pipe(self) -> None:
        """Say nothing any more."""
        self.quiet = True
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stderr.fileno())
        os.close(nothing)


# Results go to standard output, everything else to standard error, so that output can be piped.
out: Console = _SafeConsole()
err: Console = _ErrorConsole(stderr=True)
