// The schedules: when they fire next, pausing them.

import { send } from "./api.js";
import { element } from "./dom.js";
import { fullTime, timeAgo } from "./format.js";
import { keepTable, rowButton } from "./overview.js";

const table = keepTable({
  url: "/api/v1/schedules",
  cells: (schedule) => {
    const id = schedule.get("id");
    const isActive = schedule.get("active");
    const word = isActive ? "Pause" : "Resume";
    const note = schedule.get("note");
    return [
      element("div", { class: "run-name" }, element("a", { class: "task", href: `/tasks?${new URLSearchParams({ task: schedule.get("task") })}` }, schedule.get("task")), element("span", { class: "run-id" }, id)),
      timesOf(schedule),
      isActive ? (schedule.has("nextRun") ? exactAndAgo(schedule.get("nextRun")) : "never") : element("span", { class: "missing" }, "paused"),
      element("span", {}, schedule.has("lastRun") ? timeAgo(schedule.get("lastRun")) : "–", ...(note ? [" ", element("span", { class: "missing" }, note)] : [])),
      element("a", { href: `/?${new URLSearchParams({ schedule: id })}` }, "runs"),
      rowButton(`pause ${id}`, word, `${word} schedule ${id}`, async () => {
        await send("POST", `/api/v1/schedules/${encodeURIComponent(id)}/${isActive ? "deactivate" : "activate"}`);
        await table.refresh();
      }),
    ];
  },
});

/** @param {Map<string, any>} schedule */
function timesOf(schedule) {
  const generator = schedule.get("generator");
  const expression = generator.get("expression");
  const zone = schedule.get("timezone");
  const words = generator.get("type") === "EVERY" ? `every ${expression}` : `${expression}${zone === "UTC" ? "" : ` ${zone}`}`;
  return element("span", { title: generator.get("description") }, words);
}

/** @param {string} iso */
function exactAndAgo(iso) {
  const about = timeAgo(iso);
  about.className = "quiet";
  return element("span", {}, fullTime(Date.parse(iso)), " ", about);
}
