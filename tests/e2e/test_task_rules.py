"""Retries, hooks and payloads of several parameters, with real processes."""

from collections.abc import Callable

from real_processes import House

TASKS = """
    @hooks.middleware
    def around(ctx: Context):
        metadata.append("order", f"in {ctx.attempt.number}")
        yield
        metadata.append("order", f"out {ctx.attempt.number}")

    def hook(name):
        return lambda: metadata.append("order", name)

    @task(retry=Retry(max_attempts=3, min_delay=0, max_delay=0, retry_on=ConnectionError),
          on_start=hook("start"), on_success=hook("success"), on_failure=hook("failure"), on_complete=hook("complete"))
    def fetch(ctx: Context, url: str, attempts: int = 2, *, error: str = "connection") -> list:
        if error == "value":
            raise ValueError(url)
        if ctx.attempt.number < attempts:
            raise ConnectionError(url)
        return [url, attempts, error]

    @fetch.catch_error
    def decide(error):
        if "give up" in str(error):
            return Caught(skip_retrying=True)

    @task
    async def parent() -> list:
        first = await fetch.atrigger_and_wait("a", attempts=1)
        batch = await fetch.abatch_trigger_and_wait([("b", 1), {"url": "c", "attempts": 1}])
        named = await fetch.options(tags=["named"]).atrigger_and_wait(url="d", attempts=1)
        return [each.unwrap()[0] for each in (first, *batch, named)]

    @task
    def large(size: int) -> str:
        return "x" * size
"""


def test_retries_hooks_and_several_parameters(house: Callable[..., House]) -> None:
    dev = house(TASKS, "--processes", "1")
    again = dev.run("fetch", {"url": "u", "attempts": 3})
    assert again.output == ["u", 3, "connection"]
    assert again.metadata["order"] == ["in 1", "start", "in 2", "in 3", "success", "complete", "out 3"]
    given_up = dev.run("fetch", {"url": "give up"})
    assert given_up.attempt_count == 1
    assert given_up.metadata["order"] == ["in 1", "start", "failure", "complete"]
    other = dev.run("fetch", {"url": "u", "error": "value"})
    assert (other.attempt_count, other.error and other.error.name) == (1, "ValueError")
    wrong = dev.run("fetch", {"url": "u", "unknown": 1})
    assert (wrong.attempt_count, wrong.error and wrong.error.name) == (1, "PayloadValidationError")
    assert dev.run("parent").output == ["a", "b", "c", "d"]
    assert len(dev.run("large", 10_000_000).output) == 10_000_000
    too_large = dev.run("large", 10_485_760)
    assert (too_large.status, too_large.error and too_large.error.name) == ("FAILED", "OutputError")
    assert dev.end() == 0
