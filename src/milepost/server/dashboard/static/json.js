// JSON as the dashboard holds it: exact numbers, and objects that no key can harm.
//
// An object is a Map (it keeps the order of its keys, and `__proto__` is a key like any other), an integer is a bigint (right at
// any size), and a number with a fraction or an exponent is a number. So 1 and 1.0 stay what they are, as in Python.

/** @typedef {JSONValue[]} JSONArray */
/** @typedef {Map<string, any>} JSONObject */
/** @typedef {null | boolean | bigint | number | string | any[] | JSONObject} JSONValue */

/** Levels of nesting that are read. Documents have at most 200; payloads are not ours to limit, the stack is. */
const DEPTH_MAX = 1000;

const NUMBER = /-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?/y;
const SPACE = /[ \t\n\r]*/y;

/**
 * The value in a JSON text.
 *
 * @param {string} text
 * @returns {JSONValue}
 * @throws {SyntaxError} for anything that is not JSON, lone surrogates too
 */
export function parse(text) {
  const reader = new Reader(text);
  const value = reader.value(0);
  reader.skipSpace();
  if (reader.at < text.length) throw reader.fault();
  return value;
}

class Reader {
  /** @param {string} text */
  constructor(text) {
    this.text = text;
    this.at = 0;
  }

  fault() {
    return new SyntaxError(`not JSON at position ${this.at}`);
  }

  skipSpace() {
    // What our server sends has no spaces, so the expression is rarely needed.
    if (this.text.charCodeAt(this.at) > 32) return;
    SPACE.lastIndex = this.at;
    SPACE.test(this.text);
    this.at = SPACE.lastIndex;
  }

  /**
   * @param {number} depth
   * @returns {JSONValue}
   */
  value(depth) {
    this.skipSpace();
    switch (this.text[this.at]) {
      case '"':
        return this.string();
      case "{":
        return this.object(depth);
      case "[":
        return this.array(depth);
      case "t":
        return this.word("true", true);
      case "f":
        return this.word("false", false);
      case "n":
        return this.word("null", null);
      default:
        return this.number();
    }
  }

  /**
   * @param {string} word
   * @param {null | boolean} value
   */
  word(word, value) {
    if (!this.text.startsWith(word, this.at)) throw this.fault();
    this.at += word.length;
    return value;
  }

  number() {
    NUMBER.lastIndex = this.at;
    const found = NUMBER.exec(this.text);
    if (found === null) throw this.fault();
    this.at = NUMBER.lastIndex;
    if (found[1] === undefined && found[2] === undefined) return BigInt(found[0]);
    const value = Number(found[0]);
    if (!Number.isFinite(value)) throw this.fault();
    return value;
  }

  string() {
    const start = this.at;
    let end = this.text.indexOf('"', start + 1);
    // A quote after an odd number of backslashes is part of the text.
    while (end !== -1 && this.backslashesBefore(end) % 2 === 1) end = this.text.indexOf('"', end + 1);
    if (end === -1) throw this.fault();
    /** @type {string} */
    const value = JSON.parse(this.text.slice(start, end + 1));
    if (!value.isWellFormed()) throw this.fault();
    this.at = end + 1;
    return value;
  }

  /** @param {number} position */
  backslashesBefore(position) {
    let count = 0;
    while (this.text[position - 1 - count] === "\\") count += 1;
    return count;
  }

  /** @param {number} depth */
  array(depth) {
    /** @type {JSONArray} */
    const items = [];
    if (this.open("]", depth)) return items;
    do items.push(this.value(depth + 1));
    while (this.continues("]"));
    return items;
  }

  /** @param {number} depth */
  object(depth) {
    /** @type {JSONObject} */
    const members = new Map();
    if (this.open("}", depth)) return members;
    do {
      this.skipSpace();
      if (this.text[this.at] !== '"') throw this.fault();
      const name = this.string();
      this.skipSpace();
      if (this.text[this.at] !== ":") throw this.fault();
      this.at += 1;
      members.set(name, this.value(depth + 1));
    } while (this.continues("}"));
    return members;
  }

  /**
   * Step into an array or object; true if it is empty, and then already left again.
   *
   * @param {string} end
   * @param {number} depth
   */
  open(end, depth) {
    if (depth >= DEPTH_MAX) throw new SyntaxError(`nested more than ${DEPTH_MAX} levels deep`);
    this.at += 1;
    this.skipSpace();
    if (this.text[this.at] !== end) return false;
    this.at += 1;
    return true;
  }

  /**
   * After an item: true at a comma, false at the end.
   *
   * @param {string} end
   */
  continues(end) {
    this.skipSpace();
    const found = this.text[this.at];
    if (found !== "," && found !== end) throw this.fault();
    this.at += 1;
    return found === ",";
  }
}

/**
 * The JSON text of a value, compact or indented by some spaces.
 *
 * @param {JSONValue} value
 * @param {number} [indent]
 * @returns {string}
 */
export function stringify(value, indent = 0) {
  /** @type {string[]} */
  const parts = [];
  write(value, parts, indent, "");
  return parts.join("");
}

/**
 * @param {JSONValue} value
 * @param {string[]} parts
 * @param {number} indent
 * @param {string} margin
 */
function write(value, parts, indent, margin) {
  const inner = indent ? `${margin}${" ".repeat(indent)}` : "";
  const line = indent ? `\n${inner}` : "";
  if (Array.isArray(value)) {
    parts.push("[");
    value.forEach((item, position) => {
      parts.push(position ? "," : "", line);
      write(item, parts, indent, inner);
    });
    parts.push(value.length && indent ? `\n${margin}]` : "]");
  } else if (value instanceof Map) {
    parts.push("{");
    let first = true;
    for (const [name, member] of value) {
      parts.push(first ? "" : ",", line, JSON.stringify(name), indent ? ": " : ":");
      write(member, parts, indent, inner);
      first = false;
    }
    parts.push(value.size && indent ? `\n${margin}}` : "}");
  } else {
    parts.push(scalarText(value));
  }
}

/**
 * The JSON text of what has no parts.
 *
 * @param {null | boolean | bigint | number | string} value
 */
export function scalarText(value) {
  if (typeof value === "string") return JSON.stringify(value);
  return typeof value === "number" ? floatText(value) : String(value);
}

/**
 * A float in a form that reads back as the same float: `1.0`, never `1`.
 *
 * @param {number} value
 */
function floatText(value) {
  if (Object.is(value, -0)) return "-0.0";
  const text = String(value).replace("e+", "e");
  return /[.e]/.test(text) ? text : Math.abs(value) < 1e16 ? `${text}.0` : value.toExponential().replace("e+", "e");
}

/**
 * Bytes of the value as compact UTF-8 JSON.
 *
 * @param {JSONValue} value
 */
export function sizeInBytes(value) {
  return new TextEncoder().encode(stringify(value)).length;
}

/**
 * Equality of JSON: `true` is not `1`, `1` equals `1.0`, the order of an object's keys does not matter.
 *
 * @param {JSONValue} left
 * @param {JSONValue} right
 * @returns {boolean}
 */
export function equal(left, right) {
  if (left === right) return true;
  if (isNumber(left) && isNumber(right)) {
    // The loose comparison of a bigint with a number is exact, whatever their size.
    return left == right;
  }
  if (Array.isArray(left) && Array.isArray(right)) {
    return left.length === right.length && left.every((item, position) => equal(item, right[position]));
  }
  if (left instanceof Map && right instanceof Map) {
    if (left.size !== right.size) return false;
    for (const [name, member] of left) {
      if (!right.has(name) || !equal(member, right.get(name))) return false;
    }
    return true;
  }
  return false;
}

/**
 * @param {unknown} value
 * @returns {value is number | bigint}
 */
export function isNumber(value) {
  return typeof value === "number" || typeof value === "bigint";
}

/**
 * What a value is, in words for messages.
 *
 * @param {JSONValue} value
 */
export function describe(value) {
  if (value === null) return "null";
  if (Array.isArray(value)) return "an array";
  if (value instanceof Map) return "an object";
  if (isNumber(value)) return "a number";
  return typeof value === "boolean" ? "a boolean" : "text";
}
