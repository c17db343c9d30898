"""The result of a run as the answer to the request that waits for it (`wait`)."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.shapes import is_problem
from milepost.server.requests import WAIT_SECONDS_MAX
from support.served import PATIENCE_SECONDS, Answer, HttpWorker, Served


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path)
    yield served
    served.stop()


class Asked(threading.Thread):
    """Asks for a result, and waits in a thread of its own."""

    def __init__(self, served: Served, run_id: str, wait: int = 15) -> None:
        super().__init__()
        self._served, self._run_id, self._wait = served, run_id, wait
        self.answered: Answer | None = None
        self.start()
        until = time.monotonic() + PATIENCE_SECONDS
        while run_id not in served.server.hub._ends and self.is_alive() and time.monotonic() < until:
            time.sleep(0.005)

    def run(self) -> None:
        self.answered = self._served.call(
            "GET", f"/api/v1/runs/{self._run_id}/result", query={"wait": self._wait}
        )

    def answer(self) -> Answer:
        """What came back."""
        self.join(PATIENCE_SECONDS)
        assert self.answered is not None
        return self.answered


def nobody_waits(served: Served) -> bool:
    """The hub has let go of all who have waited."""
    until = time.monotonic() + PATIENCE_SECONDS
    while served.server.hub._ends and time.monotonic() < until:
        time.sleep(0.005)
    return not served.server.hub._ends


@pytest.mark.parametrize("status", ["COMPLETED", "FAILED", "CANCELED"])
def test_who_waits_is_answered_when_the_run_ends(served: Served, status: str) -> None:
    worker = HttpWorker(served)
    run_id = served.trigger()
    asked = [Asked(served, run_id) for _ in range(3)]
    # What is no end wakes nobody.
    served.put_metadata(run_id, {"type": "set", "key": "a", "value": 1})
    began = time.monotonic()
    if status == "CANCELED":
        served.post(f"/api/v2/runs/{run_id}/cancel", {})
    else:
        run = worker.take(run_id)
        assert all(each.is_alive() for each in asked)
        if status == "FAILED":
            worker.fail(run)
        else:
            worker.finish(run, output="[7]")
    for each in asked:
        answer = each.answer()
        assert answer.status == 200, answer
        assert answer.json["id"] == run_id
        assert answer.json["ok"] is (status == "COMPLETED")
        # What the commit has told is what is stored.
        assert answer.json == served.get(f"/api/v1/runs/{run_id}/result")
    assert time.monotonic() - began < 10
    assert nobody_waits(served)


@pytest.mark.parametrize("output", [None, "null", '{"a":[1,2.50,"\\u00e4"]}', f'"{"x" * 300_000}"'])
def test_what_is_told_of_an_end_is_what_is_stored(served: Served, output: str | None) -> None:
    worker = HttpWorker(served)
    run_id = served.trigger()
    asked = Asked(served, run_id)
    run = worker.take(run_id)
    worker.report(run, outcome={} if output is None else {"output": output})
    answer = asked.answer()
    assert answer.status == 200
    assert answer.json == served.get(f"/api/v1/runs/{run_id}/result")
    assert answer.json.get("output") == output


def test_a_run_that_has_ended_is_not_waited_for(served: Served) -> None:
    worker = HttpWorker(served)
    run_id = served.trigger()
    worker.finish(worker.take(run_id), output="1")
    assert served.get(f"/api/v1/runs/{run_id}/result", wait=WAIT_SECONDS_MAX)["output"] == "1"


def test_without_an_end_it_says_that_there_is_no_result(served: Served) -> None:
    HttpWorker(served)
    run_id = served.trigger()
    for wait in (0, 1):
        began = time.monotonic()
        answer = served.call("GET", f"/api/v1/runs/{run_id}/result", query={"wait": wait})
        assert (answer.status, answer.json["code"]) == (404, "not_found")
        assert time.monotonic() - began >= wait
    assert nobody_waits(served)


def test_a_run_that_is_not_there_is_said_at_once(served: Served) -> None:
    answer = served.call("GET", "/api/v1/runs/run_nowhere/result", query={"wait": 15})
    assert (answer.status, answer.json["code"]) == (404, "run_not_found")
    assert nobody_waits(served)


@pytest.mark.parametrize("wait", ["-1", str(WAIT_SECONDS_MAX + 1), "soon", "1.5", ""])
def test_another_time_is_refused_by_name(served: Served, wait: str) -> None:
    answer = served.call("GET", "/api/v1/runs/run_1/result", query={"wait": wait})
    assert answer.status == 400
    assert is_problem(answer.json)
    assert "wait" in answer.json["error"]


def test_a_server_that_stops_lets_go_of_who_waits(served: Served) -> None:
    HttpWorker(served)
    run_id = served.trigger()
    asked = Asked(served, run_id)
    served.stop()
    answer = asked.answer()
    # It comes again after a moment, and not at once and for ever.
    assert (answer.status, answer.json["code"], answer.headers["retry-after"]) == (503, "unavailable", "1")
    served.start()
    assert served.call("GET", f"/api/v1/runs/{run_id}/result").status == 404
