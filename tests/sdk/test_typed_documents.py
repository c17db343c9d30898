"""The rule of typed documents (M76), by property: the type can read the document whoever writes, and nothing else is refused.

Each operation is judged three ways that must agree: by the run itself, with the model; by the server, with the JSON schema of the
model; and the slow way, by applying it and reading the whole document.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import date, datetime
from enum import Enum
from typing import Annotated, Any, Literal, NamedTuple, NotRequired

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from typing_extensions import TypedDict

from milepost.client.shape import shape_of
from milepost.engine.declared import SchemaPlace, declared_by
from milepost.errors import MetadataError
from milepost.model.document import Document
from milepost.model.jsonvalue import JSONValue, encode
from milepost.model.operations import Append, Delete, Increment, Operation, Remove, Set, Update
from milepost.model.typed import Misfit, check_operation
from milepost.sdk.metadata import OwnSink
from milepost.sdk.schema import MetadataSchema
from sdk.here import running


class Colour(Enum):
    RED = "red"


class Point(NamedTuple):
    x: int
    y: int = 0


class Step(BaseModel):
    name: str
    done: bool = False
    other: int = Field(0, alias="Other")


class Model(BaseModel):
    status: str
    total: int
    level: Annotated[int, Field(ge=0, le=10)] = 0
    steps: list[Step] = []
    few: Annotated[list[int], Field(max_length=2)] = []
    maybe: list[int] | None = None
    either: int | list[str] = 0
    counts: dict[str, int] = {}
    by_number: dict[int, str] = {}
    inner: Step | None = None
    cat: Annotated[Literal["a"] | None, Field(validation_alias="dog")] = None
    names: set[str] = set()
    at: datetime | None = None
    day: date | None = None
    blob: bytes = b""
    colour: Colour = Colour.RED
    point: Point | None = None
    pair: tuple[int, str] | None = None
    many: tuple[int, ...] = ()
    anything: Any = None


class Validated(BaseModel):
    status: str
    total: int = 0
    tags: list[str] = []

    @field_validator("status")
    @classmethod
    def not_bad(cls, status: str) -> str:
        if status == "bad":
            raise ValueError("not bad")
        return status

    @field_validator("tags")
    @classmethod
    def no_twins(cls, tags: list[str]) -> list[str]:
        if len(set(tags)) < len(tags):
            raise ValueError("twins")
        return tags


class Whole(BaseModel):
    status: str
    level: int = 0
    total: int = 0
    steps: list[Step] = []

    @model_validator(mode="after")
    def level_within_total(self) -> Whole:
        if self.level > self.total:
            raise ValueError("too high")
        return self


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    status: str
    level: int = 0


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, int]  # pyright: ignore[reportIncompatibleVariableOverride]
    status: str = ""


@dataclasses.dataclass
class Data:
    status: str
    total: int
    level: int = 0
    steps: list[Step] = dataclasses.field(default_factory=list)
    inner: Step | None = None
    blob: bytes = b""


class Dict(TypedDict):
    status: str
    total: NotRequired[int]
    steps: NotRequired[list[Step]]
    counts: NotRequired[dict[str, int]]


class StructStep(msgspec.Struct):
    name: str
    done: bool = False


class Struct(msgspec.Struct):
    status: str
    total: int
    level: Annotated[int, msgspec.Meta(ge=0, le=10)] = 0
    steps: list[StructStep] = []
    few: Annotated[list[int], msgspec.Meta(max_length=2)] = []
    maybe: list[int] | None = None
    either: int | list[str] = 0
    counts: dict[str, int] = {}
    by_number: dict[int, str] = {}
    inner: StructStep | None = None
    names: set[str] = set()
    at: datetime | None = None
    blob: bytes = b""
    pair: tuple[int, str] | None = None
    many: tuple[int, ...] = ()
    anything: Any = None


class WholeStruct(msgspec.Struct):
    status: str
    level: int = 0
    total: int = 0

    def __post_init__(self) -> None:
        if self.level > self.total:
            raise ValueError("too high")


class ClosedStruct(msgspec.Struct, forbid_unknown_fields=True, tag="closed", rename={"level": "total"}):
    status: str
    level: int = 0


@attrs.define
class Attrs:
    status: str
    total: int
    level: int = 0
    steps: list[StructStep] = attrs.field(factory=list)


KINDS: list[Any] = [
    Model, Validated, Whole, Closed, Open, Data, Dict, Struct, WholeStruct, ClosedStruct, Attrs, dict[str, int], dict[int, int]
]  # fmt: skip
# What their JSON schema cannot say, the server cannot know.
SAID_BY_SCHEMA: list[Any] = [kind for kind in KINDS if kind not in (Validated, Whole, WholeStruct)]

FIELDS = sorted(
    {name for kind in KINDS for name in getattr(kind, "__annotations__", ())} | {"dog", "type", "free", "7"}
)
VALUES = st.recursive(
    st.sampled_from(
        [
            None, True, 0, 1, 5, 11, 5.0, 0.5, -1, 2**70, "", "x", "5", "bad", "red", "a", "2026-01-02", "2026-01-02T03:04:05",
            "2026-01-02T03:04:05Z", "/w==", "P1D",
        ]
    ),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["name", "done", "Other", "other", "x", "7", "a"]), inner, max_size=3),
    max_leaves=4,
)  # fmt: skip
PATHS = st.builds(
    lambda first, rest: first if not rest else "$." + first + "".join(rest),
    st.sampled_from(FIELDS),
    st.lists(
        st.sampled_from([".name", ".done", ".Other", ".other", ".a", ".7", "[0]", "[-1]", ".0"]), max_size=2
    ),
)
OPERATIONS: st.SearchStrategy[Operation] = st.one_of(
    st.builds(Set, PATHS, VALUES),
    st.builds(Delete, PATHS),
    st.builds(Append, PATHS, VALUES, st.sampled_from([None, 1, 2])),
    st.builds(Remove, PATHS, VALUES),
    st.builds(Increment, PATHS, st.sampled_from([1, -1, 7, 0.5, 1.0])),
    st.builds(Update, st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4)),
)
GOOD_STARTS: list[dict[str, Any]] = [
    {},
    {"status": "x"},
    {"status": "x", "total": 5, "level": 3, "steps": [{"name": "a"}], "counts": {"a": 1}, "inner": {"name": "b"}, "few": [1, 2]},
    {"status": "x", "total": 1, "maybe": [1], "either": ["x"], "names": ["x"], "many": [1], "pair": [1, "x"], "by_number": {"7": "x"}},
    {"7": 1},
]  # fmt: skip


def is_readable(kind: Any, document: dict[str, JSONValue]) -> bool:
    """Whether the document can be read as the type, the slow way; members that are missing count as readable ones."""
    try:
        shape_of(kind).read(encode(document))
    except Misfit:
        return False
    return True


REQUIRED = {"status": "x", "total": 99, "type": "closed"}


def is_lawful(
    kind: Any, before: dict[str, JSONValue], after: dict[str, JSONValue], *, is_replaced: bool
) -> bool:
    """The rule itself: readable, except that what was missing before may be missing still."""
    missing = (
        {}
        if is_replaced
        else {name: value for name, value in REQUIRED.items() if name not in before and name not in after}
    )
    if kind in (dict[str, int], dict[int, int]):
        missing = {}
    if is_readable(kind, after):
        return True
    begun = {**after, **{name: value for name, value in missing.items() if name in _required(kind)}}
    return len(begun) > len(after) and is_readable(kind, begun)


def _required(kind: Any) -> set[str]:
    schema = MetadataSchema(kind).json_schema() or {}
    if "$ref" in schema:
        schema = schema["$defs"][schema["$ref"].rpartition("/")[2]]
    return set(schema.get("required", ()))


def applied(operation: Operation, document: dict[str, JSONValue]) -> dict[str, JSONValue] | None:
    """The document after the operation; None when it refuses it."""
    copy = Document(document)
    try:
        copy.apply(operation)
    except MetadataError:
        return None
    return copy.value


def server_place(kind: Any) -> SchemaPlace:
    place = declared_by(encode(MetadataSchema(kind).json_schema()), "work")
    assert place is not None
    return place


LOST = ("comes back as", "would be", "how it is to be stored")
PLACES = {str(kind): server_place(kind) for kind in KINDS}


def is_written_otherwise(operation: Operation, document: dict[str, JSONValue]) -> bool:
    """True when an operation, or the document, speaks of a field by a name by which it is read and not written."""
    text = encode(
        [
            operation.key if not isinstance(operation, Update) else operation.value,
            document,
            getattr(operation, "value", None),
        ]
    )
    return any(name in text for name in (b"other", b"cat", b"dog"))


@pytest.mark.parametrize("kind", SAID_BY_SCHEMA, ids=str)
@given(data=st.data())
def test_the_server_refuses_what_makes_a_document_unreadable_and_nothing_else(
    kind: Any, data: st.DataObject
) -> None:
    document = dict(
        data.draw(
            st.sampled_from([one for one in GOOD_STARTS if is_lawful(kind, {}, one, is_replaced=False)])
        )
    )
    for operation in data.draw(st.lists(OPERATIONS, min_size=1, max_size=4)):
        after = applied(operation, document)
        if after is None:
            continue
        lawful = is_lawful(kind, document, after, is_replaced=isinstance(operation, Update))
        message = refusal_of(check_operation, operation, document, PLACES[str(kind)], "Kind")
        if message is not None:
            # JSON has types where Python's readers are lenient: "5" for a number, 1 for a boolean.
            assert not lawful or is_lenient(operation, document, message), (operation, message)
            continue
        assert lawful, operation
        document = after


def is_lenient(operation: Operation, document: dict[str, JSONValue], message: str) -> bool:
    """True when a reader is expected to take more than the schema says."""
    return (
        "is not of type" in message
        or "is not valid under any" in message
        or "is not one of" in message
        or "is not a " in message
        or "was expected" in message
        or "does not match" in message
        or is_written_otherwise(operation, document)
    )


@pytest.mark.parametrize("kind", KINDS, ids=str)
@given(data=st.data())
def test_the_run_keeps_its_document_readable_and_the_server_agrees(kind: Any, data: st.DataObject) -> None:
    start = data.draw(
        st.sampled_from([one for one in GOOD_STARTS if is_lawful(kind, {}, one, is_replaced=False)])
    )
    schema, place = MetadataSchema(kind), PLACES[str(kind)]
    with running(dict(start)) as (scope, _):
        scope.schema = schema
        sink = OwnSink(scope)
        for operation in data.draw(st.lists(OPERATIONS, min_size=1, max_size=4)):
            before = scope.buffer.current()
            message = refusal_of(lambda one: sink.add(convert(sink, one)), operation)
            if message is not None:
                assert scope.buffer.current() == before
                plain = applied(operation, before)
                if plain is not None and not is_written_otherwise(operation, before):
                    is_lost = any(reason in message for reason in LOST)
                    lawful = is_lawful(kind, before, plain, is_replaced=isinstance(operation, Update))
                    assert is_lost or not lawful, (operation, message)
                continue
            after = scope.buffer.current()
            assert is_lawful(kind, before, after, is_replaced=isinstance(operation, Update)), (
                operation,
                after,
            )
            converted = convert(sink, operation)
            if applied(converted, before) is not None:
                check_operation(converted, before, place, "Kind")


def refusal_of(call: Callable[..., object], *arguments: Any) -> str | None:
    """What an operation is refused with; None when it is not."""
    try:
        call(*arguments)
    except MetadataError as error:
        return str(error)
    return None


def convert(sink: OwnSink, operation: Operation) -> Operation:
    """The operation as the updater would make it."""
    if isinstance(operation, Set):
        return Set(operation.key, sink.value_of(operation.key, operation.value))
    if isinstance(operation, Append):
        value = sink.item_of(operation.key, operation.value, operation.key)
        return msgspec.structs.replace(operation, value=value)
    if isinstance(operation, Remove):
        return Remove(operation.key, sink.wanted_of(operation.key, operation.value))
    if isinstance(operation, Update):
        value = sink.object_of(operation.value)
        assert isinstance(value, dict)
        return Update(value)
    return operation
