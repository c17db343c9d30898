// One run: its state, its metadata with their history, its children and its log, live over one connection.

import { get, runPage } from "./api.js";
import { Attempts } from "./attempts.js";
import { copyOnClick } from "./copy.js";
import { arrange, byId, element, oncePerFrame, setText } from "./dom.js";
import { Feed, FollowedDocument, FollowedRuns } from "./feed.js";
import { count, counted, fullTime, refreshTimes, span, timeAgo } from "./format.js";
import { Family } from "./family.js";
import { History } from "./history.js";
import { stringify } from "./json.js";
import { RunLog } from "./log.js";
import { ProgressBars, findProgress, percent } from "./progress.js";
import { RunActions } from "./run_actions.js";
import { RunsTable, duration, tagLinks } from "./runs_table.js";
import { RunStreams } from "./streams.js";
import { FAILURES, STATUSES, StatusBadge, isFinal, showConnection, statusWord, waitWords } from "./status.js";
import { Tree } from "./tree.js";

/** @typedef {Map<string, any>} Run */

const CHILDREN_SHOWN = 10;
const LOOK_MILLISECONDS = 5000;
const WAITING_FOR_WORKERS = ["PENDING_VERSION", "QUEUED"];

const runId = byId("run").dataset.run ?? "";

/** What the server has told: the run without its document, and the document. */
const known = {
  /** @type {Run} */
  run: new Map(),
  document: new FollowedDocument(new Map(), -1),
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
const followedChildren = new FollowedRuns();
const log = new RunLog(
  runId,
  byId("log"),
  byId("log-lines"),
  byId("log-section"),
  /** @type {HTMLButtonElement} */ (byId("log-earlier")),
  { form: /** @type {HTMLFormElement} */ (byId("log-filter")), nothing: byId("log-nothing") },
);
const actions = new RunActions(runId, byId("actions"));
const family = new Family(runId, {
  section: byId("family-section"),
  list: byId("family"),
  about: byId("family-about"),
  more: /** @type {HTMLButtonElement} */ (byId("family-more")),
});
const attempts = new Attempts(runId, byId("attempts"), byId("attempts-section"));
const streams = new RunStreams(runId, {
  section: byId("streams-section"),
  tabs: byId("stream-tabs"),
  view: byId("stream"),
  about: byId("stream-about"),
  earlier: byId("stream-earlier"),
  copy: byId("stream-copy"),
  download: byId("stream-download"),
});
const past = new History(runId, {
  showPast: (document, marks) => {
    drawPlace();
    progress.update(document);
    trees.metadata.update(document, marks);
  },
  showPresent: () => draw(),
  reveal: (path) => trees.metadata.reveal(path),
});

/** Set as soon as something of the run, not only its document, has changed. */
let runChanged = false;

const draw = oncePerFrame(() => {
  const { run } = known;
  const { value: metadata, version } = known.document;
  if (runChanged) {
    runChanged = false;
    drawRun(run);
  }
  drawTitle(run, metadata);
  past.follow(metadata, version, Date.parse(run.get("createdAt")) * 1000);
  drawPlace();
  if (!past.isPresent) return;
  progress.update(metadata);
  trees.metadata.update(metadata);
});

/**
 * Take in an event of the run's feed.
 *
 * @param {string} event
 * @param {Map<string, any>} frame
 * @returns {boolean} false if it does not continue what is known, so that only a snapshot helps
 */
function receive(event, frame) {
  switch (event) {
    case "log":
      log.refresh();
      return true;
    case "streams":
      streams.refresh();
      return true;
    case "children-snapshot":
    case "children-rows":
      return receiveChildren(event, frame);
    case "snapshot":
      known.run = frame.get("run");
      known.document = new FollowedDocument(known.run.get("metadata"), Number(frame.get("version")));
      runChanged = true;
      log.refresh();
      family.refresh();
      attempts.draw(known.run.get("attempts") ?? []);
      if (known.run.has("streams")) for (const stream of known.run.get("streams")) streams.take(stream);
      break;
    default:
      if (!receiveDelta(frame)) return false;
  }
  draw();
  return true;
}

/** @param {Map<string, any>} frame */
function receiveDelta(frame) {
  if (!known.document.take(frame)) return false;
  for (const [name, value] of frame.get("run") ?? []) {
    if (name === "attemptCount" || name === "status") {
      attempts.refresh();
      family.refresh();
    }
    if (value === null) known.run.delete(name);
    else known.run.set(name, value);
    runChanged = true;
  }
  return true;
}

/** Say which version of the document is shown. */
function drawPlace() {
  const newest = count(known.document.version);
  setText(byId("metadata-version"), past.version === null ? `version ${newest}` : `version ${count(past.version)} of ${newest}`);
  byId("metadata-section").classList.toggle("past", !past.isPresent);
}

/** @param {Run} run */
function drawRun(run) {
  const status = run.get("status");
  badge.update(status);
  setText(byId("task"), run.get("taskIdentifier"));
  drawError(run.get("error"), status);
  drawWait(run);
  actions.update(run);
  byId("asked").hidden = !run.has("cancelAskedAt") || isFinal(status);
  setText(byId("asked"), run.has("cancelAskedAt") ? `Cancel asked ${fullTime(Date.parse(run.get("cancelAskedAt")))}` : "");
  arrange(facts, factsOf(run));
  drawValue("payload", run);
  drawValue("output", run);
}

/**
 * Why a run that is queued has not begun.
 *
 * @param {Run} run
 */
function drawWait(run) {
  const reason = run.get("queuedReason");
  const wait = run.get("queueWait") ?? (reason ? new Map([["reason", reason]]) : undefined);
  const isWaiting = WAITING_FOR_WORKERS.includes(run.get("status")) && wait !== undefined;
  byId("queued-reason").hidden = !isWaiting;
  if (isWaiting) setText(byId("queued-reason"), waitWords(wait, run));
}

/** The place in a queue changes without a word of the feed: it is looked at as long as somebody looks here. */
async function lookAtWait() {
  const { run } = known;
  if (document.hidden || !run.has("queueWait") || !WAITING_FOR_WORKERS.includes(run.get("status"))) return;
  try {
    const now = await get(`/api/v3/runs/${encodeURIComponent(runId)}`);
    if (known.run !== run || now.get("status") !== run.get("status")) return;
    for (const name of ["queueWait", "queuedReason"]) {
      if (now.has(name)) run.set(name, now.get(name));
      else run.delete(name);
    }
    drawWait(run);
  } catch {
    // The feed tells that the connection is broken.
  }
}

/**
 * "42 % · import_people": what a tab among many has to say.
 *
 * @param {Run} run
 * @param {import("./json.js").JSONObject} metadata
 */
function drawTitle(run, metadata) {
  const status = run.get("status");
  const share = isFinal(status) ? null : (findProgress(metadata)[0]?.share ?? null);
  const title = `${share === null ? statusWord(status) : `${percent(share)} %`} · ${run.get("taskIdentifier")}`;
  if (document.title !== title) document.title = title;
}

/**
 * @param {Map<string, any> | undefined} error
 * @param {string} status
 */
function drawError(error, status) {
  byId("error").hidden = error === undefined;
  if (error === undefined) return;
  const heading = status === "CANCELED" ? "The run was cancelled" : FAILURES.has(status) ? "The run failed" : "An earlier attempt failed";
  setText(byId("error-heading"), heading);
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
  add("Queue", run.get("queue"));
  if (run.get("isPayloadDeleted")) add("Payload", "deleted: the server keeps payloads for a time only");
  if (run.has("concurrencyKey")) add("Concurrency key", run.get("concurrencyKey"));
  if (run.get("priority")) add("Priority", `${run.get("priority")} s`);
  add("Attempt", attempt ? String(attempt) : "not started");
  add("Created", time(run.get("createdAt")));
  if (["DELAYED", "QUEUED"].includes(String(run.get("status"))) && run.has("delayedUntil")) add("Delayed until", time(run.get("delayedUntil")));
  if (run.has("ttl")) add("Time to live", run.get("ttl"));
  if (run.has("maxDurationSeconds")) add("At most", span(Number(run.get("maxDurationSeconds")) * 1000));
  if (run.has("startedAt")) add("Started", time(run.get("startedAt")));
  if (run.has("cancelAskedAt")) add("Cancel asked", time(run.get("cancelAskedAt")));
  if (run.has("expiredAt")) add("Expired", time(run.get("expiredAt")));
  if (run.has("finishedAt")) add("Finished", time(run.get("finishedAt")));
  if (run.has("startedAt")) add("Duration", element("span", { id: "duration" }, duration(run)));
  if (run.has("parentId")) add("Parent", ...relative(relatives.get("parent"), run.get("parentId")));
  if (run.has("parentId")) add("Root", ...relative(relatives.get("root"), run.get("rootId")));
  if (run.has("replayOf")) add("Replay of", element("a", { href: runPage(run.get("replayOf")), class: "run-id" }, run.get("replayOf")));
  if (run.has("idempotencyKey")) add("Idempotency key", run.get("idempotencyKey"));
  if (run.has("schedule")) {
    const schedule = run.get("schedule").get("id");
    add("Schedule", element("a", { href: `/?${new URLSearchParams({ schedule })}`, class: "run-id" }, schedule));
  }
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
  return related === undefined ? [link] : [element("span", { class: "relative" }, related.get("taskIdentifier")), " ", link];
}

/**
 * @param {string} event
 * @param {Map<string, any>} frame
 * @returns {boolean} false if it does not continue what is shown
 */
function receiveChildren(event, frame) {
  const changed = followedChildren.take(event, frame);
  if (changed === null) return false;
  const { order, counts } = followedChildren;
  children.update(changed, order);
  if (changed.length > 0) family.refresh();
  const total = [...counts.values()].reduce((sum, number) => sum + Number(number), 0);
  byId("children-section").hidden = total === 0;
  arrange(byId("child-counts"), STATUSES.filter((status) => counts.has(status)).map((status) => countOf(status, Number(counts.get(status)))));
  byId("more-children").hidden = total <= order.length;
  setText(byId("more-children"), `All ${counted(total, "child", "children")}`);
  return true;
}

/**
 * How many children are in a status, as a link to the list of them.
 *
 * @param {string} status
 * @param {number} number
 */
function countOf(status, number) {
  const href = `${byId("child-counts").dataset.href}&${new URLSearchParams({ status })}`;
  const link = element("a", { href, class: "status", "data-status": status }, `${number} ${statusWord(status).toLowerCase()}`);
  return element("li", {}, link);
}

new Feed({
  watch: () => ({ run: runId, children: CHILDREN_SHOWN }),
  onEvent: receive,
  onState: (state) => {
    showConnection(byId("connection"), state);
    if (state === "ended") log.refresh();
  },
});

setInterval(lookAtWait, LOOK_MILLISECONDS);
setInterval(() => {
  refreshTimes(facts);
  children.tick();
  const { run } = known;
  const shown = document.getElementById("duration");
  if (shown !== null && !run.has("finishedAt")) setText(shown, duration(run));
}, 1000);

copyOnClick(byId("copy-id"), () => runId);
copyOnClick(byId("copy-trace"), () => byId("error-trace-text").textContent ?? "");
for (const button of document.querySelectorAll("button[data-copy]")) {
  const name = /** @type {keyof typeof trees} */ (button.getAttribute("data-copy"));
  copyOnClick(/** @type {HTMLElement} */ (button), () => stringify(trees[name].value ?? null, 2));
}
