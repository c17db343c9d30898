// Buttons that copy something.

import { element, setText } from "./dom.js";

const SAID_MILLISECONDS = 1500;

/**
 * Let a button copy a text. It says for a moment that it has.
 *
 * @param {HTMLElement} button
 * @param {() => string} text
 */
export function copyOnClick(button, text) {
  const word = button.textContent ?? "";
  button.addEventListener("click", async () => {
    setText(button, (await copy(text())) ? "Copied" : "Not allowed");
    setTimeout(() => setText(button, word), SAID_MILLISECONDS);
  });
}

/**
 * @param {string} text
 * @returns {Promise<boolean>} whether the browser has let it happen
 */
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Browsers offer the clipboard on https and on this machine only; elsewhere there is the old way.
    const area = element("textarea", { readonly: "", class: "unseen" });
    area.value = text;
    const focused = document.activeElement;
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    if (focused instanceof HTMLElement) focused.focus();
    return copied;
  }
}
