"""The pytest plugin of Milepost: fixtures for tests of tasks.

It stands beside the package, because pytest imports it in every project where Milepost is installed: so nothing of Milepost is loaded
before a test asks for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from milepost.testing import LocalContext, Sandbox


@pytest.fixture
def milepost_sandbox() -> Iterator[Sandbox]:
    """A server and a worker in memory (`milepost.testing.Sandbox`): every trigger of the test goes there."""
    from milepost.testing import Sandbox

    with Sandbox() as box:
        yield box


@pytest.fixture
def milepost_context() -> LocalContext:
    """A `Context` for functions that take one (`milepost.testing.context`)."""
    from milepost.testing import context

    return context()


@pytest.fixture
def milepost_dev_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allows this test the development server of the folder (`milepost dev`), which tests do not use otherwise."""
    monkeypatch.setenv("MILEPOST_DEV_SERVER", "1")
