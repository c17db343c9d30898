"""What the contestants on PostgreSQL come to: the goals, and what runs and updates cost with one server and with several.

python report_postgres.py postgres.jsonl

`run.py --postgres` measures and prints this. Of each contestant the better of its two settings counts.
"""

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable

OURS = "milepost-postgres"
FLEET = {OURS: 1, f"{OURS}-2-servers": 2, f"{OURS}-4-servers": 4}
SIDES = ("postgres", "milepost", "workers", "driver")
W1_TIMES, W5_PER_SECOND = 8.0, 2000.0

Values = dict[tuple[str, str, str], dict[tuple[str, str], list[float]]]


def load(path: str) -> tuple[Values, list[dict], list[float]]:
    """Values by (workload, contestant, metric), then by setting and way; the errors; foreign cores of each row."""
    values: Values = defaultdict(lambda: defaultdict(list))
    errors, foreign = [], []
    with open(path) as file:
        for row in map(json.loads, file):
            foreign.append(row.get("foreign_cpu", 0.0))
            if row["metric"] == "error":
                errors.append(row)
            elif row["value"] is not None:
                way = row["notes"].split(";")[0] if row["workload"] in ("W4", "W5") else ""
                key = row["workload"], row["contestant"], row["metric"]
                values[key][row["mode"], way].append(row["value"])
                if row["workload"] == "W5" and row["metric"] == "total":
                    values["W5", row["contestant"], "rate"][row["mode"], way].append(row["k"] / row["value"])
    return values, errors, foreign


def medians(values: Values, workload: str, contestant: str, metric: str) -> list[float]:
    found = values.get((workload, contestant, metric), {})
    return [statistics.median(each) for each in found.values()]


def best(values: Values, workload: str, contestant: str, metric: str, pick=max) -> float | None:
    return pick(medians(values, workload, contestant, metric), default=None)


def shown(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.1f}" if abs(value) >= 10 else f"{value:,.2f}"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    head = list(head)
    print("| " + " | ".join(head) + " |")
    print("|---" * len(head) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def main(path: str) -> None:
    values, errors, foreign = load(path)
    contestants = sorted({contestant for _, contestant, _ in values})
    peers = [name for name in contestants if name not in FLEET]

    print("### Contestants on one PostgreSQL, each with the better of its settings\n")
    columns = {
        "W1 one by one, tasks/s": ("W1", "enqueue_rate", max),
        "W1 backlog, tasks/s": ("W1", "drain_rate", max),
        "W1 end to end, tasks/s": ("W1", "e2e_rate", max),
        "W2 to result, ms": ("W2", "result_p50", min),
        "W4 p50, ms": ("W4", "delay_p50", min),
        "W4 p99, ms": ("W4", "delay_p99", min),
        "W5 children/s": ("W5", "rate", max),
        "W5 lost": ("W5", "lost_share", min),
        "W8 updates stored/s": ("W8", "update_rate", max),
    }
    table(
        ["contestant", *columns],
        (
            [name, *(shown(best(values, w, name, metric, pick)) for w, metric, pick in columns.values())]
            for name in contestants
        ),
    )

    print("### Goals\n")
    rows = []
    ours = best(values, "W1", OURS, "e2e_rate")
    rates = {name: rate for name in peers if (rate := best(values, "W1", name, "e2e_rate")) is not None}
    if ours and rates:
        leader = max(rates, key=rates.__getitem__)
        ratio = ours / rates[leader]
        goal = f"W1 ≥ {W1_TIMES:g} x the best of the others ({leader})"
        rows.append([goal, f"{ratio:.1f} x", "yes" if ratio >= W1_TIMES else "NO"])
    delay = best(values, "W4", OURS, "delay_p50", min)
    for name in peers:
        theirs = best(values, "W4", name, "delay_p50", min)
        if delay is not None and theirs is not None:
            found = f"{shown(delay)} ms against {shown(theirs)} ms"
            rows.append([f"W4 ahead of {name}", found, "yes" if delay < theirs else "NO"])
        else:
            rows.append(
                [f"W4 ahead of {name}", "it has nothing to watch", "yes" if delay is not None else "NO"]
            )
    rate = best(values, "W5", OURS, "rate")
    lost = medians(values, "W5", OURS, "lost_share")
    if rate is not None:
        found = f"{shown(rate)}/s, {max(lost):.1%} lost"
        rows.append(
            [
                f"W5 ≥ {W5_PER_SECOND:,.0f}/s, none lost",
                found,
                "yes" if rate >= W5_PER_SECOND and not any(lost) else "NO",
            ]
        )
    table(["goal", "measured", "reached"], rows)

    print("### What a run and an update cost, processor time in µs\n")
    print("*Share* is PostgreSQL's part of what the database, the servers and the workers take together.\n")
    for workload, unit in (
        ("W1", "run, triggered in a batch and carried out"),
        ("W8", "update of metadata, stored"),
    ):
        rows = []
        for name in [*(name for name in FLEET if name in contestants), *peers]:
            # With the settings under which it is quickest.
            metric = "e2e_rate" if workload == "W1" else "update_rate"
            settings = values.get((workload, name, metric), {})
            if not settings:
                continue
            setting = max(settings, key=lambda setting: statistics.median(settings[setting]))
            costs = {}
            for side in SIDES:
                found = values.get((workload, name, f"cpu_{side}"), {}).get(setting)
                costs[side] = None if found is None else statistics.median(found)
            whole = sum(costs[side] or 0.0 for side in SIDES if side != "driver")
            share = f"{(costs['postgres'] or 0.0) / whole:.0%}" if whole else "–"
            rate = statistics.median(settings[setting])
            rows.append([name, setting[0], shown(rate), *(shown(costs[side]) for side in SIDES), share])
        print(f"Per {unit}:\n")
        table(
            [
                "contestant",
                "setting",
                "per second",
                *("servers" if side == "milepost" else side for side in SIDES),
                "share",
            ],
            rows,
        )

    print(f"Others used up to {max(foreign, default=0.0):.2f} cores meanwhile.")
    for row in errors:
        print(
            f"\nerror: {row['contestant']} {row['mode']} repeat {row['repeat']} {row['workload']}: {row['notes']}"
        )


if __name__ == "__main__":
    main(sys.argv[1])
