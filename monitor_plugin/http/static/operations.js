// Starting, stopping and restarting models: the dialog, the requests and their results.

import { Refused, restart, start, stop } from "./api.js";
import { byId, named, setText } from "./dom.js";
import { place } from "./format.js";
import { showError } from "./notices.js";

// A browser opens six connections to a host, and the feed and the panel need some of them. Starts may
// take minutes, and are counted apart, so that no shutdown waits for one.
const MAX_SHUTDOWNS = 2;
const MAX_STARTS = 2;

const ENDS_ALL = "finishes what it is busy with, and then all its processes are ended";
const modelKey = ({ model, node }) => JSON.stringify([model, node ?? ""]);

export class Operations {
  #shutdowns = new Slots(MAX_SHUTDOWNS);
  #starts = new Slots(MAX_STARTS);
  #words = new Map();

  /** `rowsOf(model, one)` returns the rows to stop, `replicasOf(model)` the model's backends,
   *  `onChange()` updates the page, and the async `onUnauthorized()` asks for a token. */
  constructor({ rowsOf, replicasOf, onChange, onUnauthorized }) {
    this.rowsOf = rowsOf;
    this.replicasOf = replicasOf;
    this.onChange = onChange;
    this.onUnauthorized = onUnauthorized;
    this.dialog = byId("stop");
  }

  /** What is being done to an item's model: "Starting…", "Restarting…", or null. */
  wordOf(item) {
    return this.#words.get(modelKey(item)) ?? null;
  }

  /** Ask the user whether to stop a backend, and stop it on a yes. */
  async askToStop(item, button) {
    const replicas = this.replicasOf(item.model);
    const what = `${replicas.length > 1 ? "It" : place(item)} ${ENDS_ALL}.`;
    if (!(await this.#confirm(["Stop ", named(item.model), "?"], what, button, "Stop it", item, replicas))) return;
    const one = replicas.length > 1 && this.#isOneChosen() ? item : null;
    await this.#stop(item.model, one, byId("stop-force").checked, this.rowsOf(item.model, one));
  }

  /** Ask the user whether to restart a backend's model, and restart it on a yes. */
  async askToRestart(item, button) {
    const replicas = this.replicasOf(item.model).filter(({ node }) => node === item.node);
    const what = `${replicas.length > 1 ? "It" : place(item)} ${ENDS_ALL}. Then its host starts it again.`;
    if (!(await this.#confirm(["Restart ", named(item.model), "?"], what, button, "Restart it", item, replicas))) return;
    const pid = replicas.length > 1 && this.#isOneChosen() ? item.pid : undefined;
    const force = byId("stop-force").checked;
    await this.#start(item, "Restarting…", "restarted", "restart", () => restart(item.model, pid, item.node, force));
  }

  /** Start a model, without a question: that ends nothing. */
  async start(item) {
    await this.#start(item, "Starting…", "started", "start", () => start(item.model, item.node));
  }

  /** Ask the user whether to stop what an ended backend left behind, and stop it on a yes. */
  async askLeftBehind(end, button, rows) {
    const title = ["Stop what ", named(end.model), " left behind?"];
    const what = `The processes that ${place(end)} left behind are ended. Backends of the model that run now are not.`;
    if (!(await this.#confirm(title, what, button, "Stop it", end, []))) return;
    await this.#stop(end.model, end, byId("stop-force").checked, rows);
  }

  #isOneChosen() {
    return this.dialog.querySelector("[value=one]").checked;
  }

  /** Show the dialog; returns whether the user said yes. */
  async #confirm(title, what, button, yes, item, replicas) {
    byId("stop-title").replaceChildren(...title);
    setText(byId("stop-what"), what);
    setText(byId("stop-yes"), yes);
    byId("stop-which").hidden = replicas.length < 2;
    setText(byId("stop-one"), `this one, ${place(item)}`);
    setText(byId("stop-all"), `all ${replicas.length}`);
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
    try {
      await this.#shutdowns.run(() => stop(model, one, force));
    } catch (error) {
      await this.#report(model, error, "stopped", "stop");
    } finally {
      for (const row of rows) row.setPending(null);
      this.onChange();
    }
  }

  async #start(item, word, done, verb, request) {
    const key = modelKey(item);
    if (this.#words.has(key)) return;
    this.#words.set(key, word);
    this.onChange();
    try {
      await this.#starts.run(request);
    } catch (error) {
      await this.#report(item.model, error, done, verb);
    } finally {
      this.#words.delete(key);
      this.onChange();
    }
  }

  async #report(model, error, done, verb) {
    showError(reason(model, error, done, verb));
    if (error.status === 401) await this.onUnauthorized();
  }
}

/** Lets at most `most` requests run at a time; the others wait in the order of their arrival. */
class Slots {
  #running = 0;
  #waiting = [];

  constructor(most) {
    this.most = most;
  }

  async run(request) {
    if (this.#running >= this.most) await new Promise((resolve) => this.#waiting.push(resolve));
    this.#running += 1;
    try {
      return await request();
    } finally {
      this.#running -= 1;
      this.#waiting.shift()?.();
    }
  }
}

function reason(model, error, done, verb) {
  if (!(error instanceof Refused)) return `Whether ${model} was ${done} is not known: ${error.message}.`;
  if (error.status === 403) {
    return `${model} was not ${done}: your token may look, and not ${verb} (${error.message}).`;
  }
  return error.message.includes(model) ? error.message : `${model}: ${error.message}`;
}
