"""Completion of commands by a shell: Click makes the script, and this puts it where the shell finds it."""

import os
from pathlib import Path

import click
from click.shell_completion import ShellComplete, get_completion_class

from milepost.cli.console import fail, note, print_line

PROGRAM = "milepost"
VARIABLE = "_MILEPOST_COMPLETE"


def show(app: click.Command) -> None:
    """Print the script for the shell of the user."""
    print_line(_script(app, _shell()))


def install(app: click.Command) -> None:
    """Write the script to a file of the user, and have the shell read it; doing it again changes nothing."""
    shell, home = _shell(), Path.home()
    config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    file, profile, line = {
        "bash": (
            home / ".bash_completions" / f"{PROGRAM}.sh",
            home / ".bashrc",
            f"source ~/.bash_completions/{PROGRAM}.sh",
        ),
        "zsh": (
            home / ".zfunc" / f"_{PROGRAM}",
            Path(os.environ.get("ZDOTDIR") or home) / ".zshrc",
            "fpath+=~/.zfunc; autoload -Uz compinit; compinit",
        ),
        # It looks there by itself.
        "fish": (config / "fish" / "completions" / f"{PROGRAM}.fish", None, ""),
    }[shell]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(_script(app, shell) + "\n")
        if profile is not None:
            known = profile.read_text() if profile.exists() else ""
            if line not in known.splitlines():
                with profile.open("a") as end:
                    end.write(("" if known.endswith("\n") or not known else "\n") + line + "\n")
    except OSError as error:
        fail(
            f"{error.filename or file} cannot be written: {error.strerror}; --show-completion prints the script"
        )
    note(f"{shell} completes {PROGRAM} from its next start on; the script is {file}")


def _shell() -> str:
    name = Path(os.environ.get("SHELL", "")).name
    if name not in ("bash", "zsh", "fish"):
        fail(
            f"SHELL is {name or 'not set'!r}, and commands can be completed by bash, zsh and fish: for example "
            f"SHELL=/bin/bash {PROGRAM} --show-completion"
        )
    return name


def _script(app: click.Command, shell: str) -> str:
    kind: type[ShellComplete] | None = get_completion_class(shell)
    assert kind is not None, shell
    return kind(app, {}, PROGRAM, VARIABLE).source().strip()
