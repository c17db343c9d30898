"""`milepost metadata ...`: names, options, help. Each imports what it needs when it is called, so that `--help` is quick."""

import re
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

app = typer.Typer(
    help="Read and write the metadata of a run, from a shell script.\n\nIn a program that a task has started with "
    "env=metadata.environment() it is the metadata of that run. Anywhere else --run says which one.",
    no_args_is_help=True,
)

_NUMBER = re.compile(r"-[0-9.]")


class _ValuesCommand(TyperCommand):
    """A command whose values may be negative numbers: `increment left -1`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As usual, but only what is no number is an option."""
        options = args[: args.index("--")] if "--" in args else args
        known = {"--help", *(name for parameter in self.params for name in parameter.opts)}
        for option in options:
            name = option.partition("=")[0]
            if name.startswith("-") and name not in known and name != "-" and not _NUMBER.match(name):
                ctx.fail(f"No such option: {name} (a value that begins with a dash stands behind --)")
        return super().parse_args(ctx, args)


_WITH_VALUES = {"ignore_unknown_options": True}

Key = Annotated[
    str,
    typer.Argument(
        help="A key at the top level, or a path such as $.steps[0].done (in single quotes).",
        show_default=False,
    ),
]
Value = Annotated[
    str,
    typer.Argument(help="JSON where it is JSON, else text; - for standard input.", show_default=False),
]
Run = Annotated[str | None, typer.Option("--run", help="The run's id (run_...).", show_default=False)]
Parent = Annotated[bool, typer.Option("--parent", help="Its parent's metadata instead.")]
Root = Annotated[bool, typer.Option("--root", help="The metadata of the run at the top of the tree instead.")]
Text = Annotated[
    bool, typer.Option("--text", help="The value is text, also where it looks like a number or other JSON.")
]
Json = Annotated[bool, typer.Option("--json", help="The value must be JSON.")]
Once = Annotated[
    str | None,
    typer.Option(
        help="An id that counts once per run and key, so that a repeat changes nothing.", show_default=False
    ),
]


@app.command("set", cls=_ValuesCommand, context_settings=_WITH_VALUES)
def set_(
    key: Key,
    value: Value,
    run: Run = None,
    parent: Parent = False,
    root: Root = False,
    text: Text = False,
    json: Json = False,
) -> None:
    """Give a key a value.

    Example:  milepost metadata set status "uploading"
    """
    from milepost.cli import metadata as command

    with command.updating(run, parent=parent, root=root) as updater:
        updater.set(key, command.value_of(value, text=text, json=json))


@app.command()
def delete(key: Key, run: Run = None, parent: Parent = False, root: Root = False) -> None:
    """Take a key away; nothing happens when it is not there."""
    from milepost.cli import metadata as command

    with command.updating(run, parent=parent, root=root) as updater:
        updater.delete(key)


@app.command(cls=_ValuesCommand, context_settings=_WITH_VALUES)
def append(
    key: Key,
    value: Value,
    max_items: Annotated[
        int | None, typer.Option(help="Keep the newest that many items.", min=1, show_default=False)
    ] = None,
    once: Once = None,
    run: Run = None,
    parent: Parent = False,
    root: Root = False,
    text: Text = False,
    json: Json = False,
) -> None:
    """Add one item at the end of an array.

    Example:  milepost metadata append log "3 files copied" --max-items 20
    """
    from milepost.cli import metadata as command

    with command.updating(run, parent=parent, root=root) as updater:
        updater.append(key, command.value_of(value, text=text, json=json), max_items=max_items, once=once)


@app.command(cls=_ValuesCommand, context_settings=_WITH_VALUES)
def extend(
    key: Key,
    values: Annotated[
        list[str], typer.Argument(help="JSON where it is JSON, else text.", show_default=False)
    ],
    run: Run = None,
    parent: Parent = False,
    root: Root = False,
    text: Text = False,
    json: Json = False,
) -> None:
    """Add several items at the end of an array."""
    from milepost.cli import metadata as command

    with command.updating(run, parent=parent, root=root) as updater:
        updater.extend(key, [command.value_of(value, text=text, json=json) for value in values])


@app.command(cls=_ValuesCommand, context_settings=_WITH_VALUES)
def remove(
    key: Key,
    value: Value,
    run: Run = None,
    parent: Parent = False,
    root: Root = False,
    text: Text = False,
    json: Json = False,
) -> None:
    """Take every equal item out of an array."""
    from milepost.cli import metadata as command

    with command.updating(run, parent=parent, root=root) as updater:
        updater.remove(key, command.value_of(value, text=text, json=json))


By = Annotated[str, typer.Argument(help="A number.")]


@app.command(cls=_ValuesCommand, context_settings=_WITH_VALUES)
def increment(
    key: Key, by: By = "1", once: Once = None, run: Run = None, parent: Parent = False, root: Root = False
) -> None:
    """Add to a number, which starts at 0.

    Example:  milepost metadata increment rows 250 --parent
    """
    from milepost.cli import metadata as command

    with command.updating(run, parent=parent, root=root) as updater:
        updater.increment(key, command.number_of(by), once=once)


@app.command(cls=_ValuesCommand, context_settings=_WITH_VALUES)
def decrement(
    key: Key, by: By = "1", once: Once = None, run: Run = None, parent: Parent = False, root: Root = False
) -> None:
    """Take from a number, which starts at 0."""
    from milepost.cli import metadata as command

    with command.updating(run, parent=parent, root=root) as updater:
        updater.decrement(key, command.number_of(by), once=once)


Document = Annotated[str, typer.Argument(help="A JSON object; - for standard input.", show_default=False)]


@app.command(cls=_ValuesCommand, context_settings=_WITH_VALUES)
def update(document: Document, run: Run = None, parent: Parent = False, root: Root = False) -> None:
    """Give several keys a value, all of them together.

    Example:  milepost metadata update '{"total": 10, "status": "reading"}'
    """
    from milepost.cli import metadata as command

    with command.updating(run, parent=parent, root=root) as updater:
        updater.update(command.object_of(document))


@app.command(cls=_ValuesCommand, context_settings=_WITH_VALUES)
def replace(document: Document, run: Run = None, parent: Parent = False, root: Root = False) -> None:
    """Put a whole new document in the place of the old one."""
    from milepost.cli import metadata as command

    with command.updating(run, parent=parent, root=root) as updater:
        updater.replace(command.object_of(document))


@app.command()
def get(
    key: Key,
    run: Run = None,
    parent: Parent = False,
    root: Root = False,
    json: Annotated[bool, typer.Option("--json", help="Print text as JSON too, in quotes.")] = False,
) -> None:
    """Print what a key or path holds; exit code 1 when there is nothing.

    Text is printed as it is, anything else as JSON.
    """
    from milepost.cli import metadata as command

    command.show_value(key, run, parent=parent, root=root, as_json=json)


@app.command()
def current(run: Run = None, parent: Parent = False, root: Root = False) -> None:
    """Print the whole document as JSON."""
    from milepost.cli import metadata as command

    command.show_document(run, parent=parent, root=root)


app.command("show", hidden=True)(current)
