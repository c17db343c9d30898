// The charts of a document's numbers, side by side, on one scale of versions or of time.

import { arrange, byId, setText } from "./dom.js";
import { Chart } from "./chart.js";
import { count, counted } from "./format.js";

/** @typedef {import("./chart.js").Scale} Scale */
/** @typedef {import("./numbers.js").Series} Series */

/** What the worker tells of the numbers. @typedef {ReturnType<typeof import("./numbers.js").joined>} Numbers */

/** Charts that are shown at first. */
const FEW = 6;

export class Charts {
  /**
   * @param {{version: (version: number) => void, at: (at: number) => void}} select
   */
  constructor(select) {
    this.select = select;
    /** @type {Numbers} */
    this.numbers = { from: 0, to: 0, until: 0, series: [], total: 0 };
    /** When the run was created, microseconds since 1970. */
    this.createdAt = 0;
    /** @type {import("./chart.js").Place} */
    this.place = { version: 0, at: 0, document: new Map() };
    this.newest = 0;
    this.showAll = false;
    /** By place of the number. @type {Map<string, Chart>} */
    this.charts = new Map();
    this.section = byId("charts-section");
    this.grid = byId("charts");
    this.more = byId("charts-more");
    this.more.addEventListener("click", () => {
      this.showAll = !this.showAll;
      this.draw();
    });
    for (const choice of this.choices) choice.addEventListener("change", () => this.draw());
    new ResizeObserver(() => this.draw()).observe(this.grid);
  }

  get choices() {
    return /** @type {NodeListOf<HTMLInputElement>} */ (this.section.querySelectorAll("input[name=scale]"));
  }

  /**
   * @param {Numbers} numbers
   * @param {number} newest the newest version
   */
  update(numbers, newest) {
    this.numbers = numbers;
    this.newest = newest;
    this.draw();
  }

  /**
   * The scrubber has moved.
   *
   * @param {import("./chart.js").Place} place
   */
  moveTo(place) {
    this.place = place;
    for (const chart of this.charts.values()) chart.moveTo(place);
  }

  draw() {
    const { series, from, to, total } = this.numbers;
    this.section.hidden = series.length === 0;
    const shown = series.slice(0, this.showAll ? series.length : FEW);
    const scale = this.scale();
    /** @type {Map<string, Chart>} */
    const charts = new Map();
    for (const one of shown) {
      const key = JSON.stringify(one.path);
      charts.set(key, this.charts.get(key) ?? this.chart());
    }
    this.charts = charts;
    arrange(this.grid, [...charts.values()].map((chart) => chart.element));
    // Columns are known once the charts are laid out; all of them are of one width.
    const width = [...charts.values()][0]?.picture.clientWidth ?? 0;
    shown.forEach((one) => charts.get(JSON.stringify(one.path))?.update(one, scale, width));
    this.more.hidden = series.length <= FEW;
    setText(this.more, this.showAll ? `Show ${FEW} only` : `Show all ${counted(series.length, "number")}`);
    const part = from > 0 || to < this.newest ? `Versions ${count(from)} to ${count(to)} of ${count(this.newest)}. ` : "";
    const rest = total > series.length ? `The first ${series.length} of ${total} numbers that change.` : "";
    setText(byId("charts-note"), part + rest);
  }

  chart() {
    const chart = new Chart({ version: this.select.version, share: (share) => this.selectShare(share) });
    chart.moveTo(this.place);
    return chart;
  }

  /** From when to when the charts go, microseconds since 1970. */
  times() {
    const known = this.numbers.series.flatMap(({ points }) => points.flatMap(([, at]) => (at > 0 ? [at] : [])));
    const first = known.reduce((least, at) => Math.min(least, at), Infinity);
    const start = this.numbers.from === 0 && this.createdAt > 0 ? Math.min(this.createdAt, first) : first;
    return { start, end: known.reduce((most, at) => Math.max(most, at), this.numbers.until) };
  }

  /** @returns {Scale} */
  scale() {
    const { from, to } = this.numbers;
    const { start, end } = this.times();
    const isByTime = end > start && [...this.choices].some((choice) => choice.checked && choice.value === "time");
    /** @param {number} share */
    const within = (share) => Math.min(1, Math.max(0, share));
    const byTime = (/** @type {number} */ _, /** @type {number} */ at) => (at === 0 ? 0 : within((at - start) / (end - start)));
    const byVersion = (/** @type {number} */ version) => within((version - from) / Math.max(1, to - from));
    return { share: isByTime ? byTime : byVersion, from, to, isByTime };
  }

  /** @param {number} share */
  selectShare(share) {
    const { from, to } = this.numbers;
    const { start, end } = this.times();
    if (this.scale().isByTime) this.select.at(start + share * (end - start));
    else this.select.version(Math.round(from + share * (to - from)));
  }
}
