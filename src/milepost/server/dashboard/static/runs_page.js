// The list of runs. Its newest page is live; older pages are read by cursor and read again while something on them can change.

import { AnswerError, get } from "./api.js";
import { offerBulk } from "./bulk.js";
import { byId, element, setText } from "./dom.js";
import { Feed, FollowedRuns } from "./feed.js";
import { count, counted } from "./format.js";
import { stringify } from "./json.js";
import { RunsTable } from "./runs_table.js";
import { SearchError, parseSearch } from "./search.js";
import { STATUSES, isFinal, showConnection } from "./status.js";

const PAGE_SIZE = 50;
const OLDER_PAGE_SECONDS = 5;

/** Filters in the address of the page, and what the API calls them. */
const FILTERS = {
  status: "filter[status]",
  task: "filter[taskIdentifier]",
  tag: "filter[tag]",
  queue: "filter[queue]",
  schedule: "filter[schedule]",
  batch: "filter[batch]",
  parent: "filter[parent]",
  root: "filter[root]",
};

const address = new URLSearchParams(location.search);
const query = new URLSearchParams({ "page[size]": String(PAGE_SIZE) });
for (const [name, parameter] of Object.entries(FILTERS)) {
  const value = address.get(name);
  if (value) query.set(parameter, value);
}
// A list of children holds nothing else; any other list is one of the runs at the top, unless all are asked for.
const isFamily = ["parent", "root", "batch"].some((name) => address.get(name));
if (!isFamily && address.get("level") !== "all") query.set("filter[topLevel]", "true");

const followed = new FollowedRuns();
const table = new RunsTable(byId("runs"));
const searchBox = /** @type {HTMLInputElement} */ (byId("metadata"));
const connection = byId("connection");
const empty = byId("empty");
const older = /** @type {HTMLButtonElement} */ (byId("older"));
const newer = /** @type {HTMLButtonElement} */ (byId("newer"));
const cursor = ["before", "after"].find((name) => address.has(name));

setInterval(() => table.tick(), 1000);
byId("search").addEventListener("submit", (event) => {
  if (readSearch(searchBox.value) === undefined) event.preventDefault();
});
searchBox.addEventListener("input", () => showProblem(""));
const search = readSearch(address.get("metadata") ?? "");
if (search) query.set("filter[metadata]", stringify(search));
if (search !== undefined) offerBulk(byId("bulk"), query);
if (search === undefined) showConnection(connection, "refused");
else if (cursor === undefined) showNewest();
else showOlder(cursor, address.get(cursor) ?? "");

/**
 * What is searched for; null for nothing, undefined for what is no search, which is said beside the box.
 *
 * @param {string} text
 */
function readSearch(text) {
  try {
    const found = parseSearch(text);
    showProblem("");
    return found;
  } catch (error) {
    if (!(error instanceof SearchError)) throw error;
    showProblem(error.message);
    return undefined;
  }
}

/** @param {string} problem */
function showProblem(problem) {
  const shown = byId("metadata-problem");
  setText(shown, problem);
  shown.hidden = problem === "";
  searchBox.setAttribute("aria-invalid", String(problem !== ""));
}

/** The newest page, live. */
function showNewest() {
  new Feed({
    watch: () => ({ list: Object.fromEntries(query) }),
    onEvent: showFrame,
    onState: (state) => showConnection(connection, state),
    onRefused: (message) => showProblem(message),
  });
  older.addEventListener("click", async () => {
    // The cursor is the API's to make, so this page is asked for once more.
    const next = (await get(`/api/v1/runs?${query}`)).get("pagination").get("next");
    if (next) turnTo("after", next);
  });
}

/**
 * @param {string} event
 * @param {Map<string, any>} frame
 * @returns {boolean} false if it does not continue what is shown
 */
function showFrame(event, frame) {
  const changed = followed.take(event, frame);
  if (changed === null) return false;
  const { order } = followed;
  table.update(changed, order);
  const total = showCounts(followed.counts);
  showEmpty(order.length === 0);
  // Where documents decide nobody has counted.
  older.hidden = search ? order.length < PAGE_SIZE : total <= order.length;
  offerTasks();
  return true;
}

/** Tasks that have been seen here, as suggestions for the filter. */
function offerTasks() {
  const offered = byId("tasks");
  const known = new Set([...offered.children].map((option) => option.getAttribute("value")));
  for (const run of table.runs) {
    const task = run.get("taskIdentifier");
    if (!known.has(task)) offered.append(element("option", { value: task }));
    known.add(task);
  }
}

/**
 * How many runs there are; with a filter by status only those of it are known.
 *
 * @param {Map<string, bigint>} counts
 * @returns {number} all of them
 */
function showCounts(counts) {
  const asked = address.get("status")?.split(",");
  const of = (/** @type {string[]} */ statuses) => statuses.reduce((sum, status) => sum + Number(counts.get(status) ?? 0), 0);
  const total = of(STATUSES);
  for (const shown of document.querySelectorAll('[data-count]:not([data-count="all"])')) {
    const statuses = shown.getAttribute("data-count")?.split(",") ?? [];
    const isKnown = !search && (asked === undefined || statuses.every((status) => asked.includes(status)));
    setText(shown, isKnown ? count(of(statuses)) : "");
  }
  const all = document.querySelector('[data-count="all"]');
  if (all !== null) setText(all, search || address.get("status") ? "" : count(total));
  setText(byId("caption"), search ? "Runs that match, the newest first" : `${counted(total, "run")}, the newest first`);
  return total;
}

/**
 * @param {string} direction
 * @param {string} from
 */
async function showOlder(direction, from) {
  query.set(`page[${direction}]`, from);
  connection.hidden = true;
  byId("older-note").hidden = false;
  older.addEventListener("click", () => turnTo("after", older.value));
  newer.addEventListener("click", () => turnTo("before", newer.value));
  for (;;) {
    try {
      showPage(await get(`/api/v1/runs?${query}`));
    } catch (error) {
      if (error instanceof AnswerError && error.status < 500) return showProblem(error.message);
      // Tried again below: nothing on this page is lost by waiting.
    }
    await new Promise((resolve) => setTimeout(resolve, OLDER_PAGE_SECONDS * 1000));
    while (document.hidden) await once("visibilitychange");
    if (table.runs.length > 0 && table.runs.every((run) => isFinal(run.get("status")))) return;
  }
}

/** @param {Map<string, any>} page */
function showPage(page) {
  /** @type {Map<string, any>[]} */
  const runs = page.get("data");
  table.update(runs, runs.map((run) => run.get("id")));
  showEmpty(runs.length === 0);
  const cursors = page.get("pagination");
  older.hidden = !cursors.has("next");
  newer.hidden = !cursors.has("previous");
  older.value = cursors.get("next") ?? "";
  newer.value = cursors.get("previous") ?? "";
}

/** @param {boolean} isEmpty */
function showEmpty(isEmpty) {
  empty.hidden = !isEmpty;
  byId("table").hidden = isEmpty;
}

/** @param {string} event */
function once(event) {
  return new Promise((resolve) => document.addEventListener(event, resolve, { once: true }));
}

/**
 * @param {"after" | "before"} direction
 * @param {string} from
 */
function turnTo(direction, from) {
  address.delete("after");
  address.delete("before");
  address.set(direction, from);
  location.search = address.toString();
}
