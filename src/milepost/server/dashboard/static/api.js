// Calls of the HTTP API, with the session cookie of the browser.

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

/**
 * Have something done. The browser says with the request that it comes from this page, which the server wants to hear.
 *
 * @param {"POST" | "PUT" | "DELETE"} method
 * @param {string} url
 * @param {object} [body]
 * @returns {Promise<Map<string, any>>}
 * @throws {AnswerError | TypeError} TypeError when the server cannot be reached
 */
export async function send(method, url, body) {
  const init = body === undefined ? {} : { headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  const response = await fetch(url, { method, cache: "no-store", ...init });
  const text = await response.text();
  if (response.status === 401) {
    signIn();
    return new Promise(() => {});
  }
  if (!response.ok) throw new AnswerError(response.status, problemIn(text) ?? `the server answered with status ${response.status}`);
  return /** @type {Map<string, any>} */ (parse(text));
}

/**
 * What went wrong, for a person.
 *
 * @param {unknown} error
 */
export function faultWords(error) {
  if (error instanceof AnswerError) return error.message;
  if (error instanceof TypeError) return "The server cannot be reached.";
  return error instanceof Error ? error.message : String(error);
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
