// A form for a value that has a JSON schema: a field for each simple property, JSON for everything else.

import { element } from "./dom.js";
import { parse, stringify } from "./json.js";

/** @typedef {Map<string, any>} Schema */
/** @typedef {{name: string, control: HTMLInputElement | HTMLSelectElement | HTMLTextAreaElement, text: () => string | null}} Field */

export class PayloadForm {
  /** @param {Schema | null} schema of what is wanted; null where anything is */
  constructor(schema) {
    this.element = element("div", { class: "stack" });
    const properties = schema?.get("properties");
    /** @type {Field[] | null} */
    this.fields = null;
    if (schema?.get("type") === "object" && properties instanceof Map && properties.size > 0) {
      const required = new Set(schema.get("required") ?? []);
      this.fields = [...properties].map(([name, property], index) => this.add(name, resolved(property, schema), required.has(name), `payload-${index}`));
    } else {
      const known = schema === null ? null : resolved(schema, schema);
      this.whole = this.add("Payload", known ?? new Map(), false, "payload-whole");
    }
  }

  /**
   * The value as JSON text; null where nothing was entered.
   *
   * @throws {Error} names the field that is wrong
   */
  text() {
    if (this.fields === null) return this.whole?.text() ?? null;
    const parts = [];
    for (const field of this.fields) {
      const text = field.text();
      if (text !== null) parts.push(`${JSON.stringify(field.name)}:${text}`);
    }
    return `{${parts.join(",")}}`;
  }

  /**
   * @param {string} name
   * @param {Schema} schema
   * @param {boolean} isRequired
   * @param {string} id
   * @returns {Field}
   */
  add(name, schema, isRequired, id) {
    const kind = kindOf(schema);
    const control = controlOf(kind, schema, id);
    control.required = isRequired && kind !== "text";
    const label = element("label", { for: id }, name);
    if (isRequired) label.append(" ", element("span", { class: "quiet" }, "required"));
    const about = [schema.get("description"), kind === "json" ? "JSON" : kind].filter(Boolean).join(" · ");
    this.element.append(element("div", { class: "field" }, label, control, element("span", { class: "quiet" }, about)));
    return { name, control, text: () => textOf(name, kind, control.value, isRequired) };
  }
}

/**
 * A schema behind its reference, and without "or null".
 *
 * @param {any} schema
 * @param {Schema} root
 * @returns {Schema}
 */
function resolved(schema, root) {
  let found = schema instanceof Map ? schema : new Map();
  for (let step = 0; step < 10; step += 1) {
    const reference = found.get("$ref");
    const choices = found.get("anyOf")?.filter((/** @type {any} */ choice) => choice instanceof Map && choice.get("type") !== "null");
    if (typeof reference === "string" && reference.startsWith("#/$defs/")) found = root.get("$defs")?.get(reference.slice(8)) ?? new Map();
    else if (choices?.length === 1) found = new Map([...found, ...choices[0]].filter(([name]) => name !== "anyOf"));
    else return found;
  }
  return new Map();
}

/** @param {Schema} schema */
function kindOf(schema) {
  const choices = schema.get("enum");
  if (Array.isArray(choices) && choices.every((choice) => typeof choice === "string")) return "choice";
  switch (schema.get("type")) {
    case "string":
      return "text";
    case "integer":
      return "whole number";
    case "number":
      return "number";
    case "boolean":
      return "true or false";
    default:
      return "json";
  }
}

/**
 * @param {string} kind
 * @param {Schema} schema
 * @param {string} id
 */
function controlOf(kind, schema, id) {
  if (kind === "choice" || kind === "true or false") {
    const choices = kind === "choice" ? schema.get("enum") : ["true", "false"];
    const select = element("select", { id }, element("option", { value: "" }, "–"));
    for (const choice of choices) select.append(element("option", { value: choice }, choice));
    return select;
  }
  const given = schema.has("default") ? stringify(schema.get("default")) : "";
  const attributes = { id, autocomplete: "off", spellcheck: "false", placeholder: given };
  if (kind === "json") return element("textarea", { ...attributes, rows: "6" });
  if (kind === "text") return element("input", attributes);
  return element("input", { ...attributes, inputmode: "decimal" });
}

/**
 * @param {string} name
 * @param {string} kind
 * @param {string} value
 * @param {boolean} isRequired
 * @returns {string | null} JSON text; null where nothing was entered
 */
function textOf(name, kind, value, isRequired) {
  // An empty text is a text where one is required, and nothing where there may be nothing.
  if (kind === "text") return value === "" && !isRequired ? null : JSON.stringify(value);
  const text = value.trim();
  if (text === "") return null;
  if (kind === "choice") return JSON.stringify(value);
  let found;
  try {
    found = parse(text);
  } catch {
    throw new Error(`${name}: this is not ${kind === "json" ? "JSON" : `a ${kind}`}.`);
  }
  if (kind === "whole number" && typeof found !== "bigint") throw new Error(`${name}: this is not a whole number.`);
  if (kind === "number" && typeof found !== "bigint" && typeof found !== "number") throw new Error(`${name}: this is not a number.`);
  return text;
}
