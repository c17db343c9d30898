// Does an operation mean something, whatever document it meets? The twin of `decode_each` and `check` in
// `milepost/model/operations.py`.

import { RefusedError, checkName, parse } from "./path.js";
import { isNumber } from "./json.js";

/** @typedef {import("./json.js").JSONValue} JSONValue */
/** @typedef {import("./json.js").JSONObject} JSONObject */

/** The largest integer of a document; beyond it a float reads infinity. */
export const INTEGER_MAX = BigInt(Number.MAX_VALUE);

/** The largest `maxItems`. */
const MAX_ITEMS_MAX = 1_000_000_000n;
const DEPTH_MAX = 200;
const ONCE_LENGTH_MAX = 128;

/** @param {JSONValue | undefined} value */
const isThere = (value) => value !== undefined;
/** @param {JSONValue | undefined} value */
const isObject = (value) => value instanceof Map;
/** @param {JSONValue | undefined} value */
const isText = (value) => typeof value === "string";
/** @param {JSONValue | undefined} value */
const isTextOrNothing = (value) => value === undefined || value === null || typeof value === "string";
/** @param {JSONValue | undefined} value */
const isIntegerOrNothing = (value) => value === undefined || value === null || typeof value === "bigint";

/** @typedef {{[name: string]: (value: JSONValue | undefined) => boolean}} Shape */

/** What the members of each operation have to be. @type {[string, Shape][]} */
const SHAPE_LIST = [
  ["set", { key: isText, value: isThere }],
  ["delete", { key: isText }],
  ["append", { key: isText, value: isThere, maxItems: isIntegerOrNothing, once: isTextOrNothing }],
  ["remove", { key: isText, value: isThere }],
  ["increment", { key: isText, value: isNumber, once: isTextOrNothing }],
  ["update", { value: isObject }],
];
const SHAPES = new Map(SHAPE_LIST);

/**
 * Make sure that an operation can be understood.
 *
 * @param {JSONValue} operation
 * @returns {asserts operation is JSONObject}
 * @throws {RefusedError}
 */
export function check(operation) {
  if (!(operation instanceof Map)) throw bad("an operation is an object");
  const shape = SHAPES.get(operation.get("type"));
  if (shape === undefined) throw bad("an operation of an unknown type");
  for (const [name, fits] of Object.entries(shape)) {
    if (!fits(operation.get(name))) throw bad(`'${name}' is missing or of the wrong type`);
  }
  const value = operation.get("value");
  if (shape.key === undefined) {
    for (const name of value.keys()) checkName(name);
  } else {
    parse(operation.get("key"));
  }
  if (value !== undefined) checkValue(value, 0);
  const most = operation.get("maxItems");
  if (shape.maxItems !== undefined && typeof most === "bigint" && (most < 1n || most > MAX_ITEMS_MAX)) {
    throw bad(`maxItems is from 1 to ${MAX_ITEMS_MAX}`);
  }
  const once = operation.get("once");
  if (shape.once !== undefined && typeof once === "string") {
    const length = [...once].length;
    if (length < 1 || length > ONCE_LENGTH_MAX) throw bad(`a once id has 1 to ${ONCE_LENGTH_MAX} characters`);
  }
}

/**
 * @param {JSONValue} value
 * @param {number} depth
 */
function checkValue(value, depth) {
  if (typeof value === "bigint") {
    if (value > INTEGER_MAX || value < -INTEGER_MAX) throw bad("an integer has at most 1,024 bits");
  } else if (Array.isArray(value) || value instanceof Map) {
    if (depth >= DEPTH_MAX) throw bad(`nested more than ${DEPTH_MAX} levels deep`);
    for (const inner of value.values()) checkValue(inner, depth + 1);
  }
}

/** @param {string} message */
function bad(message) {
  return new RefusedError("invalid_metadata_value", message);
}
