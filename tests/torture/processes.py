"""Real `milepost` processes that are killed and started again, and never left behind."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import psutil
from verdict import Verdict

MILEPOST = [sys.executable, "-P", "-c", "from milepost.cli.main import main; main()"]
END_SECONDS_MAX = 20.0
UP_SECONDS_MAX = 60.0


class Process:
    """One `milepost` command with everything that it starts.

    Attributes:
        log: the file to which it writes, over all its lives.
    """

    def __init__(self, name: str, arguments: list[str], *, folder: Path, env: dict[str, str]) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._arguments = arguments
        self._folder = folder
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MILEPOST_")}
        self._env = {**clean, "COLUMNS": "200", **env}
        self._process: asyncio.subprocess.Process | None = None
        self._seen: dict[int, psutil.Process] = {}

    async def start(self) -> None:
        """Start it; it may take a while to be of use."""
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *MILEPOST,
                *self._arguments,
                cwd=self._folder,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._env,
                start_new_session=True,
            )

    @property
    def process_id(self) -> int:
        """The id of the command itself."""
        assert self._process is not None
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """True when it has ended by itself."""
        return self._process is not None and self._process.returncode is not None

    def children(self, *, older_than_seconds: float = 0.0) -> list[psutil.Process]:
        """What the command has started and is alive."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process_id).children(recursive=True):
                self._seen[child.pid] = child
        self._seen = {child.pid: child for child in self._seen.values() if _is_alive(child)}
        latest = time.time() - older_than_seconds
        return [child for child in self._seen.values() if child.create_time() <= latest]

    async def kill(self) -> None:
        """SIGKILL to the command and to everything that it has started, and nothing is given the time to notice."""
        if self._process is None:
            return
        children = self.children()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        await self._process.wait()

    async def kill_alone(self) -> None:
        """SIGKILL to the command itself; what it has started has to find out."""
        self.children()
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    async def stop(self) -> bool:
        """SIGTERM to the command, and wait; True when it has ended in time, with everything that it has started."""
        assert self._process is not None
        self.children()
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), END_SECONDS_MAX)
            return not any(map(_is_alive, self._seen.values()))
        return False

    async def end(self) -> None:
        """SIGTERM, and SIGKILL for what is left after a while."""
        if self._process is None:
            return
        for child in self.children():
            # One that is stopped could not end.
            with contextlib.suppress(psutil.NoSuchProcess):
                child.send_signal(signal.SIGCONT)
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), END_SECONDS_MAX)
        await self.kill()


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def free_ports(number: int) -> list[int]:
    """So many ports that were free a moment ago."""
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
        return [listener.getsockname()[1] for listener in listeners]


async def until_up(process: Process, port: int) -> None:
    """Wait until the server answers. Raises RuntimeError when the process has ended instead."""
    async with asyncio.timeout(UP_SECONDS_MAX):
        while True:
            if process.has_ended:
                raise RuntimeError(f"{process.name} has ended by itself; {process.log} says why")
            if await _answers(port):
                return
            await asyncio.sleep(0.02)


async def _answers(port: int) -> bool:
    """Whether a server that can write answers. It takes connections before it does."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    try:
        writer.write(b"GET /api/v1/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return b" 200 " in await reader.readline()
    except OSError:
        return False
    finally:
        writer.close()


def check_logs(processes: Iterable[Process], expected: re.Pattern[str], verdict: Verdict) -> None:
    """What the processes have written: no locked database, and no traceback but those that are expected."""
    for process in processes:
        text = expected.sub("", process.log.read_text(errors="replace"))
        for words in ("database is locked", "Traceback (most recent call last)"):
            if words in text:
                verdict.add("broken", f"{words!r} in {process.log}", text.count(words))
