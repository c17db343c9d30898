// Operations in words, for people who read what a change has done.

import { element } from "./dom.js";
import { excerpt } from "./excerpt.js";

/** @typedef {import("./json.js").JSONObject} JSONObject */

const KEY_SHOWN = 80;
const VALUE_SHOWN = 100;

/**
 * An operation as a line: "increment processed by 1".
 *
 * @param {JSONObject} operation
 */
export function operationLine(operation) {
  const type = operation.get("type");
  const key = operation.has("key") ? code("key", excerptOfKey(operation.get("key"))) : "";
  const value = operation.has("value") ? code("value", excerpt(operation.get("value"), VALUE_SHOWN)) : "";
  const line = element("li", {}, element("span", { class: "operation" }, type === "update" ? "replace" : type), " ");
  switch (type) {
    case "delete":
      line.append(key);
      break;
    case "increment":
      line.append(key, " by ", value);
      break;
    case "update":
      line.append("the whole document with ", value);
      break;
    case "set":
      line.append(key, " to ", value);
      break;
    default:
      // append to it, remove from it
      line.append(key, ": ", value);
  }
  const most = operation.get("maxItems");
  const once = operation.get("once");
  if (typeof most === "bigint") line.append(element("span", { class: "quiet" }, ` keeping ${most}`));
  if (typeof once === "string") line.append(element("span", { class: "quiet" }, " once for "), code("value", excerpt(once, KEY_SHOWN)));
  return line;
}

/** @param {string} key */
function excerptOfKey(key) {
  if (key === "") return '""';
  return key.length > KEY_SHOWN ? `${key.slice(0, KEY_SHOWN).toWellFormed()}…` : key;
}

/**
 * @param {string} kind
 * @param {string} text
 */
function code(kind, text) {
  return element("code", { class: kind }, text);
}
