"""What one metadata call costs, and that it does not depend on the size of the document (M34).

    python benchmarks/metadata_cost.py [--quick] [--markdown] [--json] [--check]

For documents of 1 KB, 64 KB and 250 KB: microseconds per operation, applied to the document and, as the SDK does it, added to
the pending operations as well. All sizes take turns in one run, many times, and the best turn of each counts, so that a busy
machine slows all of them alike. The ratio is 250 KB over 1 KB; `--check` fails if one is above 1.5.

The document is what a long job has: some counters, a status, nested progress, a capped log, and results that fill the rest.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence

import harness
from harness import Figure, Report

from milepost.model.document import Document
from milepost.model.jsonvalue import JSONValue
from milepost.model.operations import Append, Increment, Operation, Pending, Set

FIGURES = (
    Figure("set", "set a number, document of 1 KB", "µs"),
    Figure("set_path", "set by a path, document of 1 KB", "µs"),
    Figure("increment", "increment, document of 1 KB", "µs"),
    Figure("append", "append to a capped list, document of 1 KB", "µs"),
    Figure("slowest", "the slowest operation, document of 250 KB", "µs", at_most=3),
    Figure("ratio", "250 KB compared with 1 KB, the worst operation", "x", at_most=1.5),
)

SIZES_BYTES = (1_024, 64 * 1_024, 250 * 1_024)
OPERATIONS_PER_TURN = 500
TURNS = 60
TURNS_QUICK = 3
RATIO_MAX = 1.5


def document_of(size_bytes: int) -> Document:
    """A document of about this many bytes, the larger part of it in many small results and one long list."""
    log: list[JSONValue] = [f"line {number}: fetched and stored" for number in range(5)]
    rows: list[JSONValue] = []
    results: dict[str, JSONValue] = {}
    value: dict[str, JSONValue] = {
        "status": "running",
        "done": 0,
        "progress": {"step": 0, "label": "reading"},
        "log": log,
        "rows": rows,
        "results": results,
    }
    room = size_bytes - Document(value).size
    while room > 0:
        row: JSONValue = {"id": len(rows), "ok": True, "took_ms": 12.5, "name": "file.csv"}
        rows.append(row)
        results[f"file-{len(rows)}.csv"] = {"rows": 1200, "errors": 0}
        room -= 102
    # No limit: here only the cost counts.
    return Document(value, limit=sys.maxsize)


def operations_by_name(turn: int) -> dict[str, list[Operation]]:
    numbers = range(turn * OPERATIONS_PER_TURN, (turn + 1) * OPERATIONS_PER_TURN)
    return {
        "set number": [Set("done", number) for number in numbers],
        "set text": [Set("status", f"processing row {number}") for number in numbers],
        "set object": [Set("progress", {"step": number, "label": "reading"}) for number in numbers],
        "set path": [Set("$.progress.step", number) for number in numbers],
        "set path in the long list": [Set("$.rows[0].ok", number % 2 == 0) for number in numbers],
        "increment": [Increment("done", 1) for _ in numbers],
        "append capped": [Append("log", f"line {number}", 5) for number in numbers],
        "append to the long list": [Append("rows", number) for number in numbers],
    }


def seconds_for(call: Callable[[Operation], None], operations: Sequence[Operation]) -> float:
    started = time.perf_counter()
    for operation in operations:
        call(operation)
    return time.perf_counter() - started


def measure(turns: int = TURNS) -> dict[str, dict[str, list[float]]]:
    """Microseconds per operation: {"apply" or "apply and add": {operation: one figure for each size}}."""
    best: dict[str, dict[str, list[float]]] = {
        how: {name: [float("inf")] * len(SIZES_BYTES) for name in operations_by_name(0)}
        for how in ("apply", "apply and add")
    }
    templates = [document_of(size) for size in SIZES_BYTES]
    for turn in range(turns):
        for name, operations in operations_by_name(turn).items():
            for index, template in enumerate(templates):
                # A fresh copy each time, as some of these make the document grow.
                document = template.copy()
                seconds = seconds_for(document.apply, operations)
                best["apply"][name][index] = min(best["apply"][name][index], seconds)
                seconds = seconds_for(apply_and_add(template.copy(), Pending()), operations)
                best["apply and add"][name][index] = min(best["apply and add"][name][index], seconds)
    return {
        how: {
            name: [seconds / OPERATIONS_PER_TURN * 1e6 for seconds in figures]
            for name, figures in by_name.items()
        }
        for how, by_name in best.items()
    }


def apply_and_add(document: Document, pending: Pending) -> Callable[[Operation], None]:
    def both(operation: Operation) -> None:
        document.apply(operation)
        pending.add(operation)

    return both


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    harness.add_options(parser)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--check", action="store_true", help=f"fail if a ratio is above {RATIO_MAX}")
    arguments = parser.parse_args()
    measured = measure(TURNS_QUICK if arguments.quick else TURNS)
    ratios = [figures[-1] / figures[0] for by_name in measured.values() for figures in by_name.values()]
    if arguments.json:
        print(json.dumps({"sizes_bytes": SIZES_BYTES, "microseconds": measured, "worst_ratio": max(ratios)}))
    else:
        title = "One metadata call: applied to the document and added to what is pending"
        with Report("metadata", title, FIGURES, markdown=arguments.markdown) as report:
            if not arguments.markdown:
                print_table(measured)
            both = measured["apply and add"]
            report.add("set", both["set number"][0])
            report.add("set_path", both["set path"][0])
            report.add("increment", both["increment"][0])
            report.add("append", both["append capped"][0])
            report.add("slowest", max(figures[-1] for figures in both.values()))
            report.add("ratio", max(ratios))
    return 1 if arguments.check and max(ratios) > RATIO_MAX else 0


def print_table(measured: dict[str, dict[str, list[float]]]) -> None:
    """Every operation at every size."""
    heads = "".join(f"{size // 1024:>9} KB" for size in SIZES_BYTES)
    for how, by_name in measured.items():
        print(f"  {how + ', µs per call':<32}{heads}{'ratio':>9}")
        for name, figures in by_name.items():
            cells = "".join(f"{figure:>12.2f}" for figure in figures)
            print(f"    {name:<30}{cells}{figures[-1] / figures[0]:>9.2f}")


if __name__ == "__main__":
    sys.exit(main())
