"""The Python of the pages in `docs` is what a user may type: it compiles, and the type checkers have nothing against it."""

import ast
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# What a page speaks of without showing it, as its reader's own program has it.
ASSUMED = {
    "delivery": """
        from milepost import Context, metadata
        run_id: str = "run_1"
        def context() -> Context: ...
        ctx, size, row = context(), 1, ["a", 1]
    """,
    "hooks": "",
    "queues": "",
    "schedules": "",
    "stopping": """
        from milepost import runs, task
        run_id: str = "run_1"
    """,
    "streams": """
        from collections.abc import AsyncIterator
        from milepost import RunHandle, StreamValue
        class Model:
            def ask(self, question: str) -> AsyncIterator[str]: ...
        class Approval:
            by: str
        def triggered() -> RunHandle[str]: ...
        model, run_id, handle = Model(), "run_1", triggered()
    """,
    "tasks": "",
    "testing": "",
    "tokens": """
        import milepost
        from milepost import task
        @task(id="import")
        def import_rows(path: str) -> None: ...
        class User:
            id: str
        user = User()
        path: str = "rows.csv"
        run_id: str = "run_1"
    """,
    "triggering": """
        from milepost import IdempotencyKey, task
        class Order:
            id: int
        class Page:
            id: int
        @task
        async def fetch(month: str) -> list[str]: ...
        @task
        async def render(row: str) -> bytes: ...
        async def publish(pages: list[bytes]) -> str: ...
        @task
        def send_invoice(order: Order) -> None: ...
        @task
        def resize(image: dict[str, str]) -> None: ...
        @task
        def reindex(page: Page) -> None: ...
        order, page = Order(), Page()
        images: list[dict[str, str]] = []
    """,
    "waits": "",
}


def blocks_of(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


PAGES = {
    path.stem: found
    for path in sorted((ROOT / "docs").glob("*.md"))
    if (found := blocks_of(path.read_text()))
}


def module_of(page: str) -> str:
    """The blocks of a page one after the other. Those that await outside of a function stand in one."""
    found = ["# pyright: strict", textwrap.dedent(ASSUMED[page])]
    for number, block in enumerate(PAGES[page]):
        try:
            compile(block, f"docs/{page}.md", "exec")
        except SyntaxError:
            compile(block, f"docs/{page}.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            block = f"async def block_{number}() -> None:\n{textwrap.indent(block, '    ')}"
        found.append(block)
    return "\n\n".join(found)


def test_every_page_is_known() -> None:
    assert PAGES.keys() == ASSUMED.keys()


@pytest.mark.parametrize("page", PAGES)
def test_every_block_compiles(page: str) -> None:
    compile(module_of(page), f"docs/{page}.md", "exec")


# A body of three dots stands for what a user writes there.
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "checker",
    [
        ["mypy", "--strict", "--config-file=", "--disable-error-code=empty-body"],
        ["pyright", "--level", "error", "--pythonpath", sys.executable],
    ],
    ids=["mypy", "pyright"],
)
def test_the_type_checkers_agree_with_every_page(checker: list[str], tmp_path: Path) -> None:
    files = [tmp_path / f"docs_{page}.py" for page in PAGES]
    for file, page in zip(files, PAGES, strict=True):
        file.write_text(module_of(page))
    done = subprocess.run(
        [sys.executable, "-m", *checker, *map(str, files)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
