"""Random documents and lists of operations on them, made by the ten thousand: what Hypothesis would need minutes for.

The keys of one list meet: names and paths of one place, places inside one another, elements of one array by position, by word and
from the end, names of digits. Caps grow, shrink and vanish; an id comes back; one key is written in several ways.
"""

import itertools
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from milepost.model.operations import (
    Append,
    Delete,
    Increment,
    Operation,
    Remove,
    Set,
    Update,
    encode_operations,
)
from milepost.model.path import Path

# Names of digits are never a position at the top level, and below it perhaps one.
FAMILIES: list[dict[str, Path]] = [
    {"n": ("n",), "$.n": ("n",), '$["n"]': ("n",)},
    {
        "a": ("a",),
        "$.a": ("a",),
        "$['a']": ("a",),
        "$.a.b": ("a", "b"),
        '$.a["b"]': ("a", "b"),
        "$.a.c": ("a", "c"),
        "$.a.b.d": ("a", "b", "d"),
        "$.a.b[-1]": ("a", "b", -1),
    },
    {
        "a": ("a",),
        "$.a.0": ("a", "0"),
        "$.a[0]": ("a", 0),
        "$.a[-1]": ("a", -1),
        "$.a.0.n": ("a", "0", "n"),
        "$.a[0].n": ("a", 0, "n"),
    },
    {
        "l": ("l",),
        "$.l[0]": ("l", 0),
        "$.l.0": ("l", "0"),
        "$.l[1]": ("l", 1),
        '$.l["1"]': ("l", "1"),
        "$.l[-1]": ("l", -1),
        "$.l[-2]": ("l", -2),
    },
    {
        "l": ("l",),
        "$.l": ("l",),
        "$.l[0].n": ("l", 0, "n"),
        "$.l.0.n": ("l", "0", "n"),
        "$.l[1].n": ("l", 1, "n"),
        "$.l[-1].n": ("l", -1, "n"),
        "$.l.0": ("l", "0"),
        "$.l[0].l[-1]": ("l", 0, "l", -1),
    },
    {
        "l": ("l",),
        "$.l[0]": ("l", 0),
        "$.l[00]": ("l", 0),
        "$.l[-0]": ("l", 0),
        "$.l.00": ("l", "00"),
        "$.l.-1": ("l", "-1"),
        "$.l.name": ("l", "name"),
    },
    {
        "2": ("2",),
        "$.2": ("2",),
        '$["2"]': ("2",),
        "$.2[0]": ("2", 0),
        "$.2.0": ("2", "0"),
        "$.2[-1]": ("2", -1),
    },
    {
        "2": ("2",),
        "$.2.rows": ("2", "rows"),
        "$.2.rows[0]": ("2", "rows", 0),
        "$.2.rows.0": ("2", "rows", "0"),
        "$.2.rows[-1]": ("2", "rows", -1),
    },
    {
        "2": ("2",),
        "$.2.2": ("2", "2"),
        "$.2.2[-1]": ("2", "2", -1),
        "$.2.0.1": ("2", "0", "1"),
        "$.2[0].1": ("2", 0, "1"),
        "$.2.0[-1]": ("2", "0", -1),
    },
    {
        "-1": ("-1",),
        "$.-1": ("-1",),
        "$.-1[-1]": ("-1", -1),
        "$.-1.-1": ("-1", "-1"),
        "01": ("01",),
        "$.01.01": ("01", "01"),
        "$.01[01]": ("01", 1),
    },
    {
        "": ("",),
        '$[""]': ("",),
        '$[""][""]': ("", ""),
        "a.b": ("a.b",),
        '$["a.b"]': ("a.b",),
        '$["a.b"].c': ("a.b", "c"),
        "$.a.b": ("a", "b"),
        "zähler": ("zähler",),
        "$.zähler": ("zähler",),
    },
]
KEYS: dict[str, Path] = {key: path for family in FAMILIES for key, path in family.items()}
NAMES = sorted({str(path[0]) for path in KEYS.values()})
CAPS = (None, 1, 2, 2, 3)
IDS = ("one", "two")

# Kinds of operations, the frequent ones more often, as in programs.
_KINDS = "sssssiiiiiaaaaaddddrrJAu"


class Chance:
    """Draws values, operations and lists of them.

    Args:
        quarters: floats are multiples of 1/4, whose sums are exact in any order; otherwise they may be anything.
    """

    def __init__(self, random: Random, *, quarters: bool = True) -> None:
        self.random = random
        self._quarters = quarters

    def number(self) -> int | float:
        random = self.random
        kind = random.randrange(8)
        if kind < 5:
            return random.randint(-9, 9)
        if kind < 7:
            return (
                random.randint(-40, 40) / 4
                if self._quarters
                else random.uniform(-1, 1) * 10 ** random.randint(-3, 17)
            )
        return (
            random.choice([0, 1, 2**31])
            if self._quarters
            else random.choice([2**53, -(2**70), 2.0**53, 0.1, -0.0])
        )

    def scalar(self) -> Any:
        random = self.random
        return (
            self.number()
            if random.random() < 0.6
            else random.choice([None, True, False, "", "x", "0", "y" * 70, "z" * 200])
        )

    def value(self, depth: int = 2) -> Any:
        """Something of every shape that a path may lead through."""
        random = self.random
        kind = random.randrange(10) if depth else 0
        if kind < 4:
            return self.scalar()
        if kind < 7:
            return [self.value(depth - 1) for _ in range(random.choice([0, 1, 1, 2, 3]))]
        if kind < 8:
            return [{"n": self.number()} for _ in range(random.randint(1, 3))]
        names = random.sample(["b", "c", "n", "0", "1", "2", "-1", "rows", "l", ""], random.choice([0, 1, 2]))
        return {name: self.value(depth - 1) for name in names}

    def document(self, names: list[str]) -> dict[str, Any]:
        """A document that has most of these names; arrays are where paths lead to."""
        random, made = self.random, dict[str, Any]()
        for name in names:
            kind = random.random()
            if kind < 0.4:
                made[name] = self.value()
            elif kind < 0.75:
                item = self.scalar if random.random() < 0.6 else lambda: {"n": self.number()}
                made[name] = [item() for _ in range(random.choice([1, 2, 2, 3]))]
        return made

    def keys(self) -> list[str]:
        """One to three keys that meet, and perhaps a stranger."""
        random = self.random
        family = list(random.choice(FAMILIES))
        keys = random.sample(family, min(len(family), random.choice([1, 2, 2, 2, 3])))
        if random.random() < 0.2:
            keys.append(random.choice(list(KEYS)))
        return keys

    def operation(self, keys: list[str], kinds: str = _KINDS) -> Operation:
        random = self.random
        key = random.choice(keys)
        match random.choice(kinds):
            case "s":
                return Set(key, self.value())
            case "i":
                return Increment(key, self.number())
            case "a":
                return Append(key, self.value(1), random.choice(CAPS))
            case "d":
                return Delete(key)
            case "r":
                return Remove(key, self.scalar())
            case "J":
                return Increment(key, self.number(), random.choice(IDS))
            case "A":
                return Append(key, self.value(1), random.choice(CAPS), random.choice(IDS))
            case _:
                return Update(self.document(NAMES[:3]))

    def row(self, keys: list[str]) -> list[Operation]:
        """Some calls of one kind on one key, as a loop makes them, or two with something between them."""
        random = self.random
        key, count = random.choice(keys), random.randint(2, 4)
        match random.randrange(6):
            case 4 | 5:
                kind = random.choice("sssad")
                return [self.operation([key], kind), self.operation(keys), self.operation([key], kind)]
            case 0:
                return [Increment(key, self.number()) for _ in range(count)]
            case 1:
                return [Delete(key)] * 2
            case _:
                cap = random.choice(CAPS)
                return [Append(key, self.scalar(), cap) for _ in range(count)]

    def operations(self, keys: list[str]) -> list[Operation]:
        random = self.random
        made: list[Operation] = []
        for _ in range(random.choice([1, 2, 3, 3, 4, 6, 10])):
            made += self.row(keys) if random.random() < 0.25 else [self.operation(keys)]
        return made

    def case(self) -> tuple[dict[str, Any], list[Operation]]:
        """A document, and operations that meet in it."""
        keys = self.keys()
        document = self.document(sorted({str(KEYS[key][0]) for key in keys}))
        return document, self.operations(keys)


Case = tuple[dict[str, Any], list[Operation]]


def cases(seed: str | int, *, quarters: bool = True) -> Iterator[Case]:
    """Cases without end; the same seed gives the same."""
    chance = Chance(Random(seed), quarters=quarters)
    while True:
        yield chance.case()


def hold(law: Callable[[dict[str, Any], list[Operation]], None], given: Iterator[Case], count: int) -> None:
    """Try a law on so many cases. Raises AssertionError with the shortest list of operations that was found to break it."""
    for number, (document, operations) in enumerate(itertools.islice(given, count), 1):
        error = _broken(law, document, operations)
        if error is None:
            continue
        shorter = True
        while shorter:
            shorter = False
            for index in range(len(operations)):
                fewer = operations[:index] + operations[index + 1 :]
                found = _broken(law, document, fewer)
                if found is not None:
                    operations, error, shorter = fewer, found, True
                    break
        text = encode_operations(operations).decode()
        raise AssertionError(f"case {number}: {document!r} and {text}: {error!r}") from error


def _broken(
    law: Callable[..., None], document: dict[str, Any], operations: list[Operation]
) -> Exception | None:
    try:
        law(document, operations)
    except Exception as error:
        return error
    return None
