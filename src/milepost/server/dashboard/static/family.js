// A run and all runs below it on one time axis: when each waited, and when each attempt began and ended.

import { get, runPage, runUrl } from "./api.js";
import { element, setText } from "./dom.js";
import { clockTime, counted, span } from "./format.js";
import { isFinal, statusWord } from "./status.js";

/** Runs that are shown at first, and at most. */
const SHOWN = 100;
const MOST = 1000;
/** However often runs change, they are read at most so often. */
const READ_MILLISECONDS = 2000;

/** @typedef {Map<string, any>} Run a run as the tree tells it */

/** @type {{[end: string]: string}} what an attempt that ended so looks like */
const LOOKS = { returned: "COMPLETED", raised: "FAILED", crashed: "FAILED", lost: "FAILED", timed_out: "FAILED", broken: "FAILED", cancelled: "CANCELED" };

export class Family {
  /**
   * @param {string} runId
   * @param {{section: HTMLElement, list: HTMLElement, about: HTMLElement, more: HTMLButtonElement}} place
   */
  constructor(runId, place) {
    this.url = `${runUrl(runId)}/tree`;
    this.place = place;
    this.size = SHOWN;
    this.reading = false;
    this.wanted = false;
    place.more.addEventListener("click", () => {
      this.size = MOST;
      this.refresh();
    });
  }

  /** Read it again: something has changed. Without a connection nothing happens. */
  async refresh() {
    this.wanted = true;
    if (this.reading) return;
    this.reading = true;
    try {
      while (this.wanted) {
        this.wanted = false;
        this.draw(await get(`${this.url}?page[size]=${this.size}`));
        await new Promise((resolve) => setTimeout(resolve, READ_MILLISECONDS));
      }
    } catch {
      // The feed connects anew and begins with a snapshot.
    } finally {
      this.reading = false;
    }
  }

  /** @param {Map<string, any>} tree */
  draw(tree) {
    const runs = inOrder(tree.get("data"));
    const { section, list, about, more } = this.place;
    // One run that went straight through has nothing that its facts do not say.
    section.hidden = runs.length < 2 && (runs[0]?.get("attempts").length ?? 0) < 2;
    if (section.hidden) return;
    const from = Math.min(...runs.map((run) => Date.parse(run.get("createdAt"))));
    const until = runs.every((run) => run.has("finishedAt")) ? Math.max(...runs.map((run) => Date.parse(run.get("finishedAt")))) : Date.now();
    const axis = { from, length: Math.max(1, until - from), until };
    const first = Number(runs[0]?.get("depth") ?? 0);
    setText(about, `${counted(runs.length, "run")}, ${clockTime(from)} to ${clockTime(until)}, ${span(axis.length)}`);
    more.hidden = !tree.get("isCut") || this.size === MOST;
    list.replaceChildren(...runs.map((run) => rowOf(run, axis, Number(run.get("depth")) - first)));
  }
}

/**
 * Each run before its children, and those in the order in which they were triggered.
 *
 * @param {Run[]} runs
 */
function inOrder(runs) {
  /** @type {Map<string, Run[]>} */
  const children = new Map();
  for (const run of runs.slice(1)) {
    const parent = run.get("parentId");
    const known = children.get(parent);
    if (known === undefined) children.set(parent, [run]);
    else known.push(run);
  }
  const ordered = [];
  const waiting = runs.slice(0, 1);
  for (let run = waiting.pop(); run !== undefined; run = waiting.pop()) {
    ordered.push(run);
    waiting.push(...(children.get(run.get("id")) ?? []).reverse());
  }
  return ordered;
}

/**
 * @param {Run} run
 * @param {{from: number, length: number, until: number}} axis
 * @param {number} depth
 */
function rowOf(run, axis, depth) {
  const status = run.get("status");
  const end = run.has("finishedAt") ? Date.parse(run.get("finishedAt")) : axis.until;
  const lane = element("div", { class: "family-lane" });
  lane.append(bar(Date.parse(run.get("createdAt")), end, axis, "QUEUED", isFinal(status) ? "from its trigger to its end" : `${statusWord(status)} since its trigger`));
  for (const attempt of run.get("attempts")) {
    if (!attempt.has("beganAt")) continue;
    const from = Date.parse(attempt.get("beganAt"));
    const until = attempt.has("endedAt") ? Date.parse(attempt.get("endedAt")) : axis.until;
    const how = attempt.get("end");
    const look = how === undefined ? status : (LOOKS[how] ?? "QUEUED");
    lane.append(bar(from, until, axis, look, `attempt ${attempt.get("number")}: ${how ?? "under way"}, ${span(until - from)}`));
  }
  const name = element(
    "div",
    { class: "family-name" },
    element("a", { href: runPage(run.get("id")), class: "task", title: run.get("id") }, run.get("taskIdentifier")),
    element("span", { class: "status", "data-status": status }, statusWord(status)),
  );
  name.style.setProperty("--depth", String(Math.min(depth, 8)));
  return element("li", {}, name, lane, element("span", { class: "quiet number" }, run.has("startedAt") ? span(Math.max(0, end - Date.parse(run.get("startedAt")))) : "–"));
}

/**
 * @param {number} from
 * @param {number} until
 * @param {{from: number, length: number}} axis
 * @param {string} look a status
 * @param {string} words
 */
function bar(from, until, axis, look, words) {
  const made = element("span", { class: "family-bar", "data-status": look, title: words });
  made.style.left = `${Math.max(0, ((from - axis.from) / axis.length) * 100)}%`;
  made.style.width = `${Math.max(0, ((until - from) / axis.length) * 100)}%`;
  return made;
}
