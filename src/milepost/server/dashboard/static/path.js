// Keys and paths: which place of a document an operation means. The rules are those of `milepost/model/path.py`.
//
// A key that starts with "$." or "$[" is a path; any other key is one literal name at the top level. A segment is a name (text) or
// a position (number); a name of digits also counts as a position where it meets an array.

import { describe, parse as parseJSON } from "./json.js";

/** @typedef {import("./json.js").JSONValue} JSONValue */
/** @typedef {import("./json.js").JSONObject} JSONObject */
/** @typedef {string | number} Segment */

/**
 * The place that an operation means: from the document inwards, which member or element to enter; what is there now (undefined:
 * nothing); and the names of the objects that are missing between the place and the value to write.
 *
 * @typedef {{steps: Segment[], found: JSONValue | undefined, missing: string[]}} Place
 */

const SEGMENTS_MAX = 64;
const FORBIDDEN_SEGMENTS = new Set(["__proto__", "constructor", "prototype"]);
const SEGMENT =
  /\.(?<word>[^.[]*)|\[(?<wildcard>\*)\]|\[(?<position>-?[0-9]{1,15})\]|\[(?<double>"(?:[^"\\]|\\.)*")\]|\['(?<single>(?:[^'\\]|\\.)*)'\]/suy;
const WORD = /^[\p{L}_][\p{L}\p{N}_-]*$/u;
const POSITION_WORD = /^(?:0|[1-9][0-9]{0,14})$/;

/** Why an operation cannot be applied. `code` is the stable one of the HTTP API. */
export class RefusedError extends Error {
  /**
   * @param {"invalid_metadata_path" | "wrong_metadata_type" | "invalid_metadata_value" | "metadata_too_large"} code
   * @param {string} message
   */
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

/** @type {Map<string, Segment[]>} */
const parsed = new Map();
const PARSED_MAX = 1000;

/**
 * The segments of a key or path.
 *
 * @param {string} key
 * @returns {readonly Segment[]}
 * @throws {RefusedError}
 */
export function parse(key) {
  let path = parsed.get(key);
  if (path === undefined) {
    path = parseAnew(key);
    if (parsed.size >= PARSED_MAX) parsed.clear();
    parsed.set(key, path);
  }
  return path;
}

/**
 * The segments of a key in one spelling: a word of digits counts as a position wherever it may meet an array.
 *
 * @param {string} key
 * @returns {Segment[]}
 */
export function normal(key) {
  return parse(key).map((segment, depth) => (depth > 0 && POSITION_WORD.test(String(segment)) ? Number(segment) : segment));
}

/** @param {string} key */
function parseAnew(key) {
  if (!key.isWellFormed()) throw fault(key, "has a lone surrogate");
  if (!key.startsWith("$.") && !key.startsWith("$[")) return [checkName(key)];
  /** @type {Segment[]} */
  const path = [];
  let offset = 1;
  while (offset < key.length) {
    SEGMENT.lastIndex = offset;
    const match = SEGMENT.exec(key);
    if (match === null) throw fault(key, `cannot be read from ${JSON.stringify(key.slice(offset))} on`);
    path.push(segment(key, match.groups ?? {}));
    offset = SEGMENT.lastIndex;
  }
  if (path.length > SEGMENTS_MAX) throw fault(key, `has more than ${SEGMENTS_MAX} segments`);
  const first = path[0];
  if (typeof first === "number") throw fault(key, `begins with the position [${first}], and a document is an object`);
  if (first?.startsWith("$$")) throw fault(key, "begins with '$$', which is reserved");
  return path;
}

/**
 * @param {string} key
 * @param {{[name: string]: string | undefined}} groups
 * @returns {Segment}
 */
function segment(key, groups) {
  if (groups.position !== undefined) return Number(groups.position);
  if (groups.wildcard !== undefined || groups.word === "*") throw fault(key, "has a wildcard, and a key means one place");
  if (groups.word === "") throw fault(key, "has an empty segment");
  const name = groups.word ?? quotedName(key, groups);
  if (FORBIDDEN_SEGMENTS.has(name)) throw fault(key, `has the segment ${name}, which is not allowed`);
  return name;
}

/**
 * @param {string} key
 * @param {{[name: string]: string | undefined}} groups
 */
function quotedName(key, groups) {
  let quoted = groups.double;
  if (quoted === undefined) {
    // The same text with the other quotes, so that one reader knows the escapes.
    const inside = (groups.single ?? "").replace(/\\.|"/gsu, (found) => (found === "\\'" ? "'" : found === '"' ? '\\"' : found));
    quoted = `"${inside}"`;
  }
  try {
    return /** @type {string} */ (parseJSON(quoted));
  } catch {
    throw fault(key, `has ${quoted}, which is not a JSON string`);
  }
}

/**
 * The name, if a document may have it at its top level.
 *
 * @param {string} name
 */
export function checkName(name) {
  if (name === "__proto__") throw fault(name, "is not allowed");
  if (name.startsWith("$$")) throw fault(name, "begins with '$$', which is reserved");
  return name;
}

/**
 * The position that a segment means in an array, or -1 if there is no such element.
 *
 * @param {JSONValue[]} items
 * @param {Segment} segment
 */
function positionIn(items, segment) {
  if (typeof segment === "string" && !POSITION_WORD.test(segment)) return -1;
  const position = Number(segment);
  const fromStart = position < 0 ? position + items.length : position;
  return fromStart >= 0 && fromStart < items.length ? fromStart : -1;
}

/**
 * The place that a write means.
 *
 * @param {JSONObject} document
 * @param {string} key
 * @returns {Place}
 * @throws {RefusedError} through a scalar, past the end of an array, a position where there is no array
 */
export function locate(document, key) {
  const path = parse(key);
  /** @type {Segment[]} */
  const steps = [];
  /** @type {JSONValue | undefined} */
  let found = document;
  for (const [depth, segment] of path.entries()) {
    if (Array.isArray(found)) {
      const position = positionIn(found, segment);
      if (position === -1) throw fault(key, `${shown(segment)} is not in an array of ${found.length}`);
      steps.push(position);
      found = found[position];
    } else if (found instanceof Map) {
      if (typeof segment === "number") throw fault(key, `${shown(segment)} is a position, and there is no array`);
      steps.push(segment);
      found = found.get(segment);
    } else {
      throw fault(key, `leads through ${describe(/** @type {JSONValue} */ (found))}, which has nothing inside`);
    }
    if (found === undefined) return { steps, found, missing: namesOnly(key, path.slice(depth + 1)) };
  }
  return { steps, found, missing: [] };
}

/**
 * The place of a value that is there; null if nothing is.
 *
 * @param {JSONObject} document
 * @param {string} key
 * @returns {{steps: Segment[], found: JSONValue} | null}
 * @throws {RefusedError} where the path leads through a scalar
 */
export function locateExisting(document, key) {
  /** @type {Segment[]} */
  const steps = [];
  /** @type {JSONValue} */
  let found = document;
  for (const segment of parse(key)) {
    if (Array.isArray(found)) {
      const position = positionIn(found, segment);
      if (position === -1) return null;
      steps.push(position);
      found = found[position];
    } else if (found instanceof Map) {
      if (typeof segment === "number" || !found.has(segment)) return null;
      steps.push(segment);
      found = found.get(segment);
    } else {
      throw fault(key, `leads through ${describe(found)}, which has nothing inside`);
    }
  }
  return { steps, found };
}

/**
 * What is at a place; undefined if nothing is.
 *
 * @param {JSONValue} document
 * @param {readonly Segment[]} path
 * @returns {JSONValue | undefined}
 */
export function valueAt(document, path) {
  /** @type {JSONValue | undefined} */
  let found = document;
  for (const segment of path) {
    if (Array.isArray(found)) found = found[Number(segment)];
    else if (found instanceof Map) found = found.get(String(segment));
    else return undefined;
  }
  return found;
}

/**
 * A place in the short form that people write: `rows.done`, `steps[0].name`, `["odd name"].x`.
 *
 * @param {readonly Segment[]} segments
 */
export function pathText(segments) {
  const text = segments.map((segment) => {
    if (typeof segment === "number") return `[${segment}]`;
    return WORD.test(segment) ? `.${segment}` : `[${JSON.stringify(segment)}]`;
  });
  return text.join("").replace(/^\./, "");
}

/**
 * @param {string} key
 * @param {readonly Segment[]} segments
 */
function namesOnly(key, segments) {
  return segments.map((segment) => {
    if (typeof segment === "number") throw fault(key, `${shown(segment)} is a position, and there is no array`);
    return segment;
  });
}

/** @param {Segment} segment */
function shown(segment) {
  return typeof segment === "number" ? `[${segment}]` : segment;
}

/**
 * @param {string} key
 * @param {string} why
 */
function fault(key, why) {
  return new RefusedError("invalid_metadata_path", `${key.slice(0, 100)}: ${why}`);
}
