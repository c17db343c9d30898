// One run: its state and its metadata, live.

import { runPage, runUrl } from "./api.js";
import { arrange, byId, element, oncePerFrame, setText } from "./dom.js";
import { Feed, FollowedRuns } from "./feed.js";
import { counted, fullTime, refreshTimes, timeAgo } from "./format.js";
import { stringify } from "./json.js";
import { RunLog } from "./log.js";
import { apply } from "./operations.js";
import { ProgressBars } from "./progress.js";
import { RunsTable, duration, tagLinks } from "./runs_table.js";
import { STATUSES, StatusBadge, isFinal, showConnection, statusWord } from "./status.js";
import { Tree } from "./tree.js";

/** @typedef {Map<string, any>} Run */

const CHILDREN_SHOWN = 10;
const LOG_SECONDS = 1;

const runId = byId("run").dataset.run ?? "";

/** What the server has told: the run without its document, the document, and which version of it this is. */
const known = {
  /** @type {Run} */
  run: new Map(),
  /** @type {import("./json.js").JSONObject} */
  document: new Map(),
  version: -1,
  /** @type {ReadonlySet<string>} `once` ids that the operations since the snapshot have counted */
  counted: new Set(),
};

const badge = new StatusBadge();
byId("status").append(badge.element);
const facts = byId("facts");
const progress = new ProgressBars(byId("progress"));
const trees = {
  metadata: new Tree(byId("metadata"), "This run has no metadata."),
  payload: new Tree(byId("payload")),
  output: new Tree(byId("output")),
};
const children = new RunsTable(byId("children"));
const log = new RunLog(runId, byId("log"), byId("log-section"), /** @type {HTMLButtonElement} */ (byId("log-earlier")));

/** Set as soon as something of the run, not only its document, has changed. */
let runChanged = false;

const draw = oncePerFrame(() => {
  const { run, document: metadata, version } = known;
  if (runChanged) {
    runChanged = false;
    drawRun(run);
  }
  setText(byId("metadata-version"), `version ${version}`);
  progress.update(metadata);
  trees.metadata.update(metadata);
});

/**
 * Take in a frame of the run's feed.
 *
 * @param {string} event
 * @param {Map<string, any>} frame
 * @returns {boolean} false if it does not continue what is known, so that only a snapshot helps
 */
function receive(event, frame) {
  if (event === "snapshot") {
    known.run = frame.get("run");
    known.document = known.run.get("metadata");
    known.version = Number(frame.get("version"));
    known.counted = new Set();
    runChanged = true;
  } else {
    if (frame.has("fromVersion")) {
      if (Number(frame.get("fromVersion")) !== known.version) return false;
      const applied = apply(known.document, frame.get("operations") ?? [], { counted: known.counted });
      // The server has applied them all, so this copy is not what the server has.
      if (applied.refusals.length > 0) return false;
      known.document = applied.document;
      known.counted = applied.counted;
      known.version = Number(frame.get("version"));
    }
    for (const [name, value] of frame.get("run") ?? []) {
      if (value === null) known.run.delete(name);
      else known.run.set(name, value);
      runChanged = true;
    }
  }
  draw();
  return true;
}

/** @param {Run} run */
function drawRun(run) {
  const status = run.get("status");
  const before = badge.element.dataset.status;
  badge.update(status);
  setText(byId("task"), run.get("taskIdentifier"));
  document.title = `${run.get("taskIdentifier")} · ${runId} · Milepost`;
  drawError(run.get("error"), status);
  arrange(facts, factsOf(run));
  drawValue("payload", run);
  drawValue("output", run);
  if (status !== before) {
    log.refresh();
    // The newest children may have come with the end, and the list of them lags a little.
    if (isFinal(status)) childrenFeed.connect();
  }
}

/**
 * @param {Map<string, any> | undefined} error
 * @param {string} status
 */
function drawError(error, status) {
  byId("error").hidden = error === undefined;
  if (error === undefined) return;
  setText(byId("error-heading"), status === "FAILED" ? "The run failed" : "An earlier attempt failed");
  const name = error.get("name");
  setText(byId("error-message"), name ? `${name}: ${error.get("message")}` : error.get("message"));
  const trace = error.get("stackTrace");
  byId("error-trace").hidden = !trace;
  setText(byId("error-trace-text"), trace ?? "");
}

/**
 * @param {"payload" | "output"} name
 * @param {Run} run
 */
function drawValue(name, run) {
  byId(`${name}-section`).hidden = !run.has(name);
  if (run.has(name)) trees[name].update(run.get(name));
}

/**
 * What there is to say about the run, as the parts of a `<dl>`.
 *
 * @param {Run} run
 */
function factsOf(run) {
  /** @type {HTMLElement[]} */
  const parts = [];
  /**
   * @param {string} name
   * @param {...(Node | string)} value
   */
  const add = (name, ...value) => parts.push(element("div", {}, element("dt", {}, name), element("dd", {}, ...value)));
  const relatives = run.get("relatedRuns");
  const attempt = Number(run.get("attemptCount"));
  add("Run", element("span", { class: "run-id" }, runId));
  add("Queue", run.get("queue"));
  add("Attempt", attempt ? String(attempt) : "not started");
  add("Created", time(run.get("createdAt")));
  if (run.get("status") === "QUEUED" && run.has("delayedUntil")) add("Delayed until", time(run.get("delayedUntil")));
  if (run.has("startedAt")) add("Started", time(run.get("startedAt")));
  if (run.has("finishedAt")) add("Finished", time(run.get("finishedAt")));
  if (run.has("startedAt")) add("Duration", element("span", { id: "duration" }, duration(run)));
  if (run.has("parentId")) add("Parent", ...relative(relatives.get("parent"), run.get("parentId")));
  if (run.has("parentId")) add("Root", ...relative(relatives.get("root"), run.get("rootId")));
  if (run.has("batchId")) {
    const batch = run.get("batchId");
    add("Batch", element("a", { href: `/?${new URLSearchParams({ batch })}`, class: "run-id" }, batch));
  }
  if (run.get("tags").length > 0) add("Tags", ...tagLinks(run.get("tags")));
  return parts;
}

/** @param {string} iso */
function time(iso) {
  const at = Date.parse(iso);
  const exact = element("time", { class: "exact", datetime: iso }, fullTime(at));
  const about = timeAgo(iso);
  about.className = "quiet";
  return at > Date.now() - 86_400_000 ? element("span", {}, exact, " ", about) : exact;
}

/**
 * @param {Run | undefined} related
 * @param {string} id
 */
function relative(related, id) {
  const link = element("a", { href: runPage(id), class: "run-id" }, id);
  return related === undefined ? [link] : [element("span", {}, related.get("taskIdentifier")), " ", link];
}

/** How many children there are of each status. @type {Map<string, bigint>} */
let childCounts = new Map();
const followedChildren = new FollowedRuns();

/** True once the children are known as they were after the run's end: no more will come. */
let allChildrenKnown = false;

const childrenFeed = new Feed({
  url: `/api/v1/feed/runs?${new URLSearchParams({ "filter[parent]": runId, "page[size]": String(CHILDREN_SHOWN) })}`,
  probe: "/api/v1/runs?page[size]=1",
  events: ["snapshot", "rows"],
  onEvent: receiveChildren,
});

/**
 * @param {string} event
 * @param {Map<string, any>} frame
 */
function receiveChildren(event, frame) {
  const changed = followedChildren.take(event, frame);
  if (changed === null) return false;
  const { order } = followedChildren;
  children.update(changed, order);
  childCounts = followedChildren.counts;
  const total = [...childCounts.values()].reduce((sum, number) => sum + Number(number), 0);
  byId("children-section").hidden = total === 0;
  arrange(byId("child-counts"), STATUSES.filter((status) => childCounts.has(status)).map(countOf));
  byId("more-children").hidden = total <= order.length;
  setText(byId("more-children"), `All ${counted(total, "child", "children")}`);
  if (event === "snapshot") allChildrenKnown = isFinal(known.run.get("status") ?? "");
  // Nothing is left to watch, and a browser has few connections to spare.
  if (allChildrenKnown && [...childCounts.keys()].every(isFinal)) childrenFeed.stop();
  return true;
}

/** @param {string} status */
function countOf(status) {
  const number = Number(childCounts.get(status));
  return element("li", { class: "status", "data-status": status }, `${number} ${statusWord(status).toLowerCase()}`);
}

new Feed({
  url: `${runUrl(runId)}/feed`,
  probe: `${runUrl(runId)}/metadata`,
  events: ["snapshot", "delta"],
  onEvent: receive,
  onState: (state) => {
    showConnection(byId("connection"), state);
    if (state === "ended") log.refresh();
  },
});

setInterval(() => {
  refreshTimes(facts);
  children.tick();
  const { run } = known;
  const shown = document.getElementById("duration");
  if (shown !== null && !run.has("finishedAt")) setText(shown, duration(run));
}, 1000);

setInterval(() => {
  const status = known.run.get("status");
  if (!document.hidden && (status === "EXECUTING" || status === "WAITING")) log.refresh();
}, LOG_SECONDS * 1000);

for (const button of document.querySelectorAll("button[data-copy]")) {
  const name = /** @type {keyof typeof trees} */ (button.getAttribute("data-copy"));
  // Browsers offer the clipboard on https and on this machine only.
  if (!navigator.clipboard) button.remove();
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(stringify(trees[name].value ?? null, 2));
    setText(button, "Copied");
    setTimeout(() => setText(button, "Copy JSON"), 1500);
  });
}
