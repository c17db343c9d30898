import pytest

from milepost.sdk import hooks as hooks_module
from milepost.sdk import registry


@pytest.fixture(autouse=True)
def fresh_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks and global hooks of one test are unknown to the next."""
    monkeypatch.setattr(registry, "_tasks", {})
    monkeypatch.setattr(hooks_module.hooks, "_hooks", {})
