// Numbers in metadata that say how far the work has come: found here, drawn as bars.

import { arrange, element, setText } from "./dom.js";
import { count } from "./format.js";
import { isNumber } from "./json.js";

/** @typedef {import("./json.js").JSONObject} JSONObject */

/**
 * How far something has come. `total` is null while it is not known, and `share`, which may be more than 1.
 *
 * @typedef {{label: string, done: number, total: number | null, share: number | null, text: string}} Progress
 */

const DONE_NAMES = ["processed", "done", "completed"];
const BARS_MAX = 12;

/**
 * Pairs such as `processed` and `total`, and `progress` from 0 to 1: at the top level and one level below it, where
 * `metadata.track` puts them.
 *
 * @param {JSONObject} document
 * @returns {Progress[]}
 */
export function findProgress(document) {
  const found = progressIn(document, "");
  for (const [name, member] of document) {
    if (found.length >= BARS_MAX) break;
    if (member instanceof Map) found.push(...progressIn(member, name));
  }
  return found.slice(0, BARS_MAX);
}

/**
 * @param {JSONObject} members
 * @param {string} place
 * @returns {Progress[]}
 */
function progressIn(members, place) {
  /** @type {Progress[]} */
  const found = [];
  const fraction = members.get("progress");
  if (isNumber(fraction) && fraction >= 0 && fraction <= 1) {
    found.push({ label: place || "progress", done: Number(fraction), total: 1, share: Number(fraction), text: `${percent(Number(fraction))}%` });
  }
  const total = members.get("total");
  for (const name of DONE_NAMES) {
    const done = members.get(name);
    if (!isNumber(done) || done < 0) continue;
    const label = place || name;
    if (isNumber(total) && total > 0) {
      const share = Number(done) / Number(total);
      found.push({
        label,
        done: Number(done),
        total: Number(total),
        share,
        text: `${count(done)} of ${count(total)} · ${percent(share)}%`,
      });
    } else if (total === null) {
      found.push({ label, done: Number(done), total: null, share: null, text: `${count(done)} of an unknown total` });
    }
  }
  return found;
}

/**
 * Rounded down, so that 100 means all of it.
 *
 * @param {number} share
 */
export function percent(share) {
  return Math.floor(share * 100 + 1e-9);
}

/** One bar with its label and text. */
class Bar {
  /** @param {boolean} withLabel */
  constructor(withLabel) {
    this.label = element("span", { class: "progress-label" });
    this.text = element("span", { class: "progress-text" });
    this.meter = element("progress");
    this.element = element("div", { class: "progress" });
    if (withLabel) this.element.append(this.label);
    this.element.append(this.meter, this.text);
  }

  /** @param {Progress} progress */
  update({ label, done, total, text }) {
    setText(this.label, label);
    setText(this.text, text);
    this.meter.setAttribute("aria-label", label);
    if (total === null) {
      this.meter.removeAttribute("value");
    } else {
      this.meter.max = total;
      this.meter.value = Math.min(done, total);
    }
  }
}

/** The bars of a document; hidden while it has none. */
export class ProgressBars {
  /**
   * @param {HTMLElement} parent
   * @param {{most?: number, withLabels?: boolean}} [options]
   */
  constructor(parent, { most = BARS_MAX, withLabels = true } = {}) {
    this.parent = parent;
    this.most = most;
    this.withLabels = withLabels;
    /** @type {Bar[]} */
    this.bars = [];
  }

  /** @param {JSONObject} document */
  update(document) {
    const found = findProgress(document).slice(0, this.most);
    while (this.bars.length < found.length) this.bars.push(new Bar(this.withLabels));
    this.bars.length = found.length;
    found.forEach((progress, position) => this.bars[position]?.update(progress));
    arrange(this.parent, this.bars.map((bar) => bar.element));
    this.parent.hidden = found.length === 0;
  }
}
