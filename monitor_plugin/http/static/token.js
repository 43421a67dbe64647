// Asks the user for the token, once for all requests that need it.

import { token } from "./api.js";
import { byId, setText } from "./dom.js";

let pending = null;

/** Ask for a token; returns when the user has entered one. */
export function askForToken() {
  pending ??= showDialog().finally(() => { pending = null; });
  return pending;
}

async function showDialog() {
  const dialog = byId("token");
  const input = byId("token-text");
  const wrong = token.get() !== null;
  setText(byId("token-error"), wrong ? "The token that you gave is not valid." : "");
  input.setAttribute("aria-invalid", String(wrong));
  token.remove();
  byId("forget").hidden = true;
  input.value = "";
  // Esc would close the dialog, but without a token the page has nothing to show.
  dialog.oncancel = (event) => event.preventDefault();
  while (input.value.trim() === "") {
    if (!dialog.open) dialog.showModal();
    input.focus();
    await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  }
  token.set(input.value.trim());
  input.value = "";
  byId("forget").hidden = false;
}
