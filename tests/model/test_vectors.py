"""The shared vectors, run against the model."""

import json
from pathlib import Path
from typing import Any

import pytest

from milepost.errors import MetadataError, MetadataPathError
from milepost.model.counted import id_of
from milepost.model.document import SIZE_LIMIT, Document
from milepost.model.jsonvalue import json_equal
from milepost.model.operations import Operation, Refusal, collapse, decode_each
from milepost.model.path import parse

VECTORS = Path(__file__).parents[1] / "vectors"


def load(name: str) -> dict[str, Any]:
    return json.loads((VECTORS / name).read_text(encoding="utf-8"))


def cases_of(name: str, *lists: str) -> list[Any]:
    content = load(name)
    return [
        pytest.param(case, id=case.get("name", f"{name}-{key}-{index}"))
        for key in lists
        for index, case in enumerate(content[key])
    ]


@pytest.mark.parametrize(
    "case", [*cases_of("operations.json", "cases"), *cases_of("reference.json", "cases", "differs")]
)
def test_m17_to_m29_operations(case: dict[str, Any]) -> None:
    counted = [id_of(key, once) for key, once in case.get("counted", ())]
    document = Document(case["before"], limit=case.get("limit", SIZE_LIMIT), counted=counted)
    refusals: list[dict[str, Any]] = []
    applied: list[Operation] = []
    for index, operation in enumerate(decode_each(json.dumps(case["operations"]).encode())):
        if isinstance(operation, Refusal):
            refusals.append({"index": operation.index, "code": operation.code})
            continue
        try:
            document.apply(operation)
        except MetadataError as error:
            refusals.append({"index": index, "code": error.code})
        else:
            applied.append(operation)
    assert json_equal(document.value, case["after"])
    assert refusals == case["refusals"]
    assert document.size == len(document.encode())
    again = Document(case["before"], counted=counted)
    again.apply_all(collapse(applied))
    assert json_equal(again.value, case["after"])


@pytest.mark.parametrize("case", cases_of("reference.json", "differs"))
def test_where_the_reference_differs_it_really_does(case: dict[str, Any]) -> None:
    reference = case["reference"]
    same_document = json_equal(case["after"], reference["after"])
    assert not (same_document and len(case["refusals"]) == reference["unapplied"])
    assert case["reason"]


@pytest.mark.parametrize("case", load("paths.json")["cases"], ids=lambda case: repr(case["key"]))
def test_m17_m18_paths(case: dict[str, Any]) -> None:
    assert parse(case["key"]) == tuple(case["path"])
    assert [type(segment) for segment in parse(case["key"])] == [type(segment) for segment in case["path"]]


@pytest.mark.parametrize("key", load("paths.json")["refused"])
def test_m18_m27_refused_paths(key: str) -> None:
    with pytest.raises(MetadataPathError) as caught:
        parse(key)
    assert caught.value.key == key


def test_m22_equality() -> None:
    content = load("equality.json")
    for left, right in content["equal"]:
        assert json_equal(left, right)
        assert json_equal(right, left)
    for index, left in enumerate(content["distinct"]):
        for other, right in enumerate(content["distinct"]):
            assert json_equal(left, right) is (index == other)


def test_m84_sizes() -> None:
    for case in load("sizes.json")["cases"]:
        assert Document(case["document"]).size == case["size"]
