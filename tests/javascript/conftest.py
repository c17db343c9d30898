"""Fixtures: a server with a worker in processes of their own, and Node with the official packages, which are set up once."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NODE_SECONDS = 60.0
MILEPOST = [sys.executable, "-P", "-c", "from milepost.cli.main import main; main()"]

TASKS = '''
from datetime import datetime

from milepost import Retry, metadata, streams, task, wait

more = streams.input("more")


@task
async def answer(question: dict[str, int]) -> str:
    """Some words, and more of them when somebody asks for more."""
    async def words():
        for number in range(question["count"]):
            metadata.set("progress", number + 1)
            yield f"word {number} "
        asked = await more.areceive()
        for number in range(asked["count"]):
            yield f"more {number} "

    streams.append("steps", {"n": 1, "deep": [None, True, "é"]})
    text = "".join([word async for word in metadata.stream("words", words())])
    metadata.set("progress", "done")
    return text


@task(retry=Retry(max_attempts=1))
def fails(at: datetime) -> None:
    raise ValueError(f"no ink since {at.year}")


@task
def quick(value: int) -> int:
    return value


@task
async def asks() -> bool:
    token = await wait.acreate_token()
    metadata.set("token", token.id)
    return (await wait.afor_token(token, dict[str, bool])).unwrap()["approved"]
'''


@dataclass
class RunningServer:
    """Where a server is, and its key."""

    url: str
    key: str


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("official")
    (folder / "jobs.py").write_text(TASKS)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MILEPOST_")}
    with subprocess.Popen(
        [*MILEPOST, "dev", "jobs.py", "--port", "0", "--processes", "1", "--no-reload", "--json"],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            yield RunningServer(ready["url"], ready["secret_key"])
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)


@pytest.fixture(scope="session")
def packages() -> Path:
    """The folder where the official packages are."""
    missing = [name for name in ("node", "npm") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"the tests of the official JavaScript client need {' and '.join(missing)}")
    made = subprocess.run(
        ["make", "--silent", ".venv/javascript/.installed"], cwd=ROOT, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stdout + made.stderr
    return ROOT / ".venv" / "javascript"


@dataclass
class Node:
    """Runs the programs of this folder."""

    packages: Path
    server: RunningServer

    def __call__(self, name: str) -> dict[str, Any]:
        """What the program has printed last."""
        # Packages are found from where a program is.
        program = self.packages / name
        shutil.copyfile(HERE / name, program)
        given = json.dumps({"url": self.server.url, "key": self.server.key})
        done = subprocess.run(
            ["node", str(program), given], capture_output=True, text=True, timeout=NODE_SECONDS
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def node(packages: Path, server: RunningServer) -> Node:
    return Node(packages, server)
