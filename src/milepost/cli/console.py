"""What the command line says, and how it fails: one clear line, never a traceback."""

import atexit
import io
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from milepost.cli.text import json_text, visible

if TYPE_CHECKING:
    from milepost.worker.settings import LogFormat, LogLevel
    from milepost.worker.telling import Teller


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
    from milepost.cli.terminal import err

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
        from milepost.cli.terminal import err

        err.print(message, style="yellow" if level == "warning" else None, markup=False, soft_wrap=True)


def print_line(text: str) -> None:
    """A line of output for programs: at once, uncut, and with nothing in it that a terminal takes for a command."""
    sys.stdout.write(visible(text) + "\n")
    sys.stdout.flush()


def print_json(value: Any, *, indent: int = -1) -> None:
    """A value as JSON, in the characters that the output has: one line, or with an indent for people."""
    print_line(json_text(value, encoding=sys.stdout.encoding or "utf-8", indent=indent))
