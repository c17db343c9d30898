// The official React hooks, unchanged, rendered by React itself into a page that is no browser's. What they have rendered is printed as
// one line of JSON. (With React's test renderer they lose rows: it renders later than they go on.)
import { JSDOM } from "jsdom";
import { createElement, useEffect } from "react";
import { auth, configure, tasks } from "@trigger.dev/sdk";

// React and the hooks look for a page when they are loaded.
const { window } = new JSDOM("<!doctype html>", { url: "http://localhost/", pretendToBeVisual: true });
const { document, navigator } = window;
for (const [name, value] of Object.entries({ window, document, navigator })) {
  // Node has a navigator of its own by now, which cannot be set.
  Object.defineProperty(globalThis, name, { value, configurable: true });
}
const { createRoot } = await import("react-dom/client");
const {
  useInputStreamSend,
  useRealtimeBatch,
  useRealtimeRun,
  useRealtimeRunsWithTag,
  useRealtimeRunWithStreams,
  useRealtimeStream,
  useRun,
  useTaskTrigger,
} = await import("@trigger.dev/react-hooks");

const { url, key } = JSON.parse(process.argv[2]);
configure({ baseURL: url, secretKey: key });
const seen = {};

/** Renders a component that uses a hook until what it gives is as wanted, and gives that. */
function until(hook, isSo) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error("it did not come: " + JSON.stringify(last))), 20_000);
    let last = null;
    const root = createRoot(document.createElement("div"));
    function Shown() {
      const given = hook();
      last = given;
      useEffect(() => {
        if (isSo(given)) {
          clearTimeout(timer);
          setTimeout(() => root.unmount());
          resolve(given);
        }
      });
      return null;
    }
    root.render(createElement(Shown));
  });
}

const handle = await tasks.trigger("answer", { count: 5 });
const access = { accessToken: handle.publicAccessToken, baseURL: url };

const live = await until(
  () => useRealtimeStream(handle.id, "words", access),
  ({ parts }) => parts?.length === 5,
);
seen.live = { parts: live.parts, error: live.error?.message };

const state = await until(
  () => useRealtimeRun(handle.id, access),
  ({ run }) => run?.metadata?.progress === 5,
);
seen.state = { id: state.run.id === handle.id, status: ["EXECUTING", "WAITING"].includes(state.run.status) };
let completed = null;
const toTheEnd = until(
  () => useRealtimeRun(handle.id, { ...access, onComplete: (run) => (completed = run.output) }),
  ({ run }) => run?.isCompleted && completed !== null,
);
const withStreams = until(
  () => useRealtimeRunWithStreams(handle.id, access),
  ({ run, streams }) => run?.isCompleted && streams?.words?.length === 6,
);

const sender = await until(
  () => useInputStreamSend("more", handle.id, access),
  ({ isReady }) => isReady,
);
await sender.send({ count: 1 });

const ended = await until(
  () => useRealtimeStream(handle.id, "words", access),
  ({ parts }) => parts?.length === 6,
);
seen.ended = ended.parts;

const run = await until(
  () => useRun(handle.id, { ...access, refreshInterval: 50 }),
  ({ run }) => run?.isCompleted,
);
seen.run = { status: run.run.status, output: run.run.output };

seen.toTheEnd = { output: (await toTheEnd).run.output, completed };
seen.withStreams = (await withStreams).streams;
const unknown = await until(
  () => useRealtimeRun("run_other", { ...access, accessToken: key }),
  ({ error }) => error,
);
seen.unknown = unknown.error.status;

const refused = await until(
  () => useRealtimeStream("run_other", "words", access),
  ({ error }) => error,
);
seen.refused = refused.error.status ?? String(refused.error);

const triggerToken = await auth.createTriggerPublicToken("quick");
let asked = false;
const triggered = await until(
  () => {
    const trigger = useTaskTrigger("quick", { accessToken: triggerToken, baseURL: url });
    useEffect(() => {
      if (!asked) {
        asked = true;
        trigger.submit(7);
      }
    });
    return trigger;
  },
  ({ handle, error }) => handle || error,
);
seen.triggered = { id: typeof triggered.handle?.id, error: triggered.error?.message };

// Runs with a tag, as they come and end.
const tagToken = await auth.createPublicToken({ scopes: { read: { tags: ["user:2"] } } });
let first = null;
let second = null;
const tagged = await until(
  () => useRealtimeRunsWithTag("user:2", { accessToken: tagToken, baseURL: url, createdAt: "1h" }),
  ({ runs, error }) => {
    if (runs?.length === 1 && runs[0].isCompleted) second ??= tasks.trigger("quick", 2, { tags: ["user:2"] });
    if (runs?.length === 0) first ??= tasks.trigger("quick", 1, { tags: ["user:2"] });
    return error || (runs?.length === 2 && runs.every((run) => run.isCompleted));
  },
);
seen.ofTag = tagged.error?.message ?? tagged.runs.map((run) => run.output).sort();
// Many at once, in one answer: those of a batch while they end, and those with a tag when they have.
const items = Array.from({ length: 8 }, (_, number) => ({ payload: number, options: { tags: ["user:3"] } }));
const made = await tasks.batchTrigger("quick", items);
const areThere = ({ runs, error }) => error || (runs?.length === items.length && runs.every((run) => run.isCompleted));
const batched = await until(
  () => useRealtimeBatch(made.batchId, { accessToken: made.publicAccessToken, baseURL: url }),
  areThere,
);
seen.ofBatch = batched.error?.message ?? batched.runs.map((run) => run.output).sort();
const manyToken = await auth.createPublicToken({ scopes: { read: { tags: ["user:3"] } } });
const many = await until(
  () => useRealtimeRunsWithTag("user:3", { accessToken: manyToken, baseURL: url, createdAt: "1h" }),
  areThere,
);
seen.many = many.error?.message ?? many.runs.map((run) => run.output).sort();
const notShown = await until(
  () => useRealtimeBatch("batch_other", { accessToken: tagToken, baseURL: url }),
  ({ error }) => error,
);
seen.notShown = notShown.error.status;

console.log(JSON.stringify(seen));
process.exit(0);
