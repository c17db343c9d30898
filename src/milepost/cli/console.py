"""What the command line says, and how it fails: one clear line, never a traceback."""

import atexit
import io
import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from click.exceptions import Exit

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
    raise Exit(code)


def say_error(message: str) -> None:
    """Say that something is wrong."""
    if _teller is not None and says_json():
        _teller.say("error", message)
        _teller.writer.flush()
        return
    if not is_drawn(sys.stderr):
        _write_plainly(f"error: {message}")
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
        say(message, style="yellow" if level == "warning" else None)


def say(text: str, *, style: str | None = None) -> None:
    """A line on standard error, as it is.

    Args:
        style: how it looks on a terminal.
    """
    if is_drawn(sys.stderr):
        from milepost.cli.terminal import err

        err.print(text, style=style, markup=False, soft_wrap=True)
    else:
        _write_plainly(text)


def is_drawn(stream: TextIO) -> bool:
    """Whether it is a terminal, or to be taken for one, as Rich sees it. Anywhere else text looks the same without Rich."""
    compatible = os.environ.get("TTY_COMPATIBLE")
    if compatible in ("0", "1"):
        return compatible == "1"
    colors = os.environ.get("FORCE_COLOR")
    return stream.isatty() if colors is None else colors != ""


def _write_plainly(text: str) -> None:
    try:
        sys.stderr.write(visible(text) + "\n")
        sys.stderr.flush()
    except BrokenPipeError:
        # A server or worker does not end because nobody reads what it says (`milepost worker tasks.py 2>&1 | head`).
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stderr.fileno())
        os.close(nothing)


def print_line(text: str) -> None:
    """A line of output for programs: at once, uncut, and with nothing in it that a terminal takes for a command."""
    sys.stdout.write(visible(text) + "\n")
    sys.stdout.flush()


def print_json(value: Any, *, indent: int = -1) -> None:
    """A value as JSON, in the characters that the output has: one line, or with an indent for people."""
    print_line(json_text(value, encoding=sys.stdout.encoding or "utf-8", indent=indent))
