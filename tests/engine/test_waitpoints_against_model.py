"""Tokens against a model: completions, timeouts, repeats of requests and keys, and restarts, in any order."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milepost.engine.commands import CompleteToken, CreateWaitpoint
from milepost.model.waitpoints import WaitpointKind, WaitpointStatus
from support.many import ONE_SERVER, THREE_SERVERS, world_of

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("create"), st.sampled_from([None, 1, 5, 30]), st.sampled_from([None, "a", "b"])),
        st.tuples(st.just("complete"), st.integers(0, 5), st.integers(0, 2)),
        st.tuples(st.just("both"), st.integers(0, 5), st.none()),
        st.tuples(st.just("pass"), st.sampled_from([0.5, 1, 4, 20]), st.none()),
        st.tuples(st.just("restart"), st.none(), st.none()),
    ),
    max_size=25,
)


@dataclass
class Token:
    """A token as it should be."""

    id: str
    due_at: int | None
    key: str | None
    output: str | None = None

    def status(self, now: int) -> str:
        if self.output is not None:
            return "COMPLETED"
        return "TIMED_OUT" if self.due_at is not None and self.due_at <= now else "WAITING"


@pytest.mark.parametrize("servers", [ONE_SERVER, THREE_SERVERS])
def test_tokens_end_as_a_model_says(servers: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    @settings(deadline=None, max_examples=25)
    @given(STEPS)
    def holds(steps: list[tuple[str, float | None, object]]) -> None:
        with world_of(servers, tmp_path_factory.mktemp("world") / "milepost.db") as world:
            tokens: list[Token] = []
            answered: dict[str, bool] = {}
            for number, (what, first, second) in enumerate(steps):
                if what == "create":
                    key = None if second is None else str(second)
                    created = world.do(
                        CreateWaitpoint(
                            kind=WaitpointKind.TOKEN,
                            timeout_ms=None if first is None else int(first * 1000),
                            key=key,
                        )
                    )
                    same = [token for token in tokens if key is not None and token.key == key]
                    assert [created.is_cached, created.id] == (
                        [True, same[0].id] if same else [False, created.id]
                    )
                    if not same:
                        row = world.reader.token(created.id, str)
                        assert (row.timeout_at is None) == (first is None)
                        due_at = None if first is None else world.clock() + int(first * 1_000_000)
                        tokens.append(Token(created.id, due_at, key))
                elif what in ("complete", "both") and tokens and first is not None:
                    token = tokens[int(first) % len(tokens)]
                    if what == "both":
                        tickets = world.submit(
                            CompleteToken(token.id, f'"{number}"'), CompleteToken(token.id, '"other"')
                        )
                        firsts = [ticket.result.is_first for ticket in tickets]
                        assert sum(firsts) <= 1
                        is_first, said = firsts[0], f'"{number}"'
                        assert not firsts[1]
                    else:
                        request, said = f"{token.id}/{second}", f'"{second}"'
                        is_first = world.do(CompleteToken(token.id, said, request)).is_first
                        if answered.get(request):
                            assert is_first
                            continue
                        answered[request] = is_first
                    assert is_first == (token.status(world.clock()) == "WAITING")
                    if is_first:
                        token.output = said
                elif what == "pass" and first is not None:
                    world.clock.advance(first)
                    world.submit()
                elif what == "restart":
                    world.restart()
                    world.submit()
            world.submit()
            for token in tokens:
                row = world.reader.token(token.id, str)
                assert row.status == WaitpointStatus(token.status(world.clock()))
                if token.output is not None:
                    assert row.output == token.output

    holds()
