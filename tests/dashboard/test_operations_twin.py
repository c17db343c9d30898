"""The JavaScript twin of the metadata operations: the shared vectors, and the Python original as the judge of random cases."""

import json
import random
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import pytest
from playwright.sync_api import BrowserContext, Page

from dashboard.random_documents import NAMES, operation, value
from dashboard.served import RunningServer
from milepost.model.jsonvalue import json_equal
from milepost.model.operations import decode_operations, encode_operations
from support import chance
from support.operations import apply

VECTORS = Path(__file__).parents[1] / "vectors"
RANDOM_CASES = 3000

FOLD = """
async (text) => {
  const { parse, stringify } = await import("/static/json.js");
  const { apply, idOf } = await import("/static/operations.js");
  return parse(text).map((given) => {
    const before = given.get("before");
    const untouched = stringify(before);
    const operations = stringify(given.get("operations"));
    const limit = Number(given.get("limit") ?? 262144);
    const counted = new Set((given.get("counted") ?? []).map(([key, once]) => idOf(key, once)));
    const bounded = apply(before, given.get("operations"), { counted, limit });
    const free = apply(before, given.get("operations"), { counted });
    return {
      after: stringify(bounded.document),
      refusals: bounded.refusals.map(({ index, code }) => ({ index, code })),
      afterWithoutLimit: stringify(free.document),
      pure: stringify(before) === untouched && stringify(given.get("operations")) === operations,
    };
  });
}
"""


@pytest.fixture
def server(shared_server: RunningServer) -> RunningServer:
    return shared_server


@pytest.fixture
def modules(context: BrowserContext) -> Page:
    """A page of the server, from which its modules can be imported; no session is needed."""
    page = context.new_page()
    page.goto("/sign-in")
    return page


def load(name: str) -> dict[str, Any]:
    return json.loads((VECTORS / name).read_text(encoding="utf-8"))


def fold(page: Page, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return page.evaluate(FOLD, json.dumps(cases))


def test_no_file_of_vectors_is_left_out() -> None:
    here = Path(__file__).read_text(encoding="utf-8")
    names = [path.name for path in VECTORS.glob("*.json")]
    assert names
    assert [name for name in names if f'"{name}"' not in here] == []


def test_vectors_of_operations(modules: Page) -> None:
    reference = load("reference.json")
    cases = [*load("operations.json")["cases"], *reference["cases"], *reference["differs"]]
    for case, result in zip(cases, fold(modules, cases), strict=True):
        assert json_equal(json.loads(result["after"]), case["after"]), case
        assert result["refusals"] == case["refusals"], case
        assert result["pure"], case
        if "limit" not in case:
            assert result["afterWithoutLimit"] == result["after"], case


def test_vectors_of_paths(modules: Page) -> None:
    content = load("paths.json")
    read = """
      async (keys) => {
        const { parse } = await import("/static/path.js");
        return keys.map((key) => {
          try {
            return parse(key);
          } catch (error) {
            return error.code;
          }
        });
      }
    """
    keys = [case["key"] for case in content["cases"]]
    assert modules.evaluate(read, keys) == [case["path"] for case in content["cases"]]
    assert modules.evaluate(read, content["refused"]) == ["invalid_metadata_path"] * len(content["refused"])


def test_vectors_of_equality(modules: Page) -> None:
    result = modules.evaluate(
        """
        async (text) => {
          const { parse, equal } = await import("/static/json.js");
          const content = parse(text);
          const distinct = content.get("distinct");
          return {
            equal: content.get("equal").map(([left, right]) => equal(left, right) && equal(right, left)),
            distinct: distinct.map((left, here) => distinct.map((right, there) => equal(left, right) === (here === there))),
          };
        }
        """,
        (VECTORS / "equality.json").read_text(encoding="utf-8"),
    )
    assert all(result["equal"])
    assert all(all(row) for row in result["distinct"])


def test_vectors_of_sizes(modules: Page) -> None:
    cases = load("sizes.json")["cases"]
    sizes = modules.evaluate(
        """
        async (text) => {
          const { parse, sizeInBytes } = await import("/static/json.js");
          return parse(text).map((given) => sizeInBytes(given.get("document")));
        }
        """,
        json.dumps(cases),
    )
    assert sizes == [case["size"] for case in cases]


def test_random_operations_give_what_python_makes_of_them(modules: Page) -> None:
    """To the last digit, with the order of keys, and with integers and floats told apart."""
    source = random.Random(20_240_229)
    cases: list[dict[str, Any]] = []
    for _ in range(RANDOM_CASES):
        document = {source.choice(NAMES): value(source, 3) for _ in range(source.randrange(5))}
        cases.append(
            {"before": document, "operations": [operation(source) for _ in range(source.randrange(1, 12))]}
        )
    # And operations that meet.
    for document, operations in islice(chance.cases("twin", quarters=False), RANDOM_CASES):
        cases.append({"before": document, "operations": json.loads(encode_operations(operations))})
    applied = 0
    for case, result in zip(cases, fold(modules, cases), strict=True):
        operations = decode_operations(json.dumps(case["operations"]).encode())
        document, refusals = apply(case["before"], operations)
        after = msgspec.json.decode(result["afterWithoutLimit"])
        assert repr(after) == repr(document), case
        assert result["refusals"] == [
            {"index": refusal.index, "code": refusal.code} for refusal in refusals
        ], case
        assert result["pure"]
        applied += len(operations) - len(refusals)
    assert applied > RANDOM_CASES


def test_what_did_not_change_is_the_same_object(modules: Page) -> None:
    assert modules.evaluate(
        """
        async () => {
          const { parse } = await import("/static/json.js");
          const { apply } = await import("/static/operations.js");
          const before = parse('{"a": {"deep": [1]}, "b": [[1], [2]], "c": [0]}');
          const operations = parse('[{"type": "set", "key": "$.b[0][0]", "value": 9}, {"type": "append", "key": "c", "value": 1}]');
          const { document } = apply(before, operations);
          return [
            document !== before,
            document.get("a") === before.get("a"),
            document.get("b") !== before.get("b"),
            document.get("b")[1] === before.get("b")[1],
            document.get("c") !== before.get("c"),
          ].every(Boolean);
        }
        """
    )


def test_json_that_breaks_others(modules: Page, server: RunningServer) -> None:
    texts = [
        "123456789012345678901234567890", "-0.0", "1.0", "1e300", "5e-324", "1e16", "123456789.125", "0.000001", "1e-7",
        '{"__proto__":{"a":1},"constructor":2,"2":0,"1":0}', '["\\u0000\\"\\\\ \\ud83d\\ude00 </script>",[],{}]', "null", '"\\\\"',
    ]  # fmt: skip
    faulty = [
        "",
        "01",
        "[1,]",
        '{"a":1,}',
        "[1 2]",
        '"\\ud800"',
        "1e400",
        "tru",
        '"a',
        "{1:2}",
        "NaN",
        "[1]]",
    ]
    read = """
      async (texts) => {
        const { parse, stringify } = await import("/static/json.js");
        return texts.map((text) => {
          try {
            return stringify(parse(text));
          } catch (error) {
            return error.name;
          }
        });
      }
    """
    for text, again in zip(texts, modules.evaluate(read, texts), strict=True):
        assert repr(msgspec.json.decode(again)) == repr(msgspec.json.decode(text))
    assert modules.evaluate(read, faulty) == ["SyntaxError"] * len(faulty)
