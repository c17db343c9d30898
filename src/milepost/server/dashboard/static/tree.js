// A JSON value as a tree that opens and closes, updated in place; with marks (see `marks.js`) also what a change has done to it.
//
// Values are never changed, only replaced (see `operations.js`), so a branch whose value is the same object as before has nothing
// to do. What is closed, or beyond the shown part of a long array, has no elements at all: a document of 250 KB costs what is visible
// of it. `<details>` brings the keyboard and the screen reader along.

import { arrange, element, setText } from "./dom.js";
import { excerptsOfChange, summary } from "./excerpt.js";
import { count, counted } from "./format.js";
import { scalarText } from "./json.js";

/** @typedef {import("./json.js").JSONValue} JSONValue */
/** @typedef {import("./json.js").JSONObject} JSONObject */
/** @typedef {import("./path.js").Segment} Segment */
/** @typedef {import("./marks.js").Marks} Marks */
/** @typedef {import("./marks.js").Gone} Gone */

/** Elements of an array that are shown at first: the last ones, because logs grow there. */
const ITEMS_SHOWN = 50;
/** Members of an object that are shown at first. */
const MEMBERS_SHOWN = 200;
/** Up to so many are shown at once when all are asked for; more come in steps of this size, so that a page never stands still. */
const STEP = 500;
/** Characters of a text that are shown at first. */
const CHARACTERS_SHOWN = 1000;
/** Characters of what was there before. */
const BEFORE_SHOWN = 120;
/** Branches up to this depth are open at first, unless they are larger. Arrays at the top always are: the newest is at their end. */
const OPEN_DEPTH = 2;
const OPEN_SIZE = 60;
/** What is gone is shown, up to so many of one place. */
const GONE_SHOWN = 50;

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
    /** @type {Map<Segment, Row>} */
    this.rows = new Map();
    /** Rows beyond those that are shown at first. */
    this.extra = 0;
    /** @type {Container} */
    this.value = new Map();
    /** @type {Marks | null} */
    this.marks = null;
    this.moreButton = element("button", { type: "button", class: "link" });
    this.moreButton.addEventListener("click", () => {
      this.extra = this.isWhole ? 0 : this.extra + STEP;
      this.draw();
    });
    this.more = element("li", { class: "tree-more" }, this.moreButton);
  }

  /**
   * @param {Container} value
   * @param {Marks | null} marks
   */
  update(value, marks) {
    if (value === this.value && marks === this.marks) return;
    if (Array.isArray(value) && Array.isArray(this.value)) this.slide(slideOf(this.value, value));
    else if (Array.isArray(value) || Array.isArray(this.value)) this.rows.clear();
    this.value = value;
    this.marks = marks;
    this.draw();
  }

  /**
   * Let the rows follow elements that have moved up, so that only the new ones are drawn.
   *
   * @param {number} places
   */
  slide(places) {
    if (places === 0) return;
    /** @type {Map<Segment, Row>} */
    const rows = new Map();
    for (const [position, row] of this.rows) {
      const moved = Number(position) - places;
      if (moved < 0) continue;
      setText(row.name, String(moved));
      rows.set(moved, row);
    }
    this.rows = rows;
  }

  /** Rows that are shown at first. */
  get few() {
    return Array.isArray(this.value) ? ITEMS_SHOWN : MEMBERS_SHOWN;
  }

  get isWhole() {
    return sizeOf(this.value) <= this.few + this.extra;
  }

  draw() {
    const value = this.value;
    const size = sizeOf(value);
    const most = this.few + this.extra;
    /** @type {Map<Segment, Row>} */
    const rows = new Map();
    if (Array.isArray(value)) {
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
    const shown = this.withGone(rows);
    if (size > this.few) {
      setText(this.moreButton, this.moreText(size));
      if (Array.isArray(value)) shown.unshift(this.more);
      else shown.push(this.more);
    }
    arrange(this.list, shown);
  }

  /** @param {number} size */
  moreText(size) {
    const place = Array.isArray(this.value) ? "last" : "first";
    if (this.isWhole) return `Show the ${place} ${this.few} only`;
    const shown = `these are the ${place} ${count(this.few + this.extra)}`;
    const isLastStep = size <= this.few + this.extra + STEP;
    return isLastStep ? `Show all ${count(size)} (${shown})` : `Show ${count(STEP)} more of ${count(size)} (${shown})`;
  }

  /**
   * The elements of the rows, and of what is gone where it was.
   *
   * @param {Map<Segment, Row>} rows
   */
  withGone(rows) {
    const gone = this.marks?.gone.slice(0, GONE_SHOWN) ?? [];
    if (gone.length === 0) return [...rows.values()].map((row) => row.element);
    /** @type {Element[]} */
    const shown = [];
    for (const [name, row] of rows) {
      while (gone[0]?.next !== undefined && gone[0].next <= Number(name)) shown.push(goneElement(/** @type {Gone} */ (gone.shift())));
      shown.push(row.element);
    }
    shown.push(...gone.map(goneElement));
    return shown;
  }

  /**
   * @param {Segment} name
   * @param {JSONValue} value
   */
  row(name, value) {
    const row = this.rows.get(name);
    const marks = this.marks === null ? null : (this.marks.inner.get(name) ?? null);
    if (row === undefined) return new Row(name, value, this.depth, marks);
    row.update(value, marks, this.marks !== null);
    return row;
  }

  /**
   * Show a place, opening whatever it is in.
   *
   * @param {readonly Segment[]} path
   * @returns {HTMLElement | null} its row, or the innermost one that there is
   */
  reveal(path) {
    const [name, ...rest] = path;
    if (name === undefined) return null;
    if (!this.rows.has(name) && this.holds(name)) {
      const far = Array.isArray(this.value) ? this.value.length - Number(name) : [...this.value.keys()].indexOf(String(name)) + 1;
      this.extra = Math.ceil((far - this.few) / STEP) * STEP;
      this.draw();
    }
    const row = this.rows.get(name);
    return row === undefined ? null : (row.reveal(rest) ?? row.element);
  }

  /** @param {Segment} name */
  holds(name) {
    return Array.isArray(this.value) ? Number(name) in this.value : this.value.has(String(name));
  }
}

/**
 * Something that is not there any more.
 *
 * @param {Gone} gone
 */
function goneElement({ name, value }) {
  const text = element("del", { class: "tree-value" }, summary(value, BEFORE_SHOWN));
  return element("li", { "data-mark": "removed" }, element("div", { class: "tree-leaf" }, nameElement(name), " ", text));
}

/** @param {Segment} name */
function nameElement(name) {
  return element("span", { class: typeof name === "number" ? "tree-position" : "tree-name" }, String(name));
}

/** A name with its value: a branch, or a leaf. */
class Row {
  /**
   * @param {Segment} name
   * @param {JSONValue} value
   * @param {number} depth
   * @param {Marks | null} marks
   */
  constructor(name, value, depth, marks) {
    this.name = nameElement(name);
    this.depth = depth;
    this.marks = marks;
    this.element = element("li");
    /** @type {Branch | Leaf} */
    this.content = this.make(value);
    this.element.append(this.content.element);
    this.mark();
  }

  /** @param {JSONValue} value */
  make(value) {
    return isContainer(value) ? new Branch(this.name, value, this.depth, this.marks) : new Leaf(this.name, value, this.marks);
  }

  /**
   * @param {JSONValue} value
   * @param {Marks | null} marks
   * @param {boolean} isPast what is shown is not the present, so nothing lights up
   */
  update(value, marks, isPast) {
    const wasMarked = this.marks !== null;
    this.marks = marks;
    if (this.content instanceof Branch && isContainer(value)) {
      this.content.update(value, marks);
    } else if (this.content instanceof Leaf && !isContainer(value)) {
      this.content.update(value, marks, isPast);
    } else {
      this.content = this.make(value);
      this.element.replaceChildren(this.content.element);
    }
    if (wasMarked || marks !== null) this.mark();
  }

  mark() {
    if (this.marks?.kind == null) delete this.element.dataset.mark;
    else this.element.dataset.mark = this.marks.kind;
  }

  /** @param {readonly Segment[]} path */
  reveal(path) {
    return this.content instanceof Branch ? this.content.reveal(path) : null;
  }
}

class Branch {
  /**
   * @param {HTMLElement} name
   * @param {Container} value
   * @param {number} depth
   * @param {Marks | null} marks
   */
  constructor(name, value, depth, marks) {
    this.value = value;
    this.marks = marks;
    this.depth = depth;
    this.size = element("span", { class: "tree-size" });
    this.before = element("del", { class: "tree-before" });
    this.element = element("details", {}, element("summary", {}, name, " ", this.size));
    /** @type {Rows | null} */
    this.rows = null;
    const isSmall = sizeOf(value) <= OPEN_SIZE || (depth === 0 && Array.isArray(value));
    this.element.open = depth < OPEN_DEPTH && isSmall;
    this.element.addEventListener("toggle", () => this.draw());
    this.draw();
  }

  /**
   * @param {Container} value
   * @param {Marks | null} marks
   */
  update(value, marks) {
    if (value === this.value && marks === this.marks) return;
    this.value = value;
    this.marks = marks;
    this.draw();
  }

  draw() {
    const { value } = this;
    const size = sizeOf(value);
    setText(this.size, Array.isArray(value) ? `[${counted(size, "item")}]` : `{${counted(size, "key")}}`);
    if (this.marks?.kind === "changed") {
      setText(this.before, summary(/** @type {JSONValue} */ (this.marks.before), BEFORE_SHOWN));
      this.size.before(this.before, " ");
    } else {
      this.before.remove();
    }
    if (!this.element.open) {
      this.rows?.list.remove();
      this.rows = null;
      return;
    }
    if (this.rows === null) {
      this.rows = new Rows(this.depth + 1);
      this.element.append(this.rows.list);
    }
    this.rows.update(value, this.marks);
  }

  /** @param {readonly Segment[]} path */
  reveal(path) {
    if (path.length === 0) return null;
    this.element.open = true;
    this.draw();
    return this.rows?.reveal(path) ?? null;
  }
}

/** @typedef {null | boolean | bigint | number | string} Scalar */

class Leaf {
  /**
   * @param {HTMLElement} name
   * @param {Scalar} value
   * @param {Marks | null} marks
   */
  constructor(name, value, marks) {
    /** @type {Scalar | undefined} */
    this.value = undefined;
    /** @type {Marks | null} */
    this.marks = null;
    this.showAll = false;
    this.text = element("span");
    this.before = element("del", { class: "tree-before" });
    this.element = element("div", { class: "tree-leaf" }, name, " ", this.text);
    /** @type {HTMLButtonElement | null} */
    this.moreButton = null;
    this.update(value, marks, true);
  }

  /**
   * @param {Scalar} value
   * @param {Marks | null} marks
   * @param {boolean} isPast
   */
  update(value, marks, isPast) {
    if (Object.is(value, this.value) && marks === this.marks) return;
    const hasChanged = !Object.is(value, this.value);
    this.value = value;
    this.marks = marks;
    this.draw();
    if (hasChanged && !isPast) flash(this.text);
  }

  draw() {
    const value = /** @type {Scalar} */ (this.value);
    const isLong = typeof value === "string" && value.length > CHARACTERS_SHOWN;
    const shown = isLong && !this.showAll ? `${value.slice(0, CHARACTERS_SHOWN).toWellFormed()}…` : value;
    this.text.className = `tree-value tree-${value === null ? "null" : typeof value}`;
    setText(this.text, scalarText(shown));
    this.drawBefore(value);
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

  /** @param {Scalar} value */
  drawBefore(value) {
    if (this.marks?.kind !== "changed") return this.before.remove();
    setText(this.before, excerptsOfChange(/** @type {JSONValue} */ (this.marks.before), value, BEFORE_SHOWN)[0]);
    this.text.before(this.before, " ");
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
    /** @type {Marks | null} */
    this.marks = null;
  }

  /**
   * @param {JSONValue} value
   * @param {Marks | null} [marks] what a change has done to it; null for the present
   */
  update(value, marks = null) {
    if (value === this.value && marks === this.marks) return;
    this.value = value;
    this.marks = marks;
    const isEmpty = isContainer(value) && sizeOf(value) === 0 && !marks?.gone.length;
    if (isEmpty) {
      this.content = null;
      this.parent.replaceChildren(this.whenEmpty);
    } else if (isContainer(value)) {
      const content = this.content instanceof Rows ? this.content : new Rows(0);
      content.update(value, marks);
      if (content !== this.content) this.parent.replaceChildren(content.list);
      this.content = content;
    } else if (this.content instanceof Leaf) {
      this.content.update(value, marks, false);
    } else {
      this.content = new Leaf(element("span"), value, marks);
      this.parent.replaceChildren(this.content.element);
    }
  }

  /**
   * Show a place and go there.
   *
   * @param {readonly Segment[]} path
   */
  reveal(path) {
    const row = this.content instanceof Rows ? this.content.reveal(path) : null;
    if (row === null) return;
    row.tabIndex = -1;
    row.focus({ preventScroll: true });
    row.scrollIntoView({ block: "center" });
    // Rows out of sight are not laid out yet: once they are, the row may stand elsewhere.
    requestAnimationFrame(() => requestAnimationFrame(() => row.scrollIntoView({ block: "nearest" })));
  }
}
