// Reading from the HTTP API, with the session cookie of the browser.

import { parse } from "./json.js";

/** An answer that was not 200. The message is the server's own, where it gave one. */
export class AnswerError extends Error {
  /**
   * @param {number} status
   * @param {string} message
   */
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/**
 * What the server answers, and how many characters that took.
 *
 * @param {string} url
 * @returns {Promise<{answer: Map<string, any>, size: number}>}
 * @throws {AnswerError | TypeError} TypeError when the server cannot be reached
 */
export async function ask(url) {
  const response = await fetch(url, { headers: { accept: "application/json" }, cache: "no-store" });
  const text = await response.text();
  if (!response.ok) throw new AnswerError(response.status, problemIn(text) ?? `the server answered with status ${response.status}`);
  return { answer: /** @type {Map<string, any>} */ (parse(text)), size: text.length };
}

/** @param {string} text */
function problemIn(text) {
  try {
    const problem = parse(text);
    const message = problem instanceof Map ? problem.get("error") : undefined;
    return typeof message === "string" ? message : undefined;
  } catch {
    return undefined;
  }
}

/**
 * What the server answers, for a page: without a session the browser goes to the sign-in page.
 *
 * @param {string} url
 * @returns {Promise<Map<string, any>>}
 * @throws {AnswerError | TypeError} TypeError when the server cannot be reached
 */
export async function get(url) {
  try {
    return (await ask(url)).answer;
  } catch (error) {
    if (!(error instanceof AnswerError) || error.status !== 401) throw error;
    signIn();
    // The page is being left; nothing that waits for this answer should go on.
    return new Promise(() => {});
  }
}

/** Go to the sign-in page, and come back here from there. */
export function signIn() {
  location.assign(`/sign-in?${new URLSearchParams({ next: location.pathname + location.search })}`);
}

/** @param {string} runId */
export function runUrl(runId) {
  return `/api/v1/runs/${encodeURIComponent(runId)}`;
}

/** @param {string} runId */
export function runPage(runId) {
  return `/runs/${encodeURIComponent(runId)}`;
}
