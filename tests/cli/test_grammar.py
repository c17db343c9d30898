"""The command line as people meet it: help, and what is said where a command is written wrongly; completion by a shell."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from milepost.cli import terminal
from milepost.cli.commands import app
from milepost.cli.grammar import EXIT_INTERRUPTED, Group
from milepost.cli.tables import print_table


def milepost(*arguments: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(app, arguments, prog_name="milepost", env=env)


def every_command(group: click.Group, *names: str) -> dict[tuple[str, ...], click.Command]:
    found: dict[tuple[str, ...], click.Command] = {}
    with click.Context(group) as context:
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None, name
            found[*names, name] = command
            if isinstance(command, click.Group):
                found |= every_command(command, *names, name)
    return found


COMMANDS = every_command(app)


@pytest.mark.parametrize("names", [(), *COMMANDS], ids=" ".join)
def test_every_command_explains_itself_and_each_of_its_parts(names: tuple[str, ...]) -> None:
    asked = milepost(*names, "--help")
    assert asked.exit_code == 0, asked.output
    usage, *lines = asked.output.splitlines()
    assert usage.startswith("Usage: " + " ".join(("milepost", *names)))
    # Something in words right below.
    assert lines[0] == ""
    assert lines[1].strip()
    for parameter in COMMANDS[names].params if names else ():
        assert getattr(parameter, "help", ""), parameter.name
        shown = parameter.opts if isinstance(parameter, click.Option) else [parameter.human_readable_name]
        assert any(line.strip(" [").startswith(tuple(shown)) for line in lines), shown


def test_groups_list_their_commands_in_the_order_in_which_they_are_needed() -> None:
    lines = milepost("--help").output.splitlines()
    headings = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert headings == ["Options:", "Run tasks:", "Trigger and look:", "Set up:"]
    listed = [line.split()[0] for line in lines[lines.index("Run tasks:") :] if line[:3].strip()]
    assert [name for name in listed if (name,) in COMMANDS] == [
        names[0] for names in COMMANDS if len(names) == 1
    ]
    metadata = milepost("metadata", "--help").output
    assert metadata.index("  set ") < metadata.index("  delete ") < metadata.index("  current ")
    # It is there, but under another name.
    assert "  show " not in metadata


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rnus"], "No such command 'rnus'. Did you mean 'runs'?"),
        (["runs", "lits"], "No such command 'lits'. Did you mean 'list'?"),
        (["db", "nothing"], "No such command 'nothing'. There are: upgrade, status, copy, backup."),
        (["trigger"], "Missing argument 'TASK_ID'. The task's id."),
        (["worker"], "Missing argument 'TASKS'. Python files, folders or module names with tasks in them."),
        (["runs", "list", "--limit", "x"], "'--limit': 'x' is not a whole number from 1 to 10,000"),
        (["runs", "list", "--limit", "0"], "'--limit': '0' is not a whole number from 1 to 10,000"),
        (["runs", "list", "--limit", "1.5"], "'--limit': '1.5' is not a whole number from 1 to 10,000"),
        (["server", "--port", "65536"], "'--port': '65536' is not a whole number from 0 to 65,535"),
        (["server", "--drain", "nan"], "'--drain': 'nan' is not a number from 0 to 3,600"),
        (["worker", "tasks.py", "--grace", "-1"], "'--grace': '-1' is not a number of at least 0"),
        (["queues", "limit", "mail", "many"], "'LIMIT': 'many' is not a whole number of at least 0"),
        (
            ["worker", "tasks.py", "--log-level", "loud"],
            "'loud' is not one of 'debug', 'info', 'warning', 'error'",
        ),
        (["runs", "list", "--limt", "3"], "--limit"),
        (["runs", "list", "--limit"], "'--limit' requires an argument"),
        (["runs", "list", "more"], "unexpected extra argument (more)"),
    ],
)
def test_what_is_written_wrongly_is_said_with_what_is_allowed(arguments: list[str], said: str) -> None:
    done = milepost(*arguments)
    assert done.exit_code == 2
    errors = [line for line in done.output.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert said in errors[0]


def test_an_environment_gives_options_and_an_empty_one_does_not() -> None:
    wrong = milepost("worker", "tasks.py", env={"MILEPOST_LOG_FORMAT": "xml"})
    assert wrong.exit_code == 2
    assert "(env var: 'MILEPOST_LOG_FORMAT'): 'xml' is not one of 'text', 'json'" in wrong.output
    for level, known in (("", "info"), ("ERROR", "error")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MILEPOST_LOG_LEVEL", level)
            context = COMMANDS[("worker",)].make_context("worker", ["tasks.py"])
        assert context.params["log_level"] == known


def test_ctrl_c_ends_a_command_without_a_word() -> None:
    @click.group(cls=Group)
    def group() -> None:
        """Has one command."""

    @group.command()
    def waits() -> None:
        raise KeyboardInterrupt

    done = CliRunner().invoke(group, ["waits"])
    assert (done.exit_code, done.output) == (EXIT_INTERRUPTED, "")


# --- completion ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_given_its_script(shell: str, tmp_path: Path) -> None:
    env = {"SHELL": f"/usr/bin/{shell}", "HOME": str(tmp_path), "XDG_CONFIG_HOME": "", "ZDOTDIR": ""}
    shown = milepost("--show-completion", env=env)
    assert shown.exit_code == 0
    assert f"_MILEPOST_COMPLETE={shell}_complete" in shown.output
    files: list[dict[Path, str]] = []
    for _ in range(2):
        assert milepost("--install-completion", env=env).exit_code == 0
        files.append({path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()})
    assert files[0] == files[1]
    assert shown.output in files[0].values()


def test_what_a_profile_says_already_is_kept(tmp_path: Path) -> None:
    (tmp_path / ".bashrc").write_text("alias ll='ls -l'")
    assert milepost("--install-completion", env={"SHELL": "/bin/bash", "HOME": str(tmp_path)}).exit_code == 0
    assert (tmp_path / ".bashrc").read_text().splitlines() == [
        "alias ll='ls -l'",
        "source ~/.bash_completions/milepost.sh",
    ]


@pytest.mark.parametrize("shell", ["/bin/tcsh", ""])
def test_another_shell_is_told_which_there_are(shell: str) -> None:
    done = milepost("--install-completion", env={"SHELL": shell})
    assert done.exit_code == 1
    assert "bash, zsh and fish" in done.output


def test_bash_completes_with_what_is_installed(tmp_path: Path) -> None:
    script = milepost("--show-completion", env={"SHELL": "/bin/bash"}).output
    asked = "COMP_WORDS=(milepost runs re); COMP_CWORD=2; _milepost_completion milepost; echo ${COMPREPLY[*]}"
    program = tmp_path / "milepost"
    program.write_text(
        f"#!/bin/sh\nexec {sys.executable} -P -c 'from milepost.cli.main import main; main()' \"$@\"\n"
    )
    program.chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", f'PATH="{tmp_path}:$PATH"\n{script}\n{asked}'],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["replay", "reschedule"], done.stderr


# --- tables -------------------------------------------------------------------------------------------------


def test_a_table_is_the_same_with_rich_and_without(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        ("run", "status", "told"),
        ("run_1", "COMPLETED", "x" * 200),
        ("日本", "é😀", "\x1b[2J"),
        ("a", "", ""),
    ]
    printed: list[str] = []
    for columns in ("", "500"):
        monkeypatch.setenv("COLUMNS", columns)
        # It takes its width once, from whoever has drawn first in this process.
        monkeypatch.setattr(terminal, "out", type(terminal.out)())
        print_table(rows)
        printed.append(capsys.readouterr().out)
    plain, drawn = printed
    assert plain == drawn
    assert plain.splitlines()[0] == "run    status     told"
    assert "\x1b" not in plain
