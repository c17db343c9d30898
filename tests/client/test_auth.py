"""Public tokens as `milepost.auth` makes them, checked by another library."""

import json
import time
from base64 import urlsafe_b64encode
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost import auth
from milepost.client.client import Client
from milepost.errors import ConfigurationError
from milepost.protocol import tokens
from milepost.protocol.tokens import TokenError

CLIENT = Client("http://127.0.0.1:1", "k" * 40)


def read(token: str, key: str = "k" * 40) -> dict[str, Any]:
    """The claims, by PyJWT."""
    return jwt.decode(token, key, algorithms=["HS256"], audience=tokens.AUDIENCE, issuer=tokens.ISSUER)


def test_a_token_says_what_was_asked_for() -> None:
    token = auth.create_public_token(
        {
            "read": {
                "runs": ["run_abc"],
                "tasks": "my-task",
                "tags": ["user:1", "a,b"],
                "batch": "batch_abc",
            },
            "write": {"metadata": {"run_abc": ["approved", "a:b"], "run_d": True}, "inputStreams": "run_abc"},
        },
        expires_in="1h",
        metadata_keys=["progress"],
        client=CLIENT,
    )
    claims = read(token)
    assert claims.pop("exp") - claims.pop("iat") == 3600
    assert claims == {
        "sub": "env_default",
        "pub": True,
        "scopes": [
            "read:runs:run_abc",
            "read:tasks:my-task",
            "read:tags:user:1",
            "read:tags:a,b",
            "read:batch:batch_abc",
            "write:metadata:run_abc:approved",
            "write:metadata:run_abc:a:b",
            "write:metadata:run_d",
            "write:inputStreams:run_abc",
        ],
        "metadataKeys": ["progress"],
        "iss": tokens.ISSUER,
        "aud": tokens.AUDIENCE,
    }
    assert jwt.get_unverified_header(token) == {"alg": "HS256"}


def test_trigger_tokens_work_once_unless_told_otherwise() -> None:
    once = read(auth.create_trigger_token(["a", "b"], client=CLIENT))
    assert (once["otu"], once["scopes"]) == (True, ["trigger:tasks:a", "trigger:tasks:b"])
    assert once["exp"] - once["iat"] == 15 * 60
    assert read(auth.create_trigger_token("a", multiple_use=True, client=CLIENT))["otu"] is False
    assert read(auth.create_batch_trigger_token("a", client=CLIENT))["scopes"] == ["batchTrigger:tasks:a"]
    twins = {auth.create_trigger_token("a", client=CLIENT) for _ in range(10)}
    assert len(twins) == 10


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("15m", 900),
        ("2h", 7200),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        ("7d", 604_800),
        (60, 60),
        (1.5, 1),
        (timedelta(minutes=3), 180),
    ],
)
def test_how_long_it_lives(given: Any, seconds: int) -> None:
    assert tokens.expiry_of(given, 1_000_000) == 1_000_000 + seconds


def test_until_when_it_lives() -> None:
    until = datetime.now(UTC) + timedelta(hours=1)
    assert tokens.expiry_of(until, int(time.time())) == int(until.timestamp())
    assert tokens.expiry_of(2_000_000_000, 1_900_000_000) == 2_000_000_000


@pytest.mark.parametrize(
    "given",
    [
        "", "soon", "m", "15", "15 minutes", "-5m", "1.5h", "15m!", "0s", 0, -1, float("inf"), float("nan"), 1_000_000_001, 10**30,
        "9" * 30 + "d", "999999999w", timedelta(0), timedelta(days=-1), datetime(2020, 1, 1, tzinfo=UTC), datetime(2030, 1, 1),
    ],
    ids=str,
)  # fmt: skip
def test_a_time_that_is_none_or_over_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match=r"span|future|time zone"):
        auth.create_public_token({"read": {"runs": "x"}}, expires_in=given, client=CLIENT)


@pytest.mark.parametrize(
    ("scopes", "error"),
    [
        ({}, ValueError),
        ({"read": {}}, ValueError),
        ({"read": {"runs": []}}, ValueError),
        ({"read": {"runs": False}}, ValueError),
        ({"read": {"runs": ""}}, ValueError),
        ({"read": {"runs": [1]}}, TypeError),
        ({"read": {"run": "x"}}, ValueError),
        ({"reed": {"runs": "x"}}, ValueError),
        ({"write": {"runs": "x"}}, ValueError),
        ({"write": {"metadata": "run_1"}}, TypeError),
        ({"write": {"metadata": {"run_1": []}}}, ValueError),
        ({"write": {"metadata": {"run_1": [""]}}}, ValueError),
        ({"write": {"metadata": {"run:1": ["x"]}}}, ValueError),
        ({"write": {"metadata": {"": ["x"]}}}, ValueError),
    ],
    ids=str,
)
def test_scopes_that_say_nothing_are_refused(scopes: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="scopes"):
        auth.create_public_token(scopes, client=CLIENT)


def test_a_token_makes_no_tokens() -> None:
    token = auth.create_public_token({"read": {"runs": True}}, client=CLIENT)
    with pytest.raises(ConfigurationError, match="secret key"):
        auth.create_public_token({"read": {"runs": True}}, client=Client("http://127.0.0.1:1", token))


def test_more_than_a_header_carries_is_refused() -> None:
    with pytest.raises(ValueError, match="give the runs a tag"):
        auth.create_public_token(
            {"read": {"runs": [f"run_{number:026}" for number in range(1000)]}}, client=CLIENT
        )


@given(
    st.dictionaries(
        st.text(max_size=5), st.one_of(st.text(max_size=9), st.integers(-5, 5), st.none()), max_size=3
    ),
    st.text(st.characters(codec="utf-8"), min_size=32, max_size=40),
)
def test_what_is_signed_here_the_library_reads_and_the_other_way_round(
    more: dict[str, Any], key: str
) -> None:
    claims = {
        **more,
        **tokens.claims_of(["read:runs:é"], now=int(time.time()), expires_at=int(time.time()) + 60),
    }
    claims.pop("nbf", None)
    raw = key.encode()
    if len(raw) < 32:
        return
    token = tokens.sign(claims, raw)
    by_library = jwt.decode(
        token,
        raw,
        algorithms=["HS256"],
        audience=tokens.AUDIENCE,
        issuer=tokens.ISSUER,
        options={"verify_sub": False, "verify_jti": False},
    )
    assert by_library == claims
    assert tokens.verify(token, raw, now=time.time())[0] == claims
    encoded = jwt.encode(claims, raw, algorithm="HS256")
    assert tokens.verify(encoded, raw, now=time.time())[0] == claims
    with pytest.raises(TokenError):
        tokens.verify(encoded, raw + b"x", now=time.time())


@given(st.data())
def test_no_changed_token_is_taken(data: st.DataObject) -> None:
    raw = b"k" * 40
    token = tokens.sign(tokens.claims_of(["read:runs:a"], now=1, expires_at=2_000_000_000), raw)
    place = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.characters(min_codepoint=1, max_codepoint=0x17F))
    changed = token[:place] + other + token[place + data.draw(st.integers(0, 1)) :]
    if changed == token:
        return
    with pytest.raises(TokenError):
        tokens.verify(changed, raw, now=100)


_PARTS = st.lists(st.binary(max_size=20).map(lambda part: urlsafe_b64encode(part).decode()), max_size=4)


@given(st.one_of(st.text(max_size=40), _PARTS.map(".".join)))
def test_rubbish_is_refused_and_nothing_else_happens(text: str) -> None:
    with pytest.raises(TokenError):
        tokens.verify(text, b"k" * 40, now=1)
    header = urlsafe_b64encode(json.dumps({"alg": text}).encode()).decode()
    with pytest.raises(TokenError):
        tokens.verify(f"{header}.{text}.{text}", b"k" * 40, now=1)
