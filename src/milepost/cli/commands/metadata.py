"""`milepost metadata`."""

import re

import click

from milepost.cli.commands import options
from milepost.cli.grammar import Command, Decorated, Group, argument, flag, whole_number

_NUMBER = re.compile(r"-[0-9.]")


class _ValuesCommand(Command):
    """A command whose values may be negative numbers: `increment left -1`."""

    ignore_unknown_options = True

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As usual, but only what is no number is an option."""
        given = args[: args.index("--")] if "--" in args else args
        known = {"--help", *(name for parameter in self.params for name in parameter.opts)}
        for option in given:
            name = option.partition("=")[0]
            if name.startswith("-") and name not in known and name != "-" and not _NUMBER.match(name):
                ctx.fail(f"No such option: {name} (a value that begins with a dash stands behind --)")
        return super().parse_args(ctx, args)


_key = argument("key", help="A key at the top level, or a path such as $.steps[0].done (in single quotes).")
_value = argument("value", help="The value: JSON where it is JSON, else text; - for standard input.")
_by = argument("by", default="1", help="A number; 1 when it is left out.")
_document = argument("document", help="A JSON object; - for standard input.")
_text = flag("--text", help="The value is text, also where it looks like a number or other JSON.")
_json = flag("--json", help="The value must be JSON.")
_once = click.option(
    "--once", metavar="ID", help="An id that counts once per run and key, so that a repeat changes nothing."
)


def _of_run(command: Decorated) -> Decorated:
    """The options that say whose document it is."""
    command = flag("--root", help="The metadata of the run at the top of the tree instead.")(command)
    command = flag("--parent", help="Its parent's metadata instead.")(command)
    return click.option(
        "--run", metavar="RUN_ID", help="The run's id (run_...).", shell_complete=options.run_ids
    )(command)


@click.group(cls=Group)
def metadata() -> None:
    """Read and write the metadata of a run, from a shell script.

    In a program that a task has started with env=metadata.environment() it is the metadata of that run. Anywhere else --run says
    which one.
    """


@metadata.command("set", cls=_ValuesCommand)
@_key
@_value
@_of_run
@_text
@_json
def set_(*, key: str, value: str, run: str | None, parent: bool, root: bool, text: bool, json: bool) -> None:
    """Give a key a value.

    Example:  milepost metadata set status "uploading"
    """
    from milepost.cli import metadata as command

    with command.updating(run, parent=parent, root=root) as updater:
        updater.set(key, command.value_of(value, text=text, json=json))


@metadata.command(cls=Command)
@_key
@_of_run
def delete(*, key: str, run: str | None, parent: bool, root: bool) -> None:
    """Take a key away; nothing happens when it is not there."""
    from milepost.cli import metadata as command

    with command.updating(run, parent=parent, root=root) as updater:
        updater.delete(key)


@metadata.command(cls=_ValuesCommand)
@_key
@_value
@whole_number("--max-items", help="Keep the newest that many items.", at_least=1)
@_once
@_of_run
@_text
@_json
def append(
    *,
    key: str,
    value: str,
    max_items: int | None,
    once: str | None,
    run: str | None,
    parent: bool,
    root: bool,
    text: bool,
    json: bool,
) -> None:
    """Add one item at the end of an array.

    Example:  milepost metadata append log "3 files copied" --max-items 20
    """
    from milepost.cli import metadata as command

    with command.updating(run, parent=parent, root=root) as updater:
        updater.append(key, command.value_of(value, text=text, json=json), max_items=max_items, once=once)


@metadata.command(cls=_ValuesCommand)
@_key
@argument("values", nargs=-1, required=True, help="The items: JSON where it is JSON, else text.")
@_of_run
@_text
@_json
def extend(
    *,
    key: str,
    values: tuple[str, ...],
    run: str | None,
    parent: bool,
    root: bool,
    text: bool,
    json: bool,
) -> None:
    """Add several items at the end of an array."""
    from milepost.cli import metadata as command

    with command.updating(run, parent=parent, root=root) as updater:
        updater.extend(key, [command.value_of(value, text=text, json=json) for value in values])


@metadata.command(cls=_ValuesCommand)
@_key
@_value
@_of_run
@_text
@_json
def remove(
    *, key: str, value: str, run: str | None, parent: bool, root: bool, text: bool, json: bool
) -> None:
    """Take every equal item out of an array."""
    from milepost.cli import metadata as command

    with command.updating(run, parent=parent, root=root) as updater:
        updater.remove(key, command.value_of(value, text=text, json=json))


@metadata.command(cls=_ValuesCommand)
@_key
@_by
@_once
@_of_run
def increment(*, key: str, by: str, once: str | None, run: str | None, parent: bool, root: bool) -> None:
    """Add to a number, which starts at 0.

    Example:  milepost metadata increment rows 250 --parent
    """
    from milepost.cli import metadata as command

    with command.updating(run, parent=parent, root=root) as updater:
        updater.increment(key, command.number_of(by), once=once)


@metadata.command(cls=_ValuesCommand)
@_key
@_by
@_once
@_of_run
def decrement(*, key: str, by: str, once: str | None, run: str | None, parent: bool, root: bool) -> None:
    """Take from a number, which starts at 0."""
    from milepost.cli import metadata as command

    with command.updating(run, parent=parent, root=root) as updater:
        updater.decrement(key, command.number_of(by), once=once)


@metadata.command(cls=_ValuesCommand)
@_document
@_of_run
def update(*, document: str, run: str | None, parent: bool, root: bool) -> None:
    """Give several keys a value, all of them together.

    Example:  milepost metadata update '{"total": 10, "status": "reading"}'
    """
    from milepost.cli import metadata as command

    with command.updating(run, parent=parent, root=root) as updater:
        updater.update(command.object_of(document))


@metadata.command(cls=_ValuesCommand)
@_document
@_of_run
def replace(*, document: str, run: str | None, parent: bool, root: bool) -> None:
    """Put a whole new document in the place of the old one."""
    from milepost.cli import metadata as command

    with command.updating(run, parent=parent, root=root) as updater:
        updater.replace(command.object_of(document))


@metadata.command(cls=Command)
@_key
@_of_run
@flag("--json", "as_json", help="Print text as JSON too, in quotes.")
def get(*, key: str, run: str | None, parent: bool, root: bool, as_json: bool) -> None:
    """Print what a key or path holds; exit code 1 when there is nothing.

    Text is printed as it is, anything else as JSON.
    """
    from milepost.cli import metadata as command

    command.show_value(key, run, parent=parent, root=root, as_json=as_json)


def _show_document(*, run: str | None, parent: bool, root: bool) -> None:
    """Print the whole document as JSON."""
    from milepost.cli import metadata as command

    command.show_document(run, parent=parent, root=root)


metadata.command("current", cls=Command)(_of_run(_show_document))
metadata.command("show", cls=Command, hidden=True)(_of_run(_show_document))
