// The attempts of a run, once there is something to tell of them: one has failed, was lost or was handed back.

import { get } from "./api.js";
import { element } from "./dom.js";
import { fullTime } from "./format.js";

/** @typedef {Map<string, any>} Attempt an attempt as the API tells it */

/** However often attempts come and go, they are read at most so often. */
const READ_MILLISECONDS = 500;

/** @type {{[end: string]: string}} */
const WORDS = {
  returned: "returned",
  raised: "failed",
  crashed: "crashed",
  beside: "was lost beside others that executed in the same process",
  lost: "was lost",
  handed_back: "was handed back",
  never_begun: "never began",
  waiting: "was lost while it waited",
  closed: "ran the last hooks",
  cancelled: "was cancelled",
  timed_out: "took too long",
  broken: "could not be stored",
};

export class Attempts {
  /**
   * @param {string} runId
   * @param {HTMLElement} list the `<ol>`
   * @param {HTMLElement} section hidden while there is nothing to tell
   */
  constructor(runId, list, section) {
    this.url = `/api/v3/runs/${encodeURIComponent(runId)}`;
    this.list = list;
    this.section = section;
    this.reading = false;
    this.wanted = false;
  }

  /** @param {Attempt[]} attempts */
  draw(attempts) {
    this.section.hidden = attempts.every((attempt) => !attempt.has("end") || attempt.get("end") === "returned");
    this.list.replaceChildren(...attempts.map(attemptElement));
  }

  /** Read them again: one has begun or ended. Without a connection nothing happens; the next snapshot brings them. */
  async refresh() {
    this.wanted = true;
    if (this.reading) return;
    this.reading = true;
    try {
      while (this.wanted) {
        this.wanted = false;
        this.draw((await get(this.url)).get("attempts"));
        await new Promise((resolve) => setTimeout(resolve, READ_MILLISECONDS));
      }
    } catch {
      // The feed connects anew and begins with a snapshot.
    } finally {
      this.reading = false;
    }
  }
}

/** @param {Attempt} attempt */
function attemptElement(attempt) {
  const end = attempt.get("end");
  const at = attempt.get("endedAt") ?? attempt.get("begunAt") ?? attempt.get("claimedAt");
  const words = [`Attempt ${attempt.get("number")} `, element("strong", {}, end === undefined ? "is under way" : WORDS[end] ?? end)];
  if (end !== undefined && end !== "returned" && attempt.get("isCharged") !== true) words.push(", at no cost");
  const item = element("li", {}, ...words);
  if (at !== undefined) item.append(" ", element("time", { class: "quiet", datetime: at }, fullTime(Date.parse(at))));
  const error = attempt.get("error");
  if (error !== undefined) {
    const name = error.get("name");
    item.append(element("div", { class: "quiet" }, name ? `${name}: ${error.get("message")}` : error.get("message")));
    const trace = error.get("stackTrace");
    if (trace) item.append(element("details", {}, element("summary", {}, "Stack trace"), element("pre", { tabindex: "0", "aria-label": `Stack trace of attempt ${attempt.get("number")}` }, trace)));
  }
  return item;
}
