"""The browser client as a package: packed, installed, imported by Node and by a user's typed file."""

import json
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import urllib3

import milepost.server.client
from javascript.conftest import ROOT, RunningServer
from milepost import auth
from milepost.client.client import Client

FOLDER = Path(milepost.server.client.__file__).parent
PROGRAM = """
import { MilepostError, metadata, stream, watch, watchTag } from "milepost";

const [baseUrl, token, runId] = process.argv.slice(2);
const options = { baseUrl, token };
const seen = { states: [] };
for await (const run of watch(runId, options)) seen.states.push(run.status);
seen.words = [];
for await (const word of stream(runId, "words", options)) seen.words.push(word);
for await (const run of watchTag("user:1", options)) {
  seen.tagged = run.id === runId;
  break;
}
seen.refused = await metadata(runId, options).set("a", 1).send().catch((error) => [error instanceof MilepostError, error.status]);
try {
  watch(runId, { token }, () => {});
} catch (error) {
  seen.without = error.message;
}
console.log(JSON.stringify(seen));
"""
TYPED = """
import { follow as followFeed, metadata, stream, watch, watchTag, MilepostError, type Run } from "milepost";

interface Progress { progress: number }

export async function follow(id: string, token: () => Promise<string>): Promise<number> {
  let last = 0;
  for await (const run of watch<Run<Progress>>(id, { token })) last = run.metadata.progress;
  for await (const word of stream<string>(id, "words", { token, start: "latest" })) last += word.length;
  const stop: () => void = watchTag("user:1", { token, period: "1d" }, (run: Run) => { last += run.tags.length; });
  stop();
  followFeed(() => ({ run: id, children: 10 }), { token }, (event: string, data: string) => event === "end" || data !== "")();
  await metadata(id, { token }).set("approved", true).increment("votes");
  const bar = document.createElement("milepost-progress");
  bar.token = token;
  return last;
}
export const isOver = (error: unknown): boolean => error instanceof MilepostError && error.status === 401;
"""
# What the types have to refuse, each for its own reason.
WRONG = {
    "a number as an id": "watch(7);",
    "a start in words": 'stream("run", "words", { start: "first" });',
    "an unknown option": 'watch("run", { tokn: "x" });',
    "a value that is no JSON": 'metadata("run").set("key", () => 1);',
}


@pytest.fixture(scope="module")
def project(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's project that has installed the package."""
    folder = tmp_path_factory.mktemp("project")
    packed = subprocess.run(
        ["npm", "pack", "--silent", "--pack-destination", str(folder), str(FOLDER)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    (folder / "package.json").write_text('{"name": "project", "private": true, "type": "module"}')
    subprocess.run(
        ["npm", "install", "--silent", "--offline", "--no-audit", "--no-fund", f"./{packed.stdout.strip()}"],
        cwd=folder, check=True,
    )  # fmt: skip
    return folder


def test_what_is_in_it(project: Path) -> None:
    installed = project / "node_modules" / "milepost"
    assert sorted(path.name for path in installed.iterdir()) == [
        "milepost.d.ts",
        "milepost.js",
        "package.json",
    ]
    said = json.loads((installed / "package.json").read_text())
    assert said["version"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_node_imports_it(project: Path, server: RunningServer) -> None:
    """Everything but the elements, which are for pages."""

    def post(path: str, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"authorization": f"Bearer {server.key}"}
        answer = urllib3.request("POST", server.url + path, json=body, headers=headers)
        assert answer.status == 200, answer.data
        return answer.json()

    asked = {"payload": '{"count": 2}', "options": {"tags": ["user:1"]}}
    run_id = post("/api/v1/tasks/answer/trigger", asked)["id"]
    post(f"/realtime/v1/streams/{run_id}/input/more", {"data": {"count": 1}})
    token = auth.create_public_token({"read": {"tags": ["user:1"]}}, client=Client(server.url, server.key))
    (project / "program.js").write_text(PROGRAM)
    done = subprocess.run(
        ["node", "program.js", server.url, token, run_id],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen.pop("states")[-1] == "COMPLETED"
    assert "baseUrl" in seen.pop("without")
    assert seen == {"words": ["word 0 ", "word 1 ", "more 0 "], "tagged": True, "refused": [True, 403]}


def test_a_typed_program(project: Path, packages: Path) -> None:
    (project / "follow.ts").write_text(TYPED)
    for number, line in enumerate(WRONG.values()):
        text = f'import {{ metadata, stream, watch }} from "milepost";\nvoid [metadata, stream, watch];\n{line}\n'
        (project / f"wrong{number}.ts").write_text(text)
    done = subprocess.run(
        [
            "node", str(packages / "node_modules" / "typescript" / "bin" / "tsc"), "--strict", "--noEmit", "--target", "es2022",
            "--module", "nodenext", "--lib", "es2022,dom,dom.asynciterable", "follow.ts",
            *(f"wrong{number}.ts" for number in range(len(WRONG))),
        ],
        cwd=project, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    faults = [line.partition("(")[0] for line in done.stdout.splitlines() if ": error " in line]
    assert faults == [f"wrong{number}.ts" for number in range(len(WRONG))], done.stdout
