"""What the history of a document is made of, module by module, with random documents and a source that pages, cuts and prunes."""

import json
import random
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page

from dashboard.random_documents import NAMES, operation, value
from dashboard.served import RunningServer, append, increment, set_

RANDOM_CASES = 1500

# Puts differences into the earlier document: what comes out must be the later one.
REBUILD = """
  const rebuild = (before, found) => {
    const whole = found.find(({ path }) => path.length === 0);
    if (whole) return whole.after;
    const inner = new Map();
    for (const difference of found) {
      const [name, ...rest] = difference.path;
      if (!inner.has(name)) inner.set(name, []);
      inner.get(name).push({ ...difference, path: rest });
    }
    const isOwn = ({ path }) => path.length === 0;
    if (before instanceof Map) {
      const after = new Map(before);
      for (const [name, inside] of inner) {
        const own = inside.find(isOwn);
        if (own && own.after === undefined) after.delete(name);
        else after.set(name, own ? own.after : rebuild(before.get(name), inside));
      }
      return after;
    }
    const gone = new Set(found.filter((d) => d.path.length === 1 && d.after === undefined).map((d) => d.path[0]));
    const after = before.filter((_, position) => !gone.has(position));
    for (const [position, inside] of [...inner].sort(([left], [right]) => left - right)) {
      const there = inside.filter((d) => d.path.length > 0 || d.after !== undefined);
      if (there.length === 0) continue;
      const own = there.find(isOwn);
      if (own && own.before === undefined) after.splice(position, 0, own.after);
      else after[position] = own ? own.after : rebuild(after[position], there);
    }
    return after;
  };
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


def histories(seed: int, count: int, length: int) -> list[dict[str, Any]]:
    source = random.Random(seed)
    return [
        {
            "before": {source.choice(NAMES): value(source, 3) for _ in range(source.randrange(5))},
            "steps": [
                [operation(source) for _ in range(source.randrange(1, 4))] for _ in range(source.randrange(1, length))
            ],
        }
        for _ in range(count)
    ]  # fmt: skip


def without_once(given: dict[str, Any]) -> dict[str, Any]:
    return {name: member for name, member in given.items() if name != "once"}


def test_differences_lead_from_one_document_to_the_next(modules: Page) -> None:
    wrong = modules.evaluate(
        """
        async (text) => {
          const { parse, stringify } = await import("/static/json.js");
          const { apply } = await import("/static/operations.js");
          const { differences, same } = await import("/static/difference.js");
        """
        + REBUILD
        + """
          const sorted = (value) => value instanceof Map
            ? new Map([...value].sort(([left], [right]) => (left < right ? -1 : 1)).map(([name, inner]) => [name, sorted(inner)]))
            : Array.isArray(value) ? value.map(sorted) : value;
          const wrong = [];
          for (const given of parse(text)) {
            let before = given.get("before");
            for (const operations of given.get("steps")) {
              const after = apply(before, operations).document;
              // Once as they come, sharing what did not change, and once without anything in common.
              for (const later of [after, parse(stringify(after))]) {
                const found = [];
                differences(before, later, (difference) => found.push(difference));
                const rebuilt = rebuild(before, found);
                const isMinimal = found.every((d) => d.before === undefined || d.after === undefined || !same(d.before, d.after));
                if (!isMinimal || stringify(sorted(rebuilt)) !== stringify(sorted(later))) {
                  wrong.push([stringify(before), stringify(later), stringify(rebuilt)]);
                }
              }
              before = after;
            }
          }
          return wrong;
        }
        """,
        json.dumps(histories(7, RANDOM_CASES, 6)),
    )
    assert wrong == []


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": 1}, {"a": 2}, ["a: 1 -> 2"]),
        ({"a": 1}, {"a": 1.0}, ["a: 1 -> 1.0"]),
        ({"a": 1}, {"b": 1}, ["a: 1 -> gone", "b: new -> 1"]),
        ({"a": {"b": [1]}}, {"a": {"b": [1, 2]}}, ["a.b[1]: new -> 2"]),
        ({"l": [1, 2, 3]}, {"l": [2, 3, 4]}, ["l[0]: 1 -> gone", "l[2]: new -> 4"]),
        ({"l": [1, 2, 1, 3, 1]}, {"l": [2, 3]}, ["l[0]: 1 -> gone", "l[2]: 1 -> gone", "l[4]: 1 -> gone"]),
        ({"l": [1, 2, 3]}, {"l": [1, 9, 3, 4]}, ["l[1]: 2 -> 9", "l[3]: new -> 4"]),
        ({"l": [{"a": 1}, 5]}, {"l": [{"a": 2}, 5]}, ["l[0].a: 1 -> 2"]),
        ({"l": []}, {"l": [1]}, ["l[0]: new -> 1"]),
        ({"l": [1]}, {"l": []}, ["l[0]: 1 -> gone"]),
        ({"l": "text"}, {"l": ["text", 1]}, ['l: "text" -> ["text",1]']),
        ({"odd name": {"": 1}}, {"odd name": {"": 2}}, ['["odd name"][""]: 1 -> 2']),
    ],
)
def test_differences_as_people_would_tell_them(
    modules: Page, before: Any, after: Any, expected: list[str]
) -> None:
    told = modules.evaluate(
        """
        async ([before, after]) => {
          const { parse, stringify } = await import("/static/json.js");
          const { differences } = await import("/static/difference.js");
          const { pathText } = await import("/static/path.js");
          const told = [];
          const text = (value, none) => (value === undefined ? none : stringify(value));
          differences(parse(before), parse(after), (d) => {
            told.push(`${pathText(d.path)}: ${text(d.before, "new")} -> ${text(d.after, "gone")}`);
          });
          return told;
        }
        """,
        [json.dumps(before), json.dumps(after)],
    )
    assert told == expected


# A source of a history: pages of few changes, documents at any version, and a beginning that may move.
SOURCE = """
  const { parse, stringify } = await import("/static/json.js");
  const { apply } = await import("/static/operations.js");
  const { AnswerError } = await import("/static/api.js");
  const { Timeline, PrunedError, BLOCK } = await import("/static/timeline.js");
  const { joined } = await import("/static/numbers.js");
  const { valueAt } = await import("/static/path.js");
  class Source {
    constructor(before, steps, { page = 1000, size = 10 } = {}) {
      this.documents = [before];
      this.steps = steps;
      for (const [position, operations] of steps.entries()) {
        const { document, refusals } = apply(this.documents.at(-1), operations);
        this.documents.push(document);
        // The log has what was applied.
        steps[position] = operations.filter((_, index) => !refusals.some((refusal) => refusal.index === index));
      }
      this.earliest = 0;
      this.page = page;
      this.size = size;
      this.asked = [];
    }
    async changes(after, size) {
      this.asked.push(["changes", after, size]);
      const start = Math.max(after, this.earliest);
      const changes = this.steps.slice(start, start + Math.min(size, this.page)).map((operations, position) => ({
        version: start + position + 1, at: 1000 * (start + position + 1), operations, writer: null,
      }));
      return { changes, earliest: this.earliest, more: start + changes.length < this.steps.length, size: this.size * changes.length };
    }
    async document(version) {
      this.asked.push(["document", version]);
      if (version < this.earliest) throw new AnswerError(410, "pruned");
      return this.documents[version];
    }
  }
"""


def test_any_version_can_be_asked_for_in_any_order(modules: Page) -> None:
    """In small pages, with changes so large that their documents are read instead, and where older ones were pruned."""
    steps = [[increment("n"), append("log", number, maxItems=3)] for number in range(1200)]
    source = random.Random(3)
    order = [source.randrange(1201) for _ in range(60)] + [0, 1, 499, 500, 501, 1000, 1001, 1199, 1200]
    wrong = modules.evaluate(
        """
        async ([steps, order]) => {
        """
        + SOURCE
        + """
          const wrong = [];
          for (const options of [{}, { page: 7 }, { size: 1_000_000 }, { page: 3, size: 2_000_000 }]) {
            for (const earliest of [0, 430, 500, 777, 1200]) {
              const source = new Source(parse('{"n": 0}'), parse(steps), options);
              source.earliest = earliest;
              const timeline = new Timeline(source, 1200);
              await timeline.open();
              if (timeline.earliest !== earliest) wrong.push(["earliest", earliest, timeline.earliest]);
              for (const version of order.map((one) => Math.max(one, earliest))) {
                const { document, before, change } = await timeline.at(version);
                const isFirst = version === earliest;
                const isRight = stringify(document) === stringify(source.documents[version]);
                const isRightBefore = isFirst ? before === null : stringify(before) === stringify(source.documents[version - 1]);
                const isRightChange = isFirst ? change === null : change.version === version;
                if (!isRight || !isRightBefore || !isRightChange) wrong.push([options, earliest, version]);
              }
            }
          }
          return wrong;
        }
        """,
        [json.dumps(steps), order],
    )
    assert wrong == []


def test_a_block_is_read_once_and_neighbours_need_no_document(modules: Page) -> None:
    asked = modules.evaluate(
        """
        async (steps) => {
        """
        + SOURCE
        + """
          const source = new Source(parse('{"n": 0}'), parse(steps));
          const timeline = new Timeline(source, steps.length);
          timeline.newest = 1200;
          await timeline.open();
          for (let version = 1; version <= 1200; version += BLOCK) while (!(await timeline.read(version)));
          for (let version = 0; version <= 1200; version += 1) await timeline.at(version);
          return source.asked;
        }
        """,
        json.dumps([[increment("n")]] * 1200),
    )
    assert asked == [
        ["changes", 0, 1],
        ["document", 0],
        ["changes", 0, 500],
        ["changes", 500, 500],
        ["changes", 1000, 500],
    ]


def test_what_is_pruned_while_it_is_looked_at(modules: Page) -> None:
    result = modules.evaluate(
        """
        async (steps) => {
        """
        + SOURCE
        + """
          const source = new Source(parse('{"n": 0}'), parse(steps));
          const timeline = new Timeline(source, 1200);
          await timeline.open();
          await timeline.at(10);
          source.earliest = 900;
          const results = [];
          // What is here is still right; what is not here is gone.
          results.push((await timeline.at(10)).document.get("n"));
          for (const version of [600, 950]) {
            try {
              results.push((await timeline.at(version)).document.get("n"));
            } catch (error) {
              results.push(error instanceof PrunedError);
              await timeline.open();
              results.push(timeline.earliest);
            }
          }
          return results.map(String);
        }
        """,
        json.dumps([[increment("n")]] * 1200),
    )
    assert result == ["10", "true", "900", "950"]


def test_an_id_that_was_counted_before_the_block_is_no_trouble(modules: Page) -> None:
    """The log has each id once; what repeats it is logged without the operation that was left out."""
    steps: list[list[dict[str, Any]]] = [
        [increment("n", once="a")],
        [],
        [increment("n", once="b"), append("l", 1, once="a b")],
    ]
    documents = modules.evaluate(
        """
        async (steps) => {
        """
        + SOURCE
        + """
          const timeline = new Timeline(new Source(parse("{}"), parse(steps)), 3);
          await timeline.open();
          const documents = [];
          for (const version of [3, 2, 1, 0]) documents.push(stringify((await timeline.at(version)).document));
          return documents;
        }
        """,
        json.dumps(steps),
    )
    assert documents == ['{"n":2,"l":[1]}', '{"n":1}', '{"n":1}', "{}"]


def test_charts_tell_the_numbers_of_every_version(modules: Page) -> None:
    """Whatever operations by chance have done: at every version each number that is shown is the one in the document."""
    cases = [
        *(
            {**case, "steps": [[without_once(one) for one in step] for step in case["steps"]]}
            for case in histories(11, 150, 40)
        ),
        {
            "before": {"total": 10},
            "steps": [
                *([increment("n"), set_("$.rows.done", number)] for number in range(1200)),
                [{"type": "update", "value": {"n": "text"}}],
                *([increment("m")] for _ in range(30)),
                [set_("n", 4), set_("rows", {"done": 1, "more": {"x": 2}})],
            ],
        },
    ]
    result = modules.evaluate(
        """
        async (cases) => {
        """
        + SOURCE
        + """
          const wrong = [];
          let shown = 0;
          for (const given of parse(cases)) {
            const source = new Source(given.get("before"), given.get("steps"));
            const newest = given.get("steps").length;
            const timeline = new Timeline(source, newest);
            await timeline.open();
            for (let version = 1; version <= newest; version += BLOCK) while (!(await timeline.read(version)));
            const { from, to, series } = joined(timeline.numbers());
            if (from !== 0 || to !== newest) wrong.push(["range", from, to]);
            for (const { path, points } of series) {
              shown += 1;
              const isThin = newest > 400;
              for (let version = 0; version <= newest; version += 1) {
                const found = points.findLast((point) => point[0] <= version);
                if (found === undefined || (isThin && found[0] !== version)) continue;
                const value = valueAt(source.documents[version], path);
                const there = typeof value === "bigint" || typeof value === "number" ? value : null;
                if (!Object.is(found[2], there)) wrong.push([stringify(path), version, String(found[2]), String(value)]);
              }
            }
          }
          return { wrong, shown };
        }
        """,
        json.dumps(cases),
    )
    assert result["wrong"] == []
    assert result["shown"] > 100


def test_which_numbers_are_charted(modules: Page) -> None:
    steps = [
        [
            increment("processed"),
            set_("$.steps[0].seconds", number / 2),
            append("log", {"line": number}, maxItems=4),
            set_("total", 5 if number else 0),
        ]
        for number in range(6)
    ]
    before = {"constant": 3, "steps": [{"seconds": 0.0}], "log": []}
    series = modules.evaluate(
        """
        async ([before, steps]) => {
        """
        + SOURCE
        + """
          const { pathText } = await import("/static/path.js");
          const timeline = new Timeline(new Source(parse(before), parse(steps)), 6);
          await timeline.open();
          await timeline.read(1);
          const plain = ([version, , value]) => [version, Number(value)];
          return joined(timeline.numbers()).series.map(({ path, points }) => [pathText(path), points.map(plain)]);
        }
        """,
        [json.dumps(before), json.dumps(steps)],
    )
    # What changes often comes first; what slides along in an array is no number of one place.
    assert series == [
        ["processed", [[1, 1], [2, 2], [3, 3], [4, 4], [5, 5], [6, 6]]],
        ["steps[0].seconds", [[1, 0], [2, 0.5], [3, 1], [4, 1.5], [5, 2], [6, 2.5]]],
        ["total", [[1, 0], [2, 5]]],
    ]  # fmt: skip


def test_many_points_are_thinned_without_losing_the_extremes(modules: Page) -> None:
    result = modules.evaluate(
        """
        async () => {
          const { thinned } = await import("/static/numbers.js");
          const points = Array.from({ length: 20_000 }, (_, version) => [version, version, BigInt(version % 100)]);
          points[7777] = [7777, 7777, 10n ** 40n];
          points[8888] = [8888, 8888, -5.5];
          points[9999] = [9999, 9999, null];
          const kept = thinned(points);
          const isInOrder = kept.every((point, position) => position === 0 || point[0] > kept[position - 1][0]);
          return [kept.length, isInOrder, [0, 7777, 8888, 9999, 19999].map((version) => kept.some((point) => point[0] === version))];
        }
        """
    )
    length, is_in_order, kept = result
    assert length <= 500
    assert is_in_order
    assert kept == [True] * 5


@pytest.mark.parametrize(
    ("shown", "most", "expected"),
    [
        ({"a": [1, 2.0, None, True, "x"]}, 100, '{"a": [1, 2.0, null, true, "x"]}'),
        ("short", 5, '"shor…'),
        ([1] * 100, 10, "[1, 1, 1, …"),
        ("😀" * 50, 4, '"😀😀😀…'),
        ({}, 2, "{}"),
    ],
)
def test_excerpts(modules: Page, shown: Any, most: int, expected: str) -> None:
    read = """
      async ([text, most]) => {
        const { parse } = await import("/static/json.js");
        const { excerpt } = await import("/static/excerpt.js");
        return excerpt(parse(text), most);
      }
    """
    assert modules.evaluate(read, [json.dumps(shown), most]) == expected


def test_an_excerpt_costs_what_it_shows(modules: Page) -> None:
    """A value that counts how often it is looked at: the rest of it is not."""
    looked = modules.evaluate(
        """
        async () => {
          const { excerpt } = await import("/static/excerpt.js");
          let looked = 0;
          const items = new Proxy(Array.from({ length: 100_000 }, () => 1n), {
            get(target, name) {
              if (typeof name === "string" && /^[0-9]+$/.test(name)) looked += 1;
              return Reflect.get(target, name);
            },
          });
          excerpt(items, 50);
          return looked;
        }
        """
    )
    assert looked < 60


def test_of_two_long_texts_the_part_that_differs_is_seen(modules: Page) -> None:
    shown = modules.evaluate(
        """
        async () => {
          const { excerptsOfChange } = await import("/static/excerpt.js");
          return excerptsOfChange("x".repeat(5000) + "old" + "y".repeat(5000), "x".repeat(5000) + "new" + "y".repeat(5000), 40);
        }
        """
    )
    assert "old" in shown[0]
    assert "new" in shown[1]
    assert max(map(len, shown)) < 50
