"""Keys and paths: which place of a document an operation means (M17, M18, M27).

    key      = path | name                  a name is literal: dots and brackets in it mean nothing
    path     = "$" first { segment }        a key is a path exactly when it starts with "$." or "$["
    first    = "." word | "[" text "]"      a document is an object, so a path starts with a name
    segment  = "." word | "[" text "]" | "[" ["-"] digits "]"
    word     = any characters but "." and "["
    text     = a JSON string, or the same in single quotes

`.word` and `["text"]` are names. A word of digits also counts as a position where it meets an array: `$.steps.0`
is the first step if `steps` is an array and the member `0` if it is an object. `[0]` is a position and nothing
else; `[-1]` counts from the end. No wildcards: an unquoted `*` is refused, `["*"]` is a name.

Refused, because browsers read these documents: the key `__proto__` and the segments `__proto__`, `constructor` and
`prototype`, quoted or not. Reserved: names at the top level that begin with `$$`.
"""

from __future__ import annotations

import re
from typing import Any, Final, TypeAlias, cast

from milepost.errors import MetadataPathError, MetadataTypeError
from milepost.model.jsonvalue import JSONValue, decode, describe, kind_of

__all__ = [
    "MISSING",
    "SEGMENTS_MAX",
    "Path",
    "Segment",
    "check_key",
    "check_name",
    "find",
    "is_position",
    "locate",
    "locate_existing",
    "normal",
    "parse",
    "position_in",
    "reach",
    "read",
    "touch",
]

Segment: TypeAlias = str | int
Path: TypeAlias = tuple[Segment, ...]

SEGMENTS_MAX = 64
"""Segments in one path."""

MISSING: Final[Any] = object()
"""What stands for a value that is not there. Never leaves the model."""

_FORBIDDEN_SEGMENTS = frozenset({"__proto__", "constructor", "prototype"})
_SEGMENT = re.compile(
    r"""
      \.(?P<word>[^.\[]*)
    | \[(?P<wildcard>\*)\]
    | \[(?P<position>-?[0-9]{1,15})\]
    | \[(?P<double>"(?:[^"\\]|\\.)*")\]
    | \['(?P<single>(?:[^'\\]|\\.)*)'\]
    """,
    re.VERBOSE | re.DOTALL,
)
_QUOTES = re.compile(r"\\.|\"", re.DOTALL)
_OTHER_QUOTES = {"\\'": "'", '"': '\\"'}
_POSITION_WORD = re.compile(r"0|[1-9][0-9]{0,14}")

_CACHED_PATHS_MAX = 4096
_CACHED_KEY_LENGTH_MAX = 256


class _Paths(dict[str, Path]):
    """The parsed paths of recent keys. A plain dict answers in a third of the time of `lru_cache`, and unlike it
    does not hold on to long keys."""

    def __missing__(self, key: str) -> Path:
        path = _parse(key)
        if len(key) <= _CACHED_KEY_LENGTH_MAX:
            if len(self) >= _CACHED_PATHS_MAX:
                self.clear()
            self[key] = path
        return path


_paths = _Paths()


def parse(key: str) -> Path:
    """The segments of a key or path: text for names, int for positions; a literal key is one segment.

    Raises:
        MetadataTypeError: the key is no text.
        MetadataPathError: it is malformed, forbidden or reserved; `segment` names the culprit.
    """
    return _paths[key if type(key) is str else _as_text(key)]


def _as_text(key: object) -> str:
    """A key that is an instance of a subclass of text, such as a `str` enum, as plain text."""
    if not isinstance(key, str):
        raise MetadataTypeError(f"a metadata key is text, not an instance of {type(key).__qualname__}")
    return str.__str__(key)


def check_key(key: object) -> str:
    """The key as plain text, if it may be used as a key or path. Raises like `parse`."""
    text = key if type(key) is str else _as_text(key)
    parse(text)
    return text


def check_name(name: str) -> str:
    """The name, if a document may have it at its top level. Here nothing is a path: `{"$.a": 1}` has the name `$.a`.

    Raises: MetadataPathError.
    """
    if name == "__proto__":
        raise MetadataPathError(
            "the key '__proto__' is not allowed, because browsers read metadata", key=name
        )
    if name.startswith("$$"):
        raise MetadataPathError(f"{name!r:.100}: keys that begin with '$$' are reserved", key=name)
    return name


def find(value: JSONValue, path: Path) -> JSONValue:
    """What is at the path, not copied, or MISSING. A scalar on the way is missing too."""
    found: Any = value
    for segment in path:
        kind = kind_of(found)
        if kind is dict:
            found = found.get(segment, MISSING)
        elif kind is list:
            position = position_in(found, segment)
            found = MISSING if position is None else found[position]
        else:
            return MISSING
        if found is MISSING:
            return MISSING
    return found


def read(value: JSONValue, key: str, default: Any = None) -> Any:
    """What is at the key or path (M4), not copied; the default where nothing is, or where a scalar is on the way.

    Raises: like `parse`.
    """
    found = find(value, parse(key))
    return default if found is MISSING else found


def is_position(name: str) -> bool:
    """Whether a name is also a position where it meets an array: `0`, `12`, not `-1` or `01`."""
    return _POSITION_WORD.fullmatch(name) is not None


def position_in(items: list[JSONValue], segment: Segment) -> int | None:
    """The position from 0 that a segment means in this array, or None if there is no such element."""
    if type(segment) is str:
        if not is_position(segment):
            return None
        segment = int(segment)
    position = cast("int", segment)
    if position < 0:
        position += len(items)
    return position if 0 <= position < len(items) else None


def normal(path: Path) -> Path:
    """The path in one spelling: `$.l.0` and `$.l[0]` are one, and so are `a`, `$.a` and `$["a"]`.

    A word of digits counts as a position wherever it may meet an array. At the top level, which is an object, it is a name.
    """
    for segment in path[1:]:
        if type(segment) is str and is_position(segment):
            return (path[0], *map(_position_or_name, path[1:]))
    return path


def _position_or_name(segment: Segment) -> Segment:
    return int(segment) if type(segment) is str and is_position(segment) else segment


def reach(path: Path) -> Path:
    """The smallest part of a document that holds whatever the path may mean there, in its normal spelling.

    It is the place itself, except that a position from the end may be any element: then it is the whole array.
    """
    for depth, segment in enumerate(path):
        if type(segment) is int and segment < 0:
            return normal(path[:depth])
    return normal(path)


def touch(one: Path, other: Path) -> bool:
    """Whether two reaches have something in common: they are the same, or one lies inside the other."""
    length = min(len(one), len(other))
    return one[:length] == other[:length]


def locate(root: dict[str, JSONValue], path: Path, key: str) -> tuple[Any, Any, JSONValue, Path]:
    """The place that a write means: (container, name or position, present value or MISSING, what to create).

    The last item holds the names of the objects that are missing between the place and the value to write. Arrays are
    never created and never grow by a path.

    Args:
        root: the document; not changed.
        path: the parsed key.
        key: the key as it was written, for messages.
    Raises: MetadataPathError, naming the segment: through a scalar, past the end of an array, `[0]` in an object.
    """
    container: Any = root
    last = len(path) - 1
    for depth, segment in enumerate(path):
        place: Segment = segment
        child: Any
        if type(container) is not list:
            if type(segment) is int:
                raise _fails(key, segment, _NO_ARRAY)
            child = container.get(segment, MISSING)
        else:
            items = cast("list[JSONValue]", container)
            position = position_in(items, segment)
            if position is None:
                raise _fails(key, segment, _no_element(items, segment))
            child = items[position]
            place = position
        if depth == last or child is MISSING:
            rest = path[depth + 1 :]
            for created in rest:
                if type(created) is int:
                    raise _fails(key, created, _NO_ARRAY)
            return cast("Any", container), place, child, rest
        kind = kind_of(child)
        if kind is not dict and kind is not list:
            raise _fails(key, segment, f"is {describe(child)}, which has nothing inside")
        container = child
    raise AssertionError("a path has at least one segment")


def locate_existing(root: dict[str, JSONValue], path: Path, key: str) -> tuple[Any, Any, JSONValue] | None:
    """The place of a value that is there: (container, name or position, value), or None if nothing is.

    Raises: MetadataPathError where the path leads through a scalar.
    """
    container: Any = root
    last = len(path) - 1
    for depth, segment in enumerate(path):
        place: Segment = segment
        child: Any
        if type(container) is not list:
            child = container.get(segment, MISSING)
            if child is MISSING:
                return None
        else:
            items = cast("list[JSONValue]", container)
            position = position_in(items, segment)
            if position is None:
                return None
            child = items[position]
            place = position
        if depth == last:
            return cast("Any", container), place, child
        kind = kind_of(child)
        if kind is not dict and kind is not list:
            raise _fails(key, segment, f"is {describe(child)}, which has nothing inside")
        container = child
    raise AssertionError("a path has at least one segment")


# One text for an object and for nothing: which of them it is may depend on operations that are merged.
_NO_ARRAY = "is a position, and there is no array"


def _fails(key: str, segment: Segment, why: str) -> MetadataPathError:
    text = _segment_text(segment)
    return MetadataPathError(f"{_shortened(key)}: {text} {why}", key=key, segment=text)


def _segment_text(segment: Segment) -> str:
    return f"[{segment}]" if type(segment) is int else _shortened(cast("str", segment))


def _shortened(text: str) -> str:
    return text if len(text) <= 100 else text[:97] + "..."


def _no_element(items: list[JSONValue], segment: Segment) -> str:
    if type(segment) is str and not is_position(segment):
        return "is a name, and what it meets is an array"
    return f"is past the end of an array of {len(items)}"


def _parse(key: str) -> Path:
    if not key.isascii():
        try:
            key.encode()
        except UnicodeEncodeError:
            shown = key.encode("utf-8", "backslashreplace").decode("utf-8")
            message = f"{_shortened(shown)}: a key with a lone surrogate has no UTF-8 form"
            raise MetadataPathError(message, key=shown) from None
    if not key.startswith(("$.", "$[")):
        return (check_name(key),)
    segments: list[Segment] = []
    offset = 1
    while offset < len(key):
        match = _SEGMENT.match(key, offset)
        if match is None:
            culprit = key[offset:]
            message = (
                f'{_shortened(key)}: cannot read {_shortened(culprit)!r}; write .name, [0], [-1] or ["name"]'
            )
            raise MetadataPathError(message, key=key, segment=culprit)
        segments.append(_segment(key, match))
        offset = match.end()
    if len(segments) > SEGMENTS_MAX:
        message = f"{_shortened(key)}: {len(segments)} segments, and a path has at most {SEGMENTS_MAX}"
        raise MetadataPathError(message, key=key)
    first = segments[0]
    if type(first) is int:
        raise _fails(key, first, "is a position, and a document is an object")
    if cast("str", first).startswith("$$"):
        raise _fails(key, first, "is reserved, like every key that begins with '$$'")
    return tuple(segments)


def _segment(key: str, match: re.Match[str]) -> Segment:
    position = match["position"]
    if position is not None:
        return int(position)
    word = match["word"] if match["wildcard"] is None else "*"
    if word is not None:
        if not word:
            message = f'{_shortened(key)}: an empty segment; the name "" is written [""]'
            raise MetadataPathError(message, key=key, segment="")
        if word == "*":
            raise _fails(key, word, 'is a wildcard, and a key means one place; the name * is written ["*"]')
        name = word
    else:
        quoted = match["double"]
        if quoted is None:
            # The same text with the other quotes, so that one reader knows the escapes.
            quoted = (
                '"' + _QUOTES.sub(lambda found: _OTHER_QUOTES.get(found[0], found[0]), match["single"]) + '"'
            )
        try:
            name = cast("str", decode(quoted))
        except ValueError:
            message = f"{_shortened(key)}: {_shortened(quoted)} is not a JSON string"
            raise MetadataPathError(message, key=key, segment=quoted) from None
    if name in _FORBIDDEN_SEGMENTS:
        raise _fails(key, name, "is not allowed in a path, because browsers read metadata")
    return name
