// The log of a run: read page by page, the lines at its end as they come.
//
// The feed of the run says when there are more; see `run_page.js`.

import { get, runUrl } from "./api.js";
import { element, setText } from "./dom.js";
import { clockTime, counted, fullTime } from "./format.js";

/** @typedef {Map<string, any>} Line a line as the API sends it */

/** Lines that are shown at first, the last ones. */
const SHOWN = 500;
/** Earlier lines that are shown at once, so that a page never stands still. */
const STEP = 1000;
/** Lines that are kept at most. */
const KEPT = 10_000;
/** However often the log grows, it is read at most so often. */
const READ_MILLISECONDS = 500;

export class RunLog {
  /**
   * @param {string} runId
   * @param {HTMLElement} view what scrolls
   * @param {HTMLElement} list the `<ol>` of the lines in it
   * @param {HTMLElement} section hidden while there are no lines
   * @param {HTMLButtonElement} earlier shows the earlier lines
   * @param {{form: HTMLFormElement, nothing: HTMLElement}} filter the form, and what is shown where no line matches
   */
  constructor(runId, view, list, section, earlier, filter) {
    this.url = `${runUrl(runId)}/logs`;
    this.form = filter.form;
    this.nothing = filter.nothing;
    this.query = "";
    this.view = view;
    this.list = list;
    this.section = section;
    this.earlier = earlier;
    /** @type {Line[]} */
    this.lines = [];
    // The last line that was looked at.
    this.cursor = "0";
    this.reading = false;
    this.wanted = false;
    this.most = SHOWN;
    earlier.addEventListener("click", () => {
      this.most = KEPT;
      const end = this.lines.length - this.list.childElementCount;
      this.list.prepend(...this.lines.slice(Math.max(0, end - STEP), end).map(lineElement));
      this.drawEarlier();
    });
    this.form.addEventListener("submit", (event) => event.preventDefault());
    this.form.addEventListener("input", () => this.filter());
  }

  /** Begin anew with what the form says. */
  filter() {
    if (!this.form.checkValidity()) return;
    const given = [...new FormData(this.form)].map(([name, value]) => [name, String(value).trim()]).filter(([, value]) => value !== "");
    const query = new URLSearchParams(given).toString();
    if (query === this.query) return;
    this.query = query;
    this.lines = [];
    this.cursor = "0";
    this.most = SHOWN;
    this.list.replaceChildren();
    this.nothing.hidden = true;
    this.drawEarlier();
    this.refresh();
  }

  /** Read what is new, and once more if this is called again meanwhile. Without a connection nothing happens. */
  async refresh() {
    this.wanted = true;
    if (this.reading) return;
    this.reading = true;
    try {
      while (this.wanted) {
        this.wanted = false;
        await this.read();
        await new Promise((resolve) => setTimeout(resolve, READ_MILLISECONDS));
      }
    } catch {
      // The feed tells that the connection is broken; the next call reads from the same place.
    } finally {
      this.reading = false;
    }
  }

  async read() {
    for (;;) {
      const { query } = this;
      const page = await get(`${this.url}?page[after]=${this.cursor}${query && `&${query}`}`);
      if (query !== this.query) continue;
      this.cursor = String(page.get("cursor"));
      this.add(page.get("data"));
      if (page.has("next")) continue;
      this.nothing.hidden = this.lines.length > 0 || query === "";
      return;
    }
  }

  /** @param {Line[]} lines */
  add(lines) {
    if (lines.length === 0) return;
    this.nothing.hidden = true;
    const { list, view } = this;
    this.section.hidden = false;
    const followed = view.scrollTop + view.clientHeight >= view.scrollHeight - 4;
    this.lines.push(...lines);
    if (this.lines.length > KEPT) this.lines.splice(0, this.lines.length - KEPT);
    list.append(...lines.map(lineElement));
    while (list.childElementCount > this.most) list.firstElementChild?.remove();
    this.drawEarlier();
    // Whoever has scrolled up is reading.
    if (followed) view.scrollTop = view.scrollHeight;
  }

  drawEarlier() {
    const hidden = this.lines.length - this.list.childElementCount;
    this.earlier.hidden = hidden <= 0;
    setText(this.earlier, `Show ${counted(Math.min(hidden, STEP), "earlier line")}`);
  }
}

/** @param {Line} line */
function lineElement(line) {
  const at = Number(line.get("at")) / 1000;
  const logger = line.get("logger");
  return element(
    "li",
    { "data-level": line.get("level") },
    element("time", { class: "exact", datetime: new Date(at).toISOString(), title: fullTime(at) }, clockTime(at)),
    element("span", { class: "log-level" }, line.get("level")),
    element("span", { class: "log-message" }, line.get("message")),
    ...(logger ? [element("span", { class: "log-logger" }, logger)] : []),
    element("span", { class: "log-attempt", title: "attempt" }, `#${line.get("attempt") ?? 1}`),
  );
}
