"""What the command line says, and how it fails: one clear line, never a traceback."""

import sys
from typing import NoReturn

import typer
from rich.console import Console

# Results go to standard output, everything else to standard error, so that output can be piped.
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def fail(message: str, *, code: int = 1) -> NoReturn:
    """End the command with one line that says what is wrong and what helps."""
    say_error(message)
    raise typer.Exit(code)


def say_error(message: str) -> None:
    """Say that something is wrong."""
    err.print("[bold red]error:[/] ", end="")
    # Not markup: messages quote what users wrote.
    err.print(message, markup=False, soft_wrap=True)


def note(message: str) -> None:
    """Say something that needs no answer."""
    err.print(message, markup=False, soft_wrap=True)


def print_line(text: str) -> None:
    """A line of output for programs: as it is, and at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
