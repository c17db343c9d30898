"""The grammar of scopes (protocol, section 2.3): what is granted, and what only looks as if it were."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.model.scopes import RunScope, Scope, Scopes, parse_scope

_WORDS = st.sampled_from(
    ["read", "write", "trigger", "batchTrigger", "admin", "*", "all", "", "Read", "read "]
)
_RESOURCES = st.sampled_from(["runs", "tasks", "tags", "batch", "metadata", "all", "", "run", "*"])
_IDS = st.sampled_from(["a", "b", "a:b", "a,b", "", ":", "a:", "é", " a"])
_TEXTS = st.one_of(
    _WORDS,
    st.builds(lambda action, resource: f"{action}:{resource}", _WORDS, _RESOURCES),
    st.builds(lambda action, resource, id: f"{action}:{resource}:{id}", _WORDS, _RESOURCES, _IDS),
)


@pytest.mark.parametrize(
    ("text", "scope"),
    [
        ("read:runs:run_abc", Scope("read", "runs", "run_abc")),
        ("read:tags:user:1", Scope("read", "tags", "user:1")),
        ("read:tags:a,b", Scope("read", "tags", "a,b")),
        ("read:tags::", Scope("read", "tags", ":")),
        ("write:tags", Scope("write", "tags")),
        ("admin", Scope("*", "all")),
    ],
)
def test_the_id_is_everything_behind_the_second_colon(text: str, scope: Scope) -> None:
    assert parse_scope(text) == scope


@pytest.mark.parametrize(
    "text", ["", ":", "::", "read", "read:", "read::", "read::x", ":runs", ":runs:x", "read:runs:"]
)
def test_what_is_no_scope_grants_nothing(text: str) -> None:
    """An empty id is no id, and above all not every id."""
    assert parse_scope(text) is None
    assert Scopes((text,)).readable == RunScope()


def test_admin_grants_nothing_by_being_a_part() -> None:
    for text in ("admin:runs", "admin:x", "read:admin", "Admin", "admin "):
        assert not Scopes((text,)).allows("read", "runs", "a"), text


@given(st.lists(_TEXTS, max_size=4), _IDS, st.sampled_from(["t", "u"]), st.lists(_IDS, max_size=2))
def test_the_runs_that_are_shown_are_those_that_some_scope_names(
    texts: list[str], run_id: str, task: str, tags: list[str]
) -> None:
    """The form that lists use says the same as each scope by itself."""
    scopes = Scopes(tuple(texts))
    for batch_id in (None, "a"):
        named = (
            scopes.allows("read", "runs", run_id)
            or scopes.allows("read", "tasks", task)
            or any(scopes.allows("read", "tags", tag) for tag in tags)
            or (batch_id is not None and scopes.allows("read", "batch", batch_id))
        )
        shown = scopes.readable is None or scopes.readable.shows(run_id, task, tags, batch_id)
        assert shown == named, (texts, run_id, task, tags, batch_id)


def test_one_id_of_whatever_it_is_the_id_of() -> None:
    """`all` stands for every resource, also where an id stands behind it."""
    scopes = Scopes(("read:all:a",))
    assert scopes.readable == RunScope(runs=("a",), tasks=("a",), tags=("a",), batches=("a",))
    assert scopes.allows("read", "batch", "a")
    assert not scopes.allows("read", "batch", "b")
    assert not scopes.allows("read", "batch")


@given(st.lists(_TEXTS, max_size=3), _IDS)
def test_more_scopes_never_grant_less(texts: list[str], id: str) -> None:
    for resource in ("runs", "tasks", "tags", "batch", "metadata"):
        for action in ("read", "write", "trigger"):
            some = Scopes(tuple(texts[:1])).allows(action, resource, id)
            assert not some or Scopes(tuple(texts)).allows(action, resource, id)


@pytest.mark.parametrize(
    ("texts", "keys"),
    [
        ((), frozenset()),
        (("write:metadata:run_1:approved",), frozenset({"approved"})),
        (("write:metadata:run_1:a:b", "write:metadata:run_1:c"), frozenset({"a:b", "c"})),
        (("write:metadata:run_2:approved", "write:metadata:run_12:x"), frozenset()),
        (("read:metadata:run_1:approved", "write:runs:run_1"), frozenset()),
        (("write:metadata:run_1",), None),
        (("write:metadata",), None),
        (("write:metadata:",), frozenset()),
        (("admin",), None),
    ],
)
def test_the_keys_that_may_be_written(texts: tuple[str, ...], keys: frozenset[str] | None) -> None:
    assert Scopes(texts).written_keys("run_1") == keys
