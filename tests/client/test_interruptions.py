"""A request in the middle of another one of the same thread, as a finalizer or a signal handler makes it; and in a forked child."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from client.scripted import Answer, Asked, ScriptedServer
from milepost import configure
from milepost.client.default import default_client

HANG_SECONDS = 20.0
PARTS = ("milepost/client/", "http/client.py")


def in_a_thread(work: Callable[[], None]) -> None:
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(HANG_SECONDS)
    assert not thread.is_alive(), "it hangs"
    assert failed == []


def interrupted_at_line(at: int, work: Callable[[], None], interrupt: Callable[[], None]) -> bool:
    """Do the work, and before its line number `at` something else; False when the work has fewer lines."""
    count, is_over = 0, False

    def step(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count, is_over
        if event == "call" and not any(part in frame.f_code.co_filename for part in PARTS):
            return None
        if event == "line":
            count += 1
            if count == at:
                is_over = True
                interrupt()
        return step

    def run() -> None:
        sys.settrace(step)
        try:
            work()
        finally:
            sys.settrace(None)

    in_a_thread(run)
    return is_over


@pytest.fixture
def documents(server: ScriptedServer) -> ScriptedServer:
    def answer(asked: Asked) -> Answer:
        return Answer(200, {"metadata": {"path": asked.path}, "version": 1})

    server.answer = answer
    return server


def test_a_request_in_the_middle_of_another_one_is_answered(documents: ScriptedServer) -> None:
    try:
        at = 1
        while True:
            configure(api_url=documents.url, secret_key="key")
            found: list[Any] = []
            is_over = interrupted_at_line(
                at,
                lambda found=found: found.append(default_client().get_metadata("run_outer").value),
                lambda found=found: found.append(default_client().get_metadata("run_inner").value),
            )
            if not is_over:
                break
            # The newest of those that look for the way to the server is where it begins.
            assert sorted(value["path"] for value in found) == [
                "/api/v1/runs/run_inner/metadata",
                "/api/v1/runs/run_outer/metadata",
            ]
            at += 2
        assert at > 100
    finally:
        configure()


def test_what_configure_says_counts_also_in_the_middle_of_making_a_client(documents: ScriptedServer) -> None:
    try:
        at = 1
        while True:
            configure(api_url="http://127.0.0.1:1", secret_key="old")
            if not interrupted_at_line(
                at,
                lambda: str(default_client()),
                lambda: configure(api_url=documents.url, secret_key="key"),
            ):
                break
            assert default_client().api_url == documents.url
            at += 1
        assert at > 10
    finally:
        configure()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_that_was_forked_in_the_middle_of_a_request_makes_its_own(documents: ScriptedServer) -> None:
    """Also when the other threads had taken a connection, or a lock, in that very moment."""
    try:
        configure(api_url=documents.url, secret_key="key")
        default_client().get_metadata("run_before")
        at = 1
        while True:
            is_inside, goes_on = threading.Event(), threading.Event()

            def stop(is_inside: threading.Event = is_inside, goes_on: threading.Event = goes_on) -> None:
                is_inside.set()
                assert goes_on.wait(HANG_SECONDS)

            thread = threading.Thread(
                target=interrupted_at_line,
                args=(at, lambda: str(default_client().get_metadata("run_outer")), stop),
                daemon=True,
            )
            thread.start()
            while not is_inside.wait(0.01):
                if not thread.is_alive():
                    break
            if not is_inside.is_set():
                break
            child = os.fork()
            if child == 0:
                value = default_client().get_metadata("run_child").value
                gc.collect()
                os._exit(0 if value["path"].endswith("run_child/metadata") else 1)
            goes_on.set()
            thread.join(HANG_SECONDS)
            assert ended(child), f"stopped at line {at}"
            at += 5
        assert at > 50
    finally:
        configure()


def ended(child: int) -> bool:
    """True when the child ends well in time; it does not live on."""
    waiting = threading.Timer(HANG_SECONDS, os.kill, (child, 9))
    waiting.start()
    try:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        waiting.cancel()
