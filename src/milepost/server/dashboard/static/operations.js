// The six metadata operations as a fold over a document: the twin of `milepost/model/operations.py` and `document.py`.
//
// Pure: neither the document nor the operations are changed. The new document shares with the old one whatever did not change, so
// "is it the same object?" answers "did anything in it change?"; the tree view lives on that.

import { INTEGER_MAX, check } from "./check.js";
import { describe, equal, isNumber, sizeInBytes } from "./json.js";
import { RefusedError, locate, locateExisting, normal } from "./path.js";

/** @typedef {import("./json.js").JSONValue} JSONValue */
/** @typedef {import("./json.js").JSONObject} JSONObject */
/** @typedef {import("./path.js").Segment} Segment */

/** An operation as it travels, read by `json.js`: its members are `type`, `key`, `value`, `maxItems`, `once`.
 * @typedef {JSONObject} Operation */

/** @typedef {{index: number, code: string, message: string}} Refusal */

/**
 * Fold operations into a document, in their order, each applied or refused by itself.
 *
 * @param {JSONObject} document
 * @param {Iterable<JSONValue>} operations
 * @param {object} [options]
 * @param {ReadonlySet<string>} [options.counted] which `once` ids were counted before, as `idOf` writes them. What the server sends is
 *   a log, which holds only what counted: without this nothing is looked up or remembered.
 * @param {number} [options.limit] bytes of compact JSON that the document may grow to. What the server sends has been measured
 *   there; with a limit each operation costs a look at the whole document.
 * @returns {{document: JSONObject, refusals: Refusal[], counted: ReadonlySet<string> | undefined}}
 */
export function apply(document, operations, { counted, limit = Infinity } = {}) {
  let fold = new Fold(document, counted && new Set(counted));
  /** @type {Refusal[]} */
  const refusals = [];
  let index = 0;
  for (const operation of operations) {
    try {
      check(operation);
      if (limit === Infinity) fold.apply(operation);
      else fold = applyWithin(limit, fold, operation);
    } catch (error) {
      if (!(error instanceof RefusedError)) throw error;
      refusals.push({ index, code: error.code, message: error.message });
    }
    index += 1;
  }
  return { document: fold.document, refusals, counted: fold.counted };
}

/**
 * What stands for a `once` id and the key that it is counted for. A key counts by its place, in whatever words.
 *
 * @param {string} key
 * @param {string} once
 */
export function idOf(key, once) {
  return JSON.stringify([...normal(key), once]);
}

/**
 * The fold after an operation that may not enlarge the document over the limit.
 *
 * @param {number} limit
 * @param {Fold} fold
 * @param {Operation} operation
 */
function applyWithin(limit, fold, operation) {
  const next = new Fold(fold.document, fold.counted && new Set(fold.counted));
  next.apply(operation);
  const size = sizeInBytes(next.document);
  if (size > limit && size > sizeInBytes(fold.document)) {
    throw new RefusedError("metadata_too_large", `the document would have ${size} bytes, and the limit is ${limit}`);
  }
  return next;
}

class Fold {
  /**
   * @param {JSONObject} document
   * @param {Set<string> | undefined} counted
   */
  constructor(document, counted) {
    this.document = document;
    this.counted = counted;
    /**
     * Containers that this fold has made itself: nobody else knows them, so they may be changed in place. A thousand appends
     * to one array copy it once.
     *
     * @type {Set<object>}
     */
    this.own = new Set();
  }

  /** @param {Operation} operation */
  apply(operation) {
    const key = operation.get("key");
    const value = operation.get("value");
    switch (operation.get("type")) {
      case "set":
        return this.set(key, value);
      case "delete":
        return this.delete(key);
      case "append":
        return this.once(operation, () => this.append(key, value, operation.get("maxItems")));
      case "remove":
        return this.remove(key, value);
      case "increment":
        return this.once(operation, () => this.increment(key, value));
      default:
        return this.update(value);
    }
  }

  /**
   * Do it, unless the operation's id was counted before; an id is counted when it was applied.
   *
   * @param {Operation} operation
   * @param {() => void} write
   */
  once(operation, write) {
    const once = operation.get("once");
    if (typeof once !== "string" || this.counted === undefined) return write();
    const id = idOf(operation.get("key"), once);
    if (this.counted.has(id)) return;
    write();
    this.counted.add(id);
  }

  /**
   * @param {string} key
   * @param {JSONValue} value
   */
  set(key, value) {
    const { steps, missing } = locate(this.document, key);
    this.write(steps, missing, value);
  }

  /** @param {string} key */
  delete(key) {
    const place = locateExisting(this.document, key);
    if (place === null) return;
    const container = this.enter(place.steps);
    const last = lastOf(place.steps);
    if (Array.isArray(container)) container.splice(Number(last), 1);
    else container.delete(String(last));
  }

  /**
   * @param {string} key
   * @param {JSONValue} value
   * @param {bigint | null} [maxItems]
   */
  append(key, value, maxItems) {
    const { steps, found, missing } = locate(this.document, key);
    /** @type {JSONValue[]} */
    let items;
    if (!Array.isArray(found)) {
      items = found === undefined ? [] : [found];
    } else if (this.own.has(found)) {
      items = found;
    } else {
      items = [...found];
    }
    items.push(value);
    if (typeof maxItems === "bigint" && items.length > maxItems) items.splice(0, items.length - Number(maxItems));
    if (items !== found) {
      this.own.add(items);
      this.write(steps, missing, items);
    }
  }

  /**
   * @param {string} key
   * @param {JSONValue} unwanted
   */
  remove(key, unwanted) {
    const place = locateExisting(this.document, key);
    if (place === null) return;
    const items = place.found;
    if (!Array.isArray(items)) {
      throw new RefusedError("wrong_metadata_type", `${key}: nothing can be removed from ${describe(items)}`);
    }
    const kept = items.filter((item) => !equal(item, unwanted));
    if (kept.length === items.length) return;
    this.own.add(kept);
    this.write(place.steps, [], kept);
  }

  /**
   * @param {string} key
   * @param {bigint | number} by
   */
  increment(key, by) {
    const { steps, found, missing } = locate(this.document, key);
    if (found !== undefined && !isNumber(found)) {
      throw new RefusedError("wrong_metadata_type", `${key}: ${describe(found)} cannot be incremented`);
    }
    const sum = found === undefined ? by : add(found, by);
    const fits = typeof sum === "bigint" ? sum <= INTEGER_MAX && sum >= -INTEGER_MAX : Number.isFinite(sum);
    if (!fits) throw new RefusedError("invalid_metadata_value", `${key}: the sum is no number that JSON can hold`);
    this.write(steps, missing, sum);
  }

  /** @param {JSONObject} value */
  update(value) {
    this.document = value;
  }

  /**
   * Put a value at a place, in new objects where some are missing on the way.
   *
   * @param {readonly Segment[]} steps
   * @param {readonly string[]} missing
   * @param {JSONValue} value
   */
  write(steps, missing, value) {
    let whole = value;
    for (const name of missing.toReversed()) {
      whole = new Map([[name, whole]]);
      this.own.add(whole);
    }
    put(this.enter(steps), lastOf(steps), whole);
  }

  /**
   * The container of a place, after everything on the way there has become this fold's own.
   *
   * @param {readonly Segment[]} steps
   */
  enter(steps) {
    this.document = this.owned(this.document);
    /** @type {JSONValue[] | JSONObject} */
    let container = this.document;
    for (const step of steps.slice(0, -1)) {
      /** @type {JSONValue[] | JSONObject} */
      const inner = this.owned(Array.isArray(container) ? container[Number(step)] : container.get(String(step)));
      put(container, step, inner);
      container = inner;
    }
    return container;
  }

  /**
   * @template {JSONValue[] | JSONObject} Container
   * @param {Container} container
   * @returns {Container}
   */
  owned(container) {
    if (this.own.has(container)) return container;
    const copy = Array.isArray(container) ? [...container] : new Map(container);
    this.own.add(copy);
    return /** @type {Container} */ (copy);
  }
}

/**
 * @param {JSONValue[] | JSONObject} container
 * @param {Segment} step
 * @param {JSONValue} value
 */
function put(container, step, value) {
  if (Array.isArray(container)) container[Number(step)] = value;
  else container.set(String(step), value);
}

/**
 * @param {readonly Segment[]} steps
 * @returns {Segment}
 */
function lastOf(steps) {
  return /** @type {Segment} */ (steps.at(-1));
}

/**
 * Integers stay integers; with a float the sum is one, as in Python.
 *
 * @param {bigint | number} left
 * @param {bigint | number} right
 */
function add(left, right) {
  return typeof left === "bigint" && typeof right === "bigint" ? left + right : Number(left) + Number(right);
}
