// Values in few words: for lines in which a value of 250 KB must not be longer than one of ten bytes, nor cost more.

import { counted } from "./format.js";
import { scalarText } from "./json.js";

/** @typedef {import("./json.js").JSONValue} JSONValue */

/** Characters that stay in front of the first difference of two long texts. */
const LEAD = 20;

/**
 * The JSON of a value, cut where it gets longer than so many characters.
 *
 * @param {JSONValue} value
 * @param {number} most
 */
export function excerpt(value, most) {
  /** @type {string[]} */
  const parts = [];
  const left = write(value, parts, most);
  return left < 0 ? `${[...parts.join("")].slice(0, most).join("")}…` : parts.join("");
}

/**
 * @param {JSONValue} value
 * @param {string[]} parts
 * @param {number} room characters that are left
 * @returns {number} those that are left then; below zero, the rest was not written
 */
function write(value, parts, room) {
  if (room < 0) return room;
  if (!Array.isArray(value) && !(value instanceof Map)) {
    const text = scalarText(typeof value === "string" ? beginning(value, room) : value);
    parts.push(text);
    return room - text.length;
  }
  const isArray = Array.isArray(value);
  parts.push(isArray ? "[" : "{");
  let left = room - 2;
  let isFirst = true;
  for (const [name, inner] of value.entries()) {
    if (left < 0) return left;
    const start = `${isFirst ? "" : ", "}${isArray ? "" : `${scalarText(beginning(String(name), room))}: `}`;
    parts.push(start);
    left = write(inner, parts, left - start.length);
    isFirst = false;
  }
  parts.push(isArray ? "]" : "}");
  return left;
}

/**
 * At least so many characters of a text, of which some take two units, and one more.
 *
 * @param {string} text
 * @param {number} room
 */
function beginning(text, room) {
  return text.length > 2 * room + 2 ? text.slice(0, 2 * room + 2).toWellFormed() : text;
}

/**
 * A value before and after a change, so short that what differs is seen.
 *
 * @param {JSONValue} before
 * @param {JSONValue} after
 * @param {number} most characters of each
 * @returns {[string, string]}
 */
export function excerptsOfChange(before, after, most) {
  if (typeof before === "string" && typeof after === "string" && Math.max(before.length, after.length) > most) {
    let same = 0;
    while (same < before.length && before[same] === after[same]) same += 1;
    const start = Math.max(0, same - LEAD);
    if (start > 0) return [cutFrom(before, start, most), cutFrom(after, start, most)];
  }
  return [summary(before, most), summary(after, most)];
}

/**
 * @param {string} text
 * @param {number} start
 * @param {number} most
 */
function cutFrom(text, start, most) {
  return `…${excerpt(text.slice(start, start + most + 1).toWellFormed(), most)}`;
}

/**
 * A value, or how large it is where it has parts that do not fit.
 *
 * @param {JSONValue} value
 * @param {number} most
 */
export function summary(value, most) {
  const text = excerpt(value, most);
  if (!text.endsWith("…") || typeof value === "string") return text;
  if (Array.isArray(value)) return `[${counted(value.length, "item")}]`;
  return value instanceof Map ? `{${counted(value.size, "key")}}` : text;
}
