// The official client, unchanged, against a server of ours. What it has seen is printed as one line of JSON.
import { auth, configure, runs, streams, tasks } from "@trigger.dev/sdk";

const { url, key } = JSON.parse(process.argv[2]);
configure({ baseURL: url, secretKey: key });

const seen = {};

async function collect(stream, count = Infinity) {
  const values = [];
  if (count === 0) return values;
  for await (const value of stream) {
    values.push(value);
    if (values.length === count) break;
  }
  return values;
}

async function refusal(call) {
  try {
    return { came: await call() };
  } catch (error) {
    return { name: error.constructor.name, status: error.status };
  }
}

// A stream that is read while it is written, from the beginning and from an index.
const handle = await tasks.trigger("answer", { count: 5 }, { tags: ["user:1"], metadata: { user: "ada" } });
const live = await streams.read(handle.id, "words");
const first = await collect(live, 5);
seen.live = first;
seen.whileOpen = (await runs.retrieve(handle.id)).status;

// The run is followed, with its streams, from here to its end.
const followed = (async () => {
  const states = [];
  for await (const state of runs.subscribeToRun(handle.id)) {
    states.push(state);
  }
  return states;
})();
const withStreams = (async () => {
  const words = [];
  let last = null;
  for await (const part of runs.subscribeToRun(handle.id).withStreams()) {
    if (part.type === "run") last = part.run;
    if (part.type === "words") words.push(part.chunk);
    if (last?.isCompleted && words.length === 7) break;
  }
  return words;
})();

// Triggers that mean one run, while that is delayed.
const debounced = [];
for (let count = 0; count < 3; count++) {
  const options = { debounce: { key: "burst", delay: "1h", mode: "trailing" } };
  debounced.push(await tasks.trigger("answer", { count }, options));
}
const burst = await runs.retrieve(debounced[0].id);
seen.debounced = { runs: new Set(debounced.map((one) => one.id)).size, status: burst.status, payload: burst.payload };
await runs.cancel(debounced[0].id);

// Something is sent to the run, with the token that the trigger gave.
const more = streams.input({ id: "more" });
await auth.withAuth({ accessToken: handle.publicAccessToken }, () => more.send(handle.id, { count: 2 }));
seen.all = await collect(await streams.read(handle.id, "words", { startIndex: 2 }));
seen.objects = await collect(await streams.read(handle.id, "steps"));

const run = await runs.poll(handle.id, { pollIntervalMs: 50 });
seen.run = { status: run.status, output: run.output, metadata: run.metadata, tags: run.tags };
seen.inputAfterTheEnd = await refusal(() => more.send(handle.id, { count: 1 }));

const states = await followed;
const told = states.at(-1);
seen.followed = {
  status: told.status, output: told.output, metadata: told.metadata, tags: told.tags, payload: told.payload,
  isFinished: told.finishedAt >= told.startedAt && told.startedAt >= told.createdAt, isMany: states.length > 1,
};
seen.withStreams = await withStreams;
const failed = await tasks.trigger("fails", new Date(0));
for await (const state of runs.subscribeToRun(failed.id)) {
  seen.failed = { status: state.status, isFailed: state.isFailed, error: state.error && { ...state.error, stackTrace: "" } };
}

// Tokens that the client signs itself.
const withToken = async (options, call) =>
  auth.withAuth({ accessToken: await auth.createPublicToken(options) }, call);
const read = async () => collect(await streams.read(handle.id, "words", { timeoutInSeconds: 5 }));
seen.byRun = await withToken({ scopes: { read: { runs: [handle.id] } } }, read);
seen.byTag = await withToken({ scopes: { read: { tags: ["user:1"] } } }, read);
const skipping = { scopes: { read: { runs: [handle.id] } }, realtime: { skipColumns: ["payload", "output"] } };
seen.skipping = await withToken(skipping, async () => {
  for await (const state of runs.subscribeToRun(handle.id)) {
    return { output: state.output ?? null, payload: state.payload ?? null, metadata: state.metadata };
  }
});
const other = { scopes: { read: { runs: ["run_other"] } } };
seen.byOther = await refusal(() => withToken(other, () => runs.retrieve(handle.id)));
seen.triggerByToken = await auth.withAuth(
  { accessToken: await auth.createTriggerPublicToken("quick") },
  async () => {
    const once = await tasks.trigger("quick", 7);
    return { id: typeof once.id, again: await refusal(() => tasks.trigger("quick", 8)) };
  },
);

// A batch in two phases, and a list.
const batch = await tasks.batchTrigger("quick", [{ payload: 1 }, { payload: 2 }, { payload: 3 }]);
seen.batch = batch.runCount;
const listed = await runs.list({ tag: "user:1", limit: 10 });
seen.list = listed.data.map((item) => item.id === handle.id);

// Runs with a tag, and those of a batch, until each has ended; with a token for just that.
async function untilEnded(feed, count, change) {
  const states = new Map();
  const told = [];
  for await (const run of feed) {
    if (told.length === 0) await change?.();
    told.push(run);
    states.set(run.id, run);
    if (states.size === count && [...states.values()].every((state) => state.isCompleted)) break;
  }
  return [...states.values()];
}
const tagScopes = { scopes: { read: { tags: ["tag one"] } } };
await tasks.trigger("quick", 1, { tags: ["tag one", "both"], metadata: { user: "ada" } });
const byTag = await withToken(tagScopes, async () =>
  untilEnded(runs.subscribeToRunsWithTag("tag one", { skipColumns: ["payload"] }), 2, () =>
    auth.withAuth({ accessToken: key }, () => tasks.trigger("quick", 2, { tags: ["tag one"] })),
  ),
);
seen.tag = byTag.map((run) => [run.status, run.output, run.metadata ?? null, run.payload ?? null, run.tags]);
seen.bothTags = (await untilEnded(runs.subscribeToRunsWithTag(["tag one", "both"]), 1)).map((run) => run.output);
const watchedBatch = await tasks.batchTrigger("quick", [{ payload: 5 }, { payload: 6 }]);
const ofBatch = await auth.withAuth({ accessToken: watchedBatch.publicAccessToken }, () =>
  untilEnded(runs.subscribeToBatch(watchedBatch.batchId), 2),
);
seen.ofBatch = ofBatch.map((run) => run.output).sort();

console.log(JSON.stringify(seen));
process.exit(0);
