"""What the command line says, and how it fails: one clear line, never a traceback."""

import atexit
import io
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NoReturn

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from milepost.cli.text import json_text, visible

if TYPE_CHECKING:
    from milepost.worker.settings import LogFormat, LogLevel
    from milepost.worker.telling import Teller

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


def tolerate_narrow_encodings() -> None:
    r"""From now on a character that the terminal's encoding does not have is written as `\u1234` instead of ending the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


_teller: "Teller | None" = None


def tell_with_time(*, level: "LogLevel", form: "LogFormat") -> None:
    """From now on what this command says, and what the server in this process logs, are lines with time and level. For commands that
    run until somebody ends them."""
    global _teller
    from milepost.worker.telling import LineWriter, Teller, show_logging_of_server

    _teller = Teller(LineWriter(), level=level, form=form)
    show_logging_of_server(_teller)
    atexit.register(_teller.writer.flush)


def says_json() -> bool:
    """True when each line on standard error is a JSON object."""
    return _teller is not None and _teller.form == "json"


def fail(message: str, *, code: int = 1) -> NoReturn:
    """End the command with one line that says what is wrong and what helps."""
    say_error(message)
    raise typer.Exit(code)


def say_error(message: str) -> None:
    """Say that something is wrong."""
    if _teller is not None and says_json():
        _teller.say("error", message)
        _teller.writer.flush()
        return
    err.print("[bold red]error:[/] ", end="")
    # Not markup: messages quote what users wrote.
    err.print(message, markup=False, soft_wrap=True)


def note(message: str, *, level: "LogLevel" = "info", **fields: Any) -> None:
    """Say something that needs no answer.

    Args:
        fields: what it says, for programs that read JSON.
    """
    if _teller is not None:
        _teller.say(level, message, **fields)
    else:
        err.print(message, style="yellow" if level == "warning" else None, markup=False, soft_wrap=True)


def print_line(text: str) -> None:
    """A line of output for programs: at once, uncut, and with nothing in it that a terminal takes for a command."""
    sys.stdout.write(visible(text) + "\n")
    sys.stdout.flush()


def print_json(value: Any, *, indent: int = -1) -> None:
    """A value as JSON, in the characters that the output has: one line, or with an indent for people."""
    print_line(json_text(value, encoding=sys.stdout.encoding or "utf-8", indent=indent))
