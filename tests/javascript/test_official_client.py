"""The official JavaScript client and its React hooks, as they are published, against a server and a worker of ours."""

from javascript.conftest import Node

WORDS = [f"word {number} " for number in range(5)]
MORE = ["more 0 ", "more 1 "]
STEP = {"n": 1, "deep": [None, True, "é"]}


def test_the_client(node: Node) -> None:
    seen = node("client.mjs")
    assert seen.pop("whileOpen") in ("EXECUTING", "WAITING")
    assert seen == {
        "live": WORDS,
        "all": WORDS[2:] + MORE,
        "objects": [STEP],
        "debounced": {"runs": 1, "status": "DELAYED", "payload": {"count": 2}},
        "run": {
            "status": "COMPLETED",
            "output": "".join(WORDS + MORE),
            "metadata": {"user": "ada", "progress": "done"},
            "tags": ["user:1"],
        },
        "inputAfterTheEnd": {"name": "BadRequestError", "status": 400},
        "followed": {
            "status": "COMPLETED",
            "output": "".join(WORDS + MORE),
            "metadata": {"user": "ada", "progress": "done"},
            "tags": ["user:1"],
            "payload": {"count": 5},
            "isFinished": True,
            "isMany": True,
        },
        "withStreams": WORDS + MORE,
        "failed": {
            "status": "FAILED",
            "isFailed": True,
            "error": {"name": "ValueError", "message": "no ink since 1970", "stackTrace": ""},
        },
        "skipping": {"output": None, "payload": None, "metadata": {"user": "ada", "progress": "done"}},
        "byRun": WORDS + MORE,
        "byTag": WORDS + MORE,
        "byOther": {"name": "PermissionDeniedError", "status": 403},
        "triggerByToken": {"id": "string", "again": {"name": "UnprocessableEntityError", "status": 422}},
        "batch": 3,
        "list": [True],
        "tag": [
            ["COMPLETED", 1, {"user": "ada"}, None, ["tag one", "both"]],
            ["COMPLETED", 2, {}, None, ["tag one"]],
        ],
        "bothTags": [1],
        "ofBatch": [5, 6],
    }


def test_wait_tokens(node: Node) -> None:
    seen = node("tokens.mjs")
    assert seen.pop("late")[0] == "TIMED_OUT"
    assert seen == {
        "made": [True, False, True, True, True],
        "before": ["WAITING", ["order:1"], "tok-1", True, True],
        "completed": [{"success": True}, 403],
        "twice": {"success": True},
        "after": ["COMPLETED", {"ok": True, "list": [1, None]}, True],
        "called": [200, True, {"by": "address"}],
        "text": {},
        "wrong": [401],
        "listed": [[True, "COMPLETED"], [True, "COMPLETED"]],
        "waiting": 0,
        "run": True,
    }


def test_the_hooks(node: Node) -> None:
    assert node("hooks.mjs") == {
        "live": {"parts": WORDS},
        "state": {"id": True, "status": True},
        "toTheEnd": {"output": "".join([*WORDS, "more 0 "]), "completed": "".join([*WORDS, "more 0 "])},
        "withStreams": {"words": [*WORDS, "more 0 "], "steps": [STEP]},
        "unknown": 404,
        "ended": [*WORDS, "more 0 "],
        "run": {"status": "COMPLETED", "output": "".join([*WORDS, "more 0 "])},
        "refused": 403,
        "triggered": {"id": "string"},
        "ofTag": [1, 2],
        "ofBatch": list(range(8)),
        "many": list(range(8)),
        "notShown": 403,
    }
