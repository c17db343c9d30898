"""From a request to checked values: the body within its limit, decoded; query parameters with clear errors."""

import re
from typing import Any

import msgspec
from starlette.requests import Request

from milepost.errors import BadRequestError, InvalidRequestError, MetadataError, TooLargeError
from milepost.model import jsonvalue
from milepost.model.filters import MetadataFilter, parse_filter
from milepost.model.run import RunStatus
from milepost.protocol.triggering import BODY_BYTES_MAX
from milepost.store.runs import RunFilter

PAGE_SIZE_MAX = 100
PAGE_SIZE = 25
_PERIOD = re.compile(r"(\d+)([smhdw])")
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_PLACE = re.compile(r"^(.*) - at `\$(?:\.)?(.*)`$")
_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}


async def read_body(request: Request) -> bytes:
    """The whole body. Raises TooLargeError beyond the limit, before the rest is read."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > BODY_BYTES_MAX:
        raise _too_large()
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > BODY_BYTES_MAX:
            raise _too_large()
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def decode(body: bytes, kind: Any) -> Any:
    """The body as the given shape. Raises BadRequestError: not JSON, or which field has the wrong type."""
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.json.Decoder(kind)
    if not body:
        raise BadRequestError("the request has no body; a JSON object is expected")
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        message, place = str(error), None
        if found := _PLACE.match(message):
            message, place = found.groups()
        raise BadRequestError(f"{message}{f' at {place}' if place else ''}", field=place) from None
    except RecursionError:
        raise BadRequestError("the body is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequestError(f"the body is not JSON: {error}") from None


def _too_large() -> TooLargeError:
    return TooLargeError(f"the request body is larger than {BODY_BYTES_MAX:,} bytes", limit=BODY_BYTES_MAX)


def page_size(request: Request, name: str = "page[size]", *, most: int = PAGE_SIZE_MAX) -> int:
    """How many rows are asked for, 1 to `most`."""
    size = whole_number(request, name, default=PAGE_SIZE)
    if not 1 <= size <= most:
        raise BadRequestError(f"{name} must be from 1 to {most:,}, not {size}", field=name, limit=most)
    return size


def whole_number(request: Request, name: str, *, default: int) -> int:
    """A query parameter that is a whole number."""
    text = request.query_params.get(name)
    if text is None:
        return default
    try:
        number = int(text)
    except ValueError:
        raise BadRequestError(f"{name} must be a whole number, not {text[:40]!r}", field=name) from None
    if abs(number) >= 2**63:
        raise BadRequestError(f"{name} is out of range", field=name)
    return number


def run_filter(request: Request, now: int) -> RunFilter:
    """The filters of a list of runs (protocol, section 5.3). `now` is microseconds since 1970."""
    created_from = _milliseconds(request, "filter[createdAt][from]")
    if period := request.query_params.get("filter[createdAt][period]"):
        created_from = max(0, now - _period_seconds(period) * 1_000_000)
    return RunFilter(
        statuses=tuple(_status(name) for name in _names(request, "filter[status]")),
        tasks=_names(request, "filter[taskIdentifier]"),
        tags=_names(request, "filter[tag]"),
        batch_id=request.query_params.get("filter[batch]"),
        parent_id=request.query_params.get("filter[parent]"),
        root_id=request.query_params.get("filter[root]"),
        top_level=_truth(request, "filter[topLevel]"),
        created_from=created_from,
        created_to=_milliseconds(request, "filter[createdAt][to]"),
        metadata=_metadata_filter(request, "filter[metadata]"),
    )


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
        raise BadRequestError(f"{name!r} is no status; use {known}", field="filter[status]") from None


def _truth(request: Request, name: str) -> bool | None:
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


def _period_seconds(text: str) -> int:
    found = _PERIOD.fullmatch(text)
    if found is None or len(text) > 10:
        raise BadRequestError(
            f"{text[:40]!r} is no span; write a number and s, m, h, d or w, such as 1d",
            field="filter[createdAt][period]",
        )
    return int(found[1]) * _UNIT_SECONDS[found[2]]
