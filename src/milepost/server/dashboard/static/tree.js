// A JSON value as a tree that opens and closes, updated in place.
//
// Values are never changed, only replaced (see `operations.js`), so a branch whose value is the same object as before has nothing
// to do. What is closed, or beyond the shown part of a long array, has no elements at all: a document of 250 KB costs what is visible
// of it. `<details>` brings the keyboard and the screen reader along.

import { arrange, element, setText } from "./dom.js";
import { count, counted } from "./format.js";
import { scalarText } from "./json.js";

/** @typedef {import("./json.js").JSONValue} JSONValue */
/** @typedef {import("./json.js").JSONObject} JSONObject */

/** Elements of an array that are shown at first: the last ones, because logs grow there. */
const ITEMS_SHOWN = 50;
/** Members of an object that are shown at first. */
const MEMBERS_SHOWN = 200;
/** Characters of a text that are shown at first. */
const CHARACTERS_SHOWN = 1000;
/** Branches up to this depth are open at first, unless they are larger. Arrays at the top always are: the newest is at their end. */
const OPEN_DEPTH = 2;
const OPEN_SIZE = 60;

const calm = matchMedia("(prefers-reduced-motion: reduce)");

/** @typedef {Map<string, any> | any[]} Container */

/**
 * @param {JSONValue} value
 * @returns {value is Container}
 */
function isContainer(value) {
  return Array.isArray(value) || value instanceof Map;
}

/** @param {Container} value */
function sizeOf(value) {
  return Array.isArray(value) ? value.length : value.size;
}

/**
 * How many places the elements of an array have moved up, as `append` with `maxItems` moves them; 0 if they have not.
 *
 * @param {any[]} before
 * @param {any[]} after
 */
function slideOf(before, after) {
  if (before[0] === after[0]) return 0;
  const places = before.indexOf(after[0]);
  const moved = places > 0 && before.slice(places).every((item, position) => item === after[position]);
  return moved ? places : 0;
}

/** The members of an object or the elements of an array, as rows of a list. */
class Rows {
  /** @param {number} depth */
  constructor(depth) {
    this.depth = depth;
    this.list = element("ul", { class: "tree-list" });
    /** @type {Map<string | number, Row>} */
    this.rows = new Map();
    this.showAll = false;
    /** @type {Container} */
    this.value = new Map();
    this.moreButton = element("button", { type: "button", class: "link" });
    this.moreButton.addEventListener("click", () => {
      this.showAll = !this.showAll;
      this.draw();
    });
    this.more = element("li", { class: "tree-more" }, this.moreButton);
  }

  /** @param {Container} value */
  update(value) {
    if (value === this.value) return;
    if (Array.isArray(value) && Array.isArray(this.value)) this.slide(slideOf(this.value, value));
    else if (Array.isArray(value) || Array.isArray(this.value)) this.rows.clear();
    this.value = value;
    this.draw();
  }

  /**
   * Let the rows follow elements that have moved up, so that only the new ones are drawn.
   *
   * @param {number} places
   */
  slide(places) {
    if (places === 0) return;
    /** @type {Map<string | number, Row>} */
    const rows = new Map();
    for (const [position, row] of this.rows) {
      const moved = Number(position) - places;
      if (moved < 0) continue;
      setText(row.name, String(moved));
      rows.set(moved, row);
    }
    this.rows = rows;
  }

  draw() {
    const value = this.value;
    const size = sizeOf(value);
    const isArray = Array.isArray(value);
    const most = this.showAll ? size : isArray ? ITEMS_SHOWN : MEMBERS_SHOWN;
    /** @type {Map<string | number, Row>} */
    const rows = new Map();
    if (isArray) {
      for (let position = Math.max(0, size - most); position < size; position += 1) {
        rows.set(position, this.row(position, value[position]));
      }
    } else {
      for (const [name, member] of value) {
        if (rows.size >= most) break;
        rows.set(name, this.row(name, member));
      }
    }
    this.rows = rows;
    this.list.classList.toggle("long", rows.size > MEMBERS_SHOWN);
    /** @type {Element[]} */
    const shown = [...rows.values()].map((row) => row.element);
    if (size > (isArray ? ITEMS_SHOWN : MEMBERS_SHOWN)) {
      const which = isArray ? `last ${ITEMS_SHOWN}` : `first ${MEMBERS_SHOWN}`;
      setText(this.moreButton, this.showAll ? `Show the ${which} only` : `Show all ${count(size)} (these are the ${which})`);
      if (isArray) shown.unshift(this.more);
      else shown.push(this.more);
    }
    arrange(this.list, shown);
  }

  /**
   * @param {string | number} name
   * @param {JSONValue} value
   */
  row(name, value) {
    const row = this.rows.get(name);
    if (row === undefined) return new Row(name, value, this.depth);
    row.update(value);
    return row;
  }
}

/** A name with its value: a branch, or a leaf. */
class Row {
  /**
   * @param {string | number} name
   * @param {JSONValue} value
   * @param {number} depth
   */
  constructor(name, value, depth) {
    this.name = element("span", { class: typeof name === "number" ? "tree-position" : "tree-name" }, String(name));
    this.depth = depth;
    this.element = element("li");
    /** @type {Branch | Leaf} */
    this.content = this.make(value);
    this.element.append(this.content.element);
  }

  /** @param {JSONValue} value */
  make(value) {
    return isContainer(value) ? new Branch(this.name, value, this.depth) : new Leaf(this.name, value);
  }

  /** @param {JSONValue} value */
  update(value) {
    if (this.content instanceof Branch && isContainer(value)) {
      this.content.update(value);
    } else if (this.content instanceof Leaf && !isContainer(value)) {
      this.content.update(value);
    } else {
      this.content = this.make(value);
      this.element.replaceChildren(this.content.element);
    }
  }
}

class Branch {
  /**
   * @param {HTMLElement} name
   * @param {Container} value
   * @param {number} depth
   */
  constructor(name, value, depth) {
    this.value = value;
    this.depth = depth;
    this.size = element("span", { class: "tree-size" });
    this.element = element("details", {}, element("summary", {}, name, " ", this.size));
    /** @type {Rows | null} */
    this.rows = null;
    const isSmall = sizeOf(value) <= OPEN_SIZE || (depth === 0 && Array.isArray(value));
    this.element.open = depth < OPEN_DEPTH && isSmall;
    this.element.addEventListener("toggle", () => this.draw());
    this.draw();
  }

  /** @param {Container} value */
  update(value) {
    if (value === this.value) return;
    this.value = value;
    this.draw();
  }

  draw() {
    const { value } = this;
    const size = sizeOf(value);
    setText(this.size, Array.isArray(value) ? `[${counted(size, "item")}]` : `{${counted(size, "key")}}`);
    if (!this.element.open) {
      this.rows?.list.remove();
      this.rows = null;
      return;
    }
    if (this.rows === null) {
      this.rows = new Rows(this.depth + 1);
      this.element.append(this.rows.list);
    }
    this.rows.update(value);
  }
}

/** @typedef {null | boolean | bigint | number | string} Scalar */

class Leaf {
  /**
   * @param {HTMLElement} name
   * @param {Scalar} value
   */
  constructor(name, value) {
    /** @type {Scalar | undefined} */
    this.value = undefined;
    this.showAll = false;
    this.text = element("span");
    this.element = element("div", { class: "tree-leaf" }, name, " ", this.text);
    /** @type {HTMLButtonElement | null} */
    this.moreButton = null;
    this.update(value);
  }

  /** @param {Scalar} value */
  update(value) {
    if (Object.is(value, this.value)) return;
    const isNew = this.value === undefined;
    this.value = value;
    this.draw();
    if (!isNew) flash(this.text);
  }

  draw() {
    const value = /** @type {Scalar} */ (this.value);
    const isLong = typeof value === "string" && value.length > CHARACTERS_SHOWN;
    const shown = isLong && !this.showAll ? `${value.slice(0, CHARACTERS_SHOWN)}…` : value;
    this.text.className = `tree-value tree-${value === null ? "null" : typeof value}`;
    setText(this.text, scalarText(shown));
    if (!isLong) {
      this.moreButton?.remove();
      this.moreButton = null;
      return;
    }
    if (this.moreButton === null) {
      this.moreButton = element("button", { type: "button", class: "link" });
      this.moreButton.addEventListener("click", () => {
        this.showAll = !this.showAll;
        this.draw();
      });
      this.element.append(" ", this.moreButton);
    }
    setText(this.moreButton, this.showAll ? "Show less" : `Show all ${count(value.length)} characters`);
  }
}

/**
 * Let a changed value light up for a moment.
 *
 * @param {HTMLElement} changed
 */
function flash(changed) {
  if (calm.matches) return;
  changed.animate([{ backgroundColor: "var(--flash)" }, { backgroundColor: "transparent" }], { duration: 900, easing: "ease-out" });
}

/** A whole value: its rows without a heading, or the one leaf that it is. */
export class Tree {
  /**
   * @param {HTMLElement} parent
   * @param {string} [whenEmpty] what to say of an object or array without anything in it
   */
  constructor(parent, whenEmpty = "empty") {
    this.parent = parent;
    this.whenEmpty = element("p", { class: "quiet" }, whenEmpty);
    /** @type {Rows | Leaf | null} */
    this.content = null;
    /** @type {JSONValue | undefined} */
    this.value = undefined;
  }

  /** @param {JSONValue} value */
  update(value) {
    if (value === this.value) return;
    this.value = value;
    if (isContainer(value) && sizeOf(value) === 0) {
      this.content = null;
      this.parent.replaceChildren(this.whenEmpty);
    } else if (isContainer(value)) {
      const content = this.content instanceof Rows ? this.content : new Rows(0);
      content.update(value);
      if (content !== this.content) this.parent.replaceChildren(content.list);
      this.content = content;
    } else if (this.content instanceof Leaf) {
      this.content.update(value);
    } else {
      this.content = new Leaf(element("span"), value);
      this.parent.replaceChildren(this.content.element);
    }
  }
}
