"""The ids of the metadata contract (M17) stand in `docs/metadata.md`, each once, and code and tests name no other."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONTRACT = (ROOT / "docs" / "metadata.md").read_text(encoding="utf-8")
_DEFINED = re.compile(r"^- \[(M\d+)\]|^\| (M\d+) \|", re.MULTILINE)
# "M72-M75", "M50 to M59" and "M9–M11" name all between.
_NAMED = re.compile(r"\bM(\d{1,2})(?:(?:[-–]| to )M(\d{1,2}))?\b")
_KEPT_FOR_LATER = {f"M{number}" for number in range(50, 60)}


def named_in(text: str) -> set[str]:
    found: set[str] = set()
    for first, last in _NAMED.findall(text):
        found |= {f"M{number}" for number in range(int(first), int(last or first) + 1)}
    return found


def defined() -> list[str]:
    return [one or other for one, other in _DEFINED.findall(CONTRACT)]


def test_every_id_stands_in_the_contract_once() -> None:
    ids = defined()
    assert len(ids) > 60
    # These two have a rule and a row of the table.
    assert sorted(one for one in set(ids) if ids.count(one) > 1) == ["M17", "M22"]
    assert named_in(CONTRACT) == set(ids) | _KEPT_FOR_LATER


def test_code_tests_and_documents_name_no_other_id() -> None:
    ids = set(defined())
    unknown: dict[str, set[str]] = {}
    count = 0
    for folder in ("src", "tests", "docs", "benchmarks", "examples"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".js", ".md", ".html", ".json") and path != Path(__file__):
                named = named_in(path.read_text(encoding="utf-8"))
                count += len(named)
                if named - ids - _KEPT_FOR_LATER:
                    unknown[str(path.relative_to(ROOT))] = named - ids
    assert count > 100
    assert unknown == {}


def test_ranges_name_all_between() -> None:
    assert named_in("M72-M75, M9–M11 and M50 to M52; test_m17_ is lower case, M100 is none") == {
        *("M72", "M73", "M74", "M75"),
        *("M9", "M10", "M11"),
        *("M50", "M51", "M52"),
    }
