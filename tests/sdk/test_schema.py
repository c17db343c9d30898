"""Typed metadata (M76, M77): declared fields are checked on every write, other keys stay free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Literal, NotRequired

import attrs
import msgspec
import pytest
from pydantic import AliasChoices, BaseModel, Field, RootModel, SecretStr, field_validator, model_validator
from typing_extensions import TypedDict

from milepost import MetadataError, MetadataTypeError, MetadataValueError, UsageError, metadata
from milepost.client.shape import read_document
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
    with pytest.raises(MetadataValueError, match=r"other: .* is declared nowhere"):
        schema.document_of({"n": 1, "other": 2})


def test_the_parents_document_has_the_parents_rules() -> None:
    with running(parent_id="run_p") as (scope, _):
        scope.schema = MetadataSchema(ProgressModel)
        metadata.parent.set("status", "anything")
        assert scope.buffer.has_unacknowledged


class Required(BaseModel):
    status: str
    total: int
    blob: bytes = b""
    secret: SecretStr = SecretStr("")
    by_number: dict[int, str] = {}
    rows: list[StepModel] = []
    renamed: int = Field(0, serialization_alias="Renamed", validation_alias=AliasChoices("old", "older"))

    @field_validator("status")
    @classmethod
    def known(cls, status: str) -> str:
        if status == "unknown":
            raise ValueError("no such status")
        return status.strip()


def test_a_required_member_cannot_be_taken_away() -> None:
    with running() as (scope, _):
        scope.schema = MetadataSchema(Required)
        metadata.delete("status")
        metadata.set("status", "x")
        for call in (
            lambda: metadata.delete("status"),
            lambda: metadata.__delitem__("status"),
            lambda: metadata.del_("$.status"),
        ):
            with pytest.raises(MetadataValueError, match=r"status: .* is required"):
                call()
        metadata.append("rows", StepModel(name="a"))
        with pytest.raises(MetadataValueError, match=r"rows\[0\].name"):
            metadata.delete("$.rows[0].name")
        metadata.delete("rows").delete("blob")
        assert metadata.current() == {"status": "x"}


def test_required_members_may_be_missing_until_they_are_set_M76() -> None:
    with running() as (scope, _):
        scope.schema = MetadataSchema(Required)
        metadata.set("total", 1).set("free", 1)
        with pytest.raises(MetadataValueError, match="status: Field required"):
            metadata.current(Required)
        metadata.set("status", "x")
        assert metadata.current(Required) == Required(status="x", total=1)
        with pytest.raises(MetadataValueError, match="total: Field required"):
            metadata.replace({"status": "y"})


def test_the_models_own_validators_run_and_what_they_make_is_stored() -> None:
    with running() as (scope, _):
        scope.schema = MetadataSchema(Required)
        metadata.set("status", " reading ").set("total", "5")
        assert metadata.current() == {"status": "reading", "total": 5}
        for call in (
            lambda: metadata.set("status", "unknown"),
            lambda: metadata.update({"total": 1, "status": "unknown"}),
            lambda: metadata.replace({"total": 1, "status": "unknown"}),
        ):
            with pytest.raises(MetadataValueError, match="no such status"):
                call()
        assert metadata.current() == {"status": "reading", "total": 5}


def test_typed_values_come_back_and_the_browser_gets_plain_json() -> None:
    row = StepModel(name="a")
    with running() as (scope, _):
        scope.schema = MetadataSchema(Required)
        metadata.set("status", "x").set("total", 1).set("blob", b"\xff").set("secret", SecretStr("s"))
        metadata.set("by_number", {7: "x"}).append("rows", row).extend("rows", [{"name": "b"}])
        assert metadata.get("blob") == "/w=="
        typed = metadata.current(Required)
        assert typed is not None
        assert (typed.blob, typed.secret, typed.by_number) == (b"\xff", SecretStr("s"), {7: "x"})
        assert typed.rows == [row, StepModel(name="b")]
        metadata.remove("rows", {"name": "b"})
        assert metadata.get("rows") == [{"name": "a", "done": False}]


def test_a_field_has_one_name_in_a_document() -> None:
    with running() as (scope, _):
        scope.schema = MetadataSchema(Required)
        metadata.set("Renamed", 1)
        for name in ("renamed", "old", "older"):
            with pytest.raises(MetadataValueError, match="is written as 'Renamed'"):
                metadata.set(name, 2)
        document = scope.schema.document_of({"status": "x", "total": 1, "Renamed": 3})
        assert document == {"status": "x", "total": 1, "Renamed": 3}
        assert read_document(document, Required).renamed == 3


def test_several_writes_together_are_judged_by_what_they_leave() -> None:
    class Bounded(BaseModel):
        few: Annotated[list[int], Field(max_length=3)] = []
        done: int = 0
        total: int = 0

        @model_validator(mode="after")
        def within(self) -> Bounded:
            if self.done > self.total:
                raise ValueError("more done than there is")
            return self

    with running() as (scope, _):
        scope.schema = MetadataSchema(Bounded)
        metadata.update({"done": 5, "total": 10}).extend("few", [1, 2, 3])
        before = metadata.current()
        for call in (
            lambda: metadata.extend("few", [4, 5]),
            lambda: metadata.append("few", 4),
            lambda: metadata.set("done", 11),
            lambda: metadata.increment("done", 6),
            lambda: metadata.update({"done": 11, "total": 10}),
        ):
            with pytest.raises(MetadataValueError):
                call()
            assert metadata.current() == before
        metadata.append("few", 4, max_items=3)
        assert metadata.get("few") == [2, 3, 4]


def test_a_type_that_is_no_object_is_refused() -> None:
    class Rows(RootModel[list[int]]):
        pass

    class Flat(msgspec.Struct, array_like=True):
        n: int

    for kind in (int, list[int], Rows, Flat, int | str):
        with pytest.raises(UsageError, match="metadata document is a JSON object"):
            MetadataSchema(kind).json_schema()


def test_appending_does_not_read_the_array() -> None:
    """M34 holds for typed documents: an item is judged, and not what is there."""
    seen: list[int] = []

    class Counted(BaseModel):
        n: int

        @field_validator("n")
        @classmethod
        def count(cls, n: int) -> int:
            seen.append(n)
            return n

    class Log(BaseModel):
        entries: list[Counted] = []

    with running({"entries": [{"n": n} for n in range(1000)]}) as (scope, _):
        scope.schema = MetadataSchema(Log)
        metadata.append("entries", {"n": -1})
        assert set(seen) == {-1}
        seen.clear()
        metadata.set("$.entries[500].n", -2).increment("$.entries[500].n", 5)
        assert set(seen) == {-2, 3}
