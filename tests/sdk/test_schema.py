"""Typed metadata (M76, M77): declared fields are checked on every write, other keys stay free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Literal, NotRequired

import attrs
import msgspec
import pytest
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from milepost import MetadataError, MetadataTypeError, MetadataValueError, metadata
from milepost.sdk.schema import MetadataSchema
from sdk.here import running

Level = Annotated[int, Field(ge=0, le=10)]


class StepModel(BaseModel):
    name: str
    done: bool = False


class ProgressModel(BaseModel):
    status: Literal["reading", "done"] = "reading"
    level: Level = 0
    ratio: float = 0.0
    at: datetime | None = None
    tags: list[str] = []
    steps: list[StepModel] = []
    counts: dict[str, int] = {}
    aliased: int = Field(default=0, alias="Aliased")
    anything: Any = None


@dataclass
class StepData:
    name: str
    done: bool = False


@dataclass
class ProgressData:
    status: Literal["reading", "done"] = "reading"
    level: Level = 0
    ratio: float = 0.0
    at: datetime | None = None
    tags: list[str] = field(default_factory=list)
    steps: list[StepData] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


class StepDict(TypedDict):
    name: str
    done: NotRequired[bool]


class ProgressDict(TypedDict, total=False):
    status: Literal["reading", "done"]
    level: Level
    ratio: float
    at: datetime | None
    tags: list[str]
    steps: list[StepDict]
    counts: dict[str, int]


class StepStruct(msgspec.Struct):
    name: str
    done: bool = False


class ProgressStruct(msgspec.Struct, rename={"renamed": "Renamed"}):
    status: Literal["reading", "done"] = "reading"
    level: Annotated[int, msgspec.Meta(ge=0, le=10)] = 0
    ratio: float = 0.0
    at: datetime | None = None
    tags: list[str] = []
    steps: list[StepStruct] = []
    counts: dict[str, int] = {}
    renamed: int = 0


@attrs.define
class ProgressAttrs:
    status: Literal["reading", "done"] = "reading"
    level: Annotated[int, msgspec.Meta(ge=0, le=10)] = 0
    ratio: float = 0.0
    at: datetime | None = None
    tags: list[str] = attrs.field(factory=list)
    steps: list[StepStruct] = attrs.field(factory=list)
    counts: dict[str, int] = attrs.field(factory=dict)


KINDS: list[Any] = [ProgressModel, ProgressData, ProgressDict, ProgressStruct, ProgressAttrs]

GOOD: list[Callable[[], Any]] = [
    lambda: metadata.set("status", "done"),
    lambda: metadata.set("level", 10).decrement("level", 10).increment("level"),
    lambda: metadata.set("ratio", 1).increment("ratio", 0.5),
    lambda: metadata.set("at", datetime(2026, 1, 1)).set("at", None),
    lambda: metadata.append("tags", "x").extend("tags", ["y"]).remove("tags", "x").delete("tags"),
    lambda: metadata.append("steps", {"name": "a"}).set("$.steps[0].done", True).set("$.steps.0.name", "b"),
    lambda: metadata.set("$.counts.a", 1).increment("$.counts.a").increment("$.counts.b"),
    lambda: metadata.set("free", "x").append("free", 1).set("$.also.free", [1]),
    lambda: metadata.update({"status": "done", "free": 1}),
    lambda: metadata.replace({"status": "done", "level": 3}),
]
BAD: list[Callable[[], Any]] = [
    lambda: metadata.set("status", "writing"),
    lambda: metadata.set("status", None),
    lambda: metadata.set("level", 11),
    lambda: metadata.increment("level", 11),
    lambda: metadata.decrement("level"),
    lambda: metadata.increment("level", 0.5),
    lambda: metadata.set("at", "soon"),
    lambda: metadata.append("tags", 1),
    lambda: metadata.extend("tags", ["x", 1]),
    lambda: metadata.append("status", "x"),
    lambda: metadata.append("steps", {"done": True}),
    lambda: metadata.set("$.counts.a", "many"),
    lambda: metadata.set("$.steps[0].done", "perhaps"),
    lambda: metadata.update({"free": 1, "level": "high"}),
    lambda: metadata.replace({"level": "high"}),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", GOOD)
def test_writes_that_fit(kind: Any, call: Callable[[], Any]) -> None:
    with running() as (scope, _):
        scope.schema = MetadataSchema(kind)
        call()
        assert scope.buffer.has_unacknowledged


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", BAD)
def test_writes_that_do_not_fit_raise_and_change_nothing(kind: Any, call: Callable[[], Any]) -> None:
    with running() as (scope, _):
        scope.schema = MetadataSchema(kind)
        with pytest.raises((MetadataValueError, MetadataTypeError)) as caught:
            call()
        assert kind.__name__ in str(caught.value)
        assert metadata.current() == {}
        assert not scope.buffer.has_unacknowledged


@pytest.mark.parametrize("kind", KINDS)
def test_the_typed_form_comes_back(kind: Any) -> None:
    at = datetime.fromisoformat("2026-01-02T03:04:05Z")
    with running() as (scope, _):
        scope.schema = MetadataSchema(kind)
        metadata.set("status", "done").set("at", at).append("steps", {"name": "a"}).set("free", 1)
        typed: Any = metadata.current(kind)
        if kind is ProgressDict:
            assert (typed["status"], typed["at"], typed["steps"]) == ("done", at, [{"name": "a"}])
        else:
            assert isinstance(typed, kind)
            assert (typed.status, typed.at, typed.steps[0].name) == ("done", at, "a")
        metadata.run("run_self").set("level", 1)
        scope.schema = None
        metadata.set("level", "high")
        with pytest.raises(MetadataValueError, match="level"):
            metadata.current(kind)


def test_names_on_the_wire_count() -> None:
    with running() as (scope, _):
        scope.schema = MetadataSchema(ProgressModel)
        metadata.set("Aliased", 1).set("anything", [1, {"x": None}]).append("anything", 1)
        with pytest.raises(MetadataError):
            metadata.set("Aliased", "x")
        scope.schema = MetadataSchema(ProgressStruct)
        metadata.set("Renamed", 1)
        with pytest.raises(MetadataError):
            metadata.set("Renamed", "x")


def test_documents_are_checked_as_a_whole() -> None:
    class Strict(BaseModel, extra="forbid"):
        n: int

    schema = MetadataSchema(Strict)
    assert schema.document_of({"n": "1"}) == {"n": 1}
    assert schema.document_of(Strict(n=1)) == {"n": 1}
    with pytest.raises(MetadataValueError, match="n: Field required"):
        schema.document_of({})
    with pytest.raises(MetadataValueError, match="other: is declared nowhere"):
        schema.document_of({"n": 1, "other": 2})


def test_the_parents_document_has_the_parents_rules() -> None:
    with running(parent_id="run_p") as (scope, _):
        scope.schema = MetadataSchema(ProgressModel)
        metadata.parent.set("status", "anything")
        assert scope.buffer.has_unacknowledged
