"""As `together`, for coroutines: those of one event loop share requests."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from weakref import WeakKeyDictionary

from milepost.client.async_transport import while_under_way
from milepost.client.retries import Patience
from milepost.client.together import LINE_SECONDS, SHARED_BYTES_MAX, TRIGGERS_MAX, Sharing, not_answered
from milepost.client.transport import Reply, Request

Exchange = Callable[[str, str, bytes | None, Mapping[str, str], Patience], Awaitable[Reply]]


class _Waiting:
    """A trigger in line.

    Attributes:
        outcome: its answer; None when it has to ask by itself. Not done while it waits for its turn.
        leads: it is its turn, and what waits is for it to send.
    """

    def __init__(self, task_id: str, request: Request) -> None:
        self.trigger = task_id, request
        self.size = len(request.body or b"")
        self.outcome: asyncio.Future[Reply | None] = asyncio.get_running_loop().create_future()
        self.leads = False

    def settle(self, reply: Reply | None) -> None:
        """Let it go on, unless it has been given up."""
        if not self.outcome.done():
            self.outcome.set_result(reply)


class _Line:
    """The triggers of one event loop."""

    def __init__(self, exchange: Exchange, sharing: Sharing) -> None:
        self._exchange = exchange
        self._sharing = sharing
        self._waiting: deque[_Waiting] = deque()
        # Requests under way, and those that are about to be sent.
        self._under_way = 0
        self._in_company = False
        self._timer: asyncio.TimerHandle | None = None

    async def exchange(self, task_id: str, request: Request) -> Reply:
        """As `Together.exchange`."""
        own = _Waiting(task_id, request)
        if self._under_way == 0:
            self._under_way += 1
            return await self._lead(own)
        self._waiting.append(own)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LINE_SECONDS, self._go_on)
        try:
            async with while_under_way(request.patience):
                reply = await own.outcome
        except BaseException as error:
            # Whatever has interrupted it: if it is its turn, that is the next one's now.
            if own.leads:
                self._end()
            if isinstance(error, TimeoutError):
                raise not_answered() from None
            raise
        if own.leads:
            return await self._lead(own)
        return reply or await self._exchange(*request)

    async def _lead(self, own: _Waiting) -> Reply:
        _, request = own.trigger
        followers: list[_Waiting] = []
        replies: list[Reply | None] = []
        try:
            if self._in_company:
                # Those whom the last request has answered may be about to come again.
                await asyncio.sleep(0)
            followers = self._gather(own.size)
            self._in_company = bool(followers)
            if not followers:
                return await self._exchange(*request)
            together = [own, *followers]
            shared = self._sharing.shared_request([each.trigger for each in together], request.patience)
            replies = self._sharing.replies(await self._exchange(*shared), len(together))
        finally:
            for follower, reply in zip(followers, replies[1:] or [None] * len(followers), strict=True):
                follower.settle(reply)
            self._end()
        return replies[0] or await self._exchange(*request)

    def _gather(self, size: int) -> list[_Waiting]:
        """Take from the line what one request can carry."""
        found: list[_Waiting] = []
        while self._waiting and len(found) < TRIGGERS_MAX - 1 and size < SHARED_BYTES_MAX:
            follower = self._waiting.popleft()
            if not follower.outcome.done():
                found.append(follower)
                size += follower.size
        return found

    def _end(self) -> None:
        """A request is no longer under way."""
        self._under_way -= 1
        self._go_on()

    def _go_on(self) -> None:
        """Let the first in line go next, with all who stand behind it: nothing is under way, or it has waited for long enough."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting:
            first = self._waiting.popleft()
            if not first.outcome.done():
                first.leads = True
                self._under_way += 1
                first.outcome.set_result(None)
                break
        if self._waiting:
            self._timer = asyncio.get_running_loop().call_later(LINE_SECONDS, self._go_on)


class AsyncTogether:
    """The triggers of the event loops of one client; see `Together`."""

    def __init__(self, exchange: Exchange, sharing: Sharing) -> None:
        self._exchange = exchange
        self._sharing = sharing
        self._lines: WeakKeyDictionary[asyncio.AbstractEventLoop, _Line] = WeakKeyDictionary()

    async def exchange(self, task_id: str, request: Request) -> Reply:
        """Send a trigger of this task, by itself or in company, and wait for its answer. Raises as the transport's `exchange`."""
        if not self._sharing.may_share(request):
            return await self._exchange(*request)
        loop = asyncio.get_running_loop()
        line = self._lines.get(loop)
        if line is None:
            line = self._lines[loop] = _Line(self._exchange, self._sharing)
        return await line.exchange(task_id, request)
