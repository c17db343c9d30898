"""`milepost metadata ...`: the document of a run from a shell script, which is part of the run or outside of it."""

import json
import sys
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import msgspec

from milepost.cli.console import fail, print_json, print_line
from milepost.client import calls
from milepost.client.calling import NamedAttempt, acting_as
from milepost.client.client import Client
from milepost.client.environment import RUN_VARIABLE, attempt_of_environment
from milepost.client.request_ids import new_request_id
from milepost.client.updater import Sink, UntypedSink, Updater
from milepost.model.jsonvalue import JSONValue, decode
from milepost.model.operations import Operation, check
from milepost.model.path import read
from milepost.protocol.metadata import MetadataRequest

EXIT_USAGE = 2
_NOTHING = object()


@dataclass(frozen=True)
class Target:
    """Whose document it is.

    Attributes:
        run_id: the run, or the one whose relation is meant.
        relation: "self", "parent" or "root".
    """

    run_id: str
    relation: str


@contextmanager
def updating(run_id: str | None, *, parent: bool, root: bool) -> Generator[Updater]:
    """An updater; what is called on it is committed at the end, or the command fails."""
    target = _target(run_id, parent=parent, root=root)
    collected = _Collected()
    yield _Collecting(collected)
    operations = {target.relation: cast("list[Any]", collected.operations)}
    request = MetadataRequest(
        operations=operations.get("self"),
        parent_operations=operations.get("parent"),
        root_operations=operations.get("root"),
    )
    call = calls.put_metadata(target.run_id, request, new_request_id())
    with _acting():
        refused = Client().send(call).refused
    if refused:
        fail("; ".join(dict.fromkeys(item.message for item in refused)))


def show_value(key: str, run_id: str | None, *, parent: bool, root: bool, as_json: bool) -> None:
    """Print what is at a key or path."""
    found = read(cast("JSONValue", _document(_target(run_id, parent=parent, root=root))), key, _NOTHING)
    if found is _NOTHING:
        fail(f"there is nothing at {key!r}")
    if isinstance(found, str) and not as_json:
        print_line(found)
    else:
        print_json(found)


def show_document(run_id: str | None, *, parent: bool, root: bool) -> None:
    """Print the whole document."""
    print_json(_document(_target(run_id, parent=parent, root=root)), indent=2)


def value_of(given: str, *, text: bool, json: bool) -> Any:
    """A value from the command line: JSON where it is JSON, else text."""
    if text and json:
        fail("give either --text or --json", code=EXIT_USAGE)
    if given == "-":
        given = _standard_input()
    if text:
        return given
    try:
        return decode(given)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        if json:
            fail(f"{given!r:.100} is not JSON ({error}); without --json it would be text", code=EXIT_USAGE)
        return given


def number_of(given: str) -> int | float:
    """A number from the command line."""
    number = value_of(given, text=False, json=False)
    if isinstance(number, bool) or not isinstance(number, int | float):
        fail(f"{given!r:.100} is no number", code=EXIT_USAGE)
    return number


def object_of(given: str) -> dict[str, Any]:
    """An object from the command line."""
    found = value_of(given, text=False, json=False)
    if not isinstance(found, dict):
        example = json.dumps({"total": 10, "status": "reading"})
        fail(f"{given!r:.100} is not a JSON object; write for example '{example}'", code=EXIT_USAGE)
    return cast("dict[str, Any]", found)


def _target(run_id: str | None, *, parent: bool, root: bool) -> Target:
    if parent and root:
        fail("give either --parent or --root", code=EXIT_USAGE)
    relation = "parent" if parent else "root" if root else "self"
    own = attempt_of_environment()
    if run_id is None and own is None:
        fail(
            f"which run? This is no part of one ({RUN_VARIABLE} is not set): start it from a task with "
            f"env=metadata.environment(), or name a run with --run",
            code=EXIT_USAGE,
        )
    return Target(run_id or cast("tuple[str, int]", own)[0], relation)


def _document(target: Target) -> dict[str, Any]:
    client = Client()
    with _acting():
        if target.relation == "self":
            return client.get_metadata(target.run_id).value
        run = client.runs.retrieve(target.run_id)
        related = run.root_id if target.relation == "root" else run.parent_id or run.id
        return client.get_metadata(related).value


def _acting() -> AbstractContextManager[None]:
    """As the attempt that has started this program, if one has."""
    own = attempt_of_environment()
    return nullcontext() if own is None else acting_as(NamedAttempt(*own))


def _standard_input() -> str:
    """All of standard input, without the line feed at its end, as a shell takes the output of a command."""
    try:
        return sys.stdin.buffer.read().decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        fail(f"what comes from standard input is not UTF-8: {error}", code=EXIT_USAGE)


class _Collected(UntypedSink):
    """A sink that keeps what comes."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []

    def add(self, operation: Operation) -> None:
        check(operation)
        self.operations.append(operation)

    def add_all(self, operations: list[Operation]) -> None:
        for operation in operations:
            self.add(operation)


class _Collecting(Updater):
    def __init__(self, collected: _Collected) -> None:
        self._collected = collected

    def _sink(self) -> Sink | None:
        return self._collected
