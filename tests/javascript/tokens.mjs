// Wait tokens by the official client, unchanged. What it has seen is printed as one line of JSON.
import { auth, configure, runs, tasks, wait } from "@trigger.dev/sdk";

const { url, key } = JSON.parse(process.argv[2]);
configure({ baseURL: url, secretKey: key });

const seen = {};

const token = await wait.createToken({ timeout: "10m", tags: ["order:1"], idempotencyKey: "tok-1", idempotencyKeyTTL: "1h" });
const again = await wait.createToken({ idempotencyKey: "tok-1" });
seen.made = [token.id.startsWith("waitpoint_"), token.isCached, again.id === token.id, again.isCached, token.url.startsWith(url)];
const before = await wait.retrieveToken(token.id);
seen.before = [before.status, before.tags, before.idempotencyKey, before.createdAt instanceof Date, before.timeoutAt instanceof Date];

// A page that has the public token only completes it, and no other one.
const other = await wait.createToken({ timeout: new Date(Date.now() + 3_600_000), tags: "order:2" });
seen.completed = await auth.withAuth({ accessToken: token.publicAccessToken }, async () => {
  const answer = await wait.completeToken(token.id, { ok: true, list: [1, null] });
  let refused;
  try {
    await wait.completeToken(other.id, { ok: false });
  } catch (error) {
    refused = error.status;
  }
  return [answer, refused];
});
seen.twice = await wait.completeToken(token.id, { ok: false });
const after = await wait.retrieveToken(token.id);
seen.after = [after.status, after.output, after.completedAt instanceof Date];

// By its address, without credentials.
const called = await fetch(other.url, { method: "POST", headers: { "content-type": "application/json" }, body: '{"by":"address"}' });
seen.called = [called.status, (await called.json()).success, (await wait.retrieveToken(other.id)).output];
const text = await wait.createToken({});
await fetch(text.url, { method: "POST", body: "no JSON" });
seen.text = (await wait.retrieveToken(text.id)).output;
seen.wrong = [(await fetch(`${other.url}0`, { method: "POST" })).status];

const listed = [];
for await (const each of wait.listTokens({ tags: ["order:1", "order:2"], limit: 1 })) listed.push([each.id === other.id || each.id === token.id, each.status]);
seen.listed = listed;
seen.waiting = (await wait.listTokens({ status: "WAITING" })).data.length;

// A token that times out.
const late = await wait.createToken({ timeout: "1s" });
let state = await wait.retrieveToken(late.id);
while (state.status === "WAITING") {
  await new Promise((resolve) => setTimeout(resolve, 50));
  state = await wait.retrieveToken(late.id);
}
seen.late = [state.status, state.error?.message ?? null, await wait.completeToken(late.id, 1)];

// One that a Python task waits for.
const handle = await tasks.trigger("asks");
let run = await runs.retrieve(handle.id);
while (!run.metadata?.token) {
  await new Promise((resolve) => setTimeout(resolve, 50));
  run = await runs.retrieve(handle.id);
}
await wait.completeToken(run.metadata.token, { approved: true });
seen.run = (await runs.poll(handle.id, { pollIntervalMs: 50 })).output;

console.log(JSON.stringify(seen));
