"""Real processes: `milepost dev` and its kin, started in a folder of their own and never left behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import psutil
import urllib3

from milepost import Client, Run

MILEPOST = [sys.executable, "-P", "-c", "from milepost.cli.main import main; main()"]
READY_SECONDS = 60.0
KEY = "a-key-for-tests-only"


def wait_until(condition: Callable[[], Any], seconds: float = 30.0, what: str = "it") -> Any:
    """Wait for something outside of this process that tells nobody; returns what the condition returns."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"{what} did not happen within {seconds} s"
        # Not more often: to look at processes takes a millisecond, and others wait for the processor.
        time.sleep(0.02)
    return found


class Command:
    """A running `milepost` command. `errors` is what it has written to standard error so far."""

    def __init__(
        self,
        arguments: list[str],
        *,
        folder: Path,
        env: dict[str, str],
        stdin: IO[bytes] | int = subprocess.DEVNULL,
        output: int | None = None,
    ) -> None:
        """`output`: where both outputs go instead of here."""
        self.folder = folder
        self._errors = folder / f"stderr-{time.monotonic_ns()}.txt"
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MILEPOST_")}
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [*MILEPOST, *arguments],
                cwd=folder,
                stdin=stdin,
                stdout=subprocess.PIPE if output is None else output,
                stderr=errors if output is None else output,
                env={**clean, "COLUMNS": "200", **env},
                text=True,
            )
        self._seen: dict[int, psutil.Process] = {}

    @property
    def errors(self) -> str:
        return self._errors.read_text()

    def line(self) -> str:
        """The next line of standard output."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the command ended:\n{self.errors}"
        return line

    def rest(self) -> str:
        """What is left of standard output."""
        assert self.process.stdout is not None
        return self.process.stdout.read()

    def executors(self) -> list[psutil.Process]:
        """The executor processes that live now."""
        try:
            children = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        self._seen |= {child.pid: child for child in children}
        return [
            child for child in children if is_alive(child) and "milepost.worker" in " ".join(cmdline(child))
        ]

    def says(self, words: str, seconds: float = 30.0) -> None:
        """Wait until the words stand in standard error."""
        wait_until(
            lambda: words in self.errors or self.process.poll() is not None, seconds, f"{words!r} in stderr"
        )
        assert words in self.errors, self.errors

    def end(self, number: int = signal.SIGTERM, seconds: float = 30.0) -> int:
        """Send a signal and wait for the end; nothing that was started may be left."""
        self.signal(number)
        return self.ended(seconds)

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Send a signal."""
        self.executors()
        if self.process.poll() is None:
            self.process.send_signal(number)

    def ended(self, seconds: float = 30.0) -> int:
        """Wait for the end; the exit code. Nothing that was started may be left."""
        code = self.process.wait(seconds)
        wait_until(lambda: not self.left_behind(), 15.0, "the end of every process that was started")
        return code

    def left_behind(self) -> list[psutil.Process]:
        return [child for child in self._seen.values() if is_alive(child)]

    def clean_up(self) -> None:
        self.executors()
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        for child in self.left_behind():
            child.kill()


class House(Command):
    """`milepost dev` that is ready, and a client for it."""

    def __init__(self, arguments: list[str], *, folder: Path, env: dict[str, str]) -> None:
        super().__init__(["dev", *arguments, "--json", "--port", "0"], folder=folder, env=env)
        ready = json.loads(self.line())
        self.url: str = ready["url"]
        self.secret_key: str = ready["secret_key"]
        self.dashboard: str = ready["dashboard"]
        self.client = Client(self.url, self.secret_key)

    def trigger(self, task_id: str, *payload: Any, **options: Any) -> str:
        return self.client.trigger(task_id, *payload, **options).id

    def finished(self, run_id: str, seconds: float = 30.0) -> Run:
        return self.client.runs.wait(run_id, timeout=seconds)

    def run(self, task_id: str, *payload: Any, **options: Any) -> Run:
        """Trigger a run and wait for its end."""
        return self.finished(self.trigger(task_id, *payload, **options))

    def until(self, run_id: str, condition: Callable[[Run], Any]) -> Run:
        """The first state of the run that is as wanted."""
        for run in self.client.runs.subscribe(run_id):
            if condition(run):
                return run
        raise AssertionError(f"the run ended before it was as wanted: {self.client.runs.retrieve(run_id)}")

    def log(self, run_id: str) -> list[str]:
        """What the run has logged."""
        headers = {"Authorization": f"Bearer {self.secret_key}"}
        answer = urllib3.request("GET", f"{self.url}/api/v1/runs/{run_id}/logs", headers=headers)
        return [line["message"] for line in answer.json()["data"]]


class Site:
    """`milepost server` and `milepost worker` on one port and one folder, over all their lives."""

    def __init__(self, command: Callable[..., Command], folder: Path, **env: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port: int = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder = folder
        self.client = Client(self.url, KEY)
        self._command = command
        self._env = {"MILEPOST_SECRET_KEY": KEY, "MILEPOST_API_URL": self.url, **env}
        self.server = self.start_server()

    def start_server(self) -> Command:
        """Start the server, again if need be, and wait until it answers."""
        self.server = self._command(
            "server", "--port", str(self.port), "--data", str(self.folder / "data"), env=self._env
        )
        wait_until(self._is_up, what="the start of the server")
        return self.server

    def _is_up(self) -> bool:
        assert self.server.process.poll() is None, self.server.errors
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def kill_server(self) -> None:
        """SIGKILL, and nothing else."""
        self.server.process.kill()
        self.server.process.wait()

    def start_worker(self, source: str | None = None, *arguments: str, **env: str) -> Command:
        """Start a worker with one executor, and wait until it is ready."""
        if source is not None:
            write_tasks(self.folder / "jobs.py", source)
        worker = self._command("worker", "jobs.py", "--processes", "1", *arguments, env={**self._env, **env})
        worker.says("ready to run")
        return worker

    def until(self, run_id: str, condition: Callable[[Run], Any]) -> Run:
        """The first state of the run that is as wanted."""
        for run in self.client.runs.subscribe(run_id):
            if condition(run):
                return run
        raise AssertionError(f"the run ended before it was as wanted: {self.client.runs.retrieve(run_id)}")

    def finished(self, run_id: str) -> Run:
        """The run after its end."""
        return self.client.runs.wait(run_id, timeout=30)

    def log(self, run_id: str) -> list[dict[str, Any]]:
        """What the run has logged, all pages of it."""
        lines: list[dict[str, Any]] = []
        after: int | None = 0
        while after is not None:
            headers = {"Authorization": f"Bearer {KEY}"}
            address = f"{self.url}/api/v1/runs/{run_id}/logs?page[after]={after}"
            page = urllib3.request("GET", address, headers=headers).json()
            lines += page["data"]
            after = page.get("next")
        return lines


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def write_tasks(file: Path, source: str) -> None:
    """Write a file of tasks as an editor does: whole, at once."""
    new = file.with_suffix(".new")
    new.write_text("from milepost import *\n" + textwrap.dedent(source))
    new.replace(file)
