"""Fixtures that start `milepost` in the test's folder and end whatever is left of it."""

import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest
from real_processes import Command, House, Site, write_tasks


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Starts `milepost ARGUMENTS...` in the test's folder."""
    started: list[Command] = []

    def start(
        *arguments: str,
        env: dict[str, str] | None = None,
        folder: Path = tmp_path,
        stdin: IO[bytes] | int = subprocess.DEVNULL,
        output: int | None = None,
    ) -> Command:
        started.append(Command(list(arguments), folder=folder, env=env or {}, stdin=stdin, output=output))
        return started[-1]

    yield start
    for each in started:
        each.clean_up()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Callable[..., House]]:
    """Starts `milepost dev` on a file with this source, in the test's folder, and waits until it is ready."""
    started: list[House] = []

    def start(source: str | None = None, *arguments: str, env: dict[str, str] | None = None) -> House:
        if source is not None:
            write_tasks(tmp_path / "jobs.py", source)
        started.append(House(["jobs.py", *arguments], folder=tmp_path, env=env or {}))
        return started[-1]

    yield start
    for each in started:
        each.clean_up()


@pytest.fixture
def site(command: Callable[..., Command], tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Starts a server; with settings as keywords."""

    def start(**env: str) -> Site:
        return Site(command, tmp_path, **env)

    return start


@pytest.fixture
def free_ports() -> list[int]:
    """Two ports of this machine that nobody uses."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports
