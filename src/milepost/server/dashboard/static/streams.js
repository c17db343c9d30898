// The streams of a run: one tab for each, the values of the chosen one as they come. Text flows together, everything else is a line.
//
// The feed of the run says when there is a new stream; see `run_page.js`.

import { get, runUrl } from "./api.js";
import { copyOnClick } from "./copy.js";
import { arrange, element, oncePerFrame, setText } from "./dom.js";
import { Feed } from "./feed.js";
import { clockTime, count, counted, fullTime } from "./format.js";
import { parse, stringify } from "./json.js";

/** @typedef {{index: number, at: number, value: any}} Chunk */
/** @typedef {{seq_num: number, timestamp: number, body: string}} Record */

/** Pieces of the page that are shown at most, the last ones: lines, or runs of text of about `PIECE` characters. */
const SHOWN = 1000;
const PIECE = 2000;
/** Values that are put on the page in one frame, so that it never stands still. */
const STEP = 2000;

export class RunStreams {
  /**
   * @param {string} runId
   * @param {{section: HTMLElement, tabs: HTMLElement, view: HTMLElement, about: HTMLElement, earlier: HTMLElement,
   *   copy: HTMLElement, download: HTMLElement}} parts
   */
  constructor(runId, parts) {
    this.runId = runId;
    this.parts = parts;
    /** @type {Map<string, Tab>} */
    this.tabs = new Map();
    /** @type {Tab | null} */
    this.chosen = null;
    this.reading = false;
    this.wanted = false;
    this.draw = oncePerFrame(() => this.drawNow());
    copyOnClick(parts.copy, () => this.chosen?.text() ?? "");
    parts.download.addEventListener("click", () => this.chosen?.download());
    parts.tabs.addEventListener("keydown", (event) => this.move(event));
  }

  /** Look which streams there are. Without a connection nothing happens: the feed of the run calls again. */
  async refresh() {
    this.wanted = true;
    if (this.reading) return;
    this.reading = true;
    try {
      while (this.wanted) {
        this.wanted = false;
        const found = await get(`${runUrl(this.runId)}/streams`);
        for (const stream of found.get("data")) this.take(stream);
      }
    } catch {
      // Asked again with the next word of the feed.
    } finally {
      this.reading = false;
    }
  }

  /** @param {Map<string, any>} stream */
  take(stream) {
    const key = stream.get("key");
    let tab = this.tabs.get(key);
    if (tab === undefined) {
      tab = new Tab(this.runId, key, this.draw);
      tab.button.addEventListener("click", () => this.choose(/** @type {Tab} */ (tab)));
      this.tabs.set(key, tab);
      arrange(this.parts.tabs, [...this.tabs.values()].map((one) => one.button));
      this.parts.section.hidden = false;
    }
    tab.error = stream.get("error") ?? "";
    if (this.chosen === null) this.choose(tab);
    // Somebody writes again to a stream that had ended.
    else if (tab === this.chosen && stream.get("state") === "open") tab.open();
    this.draw();
  }

  /** @param {Tab} tab */
  choose(tab) {
    if (tab === this.chosen) return;
    this.chosen?.close();
    this.chosen = tab;
    for (const one of this.tabs.values()) {
      one.button.setAttribute("aria-selected", String(one === tab));
      one.button.tabIndex = one === tab ? 0 : -1;
    }
    this.parts.view.setAttribute("aria-label", `Stream ${tab.key}`);
    this.parts.view.replaceChildren();
    tab.begin();
    tab.open();
    this.draw();
  }

  /** @param {KeyboardEvent} event */
  move(event) {
    const step = event.key === "ArrowRight" ? 1 : event.key === "ArrowLeft" ? -1 : 0;
    if (step === 0 || this.chosen === null) return;
    const all = [...this.tabs.values()];
    const next = all[(all.indexOf(this.chosen) + step + all.length) % all.length];
    this.choose(next);
    next.button.focus();
  }

  drawNow() {
    const tab = this.chosen;
    if (tab === null) return;
    const { view, about, earlier } = this.parts;
    const followed = view.scrollTop + view.clientHeight >= view.scrollHeight - 4;
    if (tab.drawOn(view)) this.draw();
    const words = { connecting: "", live: "open", reconnecting: "reconnecting…", ended: "ended" };
    const state = tab.error ? `failed: ${tab.error}` : (words[/** @type {keyof words} */ (tab.state)] ?? tab.state);
    setText(about, [counted(tab.chunks.length, "value"), state].filter(Boolean).join(", "));
    earlier.hidden = tab.hiddenCount === 0;
    setText(earlier, `${counted(tab.hiddenCount, "earlier value")} not shown; copy or download has all of them`);
    // Whoever has scrolled up is reading.
    if (followed) view.scrollTop = view.scrollHeight;
  }
}

/** One stream: its values, and what of them is on the page. */
class Tab {
  /**
   * @param {string} runId
   * @param {string} key
   * @param {() => void} changed
   */
  constructor(runId, key, changed) {
    this.runId = runId;
    this.key = key;
    this.changed = changed;
    this.error = "";
    /** @type {import("./feed.js").FeedState} */
    this.state = "connecting";
    /** @type {Chunk[]} */
    this.chunks = [];
    this.drawn = 0;
    this.hiddenCount = 0;
    /** How many values each piece of the page stands for. @type {number[]} */
    this.pieces = [];
    /** @type {Feed | null} */
    this.feed = null;
    this.button = element("button", { type: "button", role: "tab", class: "small", "aria-controls": "stream" }, key);
  }

  /** Nothing of it is on the page. */
  begin() {
    this.drawn = Math.max(0, this.chunks.length - SHOWN);
    this.hiddenCount = this.drawn;
    this.pieces = [];
  }

  /** Read on from where it is. */
  open() {
    if (this.feed !== null && this.state !== "ended") return;
    this.close();
    this.state = "connecting";
    this.feed = new Feed({
      // After a break it goes on behind what is here.
      watch: () => ({ run: this.runId, stream: this.key, start: this.chunks.length }),
      read: JSON.parse,
      onEvent: (event, { records }) => {
        if (event !== "batch") return;
        this.changed();
        return records.every((/** @type {Record} */ record) => this.take(record));
      },
      onState: (state) => {
        this.state = state;
        this.changed();
      },
    });
  }

  close() {
    this.feed?.stop();
    this.feed = null;
  }

  /**
   * @param {Record} record
   * @returns {boolean} false if something before it is missing
   */
  take({ seq_num: index, timestamp: at, body }) {
    if (index > this.chunks.length) return false;
    // What came before a break may come again.
    if (index < this.chunks.length) return true;
    this.chunks.push({ index, at, value: /** @type {Map<string, any>} */ (parse(body)).get("data") });
    return true;
  }

  /**
   * Put on the page what is not there yet, a part of it.
   *
   * @param {HTMLElement} view
   * @returns {boolean} whether there is more
   */
  drawOn(view) {
    if (this.chunks.length - this.drawn > 2 * STEP) {
      // Nobody could read it as it passes: the end is what counts.
      view.replaceChildren();
      this.begin();
    }
    const until = Math.min(this.chunks.length, this.drawn + STEP);
    for (; this.drawn < until; this.drawn += 1) this.drawChunk(view, this.chunks[this.drawn]);
    while (view.childElementCount > SHOWN) {
      view.firstElementChild?.remove();
      this.hiddenCount += this.pieces.shift() ?? 0;
    }
    return this.drawn < this.chunks.length;
  }

  /**
   * @param {HTMLElement} view
   * @param {Chunk} chunk
   */
  drawChunk(view, chunk) {
    if (typeof chunk.value !== "string") {
      const time = element("time", { class: "exact", datetime: new Date(chunk.at).toISOString(), title: fullTime(chunk.at) }, clockTime(chunk.at));
      const place = element("span", { class: "stream-index" }, count(chunk.index));
      view.append(element("div", { class: "stream-line" }, place, time, element("span", { class: "stream-value" }, stringify(chunk.value))));
      this.pieces.push(1);
      return;
    }
    const last = view.lastElementChild;
    if (last instanceof HTMLElement && last.classList.contains("stream-text") && (last.textContent?.length ?? 0) < PIECE) {
      last.append(chunk.value);
      this.pieces[this.pieces.length - 1] += 1;
    } else {
      view.append(element("span", { class: "stream-text" }, chunk.value));
      this.pieces.push(1);
    }
  }

  isText() {
    return this.chunks.every(({ value }) => typeof value === "string");
  }

  /** All of it: text as it flows, or else a line of JSON for each value. */
  text() {
    return this.isText()
      ? this.chunks.map(({ value }) => value).join("")
      : this.chunks.map(({ value }) => `${stringify(value)}\n`).join("");
  }

  download() {
    const url = URL.createObjectURL(new Blob([this.text()], { type: "text/plain" }));
    const kind = this.isText() ? "txt" : "jsonl";
    const link = element("a", { href: url, download: `${this.key.replaceAll(/[^\w.-]+/g, "_")}.${kind}` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  }
}
