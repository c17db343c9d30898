"""A run together with its streams: what is under way for one reader."""

from __future__ import annotations

import asyncio
import gc
from typing import Any, cast

from milepost.feed.run_streams import _Watch  # pyright: ignore[reportPrivateUsage]


def test_a_reader_that_vanishes_at_once_leaves_nothing_that_was_not_awaited() -> None:
    """Warnings are errors here, those of the collector too."""
    nothing = cast("Any", None)
    called: list[bool] = []

    async def main() -> None:
        watch = _Watch(nothing, nothing, nothing, {})

        async def work() -> None:
            called.append(True)

        watch.begin(work)
        watch.follow(["a", "b"])
        await watch.close()

    asyncio.run(main())
    gc.collect()
    assert called == []
