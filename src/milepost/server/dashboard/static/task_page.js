// One task: what is known of it, how its runs stand, and a form that triggers one.

import { faultWords, get, runPage, send } from "./api.js";
import { byId, element, setText } from "./dom.js";
import { count, fullTime } from "./format.js";
import { PayloadForm } from "./payload_form.js";
import { checkedJson } from "./run_actions.js";
import { STATUSES, statusWord } from "./status.js";
import { Tree } from "./tree.js";

const READ_MILLISECONDS = 5000;

const id = byId("task").dataset.task ?? "";
const url = `/api/v1/tasks/${encodeURIComponent(id)}`;
const schemaTree = new Tree(byId("schema"));
/** @type {PayloadForm} */
let form = new PayloadForm(null);
let isKnown = false;

byId("payload-form").append(form.element);
byId("trigger-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const problem = byId("trigger-problem");
  const button = /** @type {HTMLButtonElement} */ (byId("trigger"));
  problem.hidden = true;
  button.disabled = true;
  try {
    const triggered = await send("POST", `${url}/trigger`, requestOf());
    const made = triggered.get("id");
    byId("triggered").replaceChildren("Triggered: ", element("a", { class: "run-id", href: runPage(made) }, made));
  } catch (error) {
    setText(problem, faultWords(error));
    problem.hidden = false;
  } finally {
    button.disabled = false;
  }
});

function requestOf() {
  const payload = form.text();
  const value = (/** @type {string} */ name) => /** @type {HTMLInputElement} */ (byId(name)).value.trim();
  const tags = value("tags").split(",").map((tag) => tag.trim()).filter(Boolean);
  /** @type {{[name: string]: any}} */
  const options = {};
  if (tags.length > 0) options.tags = tags;
  if (value("delay")) options.delay = value("delay");
  const metadata = value("first-metadata");
  if (metadata) options.metadata = JSON.parse(checkedJson(metadata));
  if (payload === null) return { options };
  return { payload, options: { ...options, payloadType: "application/json" } };
}

/** @param {Map<string, any>} task */
function draw(task) {
  if (!isKnown) {
    isKnown = true;
    const schema = task.get("payloadSchema");
    form = new PayloadForm(schema instanceof Map ? schema : null);
    byId("payload-form").replaceChildren(form.element);
    byId("schema-section").hidden = schema === undefined;
    if (schema !== undefined) schemaTree.update(schema);
  }
  const facts = [
    ["Queue", task.get("queue")],
    ["Limit of the queue", task.has("queueConcurrency") ? count(Number(task.get("queueConcurrency"))) : "none"],
    ["Attempts", String(task.get("maxAttempts"))],
    ["Workers online", Number(task.get("workersOnline")) === 0 ? "none: its runs wait" : count(Number(task.get("workersOnline")))],
    ["Last offered", fullTime(Date.parse(task.get("updatedAt")))],
  ];
  byId("facts").replaceChildren(...facts.map(([name, value]) => element("div", {}, element("dt", {}, name ?? ""), element("dd", {}, value ?? ""))));
  /** @type {Map<string, any>} */
  const counts = task.get("counts");
  const shown = STATUSES.filter((status) => counts.has(status));
  byId("counts").replaceChildren(
    ...shown.map((status) => {
      const href = `/?${new URLSearchParams({ task: id, status, level: "all" })}`;
      return element("li", {}, element("a", { href, class: "status", "data-status": status }, `${count(Number(counts.get(status)))} ${statusWord(status).toLowerCase()}`));
    }),
  );
}

for (;;) {
  const connection = byId("connection");
  try {
    if (!document.hidden) draw(await get(url));
    connection.dataset.state = "live";
    setText(connection, "Live");
  } catch (error) {
    connection.dataset.state = "reconnecting";
    setText(connection, faultWords(error));
  }
  await new Promise((resolve) => setTimeout(resolve, READ_MILLISECONDS));
}
