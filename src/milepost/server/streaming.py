"""Streams over HTTP: from requests of workers and of other writers to chunks that can be stored, and where readers begin."""

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any
from uuid import uuid4

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from milepost.engine.commands import AddChunks, AddOutsideChunks, AttemptWritten, Written
from milepost.errors import (
    BadRequestError,
    ConflictError,
    InvalidRequestError,
    MilepostError,
    TooLargeError,
)
from milepost.feed.chunks import watch_stream
from milepost.feed.hub import Hub
from milepost.model.jsontext import JSONTextError, read_text
from milepost.model.names import check_name
from milepost.protocol.endpoints import REQUEST_ID_HEADER
from milepost.protocol.streams import (
    CHUNK_BYTES_MAX,
    CHUNKS_MAX,
    KEY_CHARACTERS_MAX,
    ChunksRequest,
    ChunksResponse,
    InputRequest,
    InputResponse,
    PartReply,
    StreamCreated,
    StreamList,
    StreamPart,
    WriterEnd,
)
from milepost.reading.reader import Reader
from milepost.server import access, requests
from milepost.server.auth import caller_of
from milepost.store.streams import INPUT, OUTPUT, TAKEN, checksum_of

IDLE_SECONDS_MAX = 600
WRITER_CHARACTERS_MAX = 200
# Lines of a writer are stored when there are so many bytes of them, or none has come for a moment.
PORTION_BYTES = 128 * 1024
# A request with more is looked at in a thread, so that the others do not wait for it.
QUICK_BYTES = 64 * 1024
_COUNT_MAX = 2**63 - 1
_INDEX = re.compile(r"[0-9]{1,18}")


class Streaming:
    """The endpoints of streams.

    Args:
        submit: gives a command to the engine.
    """

    def __init__(self, submit: Callable[[Any], Awaitable[Any]], reader: Reader, hub: Hub) -> None:
        self._submit = submit
        self._reader = reader
        self._hub = hub

    # --- reading -----------------------------------------------------------------------------------------------

    async def list_streams(self, request: Request) -> Any:
        """The streams of a run."""
        return StreamList(await asyncio.to_thread(self._reader.streams, request.path_params["run"]))

    def read_stream(self, request: Request) -> AsyncGenerator[bytes]:
        """The chunks of a stream."""
        return self._read(request, OUTPUT)

    def read_input(self, request: Request) -> AsyncGenerator[bytes]:
        """What was sent to a run."""
        return self._read(request, INPUT)

    async def _read(self, request: Request, kind: str) -> AsyncGenerator[bytes]:
        name = _name(request, kind)
        run_id, idle_seconds = request.path_params["run"], _idle_seconds(request)
        if kind == INPUT and _asks_for_unread(request):
            start = await asyncio.to_thread(self._taken_count, run_id, request.path_params["key"])
        else:
            start = _start(request)
        frames = watch_stream(self._hub, self._reader, run_id, name, start=start, idle_seconds=idle_seconds)
        async for frame in frames:
            yield frame

    def _taken_count(self, run_id: str, key: str) -> int:
        """How much of what was sent to a run has been taken."""
        return self._reader.stream_page(run_id, TAKEN + key, start=0, bytes_max=0).next_index

    # --- writing -----------------------------------------------------------------------------------------------

    async def report_chunks(self, request: Request) -> Any:
        """What the attempts of a worker have written."""
        content = await requests.read_body(request)
        body: ChunksRequest = requests.decode(content, ChunksRequest)
        count = sum(len(part.chunks) for run in body.runs for part in run.parts)
        if count > CHUNKS_MAX:
            raise TooLargeError(
                f"the request holds {count:,} chunks, the limit is {CHUNKS_MAX:,}: send them in several requests, in their order",
                field="chunks",
                limit=CHUNKS_MAX,
            )
        runs = (
            _written(body) if len(content) <= QUICK_BYTES else await asyncio.to_thread(lambda: _written(body))
        )
        return ChunksResponse(await self._submit(AddChunks(request.path_params["worker"], runs)))

    async def send_input(self, request: Request) -> Any:
        """Something for a run: kept once, however often the request is sent."""
        body: InputRequest = requests.decode(await requests.read_body(request), InputRequest)
        # Readers get the text of what was sent (protocol, section 9).
        text = msgspec.json.encode(_chunk(bytes(body.data), "data").decode())
        await self._store(
            request,
            Written(
                request.path_params["run"],
                _name(request, INPUT),
                f"request/{_request_id(request)}",
                0,
                [text],
                checksum_before=0,
            ),
            REQUEST_ID_HEADER,
        )
        return InputResponse()

    async def create_stream(self, request: Request) -> Any:
        """Make a stream known."""
        run_id = await self._target(request)
        await self._store(request, Written(run_id, _name(request, OUTPUT), "created"), REQUEST_ID_HEADER)
        return StreamCreated()

    async def append_chunk(self, request: Request) -> Any:
        """One chunk of text."""
        run_id = await self._target(request)
        content = await requests.read_body(request)
        try:
            text = msgspec.json.encode(content.decode())
        except UnicodeDecodeError as error:
            raise BadRequestError(f"the chunk is not UTF-8: {error}", field="body") from None
        part_id = request.headers.get("x-part-id")
        writer = f"part/{_writer(part_id)}" if part_id else f"request/{_request_id(request)}"
        chunks = [_chunk(text, "the chunk")]
        await self._store(
            request,
            Written(run_id, _name(request, OUTPUT), writer, 0, chunks, checksum_before=0),
            "x-part-id" if part_id else REQUEST_ID_HEADER,
        )
        return InputResponse()

    async def stream_position(self, request: Request) -> Response:
        """How far a writer has come."""
        run_id = await self._target(request)
        number = await asyncio.to_thread(
            self._reader.stream_position, run_id, _name(request, OUTPUT), _client(request)
        )
        return Response(headers={"x-last-chunk-index": str(number - 1)})

    async def write_stream(self, request: Request) -> Any:
        """Chunks, one on each line, stored while they come. The end of the request ends the writer."""
        run_id = await self._target(request)
        name, writer = _name(request, OUTPUT), _client(request)
        first = request.headers.get("x-resume-from-chunk", "0")
        if not _INDEX.fullmatch(first):
            raise BadRequestError(
                f"x-resume-from-chunk is a number from 0, not {first!r:.60}", field="x-resume-from-chunk"
            )
        number, rest, lines, size = int(first), b"", list[bytes](), 0
        # Of a writer that goes on, what came before is not known here.
        checksum = 0 if number == 0 else None

        async def store(end: WriterEnd | None = None) -> None:
            nonlocal number, lines, size, checksum
            texts, lines, size = lines, [], 0
            part = Written(run_id, name, writer, number, texts, end, checksum_before=checksum)
            await self._store(request, part, "x-client-id")
            number += len(texts)
            if checksum is not None:
                checksum = checksum_of(texts, checksum)

        # A writer whose connection breaks comes back, and goes on behind what is stored.
        async for content in request.stream():
            *whole, rest = (rest + content).split(b"\n")
            for line in whole:
                if line.strip():
                    lines.append(_chunk(line, f"line {number + len(lines)}"))
                    size += len(line)
                    if size >= PORTION_BYTES or len(lines) >= CHUNKS_MAX:
                        await store()
            if len(rest) > CHUNK_BYTES_MAX:
                raise _too_large(len(rest), f"line {number + len(lines)}")
            if lines:
                await store()
        if rest.strip():
            lines.append(_chunk(rest, f"line {number + len(lines)}"))
        await store(WriterEnd())
        return InputResponse()

    async def _store(self, request: Request, part: Written, id_header: str) -> None:
        """Store chunks of the writer whose id is in this header."""
        attempt = access.attempt_of(caller_of(request), request)
        reply: PartReply = await self._submit(AddOutsideChunks(part, attempt))
        if reply.code is not None:
            raise _refused(reply, id_header)

    async def _target(self, request: Request) -> str:
        """The run whose stream it is: the one of the path, its parent or its root."""
        target, run_id = request.path_params["target"], request.path_params["run"]
        if target == "self":
            return run_id
        if target not in ("parent", "root"):
            raise BadRequestError(
                f"a stream is of self, parent or root, not of {target!r:.60}", field="target"
            )
        row = await asyncio.to_thread(self._reader.row, run_id)
        return (row.parent_id or row.id) if target == "parent" else row.root_id


def _written(body: ChunksRequest) -> list[AttemptWritten]:
    for index, run in enumerate(body.runs):
        if not 1 <= run.attempt <= _COUNT_MAX:
            raise InvalidRequestError(
                f"runs[{index}].attempt counts from 1, and is {run.attempt:,}", field=f"runs[{index}].attempt"
            )
    return [AttemptWritten(run.id, run.attempt, list(map(_part, run.parts))) for run in body.runs]


def _part(part: StreamPart) -> Written:
    """The part as it can be stored; one that cannot be has a fault, and does not harm the others."""
    try:
        if not 0 <= part.first <= _COUNT_MAX:
            raise InvalidRequestError(
                f"the numbers of chunks count from 0: {part.first:,} is none", field="first"
            )
        check_key(part.key)
        writer = _writer(part.writer)
        chunks = [
            _chunk(bytes(chunk), f"chunk {part.first + index}") for index, chunk in enumerate(part.chunks)
        ]
    except MilepostError as error:
        fault = PartReply(code=error.code, message=error.message)
        return Written(part.run, OUTPUT + part.key[:KEY_CHARACTERS_MAX], "", fault=fault)
    kind = TAKEN if part.taken else OUTPUT
    return Written(part.run, kind + part.key, writer, part.first, chunks, part.end)


def check_key(key: str) -> None:
    """Make sure that a text can be the key of a stream. Raises InvalidRequestError."""
    check_name(key, "the key of a stream", field="key", characters_max=KEY_CHARACTERS_MAX)


def _chunk(text: bytes, place: str) -> bytes:
    """A chunk as it is stored: JSON that every reader can read, without line feeds."""
    if len(text) > CHUNK_BYTES_MAX:
        raise _too_large(len(text), place)
    try:
        value = read_text(text.decode(), place=place)
    except (JSONTextError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"{place} is not JSON: {error}", field=place) from None
    return msgspec.json.encode(value) if b"\n" in text or b"\r" in text else text


def _too_large(size: int, place: str) -> TooLargeError:
    return TooLargeError(
        f"{place} has {size:,} bytes, the limit of a chunk is {CHUNK_BYTES_MAX:,}: send it in smaller ones",
        field=place,
        limit=CHUNK_BYTES_MAX,
    )


def _name(request: Request, kind: str) -> str:
    key = request.path_params["key"]
    check_key(key)
    return kind + key


def _writer(text: str) -> str:
    check_name(text, "the name of a writer", field="writer", characters_max=WRITER_CHARACTERS_MAX)
    return text


def _client(request: Request) -> str:
    return f"client/{_writer(request.headers.get('x-client-id') or 'default')}"


def _request_id(request: Request) -> str:
    return _writer(request.headers.get(REQUEST_ID_HEADER) or uuid4().hex)


def _start(request: Request) -> int | None:
    """The index that a reader begins at; None for what is written from now on."""
    last = request.headers.get("last-event-id")
    if last is not None:
        if not _INDEX.fullmatch(last) and last != "-1":
            raise BadRequestError(
                f"last-event-id is the index of the last chunk that the reader has, not {last!r:.60}",
                field="last-event-id",
            )
        return int(last) + 1
    if request.query_params.get("start") == "latest":
        return None
    if "start" in request.query_params:
        start = requests.whole_number(request, "start", default=0)
        if start < 0:
            raise BadRequestError(f"start is 0 or more, not {start}", field="start")
        return start
    if request.headers.get("x-trigger-stream-start") == "latest":
        return None
    return 0


def _asks_for_unread(request: Request) -> bool:
    return "last-event-id" not in request.headers and request.query_params.get("start") == "unread"


def _idle_seconds(request: Request) -> float | None:
    text = request.headers.get("timeout-seconds")
    if text is None:
        return None
    if not _INDEX.fullmatch(text) or not 1 <= int(text) <= IDLE_SECONDS_MAX:
        raise BadRequestError(
            f"timeout-seconds is a whole number from 1 to {IDLE_SECONDS_MAX}, not {text!r:.60}",
            field="timeout-seconds",
            limit=IDLE_SECONDS_MAX,
        )
    return float(text)


def _refused(reply: PartReply, id_header: str) -> MilepostError:
    if reply.code == "other_content":
        return ConflictError(
            f"the id in {id_header} was used for something else: whatever is sent anew needs an id of its own",
            field=id_header,
        )
    if reply.code == "run_finished":
        # As the official clients expect it (protocol, section 8.2).
        return BadRequestError(reply.message)
    if reply.code == "stream_too_large":
        return TooLargeError(reply.message)
    if reply.code in ("chunk_gap", "writer_ended", "writer_taken"):
        return ConflictError(reply.message)
    return InvalidRequestError(reply.message)
