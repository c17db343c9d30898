// The history of the run's metadata: a scrubber over its versions, what each has changed, and charts of the numbers.
//
// Reading and folding happen in a worker (`history_worker.js`). Here is what is seen: which version is shown, or that the present is,
// which follows the run.

import { runPage, signIn } from "./api.js";
import { Charts } from "./charts.js";
import { arrange, byId, element, setText } from "./dom.js";
import { excerptsOfChange, summary } from "./excerpt.js";
import { ago, count, counted, exactTime, span } from "./format.js";
import { marksOf } from "./marks.js";
import { operationLine } from "./operation_text.js";
import { pathText } from "./path.js";

/** @typedef {import("./difference.js").Difference} Difference */
/** @typedef {import("./history_worker.js").Shown} Shown */
/** @typedef {import("./history_worker.js").Wish} Wish */
/** @typedef {import("./history_worker.js").Word} Word */
/** @typedef {import("./json.js").JSONObject} JSONObject */
/** @typedef {import("./marks.js").Marks} Marks */
/** @typedef {import("./timeline.js").Change} Change */

/** While the run goes on, the charts follow so often. */
const FOLLOW_MILLISECONDS = 1000;
/** A whole history plays in about this time, but no slower than so many versions in a second. */
const PLAY_SECONDS = 15;
const PLAY_RATE_MIN = 3;
const TICK_MILLISECONDS = 60;
const REMEMBER_MILLISECONDS = 300;
/** Operations and places that are listed at first, and when all are asked for. */
const FEW = 6;
const MANY = 500;
const VALUE_SHOWN = 80;

export class History {
  /**
   * @param {string} runId
   * @param {object} page
   * @param {(document: JSONObject, marks: Marks) => void} page.showPast a version is to be shown
   * @param {() => void} page.showPresent the present is to be shown
   * @param {(path: import("./path.js").Segment[]) => void} page.reveal a place of what is shown is to be seen
   */
  constructor(runId, { showPast, showPresent, reveal }) {
    this.runId = runId;
    this.showPast = showPast;
    this.showPresent = showPresent;
    this.reveal = reveal;
    /** The version that is shown or on its way; null: the present. @type {number | null} */
    this.version = null;
    /** What is shown, if it is not the present. @type {Shown | null} */
    this.shown = null;
    /** The number of the newest wish for a version; what was wished for before does not matter any more. */
    this.number = 0;
    this.earliest = 0;
    this.newest = 0;
    this.createdAt = 0;
    /** The document that the run has now. @type {JSONObject} */
    this.present = new Map();
    /** @type {Worker | null} */
    this.worker = null;
    this.followedAt = 0;
    this.followTimer = 0;
    this.playTimer = 0;
    this.rememberTimer = 0;
    this.section = byId("history");
    this.slider = /** @type {HTMLInputElement} */ (byId("history-slider"));
    this.operations = new List(byId("history-operations"), byId("history-more-operations"), "operation");
    this.places = new List(byId("history-places"), byId("history-more-places"), "place");
    this.charts = new Charts({ version: (version) => this.goTo(version), at: (at) => this.goToTime(at) });
    this.listen();
  }

  listen() {
    this.slider.addEventListener("input", () => {
      // First, because drawing anew puts the slider back.
      const version = Number(this.slider.value);
      this.pause();
      this.goTo(version);
    });
    byId("history-previous").addEventListener("click", () => this.step(-1));
    byId("history-next").addEventListener("click", () => this.step(1));
    byId("history-play").addEventListener("click", () => (this.playTimer === 0 ? this.play() : this.pause()));
    byId("history-now").addEventListener("click", () => this.goToPresent());
    window.addEventListener("hashchange", () => this.goToAddress());
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) this.followSoon();
    });
  }

  /** Is the document shown that the run has now? */
  get isPresent() {
    return this.version === null;
  }

  /**
   * The run's document has reached a version. The first call opens the history.
   *
   * @param {JSONObject} document
   * @param {number} version
   * @param {number} createdAt microseconds since 1970
   */
  follow(document, version, createdAt) {
    if (version === 0 || version === this.newest) return;
    this.present = document;
    this.newest = version;
    this.createdAt = createdAt;
    this.charts.createdAt = createdAt;
    this.section.hidden = false;
    if (this.worker === null) this.open();
    else this.followSoon();
    this.drawControls();
    if (this.isPresent) this.movePresent();
  }

  /** Let the charts point to the present. */
  movePresent() {
    this.charts.moveTo({ version: this.newest, at: Number.MAX_SAFE_INTEGER, document: this.present });
  }

  open() {
    this.worker = new Worker("/static/history_worker.js", { type: "module" });
    this.worker.addEventListener("message", (event) => this.take(event.data));
    this.wish({ kind: "open", runId: this.runId, newest: this.newest });
    this.followSoon();
    this.goToAddress();
  }

  /** @param {Wish} wish */
  wish(wish) {
    this.worker?.postMessage(wish);
  }

  /** Let the charts come up to the newest version, not too often and only where somebody looks. */
  followSoon() {
    this.wish({ kind: "newest", version: this.newest });
    if (this.followTimer !== 0 || document.hidden) return;
    const wait = Math.max(0, this.followedAt + FOLLOW_MILLISECONDS - performance.now());
    this.followTimer = window.setTimeout(() => {
      this.followTimer = 0;
      this.followedAt = performance.now();
      this.wish({ kind: "chart" });
    }, wait);
  }

  /** @param {Word} word */
  take(word) {
    switch (word.kind) {
      case "range":
        this.earliest = word.earliest;
        if (this.version !== null && this.version < this.earliest) this.goTo(this.earliest);
        return this.drawControls();
      case "shown":
        return this.takeShown(word.shown);
      case "numbers":
        this.charts.update(word.numbers, this.newest);
        if (this.isPresent) this.movePresent();
        return undefined;
      case "signedOut":
        return signIn();
      default:
        this.pause();
        byId("history-problem").hidden = false;
        return void setText(byId("history-problem"), `This part of the history cannot be shown. ${word.message}`);
    }
  }

  /** @param {Shown} shown */
  takeShown(shown) {
    if (this.version === null || shown.number !== this.number) return;
    this.version = shown.version;
    this.shown = shown;
    byId("history-problem").hidden = true;
    this.showPast(shown.document, marksOf(shown.differences));
    this.drawShown(shown);
    this.drawControls();
  }

  /**
   * Show a version.
   *
   * @param {number} version
   */
  goTo(version) {
    this.version = Math.min(this.newest, Math.max(this.earliest, version));
    this.number += 1;
    this.wish({ kind: "show", version: this.version, number: this.number });
    this.drawControls();
    this.rememberSoon();
  }

  /**
   * Show what there was at a time.
   *
   * @param {number} at microseconds since 1970
   */
  goToTime(at) {
    this.pause();
    this.version ??= this.newest;
    this.number += 1;
    this.wish({ kind: "showAt", at, number: this.number });
  }

  /** Show the version in the address of the page, as whoever sent the link has seen it. */
  goToAddress() {
    const found = /^#version=(\d{1,15})$/.exec(location.hash);
    if (found !== null && Number(found[1]) !== this.version) this.goTo(Number(found[1]));
  }

  goToPresent() {
    this.pause();
    this.version = null;
    this.shown = null;
    byId("history-problem").hidden = true;
    this.rememberSoon();
    this.showPresent();
    this.drawControls();
    this.followSoon();
    this.movePresent();
  }

  /** Let the address of the page lead to what is seen. Browsers do not like it to change often. */
  rememberSoon() {
    clearTimeout(this.rememberTimer);
    this.rememberTimer = window.setTimeout(() => {
      const hash = this.version === null ? "" : `#version=${this.version}`;
      if (location.hash !== hash) history.replaceState(null, "", location.pathname + location.search + hash);
    }, REMEMBER_MILLISECONDS);
  }

  /** @param {number} by */
  step(by) {
    this.pause();
    this.goTo((this.version ?? this.newest + 1) + by);
  }

  /** Go through the versions, from the beginning if the present is shown; at the end the present comes. */
  play() {
    if (this.version === null || this.version >= this.newest) this.goTo(this.earliest);
    const rate = Math.max(PLAY_RATE_MIN, (this.newest - this.earliest) / PLAY_SECONDS);
    let position = this.version ?? this.earliest;
    let last = performance.now();
    this.playTimer = window.setInterval(() => {
      const now = performance.now();
      const isWaiting = this.shown?.version !== this.version;
      // Whoever waits for a version sees it before the next one is asked for.
      if (!isWaiting) position += ((now - last) / 1000) * rate;
      last = now;
      if (isWaiting || Math.floor(position) === this.version) return;
      if (position >= this.newest + 1) this.goToPresent();
      else this.goTo(Math.floor(position));
    }, TICK_MILLISECONDS);
    this.drawControls();
  }

  pause() {
    clearInterval(this.playTimer);
    this.playTimer = 0;
    this.drawControls();
  }

  drawControls() {
    const { earliest, newest } = this;
    const version = this.version ?? newest;
    const hasPast = newest > earliest;
    byId("history-controls").hidden = !hasPast;
    setText(byId("history-kept"), earliest === 0 ? "" : keptText(earliest, newest));
    this.slider.min = String(earliest);
    this.slider.max = String(newest);
    this.slider.value = String(version);
    setText(byId("history-place"), `${count(version)} / ${count(newest)}`);
    const play = byId("history-play");
    const isPlaying = this.playTimer !== 0;
    play.dataset.playing = String(isPlaying);
    play.setAttribute("aria-label", isPlaying ? "Pause" : "Play the versions");
    byId("history-now").setAttribute("aria-pressed", String(this.isPresent));
    /** @type {HTMLButtonElement} */ (byId("history-previous")).disabled = version <= earliest;
    /** @type {HTMLButtonElement} */ (byId("history-next")).disabled = this.isPresent || version >= newest;
    byId("history-change").hidden = this.isPresent;
    byId("history-line").hidden = this.isPresent;
    if (this.isPresent) this.slider.setAttribute("aria-valuetext", `now, version ${newest}`);
    else if (this.shown?.version !== version) this.slider.setAttribute("aria-valuetext", `version ${version}`);
  }

  /** @param {Shown} shown */
  drawShown({ version, document, change, differences, count: total }) {
    const line = byId("history-line");
    line.replaceChildren(element("strong", {}, `Version ${count(version)}`), ...whenAndWho(version, change, this.runId, this.createdAt));
    const places = counted(total, "place");
    this.slider.setAttribute("aria-valuetext", `${line.textContent}, ${change === null ? "" : `${places} changed`}`);
    this.charts.moveTo({ version, at: change?.at ?? 0, document });
    byId("history-lists").hidden = change === null;
    byId("history-nothing").hidden = change === null || total > 0;
    if (change === null) return;
    const operations = change.operations.map((operation) => /** @type {JSONObject} */ (operation));
    this.operations.update(operations.length, (most) => operations.slice(0, most).map(operationLine));
    this.places.update(total, (most) => differences.slice(0, most).map((difference) => this.placeLine(difference)));
  }

  /** @param {Difference} difference */
  placeLine({ path, before, after }) {
    const kind = before === undefined ? "added" : after === undefined ? "removed" : "changed";
    const name = pathText(path) || "the document";
    const button = element("button", { type: "button", class: "link" }, element("code", { class: "key" }, name));
    button.addEventListener("click", () => this.reveal(after === undefined ? path.slice(0, -1) : path));
    const line = element("li", { "data-mark": kind }, button, " ");
    if (before !== undefined && after !== undefined) {
      const [old, now] = excerptsOfChange(before, after, VALUE_SHOWN);
      line.append(element("del", {}, old), " → ", element("ins", {}, now));
    } else if (after !== undefined) {
      line.append(element("ins", {}, summary(after, VALUE_SHOWN)));
    } else if (before !== undefined) {
      line.append(element("del", {}, summary(before, VALUE_SHOWN)));
    }
    return line;
  }
}

/** A list of which only the first lines are shown until all are asked for. */
class List {
  /**
   * @param {HTMLElement} list
   * @param {HTMLElement} button
   * @param {string} noun
   */
  constructor(list, button, noun) {
    this.list = list;
    this.button = button;
    this.noun = noun;
    this.showAll = false;
    this.size = 0;
    /** @type {(most: number) => Element[]} */
    this.lines = () => [];
    button.addEventListener("click", () => {
      this.showAll = !this.showAll;
      this.draw();
    });
  }

  /**
   * @param {number} size how many there are
   * @param {(most: number) => Element[]} lines the first of them
   */
  update(size, lines) {
    this.size = size;
    this.lines = lines;
    this.draw();
  }

  draw() {
    arrange(this.list, this.lines(this.showAll ? MANY : FEW));
    this.button.hidden = this.size <= FEW;
    const all = this.size > MANY ? `the first ${MANY} of ${counted(this.size, this.noun)}` : `all ${counted(this.size, this.noun)}`;
    setText(this.button, this.showAll ? `Show ${FEW} only` : `Show ${all}`);
  }
}

/**
 * When a version was reached, and who wrote it.
 *
 * @param {number} version
 * @param {Change | null} change
 * @param {string} runId
 * @param {number} createdAt
 * @returns {(Node | string)[]}
 */
function whenAndWho(version, change, runId, createdAt) {
  if (change === null) return [version === 0 ? ", as it was given at trigger" : ", the earliest that is kept"];
  const at = change.at / 1000;
  const time = element("time", { class: "exact", datetime: new Date(at).toISOString(), title: ago(at, Date.now()) }, exactTime(at));
  const after = createdAt > 0 && change.at >= createdAt ? ` (${span((change.at - createdAt) / 1000)} after the trigger)` : "";
  return [" · ", time, after, " · ", ...writerParts(change, runId)];
}

/**
 * @param {Change} change
 * @param {string} runId
 * @returns {(Node | string)[]}
 */
function writerParts({ writer }, runId) {
  if (writer === null) return ["written from outside"];
  if (writer.run === runId) return [`written by attempt ${writer.attempt} of this run`];
  return ["written by ", element("a", { href: runPage(writer.run), class: "run-id" }, writer.run), `, attempt ${writer.attempt}`];
}

/**
 * @param {number} earliest
 * @param {number} newest
 */
function keptText(earliest, newest) {
  if (earliest >= newest) return "Earlier versions of this document are no longer kept.";
  return `Versions before ${count(earliest)} are no longer kept.`;
}
