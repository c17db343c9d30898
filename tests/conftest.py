"""For all tests: how properties are searched, and what makes files in parallel processes possible."""

import gc
import os
import sys
from collections.abc import Generator, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from support import held_rows

# A machine that does other things too may be slow to make an example; that says nothing about the code.
_BUSY_MACHINE = [HealthCheck.too_slow]

# The same examples in every run of the suite, so that a failure is the change's own; new ones are for `make explore`.
settings.register_profile("suite", derandomize=True, deadline=None, suppress_health_check=_BUSY_MACHINE)
settings.register_profile("explore", deadline=None, print_blob=True, suppress_health_check=_BUSY_MACHINE)
settings.load_profile(os.environ.get("MILEPOST_TEST_PROFILE", "suite"))


held_rows.compare()


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """What a file has said to `configure`, and what commands in this process have put into its environment, ends with it: the tests of
    the next file know nothing of it."""
    environment = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(environment)
    default = sys.modules.get("milepost.client.default")
    if default is not None:
        default.configure()


@pytest.fixture(autouse=True)
def kept_rows_are_the_stored_ones() -> Iterator[None]:
    """Engines keep rows of runs, and none of them differs from what is stored."""
    yield
    found, held_rows.lies[:] = held_rows.lies[:], []
    assert not found, found[:3]


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Tests log lone surrogates on purpose, and a report with one could not travel to the process that prints it."""
    return _encodable((yield))


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {_encodable(key): _encodable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_encodable, value))
    return value


# What has long files, or mostly waits for processes and browsers, the longest first. Begun first, it does not hold up the end of a run
# on several cores.
_LONG = ("e2e", "simulation", "browser", "dashboard", "javascript", "docs", "worker", "sdk")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files come first; the order within a file stays."""

    def place(item: pytest.Item) -> int:
        folders = item.path.parts
        return next((number for number, name in enumerate(_LONG) if name in folders), len(_LONG))

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """What there is by now stays: a full collection, of which many tests ask, need not look through it each time."""
    gc.collect()
    gc.freeze()
