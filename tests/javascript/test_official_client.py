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
        "run": {
            "status": "COMPLETED",
            "output": "".join(WORDS + MORE),
            "metadata": {"user": "ada", "progress": "done"},
            "tags": ["user:1"],
        },
        "inputAfterTheEnd": {"name": "BadRequestError", "status": 400},
        "byRun": WORDS + MORE,
        "byTag": WORDS + MORE,
        "byOther": {"name": "PermissionDeniedError", "status": 403},
        "triggerByToken": {"id": "string", "again": {"name": "UnprocessableEntityError", "status": 422}},
        "batch": 3,
        "list": [True],
    }


def test_the_hooks(node: Node) -> None:
    assert node("hooks.mjs") == {
        "live": {"parts": WORDS},
        "ended": [*WORDS, "more 0 "],
        "run": {"status": "COMPLETED", "output": "".join([*WORDS, "more 0 "])},
        "refused": 403,
        "triggered": {"id": "string"},
    }
