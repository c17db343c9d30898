// The history of one document, kept off the page's own thread: reading, folding and comparing may take their time here.
//
// The page sends what it wants to see (`Wish`), and is sent what came of it (`Word`). Of several wishes for a version only the last is
// fulfilled, so a scrubber that is dragged never waits for where it has been.

import { AnswerError, ask, runUrl } from "./api.js";
import { differences } from "./difference.js";
import { joined } from "./numbers.js";
import { BLOCK, PrunedError, Timeline } from "./timeline.js";

/** @typedef {import("./difference.js").Difference} Difference */
/** @typedef {import("./timeline.js").Change} Change */
/** @typedef {import("./timeline.js").Page} Page */

/**
 * open: whose history. newest: the newest version has changed. show: a version is wanted; showAt: the one at a time. Both carry a number,
 * which is sent back with what is shown. chart: read what the charts show.
 *
 * @typedef {{kind: "open", runId: string, newest: number}
 *   | {kind: "newest", version: number}
 *   | {kind: "show", version: number, number: number}
 *   | {kind: "showAt", at: number, number: number}
 *   | {kind: "chart"}} Wish
 */

/**
 * What changed in a version. Of many differences only the first are listed; `count` is all of them. `number` is that of the wish.
 *
 * @typedef {{number: number, version: number, document: import("./json.js").JSONObject, change: Change | null, differences: Difference[],
 *   count: number}} Shown
 */

/**
 * range: the earliest version that is kept. shown: a version. numbers: what the charts show. failed: a version cannot be shown; signedOut:
 * the session has ended.
 *
 * @typedef {{kind: "range", earliest: number}
 *   | {kind: "shown", shown: Shown}
 *   | {kind: "numbers", numbers: ReturnType<typeof joined>, isComplete: boolean}
 *   | {kind: "failed", message: string}
 *   | {kind: "signedOut"}} Word
 */

/** Differences that are listed. */
const LISTED = 500;
/** Versions, and characters of changes, that are read for charts without being asked for otherwise. */
const CHART_VERSIONS = 20_000;
const CHART_SIZE = 16_000_000;
/** Charts that grow while they are read are sent so often. */
const CHART_MILLISECONDS = 300;

/** @type {Timeline | null} */
let timeline = null;
let runId = "";
/** @type {{version: number, number: number} | null} */
let wanted = null;
let isShowing = false;
let isCharting = false;
let chartWanted = false;
let sizeRead = 0;

const source = {
  /**
   * @param {number} after
   * @param {number} size
   * @returns {Promise<Page>}
   */
  async changes(after, size) {
    const query = new URLSearchParams({ "page[after]": String(after), "page[size]": String(size) });
    const { answer, size: characters } = await ask(`${runUrl(runId)}/metadata/history?${query}`);
    sizeRead += characters;
    return {
      changes: answer.get("data").map(changeFrom),
      earliest: Number(answer.get("earliestVersion")),
      more: answer.has("next"),
      size: characters,
    };
  },
  /** @param {number} version */
  async document(version) {
    const { answer } = await ask(`${runUrl(runId)}/metadata?version=${version}`);
    return answer.get("metadata");
  },
};

/**
 * @param {Map<string, any>} change
 * @returns {Change}
 */
function changeFrom(change) {
  const writer = change.get("writer");
  return {
    version: Number(change.get("version")),
    at: Number(change.get("at")),
    operations: change.get("operations"),
    writer: writer === null ? null : { run: writer.get("run"), attempt: Number(writer.get("attempt")) },
  };
}

/** @param {Word} word */
function tell(word) {
  postMessage(word);
}

/** Show the version that is wanted; and if another one is wanted by then, that one. */
async function show() {
  if (isShowing || timeline === null) return;
  isShowing = true;
  try {
    while (wanted !== null) {
      const { version, number } = wanted;
      wanted = null;
      const shown = { number, ...(await read(timeline, version)) };
      if (wanted === null) tell({ kind: "shown", shown });
    }
  } catch (error) {
    fail(error);
  } finally {
    isShowing = false;
  }
}

/**
 * @param {Timeline} timeline
 * @param {number} version
 * @returns {Promise<Omit<Shown, "number">>}
 */
async function read(timeline, version) {
  const { document, before, change } = await patiently(() => timeline.at(Math.max(version, timeline.earliest)));
  /** @type {Difference[]} */
  const listed = [];
  let count = 0;
  if (before !== null) {
    differences(before, document, (difference) => {
      count += 1;
      if (listed.length < LISTED) listed.push(difference);
    });
  }
  return { version: change?.version ?? timeline.earliest, document, change, differences: listed, count };
}

/** Read what the charts show, from early to late, and tell it as it grows. */
async function chart() {
  chartWanted = true;
  if (isCharting || timeline === null) return;
  isCharting = true;
  try {
    while (chartWanted) {
      chartWanted = false;
      await readForChart(timeline);
    }
  } catch (error) {
    fail(error);
  } finally {
    isCharting = false;
  }
}

/** @param {Timeline} timeline */
async function readForChart(timeline) {
  let toldAt = performance.now();
  const first = Math.max(timeline.earliest, timeline.newest - CHART_VERSIONS) + 1;
  for (let version = first; version <= timeline.newest && sizeRead < CHART_SIZE; ) {
    if (await patiently(() => timeline.read(version))) version += BLOCK;
    if (performance.now() - toldAt > CHART_MILLISECONDS) {
      toldAt = performance.now();
      tell({ kind: "numbers", numbers: joined(timeline.numbers()), isComplete: false });
    }
  }
  if (timeline.newest > timeline.earliest) await patiently(() => timeline.read(timeline.newest));
  tell({ kind: "numbers", numbers: joined(timeline.numbers()), isComplete: true });
}

/**
 * Do it, and once more from the new beginning when older changes were pruned meanwhile.
 *
 * @template Result
 * @param {() => Promise<Result>} work
 */
async function patiently(work) {
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof PrunedError)) throw error;
    await timeline?.open();
    tell({ kind: "range", earliest: timeline?.earliest ?? 0 });
    return await work();
  }
}

/** @param {unknown} error */
function fail(error) {
  if (error instanceof AnswerError && error.status === 401) return tell({ kind: "signedOut" });
  tell({ kind: "failed", message: error instanceof TypeError ? "The server cannot be reached." : String(/** @type {Error} */ (error).message) });
}

/** @param {Wish} wish */
async function take(wish) {
  switch (wish.kind) {
    case "open":
      runId = wish.runId;
      timeline = new Timeline(source, wish.newest);
      try {
        await timeline.open();
        tell({ kind: "range", earliest: timeline.earliest });
      } catch (error) {
        fail(error);
      }
      return;
    case "newest":
      if (timeline !== null) timeline.newest = Math.max(timeline.newest, wish.version);
      return;
    case "show":
      wanted = wish;
      return show();
    case "showAt":
      if (timeline !== null) wanted = { version: timeline.versionAt(wish.at), number: wish.number };
      return show();
    default:
      return chart();
  }
}

self.addEventListener("message", (event) => take(event.data));
