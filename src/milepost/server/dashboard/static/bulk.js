// The same for every run that the present filter matches: cancel, or replay.

import { faultWords, get, runUrl, send } from "./api.js";
import { openDialog } from "./dialogs.js";
import { element, setText } from "./dom.js";
import { count, counted } from "./format.js";
import { STATUSES, isFinal } from "./status.js";

const PAGE_SIZE = 100;
/** Requests that are under way at once. */
const AT_ONCE = 4;

/** @typedef {{word: string, done: string, finished: boolean, act: (run: string) => Promise<any>}} Action */

/** @type {{[name: string]: Action}} */
const ACTIONS = {
  cancel: {
    word: "Cancel",
    done: "cancelled",
    finished: false,
    act: (run) => send("POST", `/api/v2/runs/${encodeURIComponent(run)}/cancel`, {}),
  },
  replay: { word: "Replay", done: "replayed", finished: true, act: (run) => send("POST", `${runUrl(run)}/replay`, {}) },
};

/**
 * Let buttons act on all runs of a list.
 *
 * @param {HTMLElement} place where the buttons go
 * @param {URLSearchParams} query the list, as the API takes it
 */
export function offerBulk(place, query) {
  for (const action of Object.values(ACTIONS)) {
    const statuses = statusesFor(action, query);
    const button = element("button", { type: "button", class: "small" }, `${action.word} all…`);
    button.disabled = statuses.length === 0;
    button.title = action.finished ? "All that match and have finished" : "All that match and have not finished";
    button.addEventListener("click", () => ask(action, query, statuses));
    place.append(button);
  }
  place.hidden = false;
}

/**
 * The statuses of the runs that an action concerns, within the filter.
 *
 * @param {Action} action
 * @param {URLSearchParams} query
 */
function statusesFor(action, query) {
  const given = query.get("filter[status]")?.split(",") ?? STATUSES;
  return STATUSES.filter((status) => given.includes(status) && isFinal(status) === action.finished);
}

/**
 * @param {Action} action
 * @param {URLSearchParams} query
 * @param {string[]} statuses
 */
function ask(action, query, statuses) {
  const concerned = new URLSearchParams(query);
  for (const name of ["page[after]", "page[before]"]) concerned.delete(name);
  concerned.set("page[size]", String(PAGE_SIZE));
  concerned.set("filter[status]", statuses.join(","));
  const bar = element("progress", { "aria-label": "How far it is", hidden: "" });
  const told = element("p", { role: "status" }, "");
  let isStopped = false;
  openDialog({
    title: `${action.word} every run that matches?`,
    content: [
      element("p", {}, `All runs that match the present filter and ${action.finished ? "have finished" : "have not finished"}. Close this to stop.`),
      bar,
      told,
    ],
    action: `${action.word} all`,
    onClose: () => {
      isStopped = true;
    },
    act: async () => {
      bar.hidden = false;
      const problems = await forEach(concerned, action, (done) => setText(told, `${counted(done, "run")} ${action.done}`), () => isStopped);
      bar.hidden = true;
      if (problems.length > 0) throw new Error(`${count(problems.length)} could not be ${action.done}: ${problems[0]}`);
      if (told.textContent === "") setText(told, "No run matches.");
      return "stay";
    },
  });
}

/**
 * Go through the runs, from the newest back: what begins meanwhile is not among them.
 *
 * @param {URLSearchParams} query
 * @param {Action} action
 * @param {(done: number) => void} tell
 * @param {() => boolean} isStopped
 * @returns {Promise<string[]>} what went wrong
 */
async function forEach(query, action, tell, isStopped) {
  /** @type {string[]} */
  const problems = [];
  let done = 0;
  for (;;) {
    const page = await get(`/api/v1/runs?${query}`);
    /** @type {string[]} */
    const ids = page.get("data").map((/** @type {Map<string, any>} */ run) => run.get("id"));
    const one = async () => {
      for (let id = ids.shift(); id !== undefined && !isStopped(); id = ids.shift()) {
        try {
          await action.act(id);
          done += 1;
        } catch (error) {
          problems.push(faultWords(error));
        }
        tell(done);
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, one));
    const next = page.get("pagination").get("next");
    if (!next || isStopped()) return problems;
    query.set("page[after]", next);
  }
}
