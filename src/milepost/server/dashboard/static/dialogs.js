// Asking before something is done.

import { faultWords } from "./api.js";
import { element, setText } from "./dom.js";

let made = 0;

/**
 * Show a dialog. It closes when `act` has come through; what goes wrong is said in it.
 *
 * @param {object} options
 * @param {string} options.title
 * @param {Node[]} [options.content]
 * @param {string} options.action what the button says
 * @param {() => Promise<void | "stay">} options.act "stay": the dialog stays, for what it says
 * @param {() => void} [options.onClose]
 */
export function openDialog({ title, content = [], action, act, onClose = () => {} }) {
  made += 1;
  const id = `dialog-${made}`;
  const problem = element("p", { class: "fault", role: "alert", hidden: "" });
  const doIt = element("button", { type: "submit", class: "primary" }, action);
  const close = element("button", { type: "button" }, "Close");
  const form = element(
    "form",
    { class: "stack" },
    element("h2", { id }, title),
    ...content,
    problem,
    element("div", { class: "buttons" }, doIt, close),
  );
  const dialog = element("dialog", { "aria-labelledby": id }, form);
  close.addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => {
    dialog.remove();
    onClose();
  });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    doIt.disabled = true;
    problem.hidden = true;
    try {
      if ((await act()) === "stay") doIt.hidden = true;
      else dialog.close();
    } catch (error) {
      setText(problem, faultWords(error));
      problem.hidden = false;
    } finally {
      doIt.disabled = false;
    }
  });
  document.body.append(dialog);
  dialog.showModal();
}
