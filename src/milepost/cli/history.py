"""`milepost runs history`: what was changed in a run's metadata, and the document as it was."""

import json
from collections.abc import Sequence
from typing import Any

from milepost.cli.console import fail, note, print_json, print_line, say
from milepost.cli.given import time_of
from milepost.cli.progress import show
from milepost.client.calls import MetadataDocument, MetadataVersion
from milepost.client.client import Client
from milepost.model.operations import Append, Delete, Increment, Operation, Remove, Set

PAGE_SIZE = 100
OPERATIONS_SHOWN_MAX = 5
VALUE_CHARACTERS_MAX = 60
# The end of an id tells runs apart; its beginning is the time.
ID_CHARACTERS = 8


def show_changes(run_id: str, *, after: int, limit: int, as_json: bool) -> None:
    """Print one line for each change, oldest first."""
    shown = 0
    following: int | None = None
    for page in Client().runs.metadata_history(run_id, page_size=min(limit, PAGE_SIZE), after=after).pages():
        if shown == 0 and after < page.earliest_version:
            note(f"changes up to version {page.earliest_version} are no longer kept (MILEPOST_HISTORY_DAYS)")
        for version in page.versions[: limit - shown]:
            print_json(version) if as_json else print_line(describe(version))
            shown += 1
            following = version.version
        if shown == limit:
            if page.next is not None or following != page.versions[-1].version:
                note(f"there are more changes: --after {following} goes on, --limit shows more at once")
            return
    if shown == 0:
        say("no changes")


def show_document(run_id: str, *, version: int | None, at: str | None, as_json: bool) -> None:
    """Print the document as it was at a version or a time."""
    client = Client()
    found: MetadataDocument
    if at is None:
        found = client.runs.metadata_at(run_id, version=version)
    elif version is None:
        found = client.runs.metadata_at(run_id, at=time_of("--at", at))
    else:
        fail("give either --version or --at, not both")
    if as_json:
        print_json({"version": found.version, "metadata": found.value})
        return
    note(f"version {found.version}")
    print_json(found.value, indent=2)


def describe(version: MetadataVersion) -> str:
    """A change in one line: version, local time, who wrote it, what was done."""
    time = version.at.astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    who = "outside"
    if version.writer_run_id is not None:
        who = f"…{version.writer_run_id[-ID_CHARACTERS:]} attempt {version.attempt}"
    return f"{version.version:>6}  {time}  {who:<19}  {_operations(version.operations)}"


def _operations(operations: Sequence[Operation]) -> str:
    if not operations:
        # All that was sent had been counted before (`once`).
        return "nothing"
    parts = [_operation(operation) for operation in operations[:OPERATIONS_SHOWN_MAX]]
    if len(operations) > OPERATIONS_SHOWN_MAX:
        parts.append(f"and {len(operations) - OPERATIONS_SHOWN_MAX:,} more")
    return ", ".join(parts)


def _operation(operation: Operation) -> str:
    match operation:
        case Set(key, value):
            return f"set {_key(key)} {_value(value)}"
        case Delete(key):
            return f"delete {_key(key)}"
        case Append(key, value):
            return f"append {_key(key)} {_value(value)}"
        case Remove(key, value):
            return f"remove {_key(key)} {_value(value)}"
        case Increment(key, value):
            return f"increment {_key(key)} {_value(value)}"
        case _:
            return f"replace all by {_value(operation.value)}"


def _key(key: str) -> str:
    return key if key.isprintable() and key and " " not in key else json.dumps(key)


def _value(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return show(text if text.isprintable() else json.dumps(value), VALUE_CHARACTERS_MAX)
