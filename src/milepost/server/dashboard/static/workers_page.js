// The workers that are online.

import { element } from "./dom.js";
import { count, timeAgo } from "./format.js";
import { keepTable } from "./overview.js";

keepTable({
  url: "/api/v1/workers",
  cells: (worker) => [
    element("div", { class: "run-name" }, element("span", { class: "task" }, worker.get("name") || worker.get("id")), element("span", { class: "run-id" }, worker.get("id"))),
    timeAgo(worker.get("registeredAt")),
    count(Number(worker.get("executing"))),
    count(Number(worker.get("waiting"))),
    element("span", { class: "task" }, worker.get("tasks").join(", ")),
  ],
});
