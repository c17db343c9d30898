// Times, spans and numbers for people.

import { element, setText } from "./dom.js";

const FULL_TIME = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const DATE = new Intl.DateTimeFormat(undefined, { dateStyle: "medium" });
const CLOCK_TIME = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
const COUNT = new Intl.NumberFormat("en");
const EXACT = new Intl.NumberFormat("en", { maximumSignificantDigits: 15 });
/** From here on digits are only noise to a reader. */
const LONG = 10n ** 21n;
const ROUNDED = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });

/** @param {number | bigint} number */
export function count(number) {
  return typeof number === "bigint" ? COUNT.format(number) : ROUNDED.format(number);
}

/**
 * A number of a document: with all its digits, unless they are many.
 *
 * @param {number | bigint} number
 */
export function exactly(number) {
  if (typeof number === "bigint") return number < LONG && number > -LONG ? COUNT.format(number) : `≈ ${Number(number).toExponential(4)}`;
  const size = Math.abs(number);
  return size !== 0 && (size < 1e-6 || size >= 1e21) ? String(number) : EXACT.format(number);
}

/**
 * "1 run", "2 runs".
 *
 * @param {number} number
 * @param {string} one
 * @param {string} [many]
 */
export function counted(number, one, many = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : many}`;
}

/**
 * A span of time: "340 ms", "2.5 s", "3 min 20 s", "1 h 4 min", "2 d 5 h".
 *
 * @param {number} milliseconds
 */
export function span(milliseconds) {
  const whole = Math.max(0, Math.round(milliseconds));
  if (whole < 1000) return `${whole} ms`;
  const seconds = Math.floor(whole / 1000);
  if (seconds < 60) return `${(Math.floor(whole / 100) / 10).toFixed(1)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${seconds % 60} s`;
  const hours = Math.floor(minutes / 60);
  if (hours < 24) return `${hours} h ${minutes % 60} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/**
 * How long ago, roughly; it changes at most once a second.
 *
 * @param {number} at milliseconds since 1970
 * @param {number} now
 */
export function ago(at, now) {
  const seconds = Math.floor((now - at) / 1000);
  // Up to a few seconds it is a clock that is another than that of the server.
  if (seconds < -86400) return FULL_TIME.format(at);
  if (seconds <= -3600) return `in ${Math.floor(-seconds / 3600)} h`;
  if (seconds <= -60) return `in ${Math.floor(-seconds / 60)} min`;
  if (seconds < -5) return `in ${-seconds} s`;
  if (seconds < 5) return "just now";
  if (seconds < 60) return `${seconds} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return FULL_TIME.format(at);
}

/**
 * Date and time in the reader's own zone.
 *
 * @param {number} at
 */
export function fullTime(at) {
  return FULL_TIME.format(at);
}

/**
 * The time of day with milliseconds, for logs.
 *
 * @param {number} at
 */
export function clockTime(at) {
  const milliseconds = String(Math.floor(at) % 1000).padStart(3, "0");
  return CLOCK_TIME.format(at).replace(/\d\d(?!.*\d)/, (seconds) => `${seconds}.${milliseconds}`);
}

/**
 * Date and time with milliseconds.
 *
 * @param {number} at
 */
export function exactTime(at) {
  return `${DATE.format(at)}, ${clockTime(at)}`;
}

/**
 * A `<time>` element that says how long ago something was, and on a closer look when.
 *
 * @param {string} iso
 */
export function timeAgo(iso) {
  const at = Date.parse(iso);
  const shown = element("time", { datetime: iso, title: FULL_TIME.format(at) });
  shown.textContent = ago(at, Date.now());
  return shown;
}

/**
 * Bring the `<time>` elements below an element up to date.
 *
 * @param {ParentNode} parent
 */
export function refreshTimes(parent) {
  const now = Date.now();
  for (const shown of parent.querySelectorAll("time[datetime]:not(.exact)")) {
    setText(shown, ago(Date.parse(shown.getAttribute("datetime") ?? ""), now));
  }
}
