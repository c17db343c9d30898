"""Documents and operations by chance: names that look like positions, paths that lead nowhere, numbers of every size."""

import random
from typing import Any

NAMES = ["a", "b", "c.d", "", "0", "1", "2", "-1", "01", "constructor", "é"]
SEGMENTS = [
    *[".a", ".b", ".0", ".1", ".2", ".01", ".-1", '["c.d"]', "['a']", '["0"]', ".x"],
    *["[0]", "[1]", "[01]", "[-0]", "[-1]", "[-3]"],
]
NUMBERS = [
    0,
    1,
    -1,
    7,
    2**53,
    2**64 + 1,
    -(10**30),
    10**308,
    0.5,
    1.0,
    -0.0,
    -2.25,
    1e16,
    0.1,
    1e308,
    123456.789,
]


def _key(source: random.Random) -> str:
    if source.random() < 0.5:
        return source.choice(NAMES)
    return (
        "$"
        + source.choice([".a", ".b", '["c.d"]', ".0", ".2", '["2"]', ".-1", '[""]'])
        + "".join(source.choices(SEGMENTS, k=source.randrange(4)))
    )


def value(source: random.Random, depth: int) -> Any:
    kind = source.randrange(10 if depth else 6)
    if kind < 3:
        return source.choice(NUMBERS)
    if kind < 6:
        return source.choice([None, True, False, "", "text", "0"])
    if kind < 8:
        return [value(source, depth - 1) for _ in range(source.randrange(4))]
    return {source.choice(NAMES): value(source, depth - 1) for _ in range(source.randrange(4))}


def operation(source: random.Random) -> dict[str, Any]:
    kind = source.choice(
        ["set", "set", "delete", "append", "append", "remove", "increment", "increment", "update"]
    )
    if kind == "update":
        return {
            "type": kind,
            "value": {source.choice(NAMES): value(source, 3) for _ in range(source.randrange(4))},
        }
    made: dict[str, Any] = {"type": kind, "key": _key(source)}
    if kind == "increment":
        # One that no document may have.
        made["value"] = source.choice([*NUMBERS, 10**400])
    elif kind != "delete":
        made["value"] = value(source, 2)
    if kind == "append" and source.random() < 0.3:
        made["maxItems"] = source.randrange(1, 4)
    if kind in ("append", "increment") and source.random() < 0.3:
        made["once"] = source.choice(["x", "y"])
    return made
