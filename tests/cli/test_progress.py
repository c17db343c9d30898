"""How far a run is, read out of its metadata."""

from typing import Any

import pytest
from rich.console import Console

from milepost.cli.progress import Bar, bars_of, describe, draw, show


@pytest.mark.parametrize(
    ("metadata", "bars", "rest"),
    [
        ({}, [], {}),
        ({"progress": 0.25}, [Bar("progress", 0.25, 1)], {}),
        ({"progress": 0}, [Bar("progress", 0, 1)], {}),
        ({"progress": 25}, [], {"progress": 25}),
        ({"progress": True}, [], {"progress": True}),
        ({"processed": 3, "total": 10, "status": "x"}, [Bar("processed", 3, 10)], {"status": "x"}),
        ({"done": 3, "total": 10}, [Bar("done", 3, 10)], {}),
        ({"processed": 3, "total": 0}, [], {"processed": 3, "total": 0}),
        ({"processed": "3", "total": 10}, [], {"processed": "3", "total": 10}),
        ({"total": 10}, [], {"total": 10}),
        ({"progress": {"done": 3, "total": 10}}, [Bar("progress", 3, 10)], {}),
        ({"progress": {"done": 3, "total": None}}, [], {"progress": {"done": 3, "total": None}}),
        (
            {"rows": {"done": 1, "total": 2}, "files": {"done": 2, "total": 2}},
            [Bar("rows", 1, 2), Bar("files", 2, 2)],
            {},
        ),
    ],
)
def test_bars_and_the_rest(metadata: dict[str, Any], bars: list[Bar], rest: dict[str, Any]) -> None:
    assert bars_of(metadata) == (bars, rest)


def test_a_bar_never_leaves_its_ends() -> None:
    assert Bar("x", 12, 10).share == 1
    assert Bar("x", -1, 10).share == 0
    assert str(Bar("processed", 2500, 10_000)) == "processed 2,500 of 10,000 (25%)"
    assert str(Bar("progress", 0.5, 1)) == "progress 50%"


def test_long_values_are_cut_with_their_size() -> None:
    text = show(list(range(1000)))
    assert "1,000 items" in text
    assert len(text) < 300
    assert show("plain") == "plain"
    assert show({"a": "ü"}) == '{"a": "ü"}'


def test_metadata_is_never_read_as_markup() -> None:
    console = Console(width=100, record=True)
    with console.capture() as capture:
        console.print(draw(task="t", run_id="run_1", status="EXECUTING", metadata={"[red]x": "[/bold]"}))
    assert "[red]x" in capture.get()
    assert "[/bold]" in capture.get()


def test_one_line_for_output_that_is_no_terminal() -> None:
    line = describe(status="EXECUTING", metadata={"processed": 1, "total": 4, "step": "two"})
    assert line == "EXECUTING  processed 1 of 4 (25%)  step=two"
