// Stopping a model: the dialog, the request and its result.

import { Refused, stop } from "./api.js";
import { byId, named, setText } from "./dom.js";
import { place } from "./format.js";
import { showError } from "./notices.js";

// A browser opens six connections to a host, and the feed needs some of them.
const MAX_REQUESTS = 3;

export class Stopping {
  #running = 0;
  #waiting = [];

  /** `rowsOf(model, one)` returns the rows to stop, `onChange()` updates the page, and the async
   *  `onUnauthorized()` asks for a token. */
  constructor({ rowsOf, onChange, onUnauthorized }) {
    this.rowsOf = rowsOf;
    this.onChange = onChange;
    this.onUnauthorized = onUnauthorized;
    this.dialog = byId("stop");
  }

  /** Ask the user whether to stop a backend, and stop it on a yes. */
  async ask(item, button) {
    const replicas = this.rowsOf(item.model, null).length;
    const what = replicas > 1
      ? "It finishes what it is busy with, and then all its processes are ended."
      : `${place(item)} finishes what it is busy with, and then all its processes are ended.`;
    byId("stop-which").hidden = replicas < 2;
    setText(byId("stop-one"), `this one, ${place(item)}`);
    setText(byId("stop-all"), `all ${replicas}`);
    if (!(await this.#confirm(["Stop ", named(item.model), "?"], what, button))) return;
    const one = replicas > 1 && this.dialog.querySelector("[value=one]").checked ? item : null;
    await this.#stop(item.model, one, byId("stop-force").checked, this.rowsOf(item.model, one));
  }

  /** Ask the user whether to stop what an ended backend left behind, and stop it on a yes. */
  async askLeftBehind(end, button, rows) {
    const title = ["Stop what ", named(end.model), " left behind?"];
    const what = `The processes that ${place(end)} left behind are ended. Backends of the model that run now are not.`;
    byId("stop-which").hidden = true;
    if (!(await this.#confirm(title, what, button))) return;
    await this.#stop(end.model, end, byId("stop-force").checked, rows);
  }

  async #confirm(title, what, button) {
    byId("stop-title").replaceChildren(...title);
    setText(byId("stop-what"), what);
    this.dialog.querySelector("[value=one]").checked = true;
    byId("stop-force").checked = false;
    this.dialog.returnValue = "no";
    this.dialog.showModal();
    await new Promise((resolve) => this.dialog.addEventListener("close", resolve, { once: true }));
    button.focus();
    return this.dialog.returnValue === "yes";
  }

  async #stop(model, one, force, rows) {
    for (const row of rows) row.setPending("asking");
    if (this.#running >= MAX_REQUESTS) await new Promise((resolve) => this.#waiting.push(resolve));
    this.#running += 1;
    try {
      await stop(model, one, force);
    } catch (error) {
      showError(reason(model, error));
      if (error.status === 401) await this.onUnauthorized();
    } finally {
      this.#running -= 1;
      this.#waiting.shift()?.();
      for (const row of rows) row.setPending(null);
      this.onChange();
    }
  }
}

function reason(model, error) {
  if (!(error instanceof Refused)) return `Whether ${model} was stopped is not known: ${error.message}.`;
  if (error.status === 403) {
    return `${model} was not stopped: your token may look, and not stop (${error.message}).`;
  }
  return error.message.includes(model) ? error.message : `${model}: ${error.message}`;
}
