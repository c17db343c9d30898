"""From a request to checked values: the body within its limits, decoded; query parameters with clear errors.

Nothing that was sent is passed over without a word: unknown fields and parameters are refused by name.
"""

import asyncio
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import cache
from types import UnionType
from typing import Any, cast, get_args, get_origin
from urllib.parse import unquote_to_bytes

import msgspec
from msgspec.structs import FieldInfo
from starlette.requests import Request

from milepost.errors import (
    BadRequestError,
    InvalidRequestError,
    MetadataError,
    MilepostError,
    RequestTimeoutError,
    TooLargeError,
    UnsupportedMediaTypeError,
)
from milepost.model import jsonvalue
from milepost.model.filters import MetadataFilter, parse_filter
from milepost.model.jsontext import find_fault
from milepost.model.run import RunStatus
from milepost.model.scopes import WHOLE_VIEW, View
from milepost.model.shown_keys import shown_filter
from milepost.model.waitpoints import WaitpointStatus
from milepost.protocol.endpoints import FILTERS_NOT_SUPPORTED, Endpoint
from milepost.protocol.runs import LOG_LEVELS
from milepost.protocol.triggering import BODY_BYTES_MAX
from milepost.reading.logs import LogFilter
from milepost.store.runs import RunFilter
from milepost.store.waitpoints import WaitpointFilter, user_key

PAGE_SIZE_MAX = 100
# Stands for an encoded slash while a path is routed; a path that holds it is refused before.
SLASH = "\0"
PAGE_SIZE = 25
# Proxies give up on a request that is silent for longer.
WAIT_SECONDS_MAX = 60
# Of the text that is sought in logs.
SEARCH_CHARACTERS_MAX = 1000
# A body may take this long, and so much longer as its bytes take at the slowest speed that is waited for.
BODY_SECONDS = 30.0
BODY_BYTES_PER_SECOND_MIN = 10_000
# Beyond this the place of a fault is not looked for.
EXPLAINED_BYTES_MAX = 4 * 1024 * 1024
# Whoever sends a body says what it is in; nothing is decompressed here, so that no small body becomes a large one.
_CHARSETS = (b"utf-8", b"utf8", b"us-ascii", b"ascii")
_CHARSET = re.compile(rb"charset\s*=\s*\"?([^\s;\"]*)", re.IGNORECASE)
_WHOLE = re.compile(r"-?[0-9]{1,20}")
_PERIOD = re.compile(r"([0-9]+)([smhdw])")
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_PLACE = re.compile(r"^(.*) - at `\$(?:\.)?(.*)`$", re.DOTALL)
_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}


async def read_body(request: Request) -> bytes:
    """The whole body.

    Raises: TooLargeError beyond the limit, before the rest is read; RequestTimeoutError when it comes too slowly;
        UnsupportedMediaTypeError when it is compressed or in another charset than UTF-8.
    """
    length = _declared_length(request)
    if length is not None and length > BODY_BYTES_MAX:
        raise _too_large()
    chunks: list[bytes] = []
    size = 0
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        async with asyncio.timeout_at(began + BODY_SECONDS) as limit:
            async for chunk in request.stream():
                size += len(chunk)
                if size > BODY_BYTES_MAX:
                    raise _too_large()
                chunks.append(chunk)
                if size != length:
                    # More comes. Most bodies come in one piece, and need no other time.
                    limit.reschedule(began + BODY_SECONDS + size / BODY_BYTES_PER_SECOND_MIN)
    except TimeoutError:
        raise RequestTimeoutError(
            f"the body came too slowly: {size:,} bytes within {loop.time() - began:.0f} s"
        ) from None
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _declared_length(request: Request) -> int | None:
    """How long the body is to be, by its head; None where that does not say. Raises UnsupportedMediaTypeError."""
    length = coding = kind = b""
    # In one go: the library looks through all of them for each.
    for name, value in request.scope["headers"]:
        if name == b"content-length":
            length = value
        elif name == b"content-encoding":
            coding = value
        elif name == b"content-type":
            kind = value
    if coding.strip().lower() not in (b"identity", b""):
        raise UnsupportedMediaTypeError(
            f"the body has the content-encoding {_shown(coding)}; send it as it is, uncompressed",
            field="content-encoding",
        )
    if kind != b"application/json":
        found = _CHARSET.search(kind)
        if found is not None and found[1].lower() not in _CHARSETS:
            raise UnsupportedMediaTypeError(
                f"the body is in the charset {_shown(found[1])}; JSON travels as UTF-8", field="content-type"
            )
    return int(length) if length.isdigit() else None


def _shown(value: bytes) -> str:
    return f"{value.decode('latin-1').strip().lower()!r:.60}"


def decode(body: bytes, kind: Any, *, place: str = "") -> Any:
    """The body as the given shape.

    Args:
        place: where in the request the body is, for the error: `items[3]` for a line.
    Raises: BadRequestError: not JSON, or which field has the wrong type; InvalidRequestError: a field that is not known, or not
        supported.
    """
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.json.Decoder(kind)
    if not body:
        raise BadRequestError("the request has no body; a JSON object is expected")
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        message = str(error)
        if "out of range" in message and len(body) <= EXPLAINED_BYTES_MAX:
            fault = find_fault(body, place=place) or message
            raise InvalidRequestError(fault, field=fault.partition(": ")[0]) from None
        if "unknown field" not in message:
            raise _misfit(error, place) from None
    except RecursionError:
        raise _too_deep(place) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _not_json(error, place) from None
    # Official clients may send fields that ask for nothing; whoever does pays for a second look.
    try:
        return msgspec.convert(_without_neutral(msgspec.json.decode(body), kind, place), kind)
    except RecursionError:
        raise _too_deep(place) from None
    except msgspec.ValidationError as error:
        raise _misfit(error, place) from None
    except msgspec.DecodeError as error:
        raise _not_json(error, place) from None


def _too_deep(place: str) -> BadRequestError:
    return BadRequestError(f"{place or 'the body'} is nested too deeply", field=place or None)


def _not_json(error: Exception, place: str) -> BadRequestError:
    return BadRequestError(f"{place or 'the body'} is not JSON: {error}", field=place or None)


def _misfit(error: msgspec.ValidationError, where: str) -> MilepostError:
    message, inner = str(error), ""
    if found := _PLACE.match(message):
        message, inner = found.groups()
    place = _joined(where, inner)
    return BadRequestError(f"{message}{f' at {place}' if place else ''}", field=place or None)


def _joined(where: str, inner: str) -> str:
    return f"{where}.{inner}" if where and inner and not inner.startswith("[") else where + inner


def _without_neutral(value: Any, kind: Any, where: str) -> Any:
    """The value without fields that are not supported and ask for nothing here.

    Raises: InvalidRequestError for one that asks for something, and for one that nobody knows.
    """
    # `QueueOption | None`: the one part of it that is a message, or a list of messages.
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    if isinstance(value, list):
        [item] = next((get_args(kind) for kind in kinds if get_origin(kind) is list), (Any,))
        items = enumerate(cast("list[Any]", value))
        return [_without_neutral(each, item, f"{where}[{index}]") for index, each in items]
    kind = next(filter(_fields_of, kinds), Any)
    fields = _fields_of(kind)
    if not isinstance(value, dict) or not fields:
        return cast("Any", value)
    kept: dict[str, Any] = {}
    not_supported: Mapping[str, tuple[Any, ...]] = getattr(kind, "not_supported", {})
    for name, member in cast("dict[str, Any]", value).items():
        place = _joined(where, name)
        field = fields.get(name)
        if field is not None:
            kept[name] = _without_neutral(member, field.type, place)
        elif name in not_supported:
            if not any(
                type(member) is type(neutral) and member == neutral for neutral in not_supported[name]
            ):
                raise InvalidRequestError(
                    f"{place} is not supported by this version of Milepost, and it is not passed over: leave it out",
                    field=place,
                )
        elif kind.__struct_config__.forbid_unknown_fields:
            raise InvalidRequestError(
                f"{place:.200}: there is no such field{_advice(name, fields)}", field=f"{place:.200}"
            )
    return kept


@cache
def _fields_of(kind: Any) -> dict[str, FieldInfo]:
    """The fields of a message shape by their names on the wire; empty for what is no message."""
    if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        return {}
    return {field.encode_name: field for field in msgspec.structs.fields(kind)}


def _advice(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    if near := get_close_matches(name, names, 1, 0.6):
        return f"; did you mean {near[0]!r}?"
    return f"; there are {', '.join(names)}" if names else ""


def _too_large() -> TooLargeError:
    return TooLargeError(f"the request body is larger than {BODY_BYTES_MAX:,} bytes", limit=BODY_BYTES_MAX)


def check_query(request: Request, endpoint: Endpoint) -> None:
    """Make sure that the query holds what the endpoint knows, each once, as UTF-8.

    Raises: BadRequestError for what cannot be read or stands twice, InvalidRequestError for a parameter that is not known, or not
        supported.
    """
    query: bytes = request.scope["query_string"]
    if not query:
        return
    known = _parameters_of(endpoint)
    seen: set[str] = set()
    for pair in query.split(b"&"):
        if not pair:
            continue
        raw_name, _, raw_value = pair.replace(b"+", b" ").partition(b"=")
        name, value = _query_text(raw_name), _query_text(raw_value)
        if name in seen:
            raise BadRequestError(f"{name:.200} is given twice in the query", field=f"{name:.200}")
        seen.add(name)
        if name in known or endpoint.open_query:
            if not value and name.startswith("filter["):
                raise BadRequestError(f"{name} is empty: leave it out, or say what to look for", field=name)
            continue
        if name in FILTERS_NOT_SUPPORTED and "filter[taskIdentifier]" in known:
            if value not in FILTERS_NOT_SUPPORTED[name]:
                raise InvalidRequestError(
                    f"{name} is not supported by this version of Milepost, and it is not passed over: leave it out",
                    field=name,
                )
            continue
        takes = "" if known else f"; {endpoint.method} {endpoint.path} takes none"
        raise InvalidRequestError(
            f"{name:.200}: there is no such query parameter{takes or _advice(name, known)}",
            field=f"{name:.200}",
        )


@cache
def _parameters_of(endpoint: Endpoint) -> frozenset[str]:
    return frozenset(parameter.name for parameter in endpoint.parameters)


def _query_text(raw: bytes) -> str:
    try:
        text = unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        raise BadRequestError("the query is not UTF-8", field="query") from None
    if "\0" in text:
        raise BadRequestError("the query has a NUL character", field="query")
    return text


def page_size(request: Request, name: str = "page[size]", *, most: int = PAGE_SIZE_MAX) -> int:
    """How many rows are asked for, 1 to `most`."""
    return check_page_size(whole_number(request, name, default=PAGE_SIZE), name, most=most)


def check_page_size(size: int, name: str, *, most: int = PAGE_SIZE_MAX) -> int:
    """The same number. Raises BadRequestError that names the parameter when it is not from 1 to `most`."""
    if not 1 <= size <= most:
        raise BadRequestError(f"{name} must be from 1 to {most:,}, not {size}", field=name, limit=most)
    return size


def whole_number(request: Request, name: str, *, default: int) -> int:
    """A query parameter that is a whole number."""
    text = request.query_params.get(name)
    if text is None:
        return default
    if _WHOLE.fullmatch(text) is None:
        raise BadRequestError(f"{name} must be a whole number, not {text[:40]!r}", field=name)
    number = int(text)
    if abs(number) >= 2**63:
        raise BadRequestError(f"{name} is out of range", field=name)
    return number


def wait_seconds(request: Request) -> int:
    """For how long an answer may be waited for: the query parameter `wait`."""
    seconds = whole_number(request, "wait", default=0)
    if not 0 <= seconds <= WAIT_SECONDS_MAX:
        raise BadRequestError(f"wait must be 0 to {WAIT_SECONDS_MAX} seconds, not {seconds}", field="wait")
    return seconds


def run_filter(request: Request, now: int, view: View = WHOLE_VIEW) -> RunFilter:
    """The filters of a list of runs (protocol, section 5.3), within what the caller is shown. `now` is microseconds since 1970."""
    metadata = _metadata_filter(request, "filter[metadata]")
    created_from = _milliseconds(request, "filter[createdAt][from]")
    if period := request.query_params.get("filter[createdAt][period]"):
        created_from = max(0, now - period_seconds(period) * 1_000_000)
    return RunFilter(
        statuses=tuple(_status(name) for name in _names(request, "filter[status]")),
        tasks=_names(request, "filter[taskIdentifier]"),
        tags=_names(request, "filter[tag]"),
        batch_id=request.query_params.get("filter[batch]"),
        schedule_id=request.query_params.get("filter[schedule]"),
        queues=_names(request, "filter[queue]"),
        parent_id=request.query_params.get("filter[parent]"),
        root_id=request.query_params.get("filter[root]"),
        top_level=truth(request, "filter[topLevel]"),
        created_from=created_from,
        created_to=_milliseconds(request, "filter[createdAt][to]"),
        metadata=None if metadata is None else shown_filter(metadata, view.keys),
        shown=view.runs,
    )


def token_filter(request: Request, now: int) -> WaitpointFilter:
    """The filters of a list of wait tokens (protocol, section 10). `now` is microseconds since 1970."""
    created_from = _milliseconds(request, "filter[createdAt][from]")
    if period := request.query_params.get("filter[createdAt][period]"):
        created_from = max(0, now - period_seconds(period) * 1_000_000)
    statuses = _names(request, "filter[status]")
    for status in statuses:
        if status not in WaitpointStatus.__members__:
            known = ", ".join(WaitpointStatus)
            raise BadRequestError(
                f"{status!r:.60} is no status of a token; use {known}", field="filter[status]"
            )
    key = request.query_params.get("filter[idempotencyKey]")
    return WaitpointFilter(
        statuses=statuses,
        tags=_names(request, "filter[tags]"),
        key=None if key is None else user_key(key),
        created_from=created_from,
        created_to=_milliseconds(request, "filter[createdAt][to]"),
    )


def log_filter(request: Request) -> LogFilter:
    """Which lines of a log are asked for."""
    attempt = whole_number(request, "attempt", default=0)
    if attempt < 1 and "attempt" in request.query_params:
        raise BadRequestError("attempt is the number of an attempt, from 1", field="attempt")
    level = request.query_params.get("level")
    if level is not None and level not in LOG_LEVELS:
        known = ", ".join(LOG_LEVELS)
        raise BadRequestError(f"{level!r:.60} is no level of a log; use {known}", field="level")
    text = request.query_params.get("search", "")
    if len(text) > SEARCH_CHARACTERS_MAX:
        raise BadRequestError(
            f"search has more than {SEARCH_CHARACTERS_MAX:,} characters",
            field="search",
            limit=SEARCH_CHARACTERS_MAX,
        )
    levels = None if level is None else frozenset(LOG_LEVELS[LOG_LEVELS.index(level) :])
    return LogFilter(attempt=attempt or None, levels=levels, text=text)


def _metadata_filter(request: Request, name: str) -> MetadataFilter | None:
    text = request.query_params.get(name)
    if text is None:
        return None
    try:
        filter = jsonvalue.decode(text)
    except RecursionError:
        raise BadRequestError(f"{name} is nested too deeply", field=name) from None
    except ValueError as error:
        raise BadRequestError(f"{name} is not JSON: {error}", field=name) from None
    if not isinstance(filter, dict):
        kind = jsonvalue.describe(filter)
        raise BadRequestError(f"{name} is a JSON object of keys and expected values, not {kind}", field=name)
    try:
        return parse_filter(filter) if filter else None
    except InvalidRequestError as error:
        error.field = name
        raise
    except MetadataError as error:
        raise InvalidRequestError(f"{name}: {error}", field=name) from None


def _names(request: Request, name: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part for part in request.query_params.get(name, "").split(",") if part))


def _status(name: str) -> RunStatus:
    try:
        return RunStatus(name)
    except ValueError:
        known = ", ".join(RunStatus)
        raise BadRequestError(f"{name!r:.60} is no status; use {known}", field="filter[status]") from None


def truth(request: Request, name: str) -> bool | None:
    """A query parameter that is true or false; None where it is not given."""
    text = request.query_params.get(name)
    if text not in (None, "true", "false"):
        raise BadRequestError(f"{name} is true or false, not {text[:40]!r}", field=name)
    return None if text is None else text == "true"


def _milliseconds(request: Request, name: str) -> int | None:
    if name not in request.query_params:
        return None
    number = whole_number(request, name, default=0)
    if not 0 <= number < 2**53:
        raise BadRequestError(f"{name} must be milliseconds since 1970", field=name)
    return number * 1000


def period_seconds(text: str, field: str = "filter[createdAt][period]") -> int:
    """The seconds of a span such as `1d`. Raises BadRequestError that names the field."""
    found = _PERIOD.fullmatch(text)
    if found is None or len(text) > 10:
        raise BadRequestError(
            f"{text[:40]!r} is no span; write a number and s, m, h, d or w, such as 1d",
            field=field,
        )
    return int(found[1]) * _UNIT_SECONDS[found[2]]


async def optional_body(request: Request, kind: Any) -> Any:
    """The body of a request as a message of this kind; one without a body is an empty message."""
    content = await read_body(request)
    return decode(content, kind) if content else kind()


async def body(request: Request, kind: Any) -> Any:
    """The body of a request as a message of this kind."""
    return decode(await read_body(request), kind)
