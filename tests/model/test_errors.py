"""The tree of errors and its way over the wire."""

import copy
import inspect
import pickle
import re
from typing import Any

import pytest

from milepost import errors
from milepost.errors import (
    MetadataFlushError,
    MetadataPathError,
    MetadataTooLargeError,
    MilepostError,
    RequestError,
    TaskFailedError,
    VersionConflictError,
    error_for,
)

CLASSES: list[type[MilepostError]] = [
    kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, MilepostError)
]


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    lines = re.findall(r"^    ([│├└─ ]*)(\w+) +([a-z_]+) +(\d{3})", errors.__doc__ or "", re.MULTILINE)
    above: list[str] = []
    drawn: dict[str, tuple[str | None, str, int]] = {}
    for branch, name, code, status in lines:
        depth = len(branch) // 4
        above[depth:] = [name]
        drawn[name] = (above[depth - 1] if depth else None, code, int(status))
    actual = {
        kind.__name__: (
            kind.__bases__[0].__name__ if kind is not MilepostError else None,
            kind.code,
            kind.status,
        )
        for kind in CLASSES
    }
    assert drawn == actual


def test_codes_are_unique_and_everything_is_exported() -> None:
    codes = [kind.code for kind in CLASSES]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z_]+", code) for code in codes)
    assert {kind.__name__ for kind in CLASSES} <= set(errors.__all__)


def test_built_in_bases() -> None:
    assert issubclass(errors.MetadataValueError, ValueError)
    assert issubclass(errors.MetadataPathError, ValueError)
    assert issubclass(errors.MetadataTypeError, TypeError)
    assert issubclass(errors.UsageError, RuntimeError)


def sample(kind: type[MilepostError]) -> MilepostError:
    if issubclass(kind, MetadataTooLargeError):
        return kind(20, 10, "log", [("log", 9), ("step", 1)])
    if issubclass(kind, MetadataPathError):
        return kind("$.a.b: a is text", key="$.a.b", segment="a")
    if issubclass(kind, errors.MetadataError):
        return kind("not this", key="k")
    if issubclass(kind, VersionConflictError):
        return kind("not this", version=7, field="ifVersion")
    if issubclass(kind, errors.HistoryPrunedError):
        return kind("version 3 is gone", field="version", earliest_version=17)
    if issubclass(kind, RequestError):
        return kind("not this", field="options.delay", limit=5)
    if issubclass(kind, TaskFailedError):
        return kind(run_id="run_1", error_name="ValueError", error_message="no")
    return kind("not this")


def state(error: MilepostError) -> tuple[type, str, dict[str, Any]]:
    return type(error), str(error), error.__dict__


@pytest.mark.parametrize("kind", CLASSES)
def test_the_client_raises_what_the_engine_raised(kind: type[MilepostError]) -> None:
    error = sample(kind)
    field, limit = getattr(error, "field", None), getattr(error, "limit", None)
    again = error_for(
        error.code, str(error), status=error.status, field=field, limit=limit, details=error.details()
    )
    assert state(again) == state(error)


@pytest.mark.parametrize("kind", CLASSES)
def test_errors_can_be_pickled_and_copied(kind: type[MilepostError]) -> None:
    """A task in a process of its own sends them home."""
    error = sample(kind)
    assert state(pickle.loads(pickle.dumps(error))) == state(error)
    assert state(copy.copy(error)) == state(error)


@pytest.mark.parametrize(
    ("status", "name"),
    [
        (400, "BadRequestError"),
        (401, "UnauthorizedError"),
        (403, "ForbiddenError"),
        (404, "NotFoundError"),
        (405, "RequestError"),
        (409, "ConflictError"),
        (413, "TooLargeError"),
        (422, "InvalidRequestError"),
        (429, "UnavailableError"),
        (500, "MilepostError"),
        (502, "UnavailableError"),
        (503, "UnavailableError"),
        (504, "UnavailableError"),
        (0, "MilepostError"),
    ],
)
def test_an_unknown_code_falls_back_to_the_status(status: int, name: str) -> None:
    assert type(error_for("of_a_later_version", "text", status=status)).__name__ == name
    assert str(error_for("", "text", status=status)) == "text"


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize(
    "details", [None, {}, {"size": "x", "largest_keys": [1, ["a"], ["b", 2]], "key": 5, "segment": []}]
)
def test_bad_details_do_no_harm(kind: type[MilepostError], details: dict[str, Any] | None) -> None:
    error = error_for(kind.code, "text", status=kind.status, details=details)
    assert type(error) is kind
    assert str(error) == "text"


def test_too_large_keeps_five_keys() -> None:
    error = MetadataTooLargeError(2_000, 1_000, None, [(str(number), 9 - number) for number in range(9)])
    assert error.largest_keys == [("0", 9), ("1", 8), ("2", 7), ("3", 6), ("4", 5)]
    assert str(error).startswith(
        "The metadata would be 2,000 bytes of JSON, 1,000 more than the limit of 1,000."
    )
    assert len(str(MetadataTooLargeError(1, 1, "k" * 1000))) < 500


def test_a_flush_error_lists_what_was_refused() -> None:
    class Refused:
        run_id = "run_1"
        operation = None
        code = "wrong_metadata_type"
        message = "text cannot be incremented"

    error = MetadataFlushError(refused=[Refused()] * 5)
    assert len(error.refused) == 5
    assert str(error).startswith(
        "The server refused 5 metadata operation(s). run_1: text cannot be incremented; "
    )
    assert str(error).endswith("and 2 more")


def test_a_failed_task_says_why() -> None:
    assert (
        str(TaskFailedError(run_id="run_1", error_name="ValueError", error_message="no"))
        == "run run_1 failed: ValueError: no"
    )
    assert str(TaskFailedError(run_id="run_1")) == "run run_1 failed"
