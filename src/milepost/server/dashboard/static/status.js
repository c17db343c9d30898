// How runs and the connection stand, in words.

import { element, setText } from "./dom.js";
import { count, fullTime, span } from "./format.js";

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

/**
 * Why a queued run has not begun.
 *
 * @param {Map<string, any>} wait as the API tells it
 * @param {Map<string, any>} run
 */
export function waitWords(wait, run) {
  const queue = `queue “${run.get("queue")}”`;
  const key = run.get("concurrencyKey");
  const ofKey = key === undefined ? "" : ` for key “${key}”`;
  const until = wait.has("until") ? fullTime(Date.parse(wait.get("until"))) : undefined;
  const words = [mainWords(String(wait.get("reason")), wait, run, `${queue}${ofKey}`, until)];
  if (wait.has("position")) words.push(`Position ${wait.get("positionIsMore") ? "beyond " : ""}${count(Number(wait.get("position")))}${ofKey}.`);
  if (wait.has("estimatedSeconds")) words.push(`Estimated start in ${span(Number(wait.get("estimatedSeconds")) * 1000)}.`);
  return words.join(" ");
}

/**
 * @param {string} reason
 * @param {Map<string, any>} wait
 * @param {Map<string, any>} run
 * @param {string} queue
 * @param {string | undefined} until
 */
function mainWords(reason, wait, run, queue, until) {
  switch (reason) {
    case "delayed":
      return until === undefined ? "It is not due yet." : `It is due at ${until}.`;
    case "queue_paused":
      return `The ${queue} is paused.`;
    case "rate_reached":
      return `The rate of the ${queue} is reached${until === undefined ? "" : `; the next run starts at ${until}`}.`;
    case "limit_reached": {
      const by = wait.get("runningIds") ?? [];
      return `The limit of the ${queue}, ${wait.get("limit")}, is reached${by.length > 0 ? ` by ${by.join(", ")}` : ""}.`;
    }
    case "in_line":
      return "It comes when a worker has a free slot.";
    default:
      return queuedWords(reason, run.get("taskIdentifier"));
  }
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
