"""Waiting in a run for something that its own code looks for: the run gives its slot back meanwhile, and is WAITING."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from milepost.sdk.scope import RunScope

ResultT = TypeVar("ResultT")


def wait_aside(scope: RunScope | None, look: Callable[[], ResultT]) -> ResultT:
    """What `look` comes to. Outside of runs that is all that this does."""
    if scope is None:
        return look()
    attempt = scope.attempt
    if attempt is not None:
        attempt.run_hooks_blocking("on_wait")
    back = scope.link.step_aside(scope)
    try:
        found = look()
    finally:
        back(False).result()
    if attempt is not None:
        attempt.run_hooks_blocking("on_resume")
    return found


async def await_aside(scope: RunScope | None, look: Callable[[], Awaitable[ResultT]]) -> ResultT:
    """As `wait_aside`, without blocking. Who is cancelled goes on at once, with a slot or without."""
    if scope is None:
        return await look()
    attempt = scope.attempt
    if attempt is not None:
        await attempt.run_hooks("on_wait")
    back = scope.link.step_aside(scope)
    try:
        found = await look()
    except Exception:
        await asyncio.wrap_future(back(False))
        raise
    except BaseException:
        back(True)
        raise
    await asyncio.wrap_future(back(False))
    if attempt is not None:
        await attempt.run_hooks("on_resume")
    return found
