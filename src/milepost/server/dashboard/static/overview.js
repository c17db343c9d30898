// Pages that show a table of things and keep it up to date: tasks, queues, workers, schedules.

import { faultWords, get } from "./api.js";
import { byId, element, setText } from "./dom.js";
import { refreshTimes } from "./format.js";
import { stringify } from "./json.js";

const PAGE_SIZE = 100;
const READ_MILLISECONDS = 3000;

/** @typedef {Map<string, any>} Thing */

/**
 * Keep a table up to date, as long as somebody looks.
 *
 * @param {object} options
 * @param {string} options.url what the API calls the list
 * @param {(thing: Thing) => (Node | string)[]} options.cells of one thing, in the order of the columns
 * @returns {{refresh: () => Promise<void>}}
 */
export function keepTable({ url, cells }) {
  const number = Number(new URLSearchParams(location.search).get("page") ?? 1) || 1;
  const body = byId("things");
  const columns = [...document.querySelectorAll("thead th")].map((head) => head.textContent ?? "");
  let shown = "";

  const refresh = async () => {
    try {
      const answer = await get(`${url}?page=${number}&perPage=${PAGE_SIZE}`);
      /** @type {Thing[]} */
      const things = answer.get("data");
      draw(things);
      const last = Number(answer.get("pagination").get("totalPages"));
      turn("newer", number > 1 ? number - 1 : 0);
      turn("older", number < last ? number + 1 : 0);
      say("live", "Live");
    } catch (error) {
      say("reconnecting", faultWords(error));
    }
  };

  /** @param {Thing[]} things */
  const draw = (things) => {
    const text = stringify(things);
    byId("table").hidden = things.length === 0;
    byId("empty").hidden = things.length > 0;
    refreshTimes(body);
    // Whoever has the focus in a row keeps it, as long as nothing has changed.
    if (text === shown) return;
    shown = text;
    const focused = document.activeElement instanceof HTMLElement && body.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
    body.replaceChildren(...things.map((thing) => row(cells(thing), columns)));
    if (focused !== undefined) /** @type {HTMLElement | null} */ (body.querySelector(`[data-key="${CSS.escape(focused)}"]`))?.focus();
  };

  const keep = async () => {
    for (;;) {
      if (!document.hidden) await refresh();
      await new Promise((resolve) => setTimeout(resolve, READ_MILLISECONDS));
    }
  };
  keep();
  return { refresh };
}

/**
 * @param {string} id
 * @param {number} number of the page; 0 where there is none
 */
function turn(id, number) {
  const link = /** @type {HTMLAnchorElement} */ (byId(id));
  link.hidden = number === 0;
  link.href = `?page=${number}`;
}

/**
 * @param {string} state
 * @param {string} words
 */
function say(state, words) {
  const shown = byId("connection");
  shown.dataset.state = state;
  setText(shown, words);
}

/**
 * @param {(Node | string)[]} cells
 * @param {string[]} columns what they are called, for a screen that has no room for a head
 */
function row(cells, columns) {
  const [first, ...rest] = cells;
  return element(
    "tr",
    { role: "row" },
    element("th", { scope: "row", role: "rowheader" }, first ?? ""),
    ...rest.map((cell, index) => element("td", { role: "cell", "data-column": columns[index + 1] ?? "" }, cell)),
  );
}

/**
 * A button of a row.
 *
 * @param {string} key tells it from every other one of the table
 * @param {string} word
 * @param {string} label for who hears it alone
 * @param {() => Promise<any>} act
 */
export function rowButton(key, word, label, act) {
  const button = element("button", { type: "button", class: "small", "data-key": key, "aria-label": label }, word);
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      await act();
    } catch (error) {
      const problem = byId("problem");
      setText(problem, faultWords(error));
      problem.hidden = false;
    } finally {
      button.disabled = false;
    }
  });
  return button;
}
