"""Claims of an executor: they end when the link says so."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from milepost.worker.claiming import Claiming

PATIENCE_SECONDS = 60.0


@pytest.mark.parametrize("turns", range(6))
def test_claims_end_also_when_the_inbox_is_heard_in_that_moment(turns: int) -> None:
    """`asyncio.wait_for` lost the cancellation then, and a worker that was told to end claimed on."""

    async def end_while_the_inbox_opens() -> None:
        full = SimpleNamespace(room=0, seconds_in_line=lambda now: 0.0)
        claiming = Claiming(
            cast(Any, None),
            cast(Any, full),
            cast(Any, None),
            worker_id="worker_1",
            lease=cast(Any, None),
            changed=lambda: None,
        )
        is_heard = asyncio.Event()
        claims = asyncio.ensure_future(claiming.run(is_heard))
        for _ in range(3):
            await asyncio.sleep(0)
        is_heard.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        claims.cancel()
        done, _ = await asyncio.wait({claims}, timeout=PATIENCE_SECONDS)
        claims.cancel()
        assert done, "it claims on"
        assert claims.cancelled()

    asyncio.run(end_while_the_inbox_opens())
