"""`milepost.serve`: a worker inside of a script or a notebook, with a development server where there is none."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Generator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self
from uuid import uuid4

from milepost.cli.hosting import (
    bind,
    development_key,
    hosted,
    owned_folder,
    url_of,
    write_development_file,
)
from milepost.client import calls
from milepost.client.client import Client
from milepost.client.default import default_client, default_client_is
from milepost.errors import ConfigurationError, MilepostError, UsageError
from milepost.sdk.capture import capturing_output
from milepost.sdk.scope import live_scope
from milepost.sdk.task import Task, registered_tasks
from milepost.server.settings import load_settings
from milepost.worker.control import Order
from milepost.worker.in_process import InProcessWorker
from milepost.worker.loops import run_shared, shared_loop
from milepost.worker.settings import load_settings as load_worker_settings

START_SECONDS_MAX = 30.0
# A development server of this machine that says nothing for so long is not there.
ANSWER_SECONDS_MAX = 1.0
# Beyond the grace time: to tell the server, and to end what is left.
LEAVE_SECONDS_MAX = 10.0
LOOK_SECONDS = 0.25

_servings: list[Serving] = []


def serve(
    *tasks: Task[Any, Any],
    concurrency: int = 10,
    server: bool | None = None,
    data: str | Path = ".milepost",
    port: int = 0,
    grace_seconds: float = 10.0,
) -> Serving:
    """Run a worker for these tasks in this process, from now on and in the background; also where an event loop is running.

        serve(handle_row).wait()            # a script: works until Ctrl-C or SIGTERM

        with serve(handle_row):             # works for as long as the block runs
            handle_row.trigger(row).result()

        serving = serve(handle_row)         # a notebook: works until serving.stop(), or until the program ends

    Where it ends, runs that execute have the grace time to finish; what has not ended then is handed back to the server and done again
    at no cost to its attempts. A worker of this process that serves one of these tasks already is stopped before, so a cell of a
    notebook can be run again.

    Args:
        tasks: what the worker offers; every task that is known in this process when none is given.
        concurrency: how many runs execute at once.
        server: whether to start a development server in this process as well. When left out, one is started where neither settings
            nor a running `milepost dev` of this folder say where the server is. Inside of the block, and until `stop`, this server is
            the default one of the process.
        data: the data folder of that server, of which one server at a time is the user.
        port: its port on this machine; 0 picks a free one.
        grace_seconds: how long runs may go on at the end.
    Raises: ConfigurationError, UnauthorizedError; UsageError without tasks, and inside of a run.
    """
    if live_scope() is not None:
        raise UsageError("a run cannot serve tasks: its own worker does that")
    offered = {task.id: task for task in tasks} if tasks else registered_tasks()
    if not offered:
        raise UsageError("there is no task to serve: put @task (from milepost) above a function, or name one")
    if concurrency < 1:
        raise UsageError(f"concurrency={concurrency}: at least 1 run must be able to execute")
    for earlier in list(_servings):
        if not offered.keys().isdisjoint(earlier.tasks):
            earlier.stop()
    return Serving(
        offered,
        concurrency=concurrency,
        server=server,
        data=Path(data),
        port=port,
        grace_seconds=grace_seconds,
    )


class Serving:
    """A worker at work in this process; see `serve`. As a `with` block it is stopped at its end.

    Attributes:
        tasks: what it offers, by id.
        client: a client of the server that it works for.
    """

    def __init__(
        self,
        tasks: dict[str, Task[Any, Any]],
        *,
        concurrency: int,
        server: bool | None,
        data: Path,
        port: int,
        grace_seconds: float,
    ) -> None:
        self.tasks = tasks
        self._stopping = threading.Lock()
        self._is_stopped = False
        self._grace_seconds = grace_seconds
        self._stack = ExitStack()
        try:
            self._server = _OwnServer(data, port) if _needs_server(server) else None
            self.client = default_client() if self._server is None else self._server.client
            self._stack.enter_context(default_client_is(self.client))
            self._stack.enter_context(capturing_output())
            self._loop = _TaskLoop()
            self._worker = InProcessWorker(
                tasks,
                [task.describe() for task in tasks.values()],
                self._loop.loop,
                self._loop.thread_id,
                api_url=self.client.api_url,
                secret_key=self.client.secret_key,
                worker_id=f"worker_{uuid4().hex}",
                name=f"{socket.gethostname()} serve ({os.getpid()})",
                concurrency=concurrency,
                flush_interval_seconds=load_worker_settings().metadata_flush_interval_ms / 1000,
                grace_seconds=grace_seconds,
                tell=_tell,
            )
        except BaseException:
            self._close()
            raise
        _stop_at_exit()
        _servings.append(self)
        self._worker.link.start()
        try:
            while not self._worker.is_registered.wait(LOOK_SECONDS):
                pass
            self._check()
        except BaseException:
            self.stop()
            raise

    @property
    def url(self) -> str:
        """The address of the server."""
        return self.client.api_url

    def wait(self) -> None:
        """Work until Ctrl-C or SIGTERM, or until somebody calls `stop`; then stop. Raises what has ended the worker otherwise."""
        with _asked_to_end() as asked:
            try:
                while not (asked.is_set() or self._worker.has_left.wait(LOOK_SECONDS)):
                    pass
            finally:
                self.stop()
        self._check()

    def stop(self) -> None:
        """Claim nothing more, let runs finish within the grace time, and leave; a second call does nothing. A server that was started
        with it ends then."""
        with self._stopping:
            if self._is_stopped:
                return
            self._is_stopped = True
            # With the server ends what a waiting run waits for.
            self._worker.link.order(Order.DRAIN if self._server is None else Order.STOP)
            self._worker.has_left.wait(self._grace_seconds + LEAVE_SECONDS_MAX)
            self._close()
            _servings.remove(self)

    def _close(self) -> None:
        self._stack.close()
        if hasattr(self, "_loop"):
            self._loop.close()
        server = getattr(self, "_server", None)
        if server is not None:
            server.close()

    def _check(self) -> None:
        error = self._worker.error
        if error is not None and not self._is_stopped:
            raise getattr(error, "error", error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "stopped" if self._is_stopped else f"at {self.url}"
        return f"<serving {', '.join(self.tasks)} {state}>"


@cache
def _stop_at_exit() -> None:
    """Have all that still serve stopped when the program ends."""
    # Not by `atexit`: before that, Python shuts down what `asyncio.to_thread` needs, and with it the server could not end as it
    # should. What is registered last is called first.
    register = getattr(threading, "_register_atexit", atexit.register)
    register(_stop_all)


def _stop_all() -> None:
    for serving in list(_servings):
        serving.stop()


def _needs_server(wanted: bool | None) -> bool:
    if wanted is not None:
        return wanted
    try:
        client = default_client()
    except ConfigurationError:
        return True
    from milepost.client.settings import find_address

    try:
        is_development = find_address().file is not None
    except ConfigurationError:
        # `configure` has said it.
        is_development = False
    if not is_development:
        return False
    try:
        client.connection.send(calls.health(), until=time.monotonic() + ANSWER_SECONDS_MAX)
    except (MilepostError, TimeoutError):
        # The file of a server that has ended.
        return True
    return False


class _OwnServer:
    """A development server on a thread of its own."""

    def __init__(self, data: Path, port: int) -> None:
        self._data = data
        self._port = port
        self._up: Future[str] = Future()
        self._thread = threading.Thread(target=self._live, name="milepost-server", daemon=True)
        self._thread.start()
        url = self._up.result(START_SECONDS_MAX)
        self.client = Client(url, self._key)
        _tell(f"a development server is at {url}; `milepost dashboard` prints a link that signs a browser in")

    def _live(self) -> None:
        try:
            asyncio.run(self._run())
        except BaseException as error:
            if self._up.done():
                raise
            self._up.set_exception(error)

    async def _run(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        with bind("127.0.0.1", self._port) as listener, owned_folder(self._data):
            settings = load_settings(data_folder=self._data, database_url="")
            self._key = settings.secret_key or development_key(self._data)
            settings = settings.model_copy(update={"secret_key": self._key})
            async with hosted(settings, listener, owns_process=False):
                url = url_of(listener)
                write_development_file(self._data, url=url, secret_key=self._key)
                self._up.set_result(url)
                await self._end.wait()

    def close(self) -> None:
        """End it; what was stored stays."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(LEAVE_SECONDS_MAX)


class _TaskLoop:
    """The event loop of `async def` tasks, on a thread of its own."""

    def __init__(self) -> None:
        self.loop = shared_loop()
        self._has_ended = False
        self._thread = threading.Thread(target=self._live, name="milepost-tasks", daemon=True)
        self._thread.start()
        assert self._thread.ident is not None
        self.thread_id = self._thread.ident

    def _live(self) -> None:
        asyncio.set_event_loop(self.loop)
        run_shared(
            self.loop, lambda: self._has_ended, lambda error: _tell(f"a task has left behind: {error!r}")
        )
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        with contextlib.suppress(BaseException):
            if tasks:
                self.loop.run_until_complete(asyncio.wait(tasks, timeout=1.0))
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()

    def close(self) -> None:
        """End it with what still runs on it."""
        self._has_ended = True
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(LEAVE_SECONDS_MAX)


@contextmanager
def _asked_to_end() -> Generator[threading.Event]:
    """Set by Ctrl-C and SIGTERM, where signals come to this thread; a second one raises KeyboardInterrupt."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = [(number, signal.signal(number, ask)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        yield asked
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _tell(message: str) -> None:
    print(f"milepost: {message}", file=sys.stderr)
