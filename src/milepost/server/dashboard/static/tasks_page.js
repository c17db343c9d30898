// The tasks that workers have offered.

import { element } from "./dom.js";
import { count, timeAgo } from "./format.js";
import { keepTable } from "./overview.js";

keepTable({
  url: "/api/v1/tasks",
  cells: (task) => {
    const id = task.get("id");
    const online = Number(task.get("workersOnline"));
    return [
      element("a", { class: "task", href: `/tasks?${new URLSearchParams({ task: id })}`, "data-key": id }, id),
      element("span", { class: "task" }, task.get("queue")),
      task.has("queueConcurrency") ? String(task.get("queueConcurrency")) : "–",
      String(task.get("maxAttempts")),
      online > 0 ? count(online) : element("span", { class: "missing" }, "none"),
      timeAgo(task.get("updatedAt")),
    ];
  },
});
