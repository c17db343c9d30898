"""Public tokens: every endpoint, feed and stream with every kind of wrong token, and what right ones show."""

import json
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jwt
import pytest

from milepost import auth
from milepost.client.client import Client
from milepost.errors import InsufficientScopeError, TokenUsedError, UnauthorizedError
from milepost.protocol import tokens
from milepost.protocol.endpoints import ENDPOINTS, Endpoint, ScopeRule
from support.served import KEY, Answer, HttpWorker, Served, set_to

SECRET = "nobody-else-may-see-this"
_PROTECTED = [endpoint for endpoint in ENDPOINTS if not endpoint.access.anyone]
_RECORDED = {
    "error": "Unauthorized",
    "code": "unauthorized",
    "param": "access_token",
    "type": "authorization",
}
_JSON: dict[str, Any] = {
    "trigger": {},
    "trigger_batch": {"items": [{"task": "work"}]},
    "create_batch": {"runCount": 1, "taskIdentifiers": ["work"]},
    "put_metadata": {"operations": [set_to("approved", True)]},
}


def named(endpoint: Endpoint) -> str:
    return endpoint.name


class Names(dict[str, str]):
    """Path parameters; one that is not known here is `x`, so that new endpoints are tried too."""

    def __missing__(self, name: str) -> str:
        return "x"


@dataclass
class Place:
    """A run with a tag, a child and a batch, and runs that are none of the bearer's business."""

    served: Served
    mine: str
    child: str
    other: str
    batch: str
    in_batch: str

    def call(self, endpoint: Endpoint, token: str, *, run: str | None = None, **query: Any) -> Answer:
        """A good call of an endpoint, about the bearer's run or another one."""
        path = endpoint.path.format_map(
            Names(task="work", run=run or self.mine, batch=self.batch, worker="worker_1", target="self")
        )
        body = _JSON.get(endpoint.name, None if endpoint.method == "GET" else {})
        if endpoint.name == "add_batch_items":
            body = b'{"index":0,"task":"work"}\n'
        if endpoint.name == "realtime_runs":
            query = {"tags": "every", **query}
        return self.served.call(endpoint.method, path, body, key=token, query=query)


@pytest.fixture(scope="module")
def place(served: Served, worker: HttpWorker) -> Place:
    mine = served.trigger(tags=["user:1", "a,b", "every"], metadata={"progress": 1, "hidden": SECRET})
    child = served.trigger(parentRunId=mine, tags=["user:2", "every"], metadata={"who": SECRET})
    other = served.trigger(
        tags=["user:2", "every"], metadata={"progress": 1, "who": SECRET}, payload=json.dumps(SECRET)
    )
    made = served.post("/api/v2/tasks/batch", {"items": [{"task": "work", "options": {"tags": ["b"]}}]})
    return Place(served, mine, child, other, made["id"], made["runs"][0])


def client(served: Served, key: str = KEY) -> Client:
    return Client(served.url, key)


def token_of(granted: list[str] | None, /, **claims: Any) -> str:
    """A token by PyJWT, as another program makes it."""
    now = int(time.time())
    given = {
        "sub": "env_default",
        "pub": True,
        "iss": tokens.ISSUER,
        "aud": tokens.AUDIENCE,
        "iat": now,
        "exp": now + 60,
    }
    given |= {} if granted is None else {"scopes": granted}
    return by_library(given | claims)


def by_library(claims: dict[str, Any], key: str = KEY, **options: Any) -> str:
    with pytest.warns(jwt.warnings.InsecureKeyLengthWarning) if len(key) < 32 else nothing():
        return jwt.encode(
            {name: value for name, value in claims.items() if value is not None}, key, **options
        )


class nothing:
    def __enter__(self) -> None: ...
    def __exit__(self, *_: Any) -> None: ...


def unsigned(algorithm: str, signature: bytes | None = b"") -> str:
    whole = token_of(["admin"]).split(".")
    whole[0] = urlsafe_b64encode(json.dumps({"alg": algorithm}).encode()).rstrip(b"=").decode()
    whole[2] = whole[2] if signature is None else ""
    return ".".join(whole)


def changed() -> str:
    header, claims, signature = token_of(["read:tags:nobody"]).split(".")
    other = token_of(["admin"]).split(".")[1]
    assert claims != other
    return ".".join([header, other, signature])


ALL = ["admin", "read:all", "write:all"]
WRONG: dict[str, Callable[[], str]] = {
    "malformed": lambda: "ey.e30.x",
    "no parts": lambda: "ey..",
    "not JSON": lambda: "eyJ.eyJ.eyJ",
    "a long one": lambda: "ey" + "A" * 30_000 + ".e30.e30",
    "expired": lambda: token_of(ALL, exp=int(time.time()) - 1),
    "expired long ago": lambda: token_of(ALL, exp=0),
    "never expires": lambda: token_of(ALL, exp=None),
    "expires in words": lambda: token_of(ALL, exp="9999999999"),
    "expires truly": lambda: token_of(ALL, exp=True),
    "not yet": lambda: token_of(ALL, nbf=int(time.time()) + 1000),
    "foreign key": lambda: by_library(
        {
            "pub": True,
            "iss": tokens.ISSUER,
            "aud": tokens.AUDIENCE,
            "exp": int(time.time()) + 60,
            "scopes": ALL,
        },
        "f" * 40,
    ),
    "tampered claims": changed,
    "tampered signature": lambda: token_of(ALL)[:-4] + "AAAA",
    "with padding": lambda: token_of(ALL) + "=",
    "alg none": lambda: unsigned("none"),
    "alg none, signed": lambda: unsigned("none", None),
    "alg None": lambda: unsigned("nOnE"),
    "alg HS512 of an HS256": lambda: unsigned("HS512", None),
    "HS512": lambda: by_library(
        {
            "pub": True,
            "iss": tokens.ISSUER,
            "aud": tokens.AUDIENCE,
            "exp": int(time.time()) + 60,
            "scopes": ALL,
        },
        algorithm="HS512",
    ),
    "crit": lambda: by_library(
        {
            "pub": True,
            "iss": tokens.ISSUER,
            "aud": tokens.AUDIENCE,
            "exp": int(time.time()) + 60,
            "scopes": ALL,
        },
        headers={"crit": ["x"]},
    ),
    "wrong issuer": lambda: token_of(ALL, iss="https://evil.example"),
    "no issuer": lambda: token_of(ALL, iss=None),
    "wrong audience": lambda: token_of(ALL, aud="milepost-dashboard"),
    "no audience": lambda: token_of(ALL, aud=None),
    "two audiences": lambda: token_of(ALL, aud=[tokens.AUDIENCE, "other"]),
    "not public": lambda: token_of(ALL, pub=False),
    "public by a word": lambda: token_of(ALL, pub="true"),
    "public is not said": lambda: token_of(ALL, pub=None),
    "scopes are a text": lambda: token_of(None, scopes="admin"),
    "scopes are numbers": lambda: token_of(None, scopes=[1]),
    "keys are a text": lambda: token_of(ALL, metadataKeys="progress"),
    "keys are an object": lambda: token_of(ALL, metadataKeys={"progress": True}),
    "one time by a word": lambda: token_of(ALL, otu="yes"),
}


@pytest.mark.parametrize("endpoint", _PROTECTED, ids=named)
def test_no_endpoint_takes_a_token_that_is_not_valid(place: Place, endpoint: Endpoint) -> None:
    for kind, make in WRONG.items():
        answer = place.call(endpoint, make())
        assert answer.status == 401, (kind, answer)
        assert endpoint.method == "HEAD" or answer.json["code"] == "unauthorized"
        assert SECRET not in answer.body.decode()
        assert KEY not in answer.body.decode()


def test_a_dashboard_s_cookie_is_no_token_and_a_token_no_cookie(place: Place) -> None:
    authenticator = place.served.server.authenticator
    session = authenticator.session_for_key(KEY)
    assert session is not None
    for endpoint in _PROTECTED:
        assert place.call(endpoint, session).status == 401, endpoint.name
    cookie = {"cookie": f"{authenticator.cookie}={token_of(['admin'])}"}
    assert place.served.call("GET", "/api/v1/runs", key=None, headers=cookie).status == 401


# Valid, and not for what is asked: neither for another run, nor for anything else.
USELESS: dict[str, Callable[[Place], list[str] | None]] = {
    "no scopes": lambda place: None,
    "an empty list": lambda place: [],
    "rubbish": lambda place: [
        "",
        ":",
        "read",
        "read:",
        "read:runs:",
        "runs",
        "admin:",
        "Admin",
        "READ:RUNS",
        "*",
    ],
    "another resource": lambda place: [
        "read:queues",
        "read:waitpoints:another",
        "write:waitpoints:x:y",
        "read:deployments",
    ],
}


@pytest.mark.parametrize("endpoint", _PROTECTED, ids=named)
def test_a_token_opens_nothing_by_itself(place: Place, endpoint: Endpoint) -> None:
    for kind, scopes in USELESS.items():
        answer = place.call(endpoint, token_of(scopes(place)))
        assert answer.status == 403, (kind, answer)
        assert answer.headers["x-should-retry"] == "false"
        if endpoint.method != "HEAD":
            assert _RECORDED.items() <= answer.json.items()
            assert answer.json["details"]["message"]


_READING = (ScopeRule.READ_RUN, ScopeRule.READ_RUNS, ScopeRule.READ_WATCHED, ScopeRule.READ_BATCH)


@pytest.mark.parametrize("endpoint", _PROTECTED, ids=named)
def test_reading_and_writing_are_apart(place: Place, endpoint: Endpoint) -> None:
    """A trigger token reads nothing, a read token changes nothing; what is only for the key, no token opens."""
    writing = ["trigger:tasks", "batchTrigger:tasks", "write:runs", "write:all", "write:tags", "trigger:all"]
    reading = [
        "read:all",
        "read:runs",
        "read:tags",
        "read:tasks",
        "read:batch",
        f"read:metadata:{place.mine}",
    ]
    rule = endpoint.access.scopes
    if rule is ScopeRule.READ_WAITPOINT:
        # Whoever may complete a token may look at it.
        writing = [scope for scope in writing if not scope.startswith("write:")]
        assert place.call(endpoint, token_of(writing)).status == 403
    elif rule in _READING:
        assert place.call(endpoint, token_of(writing)).status == 403
    else:
        assert place.call(endpoint, token_of(reading)).status == 403
    if rule is ScopeRule.NONE:
        assert place.call(endpoint, token_of([*writing, *reading, "admin"])).status == 403


@pytest.mark.parametrize("endpoint", [each for each in _PROTECTED if "{run}" in each.path], ids=named)
def test_a_token_for_one_run_opens_no_other(place: Place, endpoint: Endpoint) -> None:
    mine = place.mine
    scopes = [
        f"read:runs:{mine}", "read:tags:user:1", "read:tags:a,b", "read:tags:user", "read:tags:user:2:", "read:tags:user:2,user:1",
        f"read:batch:{place.batch}", "read:tasks:other", "read:tasks:wor", f"read:runs:{mine},{place.other}",
        f"read:runs:{place.other}:x", f"read:runs:{place.other[:-1]}", f"read:metadata:{place.other}",
        f"write:runs:{place.other}", f"write:metadata:{mine}", f"write:inputStreams:{mine}", f"write:metadata:{place.other}x",
    ]  # fmt: skip
    if endpoint.access.scopes is ScopeRule.WRITE_RUN:
        scopes.remove(f"write:runs:{place.other}")
        scopes += ["write:tasks:other", "write:tasks:wor", f"write:runs:{place.other}:x"]
    for other in (place.other, place.child, "run_nobody"):
        answer = place.call(endpoint, token_of(scopes), run=other)
        assert answer.status == 403, (other, answer)
        assert endpoint.method == "HEAD" or _RECORDED.items() <= answer.json.items()
        assert SECRET not in answer.body.decode()


def test_a_run_that_is_not_there_is_refused_as_one_that_is_not_shown(place: Place) -> None:
    shown = [
        place.served.call("GET", f"/api/v3/runs/{run}", key=token_of(["read:tags:user:1"])).json["details"][
            "message"
        ]
        for run in (place.other, "run_x")
    ]
    assert shown[0].replace(place.other, "") == shown[1].replace("run_x", "")


_OF_RUN = [each for each in _PROTECTED if each.access.scopes is ScopeRule.READ_RUN]


@pytest.mark.parametrize("endpoint", [each for each in _OF_RUN if not each.stream], ids=named)
@pytest.mark.parametrize(
    "scope",
    [
        "read:runs:{run}",
        "read:tags:user:1",
        "read:tags:a,b",
        "read:tasks:work",
        "read:runs",
        "admin",
        "*:tags:user:1",
        "read:all",
    ],
)
def test_a_run_is_read_with_any_of_its_scopes(place: Place, endpoint: Endpoint, scope: str) -> None:
    answer = place.call(endpoint, token_of([scope.format(run=place.mine)]))
    # No result yet, or a stream that nobody has begun.
    assert answer.status in (200, 404), answer
    if answer.status == 404:
        assert answer.json["code"] not in ("unauthorized", "forbidden")


def test_a_run_of_a_batch_is_read_with_the_batch_s_token(place: Place) -> None:
    token = token_of([f"read:batch:{place.batch}"])
    served = place.served
    assert served.call("GET", f"/api/v3/runs/{place.in_batch}", key=token).status == 200
    assert served.call("GET", f"/api/v2/batches/{place.batch}", key=token).status == 200
    assert served.call("GET", f"/api/v2/batches/{place.batch}x", key=token).status == 403
    assert [run["id"] for run in served.call("GET", "/api/v1/runs", key=token).json["data"]] == [
        place.in_batch
    ]


def test_relatives_are_shown_as_far_as_the_token_reaches(place: Place) -> None:
    def get(run: str, *scopes: str) -> Any:
        return place.served.call("GET", f"/api/v3/runs/{run}", key=token_of(list(scopes))).json

    alone = get(place.mine, f"read:runs:{place.mine}")
    assert (alone["relatedRuns"], alone["childCounts"]) == ({"children": []}, {})
    both = get(place.mine, f"read:runs:{place.mine}", "read:tags:user:2")
    assert [child["id"] for child in both["relatedRuns"]["children"]] == [place.child]
    assert both["childCounts"] == {"QUEUED": 1}
    below = get(place.child, "read:tags:user:2")
    assert "parent" not in below["relatedRuns"]
    assert "root" not in below["relatedRuns"]
    assert (
        get(place.child, "read:tags:user:2", "read:tags:user:1")["relatedRuns"]["parent"]["id"] == place.mine
    )


def test_a_tag_s_token_lists_the_runs_with_that_tag(place: Place) -> None:
    served, token = place.served, token_of(["read:tags:user:1"])

    def listed(**query: Any) -> list[str]:
        answer = served.call("GET", "/api/v1/runs", key=token, query=query)
        assert answer.status == 200, answer
        assert SECRET not in answer.body.decode().replace(f'"hidden":"{SECRET}"', "")
        return [run["id"] for run in answer.json["data"]]

    assert listed() == [place.mine]
    assert listed(**{"filter[tag]": "user:2"}) == []
    assert listed(**{"filter[tag]": "user:1,user:2"}) == [place.mine]
    assert listed(**{"filter[parent]": place.mine}) == []
    assert listed(**{"filter[root]": place.mine}) == [place.mine]
    assert listed(**{"filter[metadata]": '{"progress": 1}'}) == [place.mine]
    assert listed(**{"filter[metadata]": f'{{"who": "{SECRET}"}}'}) == []
    assert listed(**{"page[before]": place.mine}) == []
    assert listed(**{"page[after]": "run_zzz"}) == [place.mine]


@pytest.mark.parametrize(
    "endpoint", [each for each in _PROTECTED if each.access.scopes is ScopeRule.READ_RUNS], ids=named
)
def test_lists_and_their_feeds_hold_nothing_else(place: Place, endpoint: Endpoint) -> None:
    for scopes in (
        ["read:tags:user:1"],
        [f"read:runs:{place.mine}"],
        ["read:tags:user:1", f"read:batch:{place.batch}"],
    ):
        token = token_of(scopes, metadataKeys=["progress"])
        if not endpoint.stream:
            body = place.call(endpoint, token).body.decode()
        else:
            with place.served.events(endpoint.path, key=token) as events:
                first = [events.next() for _ in range(2 if endpoint.name == "matching_runs_feed" else 1)]
            body = json.dumps(first)
        assert place.mine in body or place.in_batch in body
        assert place.other not in body
        assert place.child not in body
        assert SECRET not in body


def test_the_counts_of_a_live_list_are_of_what_is_shown(place: Place) -> None:
    with place.served.events("/api/v1/feed/runs", key=token_of(["read:tags:user:1"])) as events:
        assert events.next()[1]["counts"] == {"QUEUED": 1}


# --- what a token may do ----------------------------------------------------------------------------------------------


def test_a_trigger_hands_out_a_token_for_its_run(place: Place) -> None:
    served = place.served
    answer = served.call("POST", "/api/v1/tasks/work/trigger", {})
    token, run_id = answer.headers["x-trigger-jwt"], answer.json["id"]
    with pytest.warns(jwt.warnings.InsecureKeyLengthWarning):
        claims = jwt.decode(token, KEY, algorithms=["HS256"], audience=tokens.AUDIENCE, issuer=tokens.ISSUER)
    assert jwt.get_unverified_header(token) == {"alg": "HS256"}
    assert claims["scopes"] == [f"read:runs:{run_id}", f"write:inputStreams:{run_id}"]
    assert (claims["sub"], claims["pub"], claims["exp"] - claims["iat"]) == ("env_default", True, 3600)
    assert served.call("GET", f"/api/v3/runs/{run_id}", key=token).status == 200
    handle = client(served).trigger("work")
    assert handle.public_access_token is not None
    assert client(served, handle.public_access_token).runs.retrieve(handle.id).id == handle.id


def test_a_batch_hands_out_a_token_and_a_page_one_to_fill_it(place: Place) -> None:
    served = place.served
    page = token_of(["batchTrigger:tasks:work"], otu=True)
    answer = served.call("POST", "/api/v3/batches", {"runCount": 2, "taskIdentifiers": ["work"]}, key=page)
    assert answer.status == 202, answer
    batch, handed = answer.json["id"], answer.headers["x-trigger-jwt"]
    claims = served.server.authenticator.read_token(handed).scopes.texts
    assert claims == (f"read:batch:{batch}", f"write:batch:{batch}")

    def fill(token: str, index: int, to: str = batch, task: str = "work") -> int:
        line = json.dumps({"index": index, "task": task}).encode()
        return served.call("POST", f"/api/v3/batches/{to}/items", line, key=token).status

    assert fill(handed, 0) == 200
    assert fill(page, 1) == 200, "the token that announced it fills it too"
    assert fill(page, 1, to=place.batch) == 403
    assert fill(page, 1, task="other") == 403
    assert (
        served.call("POST", "/api/v3/batches", {"runCount": 2, "taskIdentifiers": ["work"]}, key=page).status
        == 422
    )
    with_key = served.call("POST", "/api/v2/tasks/batch", {"items": [{"task": "work"}]})
    read = served.server.authenticator.read_token(with_key.headers["x-trigger-jwt"])
    assert read.scopes.texts == (f"read:batch:{with_key.json['id']}",)


def test_a_batch_of_other_tasks_is_refused(place: Place) -> None:
    served, token = place.served, token_of(["batchTrigger:tasks:work"])
    for body in (
        {"runCount": 1},
        {"runCount": 1, "taskIdentifiers": ["work", "other"]},
        {"runCount": 1, "taskIdentifiers": ["work"], "parentRunId": place.mine},
    ):
        assert served.call("POST", "/api/v3/batches", body, key=token).status == 403, body
    items = [{"task": "work"}, {"task": "other"}]
    assert served.call("POST", "/api/v2/tasks/batch", {"items": items}, key=token).status == 403
    assert served.call("POST", "/api/v2/tasks/batch", {"items": items[:1]}, key=token).status == 202


def test_a_trigger_token_triggers_its_task_and_no_child(place: Place) -> None:
    served, token = place.served, token_of(["trigger:tasks:work"])
    assert served.call("POST", "/api/v1/tasks/work/trigger", {}, key=token).status == 200
    assert served.call("POST", "/api/v1/tasks/other/trigger", {}, key=token).status == 403
    child = {"options": {"parentRunId": place.mine}}
    assert served.call("POST", "/api/v1/tasks/work/trigger", child, key=token).status == 403


def test_a_token_for_once_works_once_and_a_repeat_does_not_use_it(place: Place) -> None:
    served = place.served
    token = auth.create_trigger_token("work", client=client(served))
    header = {"x-trigger-request-idempotency-key": "the same"}

    def trigger(headers: dict[str, str], body: Any = None) -> Answer:
        return served.call("POST", "/api/v1/tasks/work/trigger", body or {}, key=token, headers=headers)

    bad = trigger({}, {"payload": "not JSON"})
    assert bad.status == 422, "what is refused does not use it up"
    first, again = trigger(header), trigger(header)
    assert (first.status, again.status) == (200, 200)
    assert first.json["id"] == again.json["id"]
    second = trigger({"x-trigger-request-idempotency-key": "another"})
    assert second.status == 422
    assert second.json["error"] == "Cannot trigger with a one-time use token as it has already been used."
    assert trigger({}).status == 422
    assert trigger(header).status == 200
    # The same token in another spelling is the same token.
    padded = f"{token}="
    assert served.call("POST", "/api/v1/tasks/work/trigger", {}, key=padded).status == 401
    with pytest.raises(TokenUsedError):
        client(served, token).trigger("work")


def test_one_token_s_request_id_is_not_another_s(place: Place) -> None:
    served, header = place.served, {"x-trigger-request-idempotency-key": "shared"}
    ids = {
        served.call("POST", "/api/v1/tasks/work/trigger", {}, key=key, headers=header).json["id"]
        for key in (KEY, token_of(["trigger:tasks:work"]), token_of(["trigger:tasks:work"], jti="2"))
    }
    assert len(ids) == 3


def test_a_used_token_stays_used_over_a_restart(tmp_path: Any) -> None:
    served = Served(tmp_path)
    try:
        token = auth.create_trigger_token("work", client=client(served))
        assert served.call("POST", "/api/v1/tasks/work/trigger", {}, key=token).status == 200
        served.stop()
        served.start()
        assert served.call("POST", "/api/v1/tasks/work/trigger", {}, key=token).status == 422
    finally:
        served.stop()


def test_many_at_once_use_a_token_once(place: Place) -> None:
    token = auth.create_trigger_token("work", client=client(place.served))
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(
                lambda _: place.served.call("POST", "/api/v1/tasks/work/trigger", {}, key=token).status,
                range(16),
            )
        )
    assert sorted(answers) == [200] + [422] * 15


def test_the_token_of_a_trigger_reads_the_run_s_streams_and_sends_to_it(place: Place) -> None:
    served = place.served
    answer = served.call("POST", "/api/v1/tasks/work/trigger", {})
    token, run_id = answer.headers["x-trigger-jwt"], answer.json["id"]
    made = served.call("POST", f"/realtime/v1/streams/{run_id}/self/lines/append", b"hello")
    assert made.status == 200, made
    with served.events(f"/realtime/v1/streams/{run_id}/lines", key=token) as events:
        batch = events.until(lambda event, _: event == "batch")
    assert json.loads(batch["records"][0]["body"])["data"] == "hello"
    listed = served.call("GET", f"/api/v1/runs/{run_id}/streams", key=token).json["data"]
    assert [stream["key"] for stream in listed] == ["lines"]
    sent = served.call("POST", f"/realtime/v1/streams/{run_id}/input/approvals", {"data": 1}, key=token)
    assert sent.json == {"ok": True}
    for method, path in (
        ("GET", f"{run_id}/input/approvals"),
        ("PUT", f"{run_id}/self/lines"),
        ("POST", f"{run_id}/self/lines"),
        ("POST", f"{run_id}/self/lines/append"),
        ("HEAD", f"{run_id}/self/lines"),
        ("GET", f"{place.other}/lines"),
        ("POST", f"{place.other}/input/approvals"),
    ):
        refused = served.call(method, f"/realtime/v1/streams/{path}", {"data": 1}, key=token)
        assert refused.status == 403, (method, path)


# --- the other ways to a token ----------------------------------------------------------------------------------------


def test_tokens_of_the_javascript_client_are_taken(place: Place) -> None:
    """As recorded (vectors 01): the answer of `jwt/claims`, merged, signed by another library."""
    served = place.served
    claims = served.call("POST", "/api/v1/auth/jwt/claims", b"").json
    assert claims == {"sub": "env_default", "pub": True}
    token = token_of(
        [f"read:runs:{place.mine}", "write:tags"], realtime={"skipColumns": ["payload"]}, **claims
    )
    assert served.call("GET", f"/api/v3/runs/{place.mine}", key=token).status == 200


def test_the_server_signs_tokens(place: Place) -> None:
    served = place.served
    body = {
        "scopes": [f"read:runs:{place.mine}"],
        "expirationTime": "1h",
        "oneTimeUse": False,
        "metadataKeys": ["progress"],
    }
    token = served.post("/api/v1/auth/public-tokens", body)["token"]
    assert served.call("GET", f"/api/v1/runs/{place.mine}/metadata", key=token).json["metadata"] == {
        "progress": 1
    }
    for wrong in (
        {"scopes": ["read"]}, {"scopes": ["read:runs:x"], "expirationTime": "soon"}, {"scopes": ["admin"], "expirationTime": "31d"},
        {"scopes": ["admin"], "expirationTime": -5}, {"scopes": ["admin"], "expirationTime": 1_000_000_001},
        {"scopes": ["admin"], "x": 1},
    ):  # fmt: skip
        assert served.call("POST", "/api/v1/auth/public-tokens", wrong).status == 422, wrong


def test_a_signature_costs_microseconds() -> None:
    """Each trigger signs one. A tenth of a millisecond would be noticed; this is far below on any machine."""
    claims = tokens.claims_of(["read:runs:run_1", "write:inputStreams:run_1"], now=1, expires_at=2)
    began = time.process_time()
    for _ in range(2000):
        tokens.sign(claims, KEY.encode())
    assert (time.process_time() - began) / 2000 < 100e-6


# --- keys of documents ------------------------------------------------------------------------------------------------


def test_hidden_keys_are_in_no_answer(served: Served, worker: HttpWorker) -> None:
    run_id = served.trigger(tags=["keys"], metadata={"progress": 0, "hidden": SECRET})
    run = worker.take(run_id)
    token = token_of([f"read:runs:{run_id}"], metadataKeys=["progress", "status"])
    with (
        served.events(f"/api/v1/runs/{run_id}/feed", key=token) as feed,
        served.events("/api/v1/feed/runs", key=token) as rows,
        served.events("/api/v1/feed/matching-runs", key=token) as matching,
        served.events(f"/api/v1/runs/{run_id}/feed", key=token, children=5) as family,
    ):
        assert feed.next()[1]["run"]["metadata"] == {"progress": 0}
        assert rows.next()[1]["rows"][0]["metadata"] == {"progress": 0}
        matching.until(lambda event, _: event == "present")
        assert family.next()[1]["run"]["metadata"] == {"progress": 0}
        worker.report(run, set_to("hidden", SECRET + "2"))
        worker.report(
            run, {"type": "increment", "key": "progress", "value": 1}, set_to("$.hidden2.x", SECRET)
        )
        worker.report(run, {"type": "update", "value": {"progress": 7, "hidden": SECRET}})
        worker.finish(run)
        told: list[Any] = []
        for events in (feed, rows, matching, family):

            def final(event: str, data: Any) -> bool:
                told.append(data)
                return '"status": "COMPLETED"' in json.dumps(data)

            events.until(final)
    assert SECRET not in json.dumps(told)
    for path in (
        f"/api/v1/runs/{run_id}/metadata/history",
        f"/api/v3/runs/{run_id}",
        "/api/v1/runs",
        f"/realtime/v1/runs/{run_id}",
        f"/api/v1/runs/{run_id}/metadata",
    ):
        answer = served.call("GET", path, key=token)
        assert answer.status == 200
        assert SECRET not in answer.body.decode(), path
        assert "hidden" not in answer.body.decode(), path
    history = served.call("GET", f"/api/v1/runs/{run_id}/metadata/history", key=token).json["data"]
    assert [change["version"] for change in history] == [2, 3]
    for version in range(4):
        was = served.call(
            "GET", f"/api/v1/runs/{run_id}/metadata", key=token, query={"version": version}
        ).json
        assert set(was["metadata"]) <= {"progress"}
    # By the client: it follows from version to version, over those that are hidden.
    states = list(client(served, token).runs.subscribe(run_id))
    assert states[-1].metadata == {"progress": 7}


@pytest.mark.parametrize("path", ["/api/v1/runs", "/api/v1/feed/runs", "/api/v1/feed/matching-runs"])
def test_nothing_is_found_by_a_hidden_key(place: Place, path: str) -> None:
    token = token_of(["read:tags:user:1"], metadataKeys=["progress"])
    for filter in (
        {"hidden": SECRET},
        {"hidden": {"$exists": True}},
        {"progress": 1, "$.hidden": {"$gt": "a"}},
    ):
        answer = place.served.call("GET", path, key=token, query={"filter[metadata]": json.dumps(filter)})
        assert answer.status == 403, filter
        assert "hidden" in answer.json["details"]["message"]


def test_a_page_follows_over_hidden_changes_without_gaps(served: Served, worker: HttpWorker) -> None:
    run_id = served.trigger(metadata={"progress": 0})
    run = worker.take(run_id)
    token = token_of([f"read:runs:{run_id}"], metadataKeys=["progress"])
    with served.events(f"/api/v1/runs/{run_id}/feed", key=token) as events:
        _, first = events.next()
        document, version = first["run"]["metadata"], first["version"]
        for number in range(5):
            worker.report(run, set_to("hidden", number))
            worker.report(run, {"type": "increment", "key": "progress", "value": 1})
        worker.finish(run)
        while True:
            event, data = events.next()
            if event == "end":
                break
            assert event == "delta", "hidden changes alone never cost a snapshot"
            if "fromVersion" in data:
                assert data["fromVersion"] == version
                version = data["version"]
                for operation in data["operations"]:
                    assert operation["key"] == "progress"
                    document["progress"] = (
                        operation["value"]
                        if operation["type"] == "set"
                        else document["progress"] + operation["value"]
                    )
    assert document == {"progress": 5}


def test_a_token_handed_out_shows_no_more_than_the_one_that_triggered(place: Place) -> None:
    token = token_of(["trigger:tasks:work"], metadataKeys=["progress"])
    body = {"options": {"metadata": {"progress": 1, "hidden": SECRET}}}
    answer = place.served.call("POST", "/api/v1/tasks/work/trigger", body, key=token)
    shown = place.served.call("GET", f"/api/v3/runs/{answer.json['id']}", key=answer.headers["x-trigger-jwt"])
    assert shown.json["metadata"] == {"progress": 1}


# --- writing keys -----------------------------------------------------------------------------------------------------


def test_a_page_writes_the_keys_it_may_and_nothing_else(served: Served) -> None:
    parent = served.trigger(metadata={"approved": False})
    run_id = served.trigger(parentRunId=parent, metadata={"hidden": SECRET})
    other = served.trigger()
    token = auth.create_public_token(
        {"write": {"metadata": {run_id: ["approved", "a:b"]}}}, client=client(served)
    )

    def put(body: dict[str, Any], run: str = run_id, **options: Any) -> Answer:
        return served.call("PUT", f"/api/v1/runs/{run}/metadata", body, key=token, **options)

    allowed = [
        set_to("approved", True),
        set_to("$.approved", 1),
        set_to("a:b", 1),
        {"type": "delete", "key": "approved"},
    ]
    answer = put({"operations": allowed, "parentOperations": [], "rootOperations": []})
    assert answer.status == 200, answer
    assert answer.json["metadata"] == {}, "it writes, and reads nothing"
    for operation in (
        set_to("hidden", 1), set_to("$.hidden", 1), set_to("$['hidden']", 1), set_to("approved2", 1), set_to("approved.x", 1),
        set_to("a", 1),
        {"type": "update", "value": {"approved": 1}}, {"type": "update", "value": {}}, {"type": "delete", "key": "hidden"},
        {"type": "append", "key": "$.hidden.x", "value": 1}, {"type": "remove", "key": "hidden", "value": SECRET},
    ):  # fmt: skip
        refused = put({"operations": [set_to("approved", 9), operation]})
        assert refused.status == 403, operation
        assert SECRET not in refused.body.decode()
    for body in (
        {"metadata": {"approved": 1}}, {"operations": [], "parentOperations": [set_to("approved", True)]},
        {"operations": [], "rootOperations": [set_to("approved", True)]},
    ):  # fmt: skip
        assert put(body).status == 403, body
    assert put({"operations": allowed}, run=other).status == 403
    assert put({"operations": allowed}, run=parent).status == 403
    as_attempt = {"x-milepost-attempt": f"{run_id}:1"}
    assert put({"operations": allowed}, headers=as_attempt).status == 403
    # What is no operation is refused alone, as for everybody.
    odd = put({"operations": [{"type": "set"}, 1, None, set_to("$.", 1), set_to("approved", 5)]})
    assert odd.status == 200
    assert len(odd.json["refused"]) == 4
    assert served.get(f"/api/v1/runs/{run_id}/metadata")["metadata"] == {
        "hidden": SECRET,
        "a:b": 1,
        "approved": 5,
    }
    assert served.get(f"/api/v1/runs/{parent}/metadata")["metadata"] == {"approved": False}
    full = put({"operations": [set_to("approved", "x" * 300_000)]})
    assert full.json["refused"][0]["code"] == "metadata_too_large"
    assert "hidden" not in json.dumps(full.json["refused"][0]["message"])


def test_who_may_read_the_run_is_answered_with_its_document(served: Served) -> None:
    run_id = served.trigger(metadata={"progress": 1, "hidden": SECRET})
    token = auth.create_public_token(
        {"read": {"runs": run_id}, "write": {"metadata": {run_id: True}}},
        metadata_keys=["progress", "approved"],
        client=client(served),
    )
    answer = served.call(
        "PUT", f"/api/v1/runs/{run_id}/metadata", {"operations": [set_to("approved", True)]}, key=token
    )
    assert answer.json["metadata"] == {"progress": 1, "approved": True}


# --- the Python client ------------------------------------------------------------------------------------------------


def test_the_client_works_with_a_token_for_what_it_allows(served: Served, worker: HttpWorker) -> None:
    run_id = served.trigger(tags=["user:9"], metadata={"n": 1})
    token = auth.create_public_token({"read": {"tags": ["user:9"]}}, expires_in=60, client=client(served))
    page = client(served, token)
    assert page.runs.retrieve(run_id).metadata == {"n": 1}
    assert [run.id for run in page.runs.list()] == [run_id]
    worker.finish(worker.take(run_id), output="5")
    assert page.wait_for_result(run_id, timeout=60).output == "5"
    with pytest.raises(InsufficientScopeError, match="trigger on tasks:work"):
        page.trigger("work")
    with pytest.raises(InsufficientScopeError, match="read on runs:"):
        page.runs.retrieve(served.trigger())
    with pytest.raises(UnauthorizedError, match="expired"):
        client(served, token_of(["admin"], exp=1)).runs.retrieve(run_id)
