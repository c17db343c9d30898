"""`@task`: names, registry, what it accepts and what it refuses."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel, Field

from milepost import Context, Queue, Retry, Task, UsageError, task
from milepost.sdk import registry
from milepost.sdk.registry import find_task, registered_tasks


class Row(BaseModel):
    id: int


def test_a_task_is_named_after_its_function_and_stays_callable() -> None:
    @task
    def work(row: Row, ctx: Context | None = None) -> int:
        """What it does."""
        return row.id

    assert (work.id, work.__name__, work.__doc__) == ("work", "work", "What it does.")
    assert work(Row(id=5)) == 5
    assert find_task("work") is work
    assert registered_tasks() == {"work": work}


def test_an_async_task_called_plainly_gives_its_coroutine() -> None:
    @task(id="other")
    async def work(n: int) -> int:
        return n

    coroutine = work(5)
    with pytest.raises(StopIteration) as stopped:
        coroutine.send(None)
    assert stopped.value.value == 5
    assert work.is_async


def test_what_a_worker_tells_the_server() -> None:
    @task(retry=Retry(max_attempts=7), queue=Queue("rows", concurrency=20))
    def work(row: Row) -> None: ...

    described = work.describe()
    assert (described.id, described.queue, described.queue_concurrency) == ("work", "rows", 20)
    assert described.retry.max_attempts == 7
    assert described.payload_schema is not None
    assert described.payload_schema["properties"]["id"]["type"] == "integer"

    @task(id="bare", queue="named")
    def bare() -> None: ...

    assert (bare.describe().queue, bare.describe().payload_schema) == ("named", None)
    assert bare.describe().metadata_schema is None

    class Progress(BaseModel):
        total: int = Field(ge=0)

    @task(id="typed", metadata=Progress)
    def typed() -> None: ...

    schema = typed.describe().metadata_schema
    assert schema is not None
    assert (schema["properties"]["total"]["minimum"], schema["required"]) == (0, ["total"])

    @task(id="own")
    def own(value: Any) -> None: ...

    assert own.describe().queue == "task/own"


def make(text: str, name: str) -> ModuleType:
    module = ModuleType(name)
    exec(compile(text, f"{name}.py", "exec"), module.__dict__)
    return module


def test_a_second_task_of_the_same_id_is_refused_and_the_same_one_again_is_not() -> None:
    source = "from milepost import task\n@task\ndef work(): ...\n"
    first = make(source, "module_a").work
    again = make(source, "module_a").work
    assert find_task("work") is again is not first
    with pytest.raises(UsageError) as caught:
        make(source.replace("work", "other").replace("@task", "@task(id='work')"), "module_b")
    assert "module_a.work" in str(caught.value)
    assert "module_b.other" in str(caught.value)
    assert '@task(id="...")' in str(caught.value)
    assert find_task("work") is again


def test_one_file_under_two_names_is_one_task(tmp_path: Path) -> None:
    source = compile(
        "from milepost import task\n@task\ndef work(): ...\n", str(tmp_path / "tasks.py"), "exec"
    )
    for name in ("__main__", "tasks"):
        module = ModuleType(name)
        exec(source, module.__dict__)


def run_in(namespace: dict[str, Any], source: str, file: str = "/nowhere/jobs.py") -> None:
    """Run this source as a module of that file, or as a cell of a session."""
    exec(compile("from milepost import task\n" + source, file, "exec"), namespace)


TWICE = [
    "@task\ndef work(): ...\n@task\ndef work(): ...\n",
    "@task\ndef work(): ...\n@task(id='work')\ndef other(): ...\n",
    "@task(id='work')\nasync def one(): ...\nclass Two:\n    @task(id='work')\n    def two(self): ...\n",
    "one = task(lambda: 1)\ntwo = task(lambda: 2)\n",
    "def work(): ...\nslow = task(work)\nquick = task(queue='quick')(work)\n",
    "def mine(f): return task(queue='q')(f)\n@mine\ndef work(): ...\n@mine\ndef work(): ...\n",
    "def undressed(f):\n    def work(): return f()\n    return work\n"
    "@task\n@undressed\ndef one(): ...\n@task\n@undressed\ndef two(): ...\n",
    "import functools\none = task(id='work')(functools.partial(print, 1))\n"
    "two = task(id='work')(functools.partial(print, 2))\n",
]


@pytest.mark.parametrize("source", TWICE)
def test_two_tasks_of_one_id_in_one_source_are_refused_with_both_places(source: str) -> None:
    namespace: dict[str, Any] = {"__name__": "jobs", "__file__": "/nowhere/jobs.py"}
    with pytest.raises(UsageError, match="two tasks have the id") as caught:
        run_in(namespace, source)
    places = re.findall(r"jobs\.py:(\d+)", str(caught.value))
    assert len(set(places)) == 2, str(caught.value)
    assert '@task(id="...")' in str(caught.value)


MADE_TWICE = [
    "def make(region):\n    @task\n    def work(): return region\n    return work\nmake('eu')\nmake('us')\n",
    "for region in ('eu', 'us'):\n    @task\n    def work(): return region\n",
    "tasks = [task(lambda: region) for region in ('eu', 'us')]\n",
    "def dressed(f):\n    def work(): return f()\n    return task(work)\n"
    "@dressed\ndef one(): ...\n@dressed\ndef two(): ...\n",
]


@pytest.mark.parametrize("source", MADE_TWICE)
def test_one_definition_that_makes_two_tasks_is_refused_where_tasks_are_loaded(source: str) -> None:
    with registry.refusing_repeats(), pytest.raises(UsageError, match="is made twice") as caught:
        run_in({"__name__": "jobs", "__file__": "/nowhere/jobs.py"}, source)
    assert '@task(id="...")' in str(caught.value)
    # Elsewhere a test may run twice, and an application may be made twice.
    run_in({"__name__": "jobs", "__file__": "/nowhere/jobs.py"}, source)


@pytest.mark.parametrize("are_refused", [False, True])
def test_a_module_that_is_reloaded_keeps_its_tasks(are_refused: bool) -> None:
    source = "@task\ndef work(): return VERSION\n@task(id='dressed')\ndef other(): ...\nVERSION = 1\n"
    namespace: dict[str, Any] = {"__name__": "jobs", "__file__": "/nowhere/jobs.py"}
    with registry.refusing_repeats() if are_refused else nullcontext():
        run_in(namespace, source)
        run_in(namespace, source)
    assert find_task("work") is namespace["work"]
    assert set(registered_tasks()) == {"work", "dressed"}
    if not are_refused:
        # Lines were added above, a decorator too.
        run_in(namespace, "import functools\n\n\n" + source)


def test_a_session_defines_a_task_as_often_as_it_likes() -> None:
    session: dict[str, Any] = {"__name__": "__main__"}
    for number, file in enumerate(("<stdin>", "<stdin>", "/tmp/cell_1.py", "/tmp/cell_2.py")):
        run_in(session, f"@task\ndef work(): return {number}\n", file)
        assert find_task("work") is session["work"]
    run_in(session, "@task(id='work')\ndef renamed(): ...\n", "/tmp/cell_3.py")
    assert find_task("work") is session["renamed"]


def test_files_of_one_name_are_not_one_file() -> None:
    run_in({"__name__": "jobs", "__file__": "/a/jobs.py"}, "@task\ndef work(): ...\n", "/a/jobs.py")
    with pytest.raises(UsageError, match=r"/a/jobs\.py:2.*/b/jobs\.py:2"):
        run_in({"__name__": "jobs", "__file__": "/b/jobs.py"}, "@task\ndef work(): ...\n", "/b/jobs.py")


def test_generated_sources_are_not_one_file() -> None:
    with registry.refusing_repeats():
        run_in({"__name__": "jobs"}, "@task\ndef work(): ...\n", "<string>")
        with pytest.raises(UsageError):
            run_in({"__name__": "jobs"}, "@task\ndef work(): ...\n", "<string>")


def test_bad_names_and_limits_are_refused() -> None:
    with pytest.raises(UsageError):
        task(id="")(lambda: None)
    with pytest.raises(UsageError):
        Queue("")
    with pytest.raises(UsageError):
        Queue("q", concurrency=0)


def test_names_that_are_local_where_the_task_is_made_are_found() -> None:
    class Local(BaseModel):
        n: int

    @task
    def work(value: Local) -> Local:
        return value

    assert work.signature.payload_shape is not None
    assert work.signature.payload_shape.check({"n": "5"}) == Local(n=5)
    assert work.signature.output_shape is not None


def test_a_name_that_is_defined_later_is_found_when_it_is_needed() -> None:
    module = make(
        "from __future__ import annotations\nfrom milepost import task, Context\n"
        "@task\ndef work(value: Later, ctx: Context): return value\n"
        "class Later(dict): ...\n",
        "module_later",
    )
    work: Task[Any, Any] = module.work
    assert work.signature.context is not None
    assert work.signature.payload is not None
    assert work.signature.payload.name == "value"
    assert work.signature.payload_shape is not None


def test_repr_names_the_task() -> None:
    assert repr(task(id="x")(lambda: None)) == "<task x>"


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 257, "\x1b[31m"], ids=repr)
def test_a_name_that_the_server_would_not_take_is_refused_where_it_is_written(name: str) -> None:
    with pytest.raises(UsageError, match="a task id"):
        task(id=name)(lambda: None)
    with pytest.raises(UsageError, match="the name of a queue"):
        Queue(name)
