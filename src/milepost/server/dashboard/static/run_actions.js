// What can be done with a run: cancel, replay, reschedule.

import { runPage, runUrl, send } from "./api.js";
import { openDialog } from "./dialogs.js";
import { element } from "./dom.js";
import { counted } from "./format.js";
import { parse, stringify } from "./json.js";
import { isFinal } from "./status.js";

/** @typedef {Map<string, any>} Run */

export class RunActions {
  /**
   * @param {string} runId
   * @param {HTMLElement} place where the buttons go
   */
  constructor(runId, place) {
    this.runId = runId;
    /** @type {Run} */
    this.run = new Map();
    this.cancel = button("Cancel…", () => this.askCancel());
    this.reschedule = button("Reschedule…", () => this.askReschedule());
    this.replay = button("Replay…", () => this.askReplay());
    // What they ask depends on the run, which comes later than the page.
    for (const each of [this.cancel, this.reschedule, this.replay]) each.hidden = true;
    place.append(this.cancel, this.reschedule, this.replay);
  }

  /** @param {Run} run */
  update(run) {
    this.run = run;
    this.cancel.hidden = isFinal(run.get("status")) || run.has("cancelAskedAt");
    this.reschedule.hidden = run.get("status") !== "DELAYED";
    this.replay.hidden = false;
  }

  askCancel() {
    let children = 0;
    for (const [status, number] of this.run.get("childCounts") ?? []) if (!isFinal(status)) children += Number(number);
    const words = children === 0 ? "It ends as cancelled." : `It ends as cancelled, and so do ${counted(children, "child", "children")} of it.`;
    openDialog({
      title: "Cancel this run?",
      content: [element("p", {}, `${words} A task that executes is asked to end, and has some time for it.`)],
      action: "Cancel the run",
      act: async () => {
        await send("POST", `/api/v2/runs/${encodeURIComponent(this.runId)}/cancel`, {});
      },
    });
  }

  askReschedule() {
    const delay = element("input", { id: "delay", required: "", autocomplete: "off", placeholder: "10m, 2h, or 2030-01-31T14:05Z" });
    openDialog({
      title: "Delay this run to another time",
      content: [element("label", { for: "delay" }, "From now on, or a time"), delay],
      action: "Reschedule",
      act: async () => {
        await send("POST", `${runUrl(this.runId)}/reschedule`, { delay: delay.value.trim() });
      },
    });
  }

  askReplay() {
    const before = this.run.has("payload") ? stringify(this.run.get("payload"), 2) : "";
    const payload = element("textarea", { id: "replay-payload", rows: "12", spellcheck: "false", autocomplete: "off" });
    payload.value = before;
    openDialog({
      title: "Replay this run",
      content: [
        element("p", { class: "quiet" }, "The same task again, as a run of its own, with the metadata and tags of its trigger."),
        element("label", { for: "replay-payload" }, "Payload, JSON"),
        payload,
      ],
      action: "Replay",
      act: async () => {
        // Untouched it is repeated by the server exactly as it was, whatever its encoding.
        const body = payload.value === before ? {} : { payload: checkedJson(payload.value), payloadType: "application/json" };
        const replayed = await send("POST", `${runUrl(this.runId)}/replay`, body);
        location.assign(runPage(replayed.get("id")));
      },
    });
  }
}

/**
 * The same text. Raises an error for what is not JSON.
 *
 * @param {string} text
 */
export function checkedJson(text) {
  try {
    parse(text);
  } catch (error) {
    if (error instanceof SyntaxError) throw new Error(`This is ${error.message}.`);
    throw error;
  }
  return text;
}

/**
 * @param {string} word
 * @param {() => void} act
 */
function button(word, act) {
  const made = element("button", { type: "button", class: "small" }, word);
  made.addEventListener("click", act);
  return made;
}
