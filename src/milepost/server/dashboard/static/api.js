// Reading from the HTTP API, with the session cookie of the browser.

import { parse } from "./json.js";

/** An answer that was not 200. */
export class AnswerError extends Error {
  /** @param {number} status */
  constructor(status) {
    super(`the server answered with status ${status}`);
    this.status = status;
  }
}

/**
 * What the server answers; without a session the browser goes to the sign-in page.
 *
 * @param {string} url
 * @returns {Promise<Map<string, any>>}
 * @throws {AnswerError | TypeError} TypeError when the server cannot be reached
 */
export async function get(url) {
  const response = await fetch(url, { headers: { accept: "application/json" }, cache: "no-store" });
  if (response.status === 401) {
    location.assign(`/sign-in?${new URLSearchParams({ next: location.pathname + location.search })}`);
    // The page is being left; nothing that waits for this answer should go on.
    return new Promise(() => {});
  }
  if (!response.ok) throw new AnswerError(response.status);
  return /** @type {Map<string, any>} */ (parse(await response.text()));
}

/** @param {string} runId */
export function runUrl(runId) {
  return `/api/v1/runs/${encodeURIComponent(runId)}`;
}

/** @param {string} runId */
export function runPage(runId) {
  return `/runs/${encodeURIComponent(runId)}`;
}
