// How runs and the connection stand, in words.

import { element, setText } from "./dom.js";

/** @typedef {import("./feed.js").FeedState} FeedState */

/** In the order of a run's life. */
export const STATUSES = [
  "PENDING_VERSION", "DELAYED", "QUEUED", "EXECUTING", "WAITING", "COMPLETED", "CANCELED", "FAILED", "CRASHED", "SYSTEM_FAILURE",
  "EXPIRED", "TIMED_OUT",
];
const FINAL = new Set(STATUSES.slice(5));

/** Has ended without success, and not because somebody cancelled it. */
export const FAILURES = new Set(STATUSES.slice(7));

/** @param {string} status */
export function isFinal(status) {
  return FINAL.has(status);
}

/** @param {string} status "EXECUTING" becomes "Executing" */
export function statusWord(status) {
  return status.charAt(0) + status.slice(1).toLowerCase().replace("_", " ");
}

/**
 * Why nobody can take a queued run.
 *
 * @param {string} reason
 * @param {string} task
 */
export function queuedWords(reason, task) {
  return reason === "never_offered"
    ? `Nobody can take this run: no worker has ever offered a task “${task}”. Check its id, or start a worker that has it.`
    : `Nobody can take this run now: no worker that offers “${task}” is online. Start one.`;
}

/** A status with its mark. */
export class StatusBadge {
  constructor() {
    this.element = element("span", { class: "status" });
  }

  /** @param {string} status */
  update(status) {
    this.element.dataset.status = status;
    setText(this.element, statusWord(status));
  }
}

/** @type {{[state in FeedState]: string}} */
const CONNECTION_WORDS = {
  connecting: "Connecting…",
  live: "Live",
  reconnecting: "Reconnecting…",
  ended: "Finished",
  gone: "Not found",
  refused: "Cannot be searched",
  unreadable: "Cannot be shown",
};

/**
 * Show how the connection stands.
 *
 * @param {HTMLElement} shown
 * @param {FeedState} state
 */
export function showConnection(shown, state) {
  shown.dataset.state = state;
  setText(shown, CONNECTION_WORDS[state]);
}
