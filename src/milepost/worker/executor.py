"""An executor: a process in which user code runs.

`async def` tasks run on the event loop of the main thread, `def` tasks in threads; the link, on a thread of its own, does all the
talking to the server. The supervisor starts this process and may order it to end (`control`).
"""

import argparse
import asyncio
import contextlib
import contextvars
import json
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from milepost.client.settings import load_settings
from milepost.model.run import Outcome, RunError
from milepost.protocol.work import ClaimedRun, WorkerTask
from milepost.sdk.attempt import run_attempt
from milepost.sdk.buffer import Buffer
from milepost.sdk.scope import RunScope
from milepost.sdk.task import Task, registered_tasks
from milepost.worker import control, loader
from milepost.worker.channel import Refused
from milepost.worker.control import LoadFailed, Message, Notice, Order, Ready, Rejected
from milepost.worker.link import LinkOptions, WorkerLink
from milepost.worker.loader import TaskLoadError
from milepost.worker.outbox import HeldRun
from milepost.worker.threads import ThreadPool

# How long the main thread may take to end once the link has said goodbye; user code may block it for good.
END_SECONDS_MAX = 2.0


def main(arguments: Sequence[str]) -> int:
    """Run one executor until it is ordered to end; the exit code is one of `control.EXIT_*`."""
    options = _parse(arguments)
    supervisor = _Supervisor(options.messages)
    try:
        tasks = _load(options.sources)
    except TaskLoadError as error:
        files = [*options.sources, *map(str, loader.user_files(()))]
        supervisor.tell(LoadFailed(str(error), files))
        return control.EXIT_LOAD_FAILED
    executor = Executor(options, tasks, supervisor)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(executor.run())


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """uvloop where there is one."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop
