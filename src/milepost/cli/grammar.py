"""The command line in the terms of Click: groups that load a command when it is asked for, arguments with help, bounded numbers."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, TypeVar

import click

EXIT_INTERRUPTED = 130
# Beyond it lines are hard to read, however wide the terminal is.
HELP_COLUMNS_MAX = 120

Decorated = TypeVar("Decorated", bound="Callable[..., Any] | click.Command")
Completion = Callable[[click.Context, click.Parameter, str], Any]


class Argument(click.Argument):
    """An argument that says what it is: in the help of its command, and where it is missing."""

    def __init__(self, declarations: list[str], *, help: str, **attributes: Any) -> None:
        super().__init__(declarations, **attributes)
        self.help = help

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        """As in Click; that a value is missing is said with what it has to be."""
        try:
            return super().process_value(ctx, value)
        except click.MissingParameter:
            raise click.MissingParameter(self.help, ctx=ctx, param=self) from None

    def get_error_hint(self, ctx: click.Context | None) -> str:
        """Its name as messages say it, without the brackets of what may be left out."""
        return repr(self.human_readable_name)


class Command(click.Command):
    """A command whose help has a section for its arguments."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write arguments, then options."""
        rows = [
            (parameter.get_usage_pieces(ctx)[0], parameter.help or "")
            for parameter in self.params
            if isinstance(parameter, Argument)
        ]
        if rows:
            with formatter.section("Arguments"):
                formatter.write_dl(rows)
        super().format_options(ctx, formatter)

    def format_arguments(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Nothing: Click from 8.5 on would write a section of its own."""


class Group(click.Group):
    """A group of commands, each in a module that is imported when it is asked for.

    Args:
        places: the commands under the headings of their sections, in the order of the help: name -> module:attribute.
    """

    def __init__(
        self, *arguments: Any, places: Mapping[str, Mapping[str, str]] | None = None, **attributes: Any
    ) -> None:
        super().__init__(*arguments, **attributes)
        self._sections = {heading: list(named) for heading, named in (places or {}).items()}
        self._places = {name: place for named in (places or {}).values() for name, place in named.items()}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order in which they were written down."""
        return [*self._places, *self.commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name, imported if it has not been."""
        place = self._places.get(cmd_name)
        if place is None:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = place.partition(":")
        return getattr(import_module(module), attribute)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As in Click; a name that there is not is answered with the nearest that there is."""
        name = args[0]
        if not name.startswith("-") and not ctx.resilient_parsing and self.get_command(ctx, name) is None:
            from difflib import get_close_matches

            known = [each for each in self.list_commands(ctx) if not self._is_hidden(ctx, each)]
            near = get_close_matches(name, known, 1)
            advice = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(known)}."
            ctx.fail(f"No such command {name!r}. {advice}")
        return super().resolve_command(ctx, args)

    def _is_hidden(self, ctx: click.Context, name: str) -> bool:
        command = self.get_command(ctx, name)
        return command is None or command.hidden

    def invoke(self, ctx: click.Context) -> Any:
        """As in Click, but Ctrl-C ends it without a word."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise click.exceptions.Exit(EXIT_INTERRUPTED) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections of commands; each command with the first paragraph of its help."""
        for heading, names in (self._sections or {"Commands": list(self.commands)}).items():
            shown = {name: self.get_command(ctx, name) for name in names}
            rows = [
                (name, " ".join((command.help or "").partition("\n\n")[0].split()))
                for name, command in shown.items()
                if command is not None and not command.hidden
            ]
            with formatter.section(heading):
                formatter.write_dl(rows)


def argument(name: str, *, help: str, **attributes: Any) -> Callable[[Decorated], Decorated]:
    """An argument of a command; it is required unless `required=False` says otherwise."""
    return click.argument(name, cls=Argument, help=help, **attributes)


def flag(*names: str, help: str) -> Callable[[Decorated], Decorated]:
    """An option that is there or not."""
    return click.option(*names, is_flag=True, help=help)


def several(*names: str, help: str) -> Callable[[Decorated], Decorated]:
    """An option that may be given several times."""
    return click.option(*names, multiple=True, help=help)


def whole_number(
    *names: str, at_least: int, at_most: int | None = None, **attributes: Any
) -> Callable[[Decorated], Decorated]:
    """An option that takes a number without a fraction, between these."""
    read = reader_of_number(int, at_least, at_most)
    return click.option(*names, type=str, metavar="NUMBER", callback=read, **attributes)


def number(
    *names: str, at_least: float, at_most: float | None = None, **attributes: Any
) -> Callable[[Decorated], Decorated]:
    """An option that takes a number, between these."""
    read = reader_of_number(float, at_least, at_most)
    return click.option(*names, type=str, metavar="NUMBER", callback=read, **attributes)


def reader_of_number(
    kind: type[int] | type[float], at_least: float, at_most: float | None = None
) -> Callable[[click.Context, click.Parameter, str | None], float | None]:
    """The callback of a parameter that takes a number: it refuses what is none, or out of bounds, and says what is allowed."""
    what = "a whole number" if kind is int else "a number"
    bounds = f"of at least {at_least:,}" if at_most is None else f"from {at_least:,} to {at_most:,}"

    def read(ctx: click.Context, parameter: click.Parameter, given: str | None) -> float | None:
        if given is None:
            return None
        try:
            found = kind(given)
        except ValueError:
            found = float("nan")
        # Written so that what is no number at all (NaN) is refused.
        if not (found >= at_least and (at_most is None or found <= at_most)):
            raise click.BadParameter(f"{given!r} is not {what} {bounds}")
        return found

    return read
