// A table of runs, one row per run, updated in place. The list of runs and the children of a run both use it.

import { runPage } from "./api.js";
import { arrange, element, setText } from "./dom.js";
import { refreshTimes, span, timeAgo } from "./format.js";
import { ProgressBars } from "./progress.js";
import { StatusBadge } from "./status.js";

/** Characters of an error in a row, and on a closer look. */
const ERROR_SHOWN = 200;
const ERROR_TITLE = 2000;
const TAGS_SHOWN = 2;

/** @typedef {Map<string, any>} Run a run as the API sends it */

export class RunsTable {
  /** @param {HTMLElement} body the `<tbody>` */
  constructor(body) {
    this.body = body;
    /** @type {Map<string, RunRow>} */
    this.rows = new Map();
  }

  /**
   * @param {Run[]} changed runs that are new or have changed
   * @param {string[]} order the ids of all runs to show, from top to bottom
   */
  update(changed, order) {
    for (const run of changed) {
      const id = run.get("id");
      let row = this.rows.get(id);
      if (row === undefined) this.rows.set(id, (row = new RunRow(run)));
      row.update(run);
    }
    const shown = new Set(order);
    for (const id of this.rows.keys()) {
      if (!shown.has(id)) this.rows.delete(id);
    }
    const rows = order.flatMap((id) => this.rows.get(id) ?? []);
    arrange(this.body, rows.map((row) => row.element));
    // A column that says nothing of any run takes no room.
    this.body.parentElement?.classList.toggle("without-progress", rows.every((row) => row.progress.hidden));
  }

  get runs() {
    return [...this.rows.values()].map((row) => row.run);
  }

  /** Bring what depends on the time of day up to date. */
  tick() {
    refreshTimes(this.body);
    for (const row of this.rows.values()) row.showDuration();
  }
}

class RunRow {
  /** @param {Run} run */
  constructor(run) {
    this.run = run;
    const id = run.get("id");
    this.status = new StatusBadge();
    this.progress = element("div");
    this.bars = new ProgressBars(this.progress, { most: 1, withLabels: false });
    this.error = element("span", { class: "error-text" });
    this.tags = cell("tags wide");
    this.attempt = cell("number attempt wide");
    this.duration = cell("number middle");
    this.element = element(
      "tr",
      { role: "row" },
      cell("state", this.status.element),
      element(
        "th",
        { scope: "row", role: "rowheader" },
        element(
          "div",
          { class: "run-name" },
          element("a", { href: runPage(id), class: "task" }, run.get("taskIdentifier")),
          element("span", { class: "run-id" }, id),
        ),
      ),
      cell("share", this.progress),
      cell("error-cell", this.error),
      this.tags,
      this.attempt,
      cell("number", timeAgo(run.get("createdAt"))),
      this.duration,
    );
    this.tags.append(element("div", { class: "row-tags" }, ...fewTags(run.get("tags"))));
  }

  /** @param {Run} run */
  update(run) {
    this.run = run;
    this.element.dataset.run = run.get("id");
    this.status.update(run.get("status"));
    this.bars.update(run.get("metadata"));
    this.showError(run.get("error"));
    const attempt = Number(run.get("attemptCount"));
    setText(this.attempt, attempt ? String(attempt) : "–");
    this.showDuration();
  }

  /**
   * The first line of why it failed; all of it on a closer look.
   *
   * @param {Map<string, any> | undefined} error
   */
  showError(error) {
    const name = error?.get("name");
    const text = error === undefined ? "" : `${name ? `${name}: ` : ""}${error.get("message")}`;
    if (setText(this.error, text.slice(0, ERROR_SHOWN).toWellFormed())) this.error.title = text.slice(0, ERROR_TITLE).toWellFormed();
  }

  showDuration() {
    setText(this.duration, duration(this.run));
  }
}

/**
 * @param {string} kind
 * @param {...Node} content
 */
function cell(kind, ...content) {
  return element("td", { role: "cell", class: kind }, ...content);
}

/**
 * How long the run took, or takes so far.
 *
 * @param {Run} run
 */
export function duration(run) {
  if (run.has("finishedAt")) return span(Number(run.get("durationMs")));
  return run.has("startedAt") ? span(Date.now() - Date.parse(run.get("startedAt"))) : "–";
}

/**
 * As many tags as a row has room for.
 *
 * @param {string[]} tags
 */
function fewTags(tags) {
  const more = tags.slice(TAGS_SHOWN);
  const rest = element("span", { class: "quiet", title: more.join("\n") }, `+${more.length}`);
  return [...tagLinks(tags.slice(0, TAGS_SHOWN)), ...(more.length > 0 ? [rest] : [])];
}

/**
 * Tags as links to the runs that have them, children too.
 *
 * @param {string[]} tags
 */
export function tagLinks(tags) {
  return tags.map((tag) => element("a", { class: "tag", href: `/?${new URLSearchParams({ tag, level: "all" })}` }, tag));
}
