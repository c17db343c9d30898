"""`docs/testing.md`: what it shows runs. `test_typed_pages.py` checks its types."""

import asyncio
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import milepost
from milepost.client.environment import names_of
from milepost.client.settings import ClientSettings
from milepost.testing import Sandbox, SandboxRun
from milepost_pytest import milepost_context, milepost_dev_server, milepost_sandbox

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "testing.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
*SHOWN, SERVED = BLOCKS


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The names that the blocks define, one after the other."""
    file = tmp_path_factory.mktemp("page") / "test_page.py"
    file.write_text("\n\n".join(SHOWN))
    names: dict[str, Any] = {"__name__": "page", "__file__": str(file)}
    exec(compile(file.read_text(), file, "exec"), names)
    return names


def test_every_test_of_the_page_passes(page: dict[str, Any]) -> None:
    tests = {name: value for name, value in page.items() if name.startswith("test_")}
    assert len(tests) == 5
    for test in tests.values():
        if inspect.iscoroutinefunction(test):
            asyncio.run(test())
        elif "milepost_sandbox" in inspect.signature(test).parameters:
            with Sandbox() as box:
                test(box)
        else:
            test()


def test_the_served_task_runs(
    page: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(SERVED, page)
    assert capsys.readouterr().out == "10\n"


def test_every_name_of_the_page_is_there() -> None:
    for name in re.findall(r"`box\.(\w+)", PAGE):
        assert hasattr(Sandbox, name), name
    for line in re.findall(r"^\| ((?:`\w+(?:\(\))?`(?:, )?)+) \|", PAGE, re.MULTILINE):
        for name in re.findall(r"\w+", line):
            known = {*vars(SandboxRun), *SandboxRun.__dataclass_fields__}
            fixtures = {"milepost_context", "milepost_dev_server", "milepost_sandbox"}
            assert name in known | fixtures, name
    assert all((milepost_context, milepost_dev_server, milepost_sandbox))
    assert "dev_server" in names_of(ClientSettings)
    defaults = inspect.signature(Sandbox.__init__).parameters
    assert f"Sandbox(timeout={defaults['timeout'].default})" in PAGE
    assert f"`grace_seconds={inspect.signature(milepost.serve).parameters['grace_seconds'].default}`" in PAGE
