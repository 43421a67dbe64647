// The log of a model: what its backend writes to a stream, from GET /backend/log.

import { get, Refused } from "./api.js";
import { byId, element, setText } from "./dom.js";
import { tabIsVisible } from "./feed.js";

const MAX_LINES = 2000;
const MAX_LINE = 4096;
const MAX_CHARACTERS = 2 ** 20;
const BYTES = 65536;
const RETRY_SECONDS = 5;
const NEAR_THE_END = 40;
// Statuses up to this one come from the monitor itself; those above may pass.
const LAST_FINAL = 501;
const NEEDS_ADMIN = "A log can hold what users sent to the model, so it needs an admin’s token";

// Control characters, and those that change the direction or the breaks of lines of a text.
const CONTROLS = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g;

/** A text in which no character can hide or move another one. */
function escapeControls(text) {
  return text.replace(CONTROLS, (character) => {
    const code = character.charCodeAt(0);
    return code < 0x100 ? `\\x${code.toString(16).padStart(2, "0")}` : `\\u${code.toString(16).padStart(4, "0")}`;
  });
}

/** The last lines of a stream, in a node: one child for each. */
export class LogLines {
  #open = null;
  #raw = "";
  #characters = 0;

  constructor(node) {
    this.node = node;
  }

  clear() {
    this.node.replaceChildren();
    this.#open = null;
    this.#raw = "";
    this.#characters = 0;
  }

  /** Add a text; its last line may be incomplete, and go on in the next text. */
  add(text) {
    const lines = text.split("\n");
    lines.forEach((line, index) => {
      this.#raw += line;
      while (this.#raw.length > MAX_LINE) {
        this.#show(this.#raw.slice(0, MAX_LINE));
        this.#open = null;
        this.#raw = this.#raw.slice(MAX_LINE);
      }
      const isComplete = index < lines.length - 1;
      if (isComplete || this.#raw !== "") this.#show(isComplete ? this.#raw.replace(/\r$/, "") : this.#raw);
      if (isComplete) {
        this.#open = null;
        this.#raw = "";
      }
    });
    this.#drop();
  }

  /** Add a line that is not of the stream. */
  addNote(text) {
    this.#open = null;
    this.#raw = "";
    this.#append(text, "note");
    this.#drop();
  }

  #show(raw) {
    const text = escapeControls(raw);
    if (this.#open === null) this.#open = this.#append(text, "line");
    else {
      this.#characters += text.length - this.#open.textContent.length;
      setText(this.#open, text);
    }
  }

  #append(text, kind) {
    const line = element("div", { class: kind }, text);
    this.#characters += text.length;
    this.node.append(line);
    return line;
  }

  #drop() {
    const { children } = this.node;
    while (children.length > MAX_LINES || (this.#characters > MAX_CHARACTERS && children.length > 1)) {
      this.#characters -= children[0].textContent.length;
      children[0].remove();
    }
  }
}

/** Shows and follows the log of one model at a time. */
export class LogView {
  #run = 0;
  #model = null;
  #isRefused = false;
  #end = () => {};

  constructor(onUnauthorized) {
    this.onUnauthorized = onUnauthorized;
    this.box = byId("log-lines");
    this.lines = new LogLines(this.box);
    this.stream = byId("log-stream");
    this.backend = byId("log-backend");
    this.follow = byId("log-follow");
    byId("log-view").addEventListener("submit", (event) => event.preventDefault());
    for (const choice of [this.stream, this.backend]) choice.addEventListener("change", () => this.#begin());
    this.follow.addEventListener("change", () => {
      if (this.follow.checked) this.#end();
    });
  }

  /** Show the log of a model, and offer those of its backends, which have these PIDs. */
  show(model, pids) {
    const chosen = this.backend.value;
    const isOther = this.#offer(pids.map(String));
    const isNew = this.#model !== model;
    this.#model = model;
    if (isNew || this.backend.value !== chosen || (isOther && this.#isRefused)) this.#begin();
  }

  /** Offer PIDs; returns whether they are others than before. */
  #offer(pids) {
    const values = ["", ...pids];
    const chosen = this.backend.value;
    byId("log-which").hidden = pids.length < 2;
    if (values.join() === [...this.backend.options].map(({ value }) => value).join()) return false;
    const makeOption = (value) => element("option", { value }, value ? `PID ${value}` : "the newest");
    this.backend.replaceChildren(...values.map(makeOption));
    this.backend.value = values.includes(chosen) ? chosen : "";
    return true;
  }

  /** Stop requesting the log. */
  close() {
    this.#run += 1;
    this.#model = null;
    this.lines.clear();
    this.#end();
  }

  /** Show the log from its end again. */
  async #begin() {
    this.#run += 1;
    const run = this.#run;
    const isOver = () => run !== this.#run || this.#model === null;
    this.#isRefused = false;
    this.#end();
    this.lines.clear();
    this.#say("Loading…");
    let after = null;
    let pid;
    while (!isOver()) {
      await tabIsVisible();
      let seconds = RETRY_SECONDS;
      try {
        const answer = await get(this.#path(after));
        if (isOver()) return;
        if (after !== null && answer.pid !== pid) {
          after = null;
          pid = undefined;
          this.lines.clear();
          continue;
        }
        this.#show(answer, after);
        ({ next: after, pid, poll_after_seconds: seconds } = answer);
      } catch (error) {
        if (isOver()) return;
        if (error instanceof Refused && error.status === 401) {
          await this.onUnauthorized();
          continue;
        }
        if (error instanceof Refused && error.status <= LAST_FINAL) {
          // The same question has the same answer, until another backend is there.
          this.#isRefused = true;
          this.#say(error.status === 403 ? `${NEEDS_ADMIN} (${error.message}).` : error.message);
          return;
        }
        this.#say(`The log cannot be read: ${error.message}.`);
      }
      await this.#pause(Math.max(seconds, 1), isOver);
    }
  }

  #path(after) {
    const query = new URLSearchParams({ model: this.#model, stream: this.stream.value, bytes: String(BYTES) });
    if (this.backend.value) query.set("pid", this.backend.value);
    if (after !== null) query.set("after", String(after));
    return `backend/log?${query}`;
  }

  #show({ pid, text, gap }, after) {
    const isAtEnd = this.box.scrollTop + this.box.clientHeight >= this.box.scrollHeight - NEAR_THE_END;
    if (gap && after !== null) this.lines.addNote("… some of the log is left out here …");
    this.lines.add(text);
    const whose = (pid ?? null) === null ? "" : ` of PID ${pid}`;
    const isEmpty = this.box.children.length === 0;
    this.#say(isEmpty ? `The log${whose} is empty.` : `The last lines${whose}.`);
    if (isAtEnd || after === null) this.box.scrollTop = this.box.scrollHeight;
  }

  #say(text) {
    setText(byId("log-note"), text);
    this.box.hidden = this.box.children.length === 0;
  }

  /** Wait some seconds, and then for the user to follow the log, or for its end. */
  async #pause(seconds, isOver) {
    await new Promise((resolve) => {
      const timer = setTimeout(resolve, seconds * 1000);
      this.#end = () => {
        clearTimeout(timer);
        resolve();
      };
    });
    while (!this.follow.checked && !isOver()) {
      await new Promise((resolve) => {
        this.#end = resolve;
      });
    }
  }
}
