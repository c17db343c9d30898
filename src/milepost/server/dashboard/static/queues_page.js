// The queues: how they stand, pausing them, and their limits.

import { send } from "./api.js";
import { openDialog } from "./dialogs.js";
import { element } from "./dom.js";
import { count } from "./format.js";
import { keepTable, rowButton } from "./overview.js";

const table = keepTable({
  url: "/api/v1/queues",
  cells: (queue) => {
    const name = queue.get("name");
    const url = `/api/v1/queues/${encodeURIComponent(name)}`;
    const isPaused = queue.get("paused");
    const pause = isPaused ? "Resume" : "Pause";
    const limit = queue.get("concurrencyLimit");
    return [
      element("span", { class: "task" }, name),
      isPaused ? element("span", { class: "missing" }, "paused") : "open",
      `${count(Number(queue.get("queued")))}${queue.get("queuedIsMore") ? "+" : ""}`,
      count(Number(queue.get("running"))),
      limit === undefined ? "–" : `${count(Number(limit))}${queue.get("concurrency").has("override") ? " (set)" : ""}`,
      queue.has("rate") ? queue.get("rate").get("limit") : "–",
      element(
        "div",
        { class: "buttons" },
        rowButton(`pause ${name}`, pause, `${pause} queue ${name}`, async () => {
          await send("POST", `${url}/pause`, { action: isPaused ? "resume" : "pause" });
          await table.refresh();
        }),
        rowButton(`limit ${name}`, "Limit…", `Limit of queue ${name}`, async () => askLimit(url, queue)),
      ),
    ];
  },
});

/**
 * @param {string} url
 * @param {Map<string, any>} queue
 */
function askLimit(url, queue) {
  const limit = element("input", { id: "limit", inputmode: "numeric", autocomplete: "off" });
  limit.value = String(queue.get("concurrencyLimit") ?? "");
  const base = queue.get("concurrency").get("base");
  openDialog({
    title: `Limit of queue ${queue.get("name")}`,
    content: [
      element("label", { for: "limit" }, "How many of its runs execute at once"),
      limit,
      element("p", { class: "quiet" }, `Left empty, it is what the tasks say: ${base === undefined ? "no limit" : count(Number(base))}.`),
    ],
    action: "Set the limit",
    act: async () => {
      const text = limit.value.trim();
      if (text === "") await send("POST", `${url}/concurrency/reset`, {});
      else if (/^[0-9]{1,9}$/.test(text)) await send("POST", `${url}/concurrency/override`, { concurrencyLimit: Number(text) });
      else throw new Error("The limit is a whole number.");
      await table.refresh();
    },
  });
}
