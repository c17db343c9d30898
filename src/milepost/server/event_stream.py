"""The answer that is an event stream: its frames go straight to the connection."""

from collections.abc import AsyncGenerator, Mapping

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

# Where a request carries how its connection is written to, without the layers between that only look at the head of an answer.
SEND = "milepost.send"


class EventStream(StreamingResponse):
    """Sends each frame as it comes, until there are no more or the reader has gone."""

    def __init__(self, frames: AsyncGenerator[bytes], headers: Mapping[str, str]) -> None:
        super().__init__(frames, headers=headers, media_type="text/event-stream")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        self._send_frame: Send = scope.get(SEND, send)
        await super().__call__(scope, receive, send)

    async def stream_response(self, send: Send) -> None:
        """Send all of it."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        send_frame = self._send_frame
        async for frame in self.body_iterator:
            await send_frame({"type": "http.response.body", "body": frame, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
