// One number of a document over its versions: a small step chart that can be pointed at, dragged over and moved through by keys.

import { element, setText } from "./dom.js";
import { count, counted, exactTime, exactly } from "./format.js";
import { isNumber } from "./json.js";
import { pathText, valueAt } from "./path.js";

/** @typedef {import("./json.js").JSONObject} JSONObject */
/** @typedef {import("./numbers.js").Series} Series */
/** @typedef {import("./numbers.js").Point} Point */

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 44;
/** Room above and below the line, so that it is not cut. */
const MARGIN = 3;
/** Heights that are told apart. */
const STEPS = 1000n;
/** Points that Page Up and Page Down pass over. */
const PAGE = 10;

/**
 * Which part of the width a point has: by its version or by its time.
 *
 * @typedef {{share: (version: number, at: number) => number, from: number, to: number, isByTime: boolean}} Scale
 */

/** A version, when it was reached (microseconds since 1970), and the document then.
 * @typedef {{version: number, at: number, document: JSONObject}} Place */

/**
 * What a chart asks for: a version, or the version at a share of the width.
 *
 * @typedef {{version: (version: number) => void, share: (share: number) => void}} Select
 */

export class Chart {
  /** @param {Select} select */
  constructor(select) {
    this.select = select;
    /** @type {Series} */
    this.series = { path: [], points: [] };
    /** @type {Scale} */
    this.scale = { share: () => 0, from: 0, to: 0, isByTime: false };
    this.width = 0;
    /** Where the scrubber stands. @type {Place} */
    this.place = { version: 0, at: 0, document: new Map() };
    this.name = element("span", { class: "chart-name" });
    this.value = element("span", { class: "chart-value" });
    this.when = element("span", { class: "chart-when" });
    this.line = svg("path", { class: "chart-line" });
    this.area = svg("path", { class: "chart-area" });
    this.cursor = svg("line", { class: "chart-cursor", y1: "0", y2: String(HEIGHT) });
    this.pointer = svg("line", { class: "chart-pointer", y1: "0", y2: String(HEIGHT), visibility: "hidden" });
    this.dot = svg("circle", { class: "chart-dot", r: "3" });
    this.picture = svg("svg", { height: String(HEIGHT), "aria-hidden": "true" });
    this.picture.append(this.area, this.line, this.pointer, this.cursor, this.dot);
    this.range = element("span", { class: "chart-range" });
    this.element = element(
      "div",
      { class: "chart", role: "slider", tabindex: "0" },
      element("div", { class: "chart-head" }, this.name, this.value),
      this.picture,
      element("div", { class: "chart-head chart-foot" }, this.range, this.when),
    );
    this.listen();
  }

  listen() {
    this.picture.addEventListener("pointermove", (event) => {
      const share = this.shareOf(event);
      if (event.buttons & 1) this.select.share(share);
      else this.pointAt(share);
    });
    this.picture.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      this.picture.setPointerCapture(event.pointerId);
      this.pointAt(null);
      this.select.share(this.shareOf(event));
    });
    this.picture.addEventListener("pointerleave", () => this.pointAt(null));
    this.element.addEventListener("keydown", (event) => {
      const target = this.targetOf(event.key);
      if (target === undefined) return;
      event.preventDefault();
      this.select.version(target);
    });
  }

  /** @param {PointerEvent} event */
  shareOf(event) {
    const { left, width } = this.picture.getBoundingClientRect();
    return Math.min(1, Math.max(0, (event.clientX - left) / Math.max(1, width)));
  }

  /**
   * The version that a key leads to: to where the number changes next, or changed last.
   *
   * @param {string} key
   */
  targetOf(key) {
    const versions = this.series.points.map(([version]) => version);
    const behind = versions.filter((version) => version > this.place.version);
    const before = versions.filter((version) => version < this.place.version);
    switch (key) {
      case "ArrowRight":
      case "ArrowUp":
        return behind[0] ?? this.scale.to;
      case "ArrowLeft":
      case "ArrowDown":
        return before.at(-1) ?? this.scale.from;
      case "PageUp":
        return behind[PAGE - 1] ?? this.scale.to;
      case "PageDown":
        return before.at(-PAGE) ?? this.scale.from;
      case "Home":
        return this.scale.from;
      case "End":
        return this.scale.to;
      default:
        return undefined;
    }
  }

  /**
   * @param {Series} series
   * @param {Scale} scale
   * @param {number} width pixels
   */
  update(series, scale, width) {
    this.series = series;
    this.scale = scale;
    this.width = width;
    const name = pathText(series.path);
    setText(this.name, name);
    this.name.title = name;
    this.element.setAttribute("aria-label", `${name}, ${counted(series.points.length - 1, "change")}`);
    this.element.setAttribute("aria-valuemin", String(scale.from));
    this.element.setAttribute("aria-valuemax", String(scale.to));
    this.draw();
    this.drawPlace();
  }

  /**
   * The scrubber has moved.
   *
   * @param {Place} place
   */
  moveTo(place) {
    this.place = place;
    this.drawPlace();
  }

  draw() {
    const { points } = this.series;
    const values = points.flatMap(([, , value]) => (value === null ? [] : [value]));
    const low = values.reduce((least, value) => (value < least ? value : least), values[0] ?? 0);
    const high = values.reduce((most, value) => (value > most ? value : most), values[0] ?? 0);
    this.heightOf = heights(low, high);
    setText(this.range, `${exactly(low)} – ${exactly(high)}`);
    this.picture.setAttribute("viewBox", `0 0 ${this.width} ${HEIGHT}`);
    let line = "";
    let area = "";
    let start = "";
    points.forEach((point, position) => {
      if (point[2] === null) {
        start = "";
        return;
      }
      const x = this.x(point);
      const y = this.heightOf(point[2]);
      const next = points[position + 1];
      const end = next === undefined ? this.width : this.x(next);
      if (start === "") line += `M${x} ${y}`;
      else line += `V${y}`;
      line += `H${end}`;
      start ||= String(x);
      area += `M${x} ${HEIGHT}V${y}H${end}V${HEIGHT}Z`;
    });
    this.line.setAttribute("d", line);
    this.area.setAttribute("d", area);
  }

  /** @param {Point} point */
  x([version, at]) {
    return Math.round(this.scale.share(version, at) * this.width * 10) / 10;
  }

  /**
   * Where the line is at a value, from the top.
   *
   * @type {(value: number | bigint) => number}
   */
  heightOf = () => 0;

  drawPlace() {
    const { version, at, document } = this.place;
    const x = String(Math.round(this.scale.share(version, at) * this.width * 10) / 10);
    // From the document, because a chart of many versions has only some of the points.
    const found = valueAt(document, this.series.path);
    const value = isNumber(found) ? found : null;
    for (const name of ["x1", "x2"]) this.cursor.setAttribute(name, x);
    this.say(value, version);
    this.element.setAttribute("aria-valuenow", String(version));
    this.element.setAttribute("aria-valuetext", `${valueText(value)} at version ${version}`);
    this.dot.setAttribute("visibility", value === null ? "hidden" : "visible");
    this.dot.setAttribute("cx", x);
    this.dot.setAttribute("cy", String(value === null ? 0 : this.heightOf(value)));
  }

  /**
   * Say the value under the pointer, and from which version it is; null: the pointer has left.
   *
   * @param {number | null} share
   */
  pointAt(share) {
    this.pointer.setAttribute("visibility", share === null ? "hidden" : "visible");
    if (share === null) return this.drawPlace();
    const x = share * this.width;
    for (const name of ["x1", "x2"]) this.pointer.setAttribute(name, String(x));
    const found = this.series.points.findLast((point) => this.x(point) <= x + 0.5);
    return this.say(found?.[2] ?? null, found?.[0] ?? this.scale.from, found?.[1]);
  }

  /**
   * @param {number | bigint | null} value
   * @param {number} version
   * @param {number} [at]
   */
  say(value, version, at) {
    setText(this.value, valueText(value));
    setText(this.when, `version ${count(version)}`);
    this.when.title = at ? exactTime(at / 1000) : "";
  }
}

/** @param {number | bigint | null} value */
function valueText(value) {
  return value === null ? "none" : exactly(value);
}

/**
 * How high a value stands between the lowest and the highest. Integers are exact whatever their size; other numbers are halved before
 * they are subtracted, so that the widest range is a number too.
 *
 * @param {number | bigint} low
 * @param {number | bigint} high
 */
function heights(low, high) {
  /** @param {number | bigint} value */
  const share = (value) => {
    if (low == high) return 0.5;
    if (typeof low === "bigint" && typeof high === "bigint" && typeof value === "bigint") {
      return Number(((value - low) * STEPS) / (high - low)) / Number(STEPS);
    }
    return (Number(value) / 2 - Number(low) / 2) / (Number(high) / 2 - Number(low) / 2);
  };
  return (/** @type {number | bigint} */ value) => {
    // The run may be ahead of what the chart has read.
    const within = Math.min(1, Math.max(0, share(value)));
    return Math.round((HEIGHT - MARGIN - within * (HEIGHT - 2 * MARGIN)) * 10) / 10;
  };
}

/**
 * @template {keyof SVGElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {{[attribute: string]: string}} attributes
 * @returns {SVGElementTagNameMap[Tag]}
 */
function svg(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}
