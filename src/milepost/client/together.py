"""Triggers that come at once in one request: while one is under way, those that come wait, and travel together with the next.

A trigger that is alone goes as it is, and at once. In company each is answered as if it had come by itself: what refuses one does not
touch the others. What goes wrong with the request that they share is nobody's: each then sends its own trigger. The server knows it by
its request id, so it is triggered once, whatever became of the shared request.

Nobody waits in line for longer than a few milliseconds: where requests take long, several of them are under way.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeAlias

import msgspec

from milepost.client.messages import AnswerHeaders
from milepost.client.retries import LOOK_SECONDS, Patience
from milepost.client.transport import ANSWER_SECONDS_MAX, Reply, Request
from milepost.errors import UnavailableError
from milepost.protocol.endpoints import ATTEMPT_HEADER, REQUEST_ID_HEADER, TRIGGER_SEVERAL
from milepost.protocol.tokens import TOKEN_HEADER, looks_like_token
from milepost.protocol.triggering import SeparateTrigger, TriggersRequest, TriggersResponse

LINE_SECONDS = 0.01
TRIGGERS_MAX = 100
# What is larger takes its own time, and holds up nobody.
BODY_BYTES_MAX = 64 * 1024
SHARED_BYTES_MAX = 1024 * 1024

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(TriggersResponse).decode

_Decider: TypeAlias = Literal["itself", "leader", "predecessor"]


class Sharing:
    """Which triggers of one client may share a request, what they send then, and how the answer is shared out. Without I/O.

    Args:
        credentials: the secret key; the bearer of a public token has to send each trigger by itself.
    """

    def __init__(self, credentials: str) -> None:
        self._is_refused = looks_like_token(credentials)

    def may_share(self, request: Request) -> bool:
        """Whether this trigger may travel with others."""
        return not self._is_refused and len(request.body or b"") <= BODY_BYTES_MAX

    def shared_request(self, triggers: Sequence[tuple[str, Request]], patience: Patience) -> Request:
        """The request that these share, each the id of a task and what it would send by itself."""
        separate = [
            SeparateTrigger(
                task=task_id,
                request=msgspec.Raw(request.body or b""),
                request_id=request.headers.get(REQUEST_ID_HEADER),
                attempt=request.headers.get(ATTEMPT_HEADER),
            )
            for task_id, request in triggers
        ]
        headers = {"content-type": "application/json"}
        return Request(
            TRIGGER_SEVERAL.method,
            TRIGGER_SEVERAL.path,
            _encode(TriggersRequest(separate)),
            headers,
            patience,
        )

    def replies(self, reply: Reply, count: int) -> list[Reply | None]:
        """What each is answered; None for those that have to ask by themselves."""
        # A server of an earlier version knows no such request, and what stands before a server may let none pass.
        self._is_refused = reply.status in (403, 404, 405)
        try:
            answers = _decode(reply.content).answers if reply.status == TRIGGER_SEVERAL.status else []
        except msgspec.MsgspecError:
            answers = []
        if len(answers) != count:
            return [None] * count
        return [
            Reply(
                answer.status,
                bytes(answer.body),
                AnswerHeaders({} if answer.token is None else {TOKEN_HEADER: answer.token}),
            )
            for answer in answers
        ]


def not_answered() -> UnavailableError:
    """The error for a trigger whose attempt has ended before its answer was there."""
    return UnavailableError("no answer in time")


class _Waiting:
    """A trigger in line, and the thread that waits with it.

    Attributes:
        reply: its answer, once it has one.
    """

    def __init__(self, task_id: str, request: Request) -> None:
        self.trigger = task_id, request
        self.size = len(request.body or b"")
        self.reply: Reply | None = None
        self._decided: dict[str, _Decider] = {}
        self._bell = threading.Lock()
        self._bell.acquire()

    def decide(self, decider: _Decider) -> _Decider:
        """Decide what becomes of it; who has decided: only the first one does."""
        return self._decided.setdefault("by", decider)

    def ring(self) -> None:
        """Wake its thread."""
        self._bell.release()

    def wait(self, seconds: float) -> bool:
        """Wait for the bell, but not longer than this; whether it has rung."""
        return self._bell.acquire(timeout=seconds)


class Together:
    """The triggers of the threads of one client. Thread-safe, and safe to have across a fork.

    There is no lock for which a signal handler or a finalizer, which triggers in the middle of this, could wait for ever: each step is
    atomic, and nothing is waited for without an end.

    Args:
        exchange: sends a request, and waits for its answer.
        sharing: which of them share a request.
    """

    def __init__(
        self,
        exchange: Callable[[str, str, bytes | None, Mapping[str, str], Patience], Reply],
        sharing: Sharing,
    ) -> None:
        self._exchange = exchange
        self._sharing = sharing
        self._open()

    def _open(self) -> None:
        self._process_id = os.getpid()
        self._line: deque[_Waiting] = deque()
        # Who takes it out sends what waits, and puts it back. Whoever has gone out of turn puts one in as well, and of more than one
        # nothing is kept: so it is never missing for good, where a thread was ended in an unlucky moment.
        self._turn = deque([True], 1)
        # Whether the last request was shared.
        self._in_company = False

    def exchange(self, task_id: str, request: Request) -> Reply:
        """Send a trigger of this task, by itself or in company, and wait for its answer. Raises as the transport's `exchange`."""
        if self._process_id != os.getpid():
            # The threads of the parent process are not here.
            self._open()
        if not self._sharing.may_share(request):
            return self._exchange(*request)
        own = _Waiting(task_id, request)
        if self._takes_turn():
            if self._in_company:
                # Those whom the last request has answered may be about to come again.
                time.sleep(0)
            return self._lead(own)
        self._line.append(own)
        if self._takes_turn():
            # Whoever has had it may have looked before there was somebody in line.
            self._pass_turn()
        return self._follow(own)

    def _takes_turn(self) -> bool:
        try:
            return self._turn.pop()
        except IndexError:
            return False

    def _pass_turn(self) -> None:
        """Let the first in line go next, with all who stand behind it."""
        self._turn.append(True)
        while self._line and self._takes_turn():
            try:
                first = self._line.popleft()
            except IndexError:
                first = None
            if first is not None and first.decide("predecessor") == "predecessor":
                first.ring()
                return
            self._turn.append(True)

    def _follow(self, own: _Waiting) -> Reply:
        """Wait in line, and for the answer."""
        try:
            has_rung = own.wait(LINE_SECONDS)
        except BaseException:
            # Whatever has interrupted it: if it is its turn, that is the next one's now.
            if own.decide("itself") == "predecessor":
                self._pass_turn()
            raise
        if own.decide("itself") != "leader":
            # It is its turn, or it has waited for long enough.
            return self._lead(own)
        _, request = own.trigger
        until = time.monotonic() + ANSWER_SECONDS_MAX
        while not has_rung and time.monotonic() < until:
            request.patience.heed()
            if request.patience.has_ended:
                raise not_answered()
            has_rung = own.wait(request.patience.seconds_of(LOOK_SECONDS))
        return own.reply or self._exchange(*request)

    def _lead(self, own: _Waiting) -> Reply:
        """Send what waits in one request, or this trigger alone."""
        _, request = own.trigger
        followers: list[_Waiting] = []
        replies: list[Reply | None] = []
        try:
            self._gather(followers, own.size)
            self._in_company = bool(followers)
            if not followers:
                return self._exchange(*request)
            together = [own, *followers]
            shared = self._sharing.shared_request([each.trigger for each in together], request.patience)
            replies = self._sharing.replies(self._exchange(*shared), len(together))
        finally:
            self._pass_turn()
            for follower, reply in zip(followers, replies[1:] or [None] * len(followers), strict=True):
                follower.reply = reply
                follower.ring()
        return replies[0] or self._exchange(*request)

    def _gather(self, followers: list[_Waiting], size: int) -> None:
        """Take from the line what one request can carry."""
        while self._line and len(followers) < TRIGGERS_MAX - 1 and size < SHARED_BYTES_MAX:
            try:
                follower = self._line.popleft()
            except IndexError:
                return
            # First there, then decided: whatever interrupts this, a follower that waits for its leader is rung.
            followers.append(follower)
            if follower.decide("leader") == "leader":
                size += follower.size
            else:
                followers.pop()
