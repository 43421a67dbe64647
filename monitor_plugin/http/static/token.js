// Asks for the token, once, however many requests want it.

import { token } from "./api.js";
import { byId, setText } from "./dom.js";

let asking = null;

/** Ask for a token; comes back once there is another one. */
export function askForToken() {
  asking ??= ask().finally(() => { asking = null; });
  return asking;
}

async function ask() {
  const dialog = byId("token");
  const input = byId("token-text");
  const wrong = token.get() !== null;
  setText(byId("token-error"), wrong ? "The token that you gave is not valid." : "");
  input.setAttribute("aria-invalid", String(wrong));
  token.forget();
  byId("forget").hidden = true;
  input.value = "";
  // Esc closes a dialog; without a token there is nothing behind this one.
  dialog.oncancel = (event) => event.preventDefault();
  while (input.value.trim() === "") {
    if (!dialog.open) dialog.showModal();
    input.focus();
    await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  }
  token.keep(input.value.trim());
  input.value = "";
  byId("forget").hidden = false;
}
