// The search box for metadata: what a person types, as the filter that the API takes.
//
//     user.id=u1 done>=3 tags~vip error !warning "odd key"="a b" $.steps[0].done=true
//
// Conditions are separated by spaces, and all of them must hold. Whether a key is one that a document can have, and which values can
// be compared, the server says; here only the writing is judged.

import { parse as parseJSON } from "./json.js";

/** @typedef {import("./json.js").JSONObject} JSONObject */
/** @typedef {import("./json.js").JSONValue} JSONValue */

/** What is typed, and what the API calls it. The longer ones first. @type {[string, string][]} */
const OPERATORS = [
  [">=", "$gte"],
  ["<=", "$lte"],
  [">", "$gt"],
  ["<", "$lt"],
  ["=", "$eq"],
  ["~", "$contains"],
];
/** A key, as far as it goes without quotes: names, dots, and positions or quoted names in brackets. */
const KEY = /(?:\["(?:[^"\\]|\\.)*"\]|[^\s=<>~!"])+/y;
const QUOTED = /"(?:[^"\\]|\\.)*"/y;
const BARE = /[^\s"]+/y;
const SPACE = /\s*/y;

/** Why what was typed is no search. */
export class SearchError extends Error {}

/**
 * @param {string} text
 * @returns {JSONObject | null} the filter; null for an empty search
 * @throws {SearchError}
 */
export function parseSearch(text) {
  const reader = new Reader(text);
  /** @type {Map<string, JSONObject>} */
  const conditions = new Map();
  while (!reader.isAtEnd) {
    const { key, operator, value } = reader.condition();
    const tests = conditions.get(key) ?? new Map();
    if (tests.has(operator)) throw new SearchError(`${key} has this kind of condition twice; only one of them can hold`);
    conditions.set(key, tests.set(operator, value));
  }
  return conditions.size === 0 ? null : conditions;
}

class Reader {
  /** @param {string} text */
  constructor(text) {
    this.text = text;
    this.at = 0;
    this.take(SPACE);
  }

  get isAtEnd() {
    return this.at >= this.text.length;
  }

  /**
   * @param {RegExp} expression
   * @returns {string | null} what stood here, or null if it was something else
   */
  take(expression) {
    expression.lastIndex = this.at;
    const found = expression.exec(this.text);
    if (found === null) return null;
    this.at += found[0].length;
    return found[0];
  }

  /** What follows, for messages. */
  get rest() {
    const rest = this.text.slice(this.at, this.at + 20).toWellFormed();
    return this.isAtEnd ? "the end" : `“${rest}”`;
  }

  /** @returns {{key: string, operator: string, value: JSONValue}} */
  condition() {
    const isNegated = this.text[this.at] === "!";
    if (isNegated) this.at += 1;
    const key = this.key();
    if (isNegated || this.isAtEnd || /\s/.test(this.text[this.at] ?? "")) {
      if (isNegated && this.operator() !== null) throw new SearchError(`“!” stands before a key that is not there: !${key}`);
      this.gap();
      return { key, operator: "$exists", value: !isNegated };
    }
    const operator = this.operator();
    if (operator === null) throw new SearchError(`after ${key} comes one of = > >= < <= ~ and not ${this.rest}`);
    const value = this.value(key);
    this.gap();
    return { key, operator, value };
  }

  key() {
    const quoted = this.take(QUOTED);
    if (quoted !== null) return String(this.unquoted(quoted));
    const key = this.take(KEY);
    if (key === null) throw new SearchError(`a condition begins with a key, such as user.id=u1, and not with ${this.rest}`);
    return key;
  }

  operator() {
    for (const [typed, name] of OPERATORS) {
      if (this.text.startsWith(typed, this.at)) {
        this.at += typed.length;
        return name;
      }
    }
    return null;
  }

  /**
   * A number, a word of JSON, or text, in quotes where it has to be.
   *
   * @param {string} key
   * @returns {JSONValue}
   */
  value(key) {
    const quoted = this.take(QUOTED);
    if (quoted !== null) return this.unquoted(quoted);
    const bare = this.take(BARE);
    if (bare === null && this.text[this.at] === '"') throw new SearchError(`a quote is not closed: ${this.rest}`);
    if (bare === null) throw new SearchError(`${key} is compared with nothing; write ${key}="" for an empty text`);
    try {
      const value = parseJSON(bare);
      return typeof value === "object" && value !== null ? bare : value;
    } catch {
      return bare.toWellFormed();
    }
  }

  /** @param {string} quoted */
  unquoted(quoted) {
    try {
      return parseJSON(quoted);
    } catch {
      throw new SearchError(`${quoted.slice(0, 40)} is no text in quotes as JSON has it`);
    }
  }

  /** Conditions are separated by spaces. */
  gap() {
    if (this.isAtEnd) return;
    if (this.take(/\s+/y) === null) throw new SearchError(`a space is missing before ${this.rest}`);
  }
}
