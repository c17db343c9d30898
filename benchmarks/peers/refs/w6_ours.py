"""W6 for Milepost: cost of one metadata operation in the process, by document size, on the same document as `w6_node.mjs`.

python w6_ours.py <repeat>

What `metadata.set` and the others do inside a task: a value becomes JSON, the operation is applied to the view and kept to be sent.
"""

import json
import sys
import time

from doc import make
from milepost.model.document import Document
from milepost.model.jsonvalue import to_json
from milepost.model.operations import Append, Increment, Set
from milepost.sdk.buffer import Buffer

repeat = int(sys.argv[1]) if len(sys.argv) > 1 else 0
ROUNDS = 20

OPERATIONS = {
    "set": lambda i: Set("progress", to_json(i + 1)),
    "set_path": lambda i: Set("$.items[0].status", to_json(f"s{i}")),
    "increment": lambda i: Increment("counter", 1),
    "append": lambda i: Append("logs", to_json(f"line {i}")),
}


def emit(metric, ns, notes, **more):
    row = {
        "contestant": "ours",
        "mode": "-",
        "repeat": repeat,
        "workload": "W6",
        "metric": metric,
        "value": round(ns, 1),
        "unit": "ns/op",
        "notes": notes,
    }
    print(json.dumps({**row, **more}), flush=True)


def timed(document, operation, count):
    """Nanoseconds for each of `count` calls on a fresh buffer."""
    buffer = Buffer("run_1", 1, Document(document, limit=10**9))
    start = time.perf_counter_ns()
    for i in range(count):
        buffer.add("run_1", operation(i))
    return (time.perf_counter_ns() - start) / count


for kb in (1, 16, 128, 250):
    document = make(kb * 1024)
    for name, operation in OPERATIONS.items():
        # Appends make the document grow: few for each fresh buffer, as in w6_node.mjs.
        count = 80 if name == "append" else 5000
        timed(document, operation, count)
        mean = sum(timed(document, operation, count) for _ in range(ROUNDS)) / ROUNDS
        emit(f"manager_{name}_{kb}KB", mean, "Buffer.add", size_kb=kb, n=count * ROUNDS)
