// The table of backends that have ended.

import { ending } from "./conditions.js";
import { byId, cell, element, fill, linkToModel, setModel, setText } from "./dom.js";
import { bytes, duration, moment, place, plural, secondsBetween } from "./format.js";

const SHORT_LIST = 10;
const MAX_PROCESSES = 8;

export class EndsTable {
  #all = false;
  #ended = [];
  #now = 0;
  #stopping = new Set();

  /** `onStop(end, button)` asks whether to stop what an ended backend left behind. */
  constructor(onStop) {
    this.onStop = onStop;
    this.table = byId("ends-table");
    this.more = byId("ends-more");
    this.more.addEventListener("click", () => {
      this.#all = !this.#all;
      this.update(this.#ended, this.#now);
    });
  }

  /** Show `ended` of an answer of GET /backends, the newest first; `now` is in seconds. */
  update(ended, now) {
    this.#ended = ended;
    this.#now = now;
    this.table.hidden = ended.length === 0;
    byId("ends-none").hidden = ended.length > 0;
    const shown = ended.filter((end, index) => index < SHORT_LIST || end.left_behind?.length > 0);
    this.more.hidden = ended.length <= shown.length;
    setText(this.more, this.#all ? `Show the newest ${SHORT_LIST} alone` : `Show all ${ended.length}`);
    fill(
      this.table.tBodies[0],
      this.#all ? ended : shown,
      () => makeRow(this.onStop),
      (row, end) => showEnd(row, end, now, this.#stopping.has(keyOf(end))),
    );
  }

  /** The rows to mark while what an ended backend left behind is being stopped. */
  rowsOf(end) {
    const setPending = (word) => {
      if (word === null) this.#stopping.delete(keyOf(end));
      else this.#stopping.add(keyOf(end));
      this.update(this.#ended, this.#now);
    };
    return [{ setPending }];
  }
}

const keyOf = ({ model, pid, node }) => JSON.stringify([model, pid, node ?? ""]);

function makeRow(onStop) {
  const button = element("button", { type: "button" });
  const left = element("p", { class: "left" }, element("span"), " ", button);
  const row = element(
    "tr",
    { role: "row" },
    element("th", { role: "rowheader", scope: "row" }, linkToModel("")),
    cell("Cause", element("span", { class: "badge" }), " ", element("span", { class: "more" }), left, makeOutput()),
    cell("When", element("time")),
    cell("Had run for"),
    cell("Peak RSS"),
    cell("PID"),
  );
  button.addEventListener("click", () => {
    if (button.getAttribute("aria-disabled") !== "true") onStop(row.end, button);
  });
  return row;
}

/** A place for the last output, which only admins get. */
function makeOutput() {
  const text = element("pre", { class: "output", tabindex: "0", role: "region", "aria-label": "Last output" });
  return element("details", { class: "last" }, element("summary", {}, "Last output"), text);
}

function showEnd(row, end, now, stopping) {
  const isOther = row.end?.id !== end.id || row.end?.node !== end.node;
  row.end = end;
  const [model, cause, when, ran, peak, pid] = row.cells;
  const { word, tone, why } = ending(end);
  setModel(model.firstElementChild, end.model);
  row.dataset.tone = tone;
  cause.firstElementChild.dataset.tone = tone;
  setText(cause.firstElementChild, word);
  setText(cause.children[1], why);
  showLeftBehind(cause.children[2], end, stopping);
  const output = cause.children[3];
  if (isOther) output.open = false; // it was opened for another end
  output.hidden = !end.last_output;
  setText(output.lastElementChild, end.last_output ?? "");
  const time = when.firstElementChild;
  time.dateTime = end.ended_at;
  time.title = moment(end.ended_at);
  setText(time, `${duration(now - Date.parse(end.ended_at) / 1000)} ago`);
  setText(ran, duration(secondsBetween(end.created_at, end.ended_at)));
  setText(peak, bytes(end.peak_rss));
  setText(pid, end.node ? `${end.pid} on ${end.node}` : String(end.pid));
}

function showLeftBehind(line, end, stopping) {
  const [text, button] = line.children;
  const hidden = !(end.left_behind?.length > 0);
  if (hidden && document.activeElement === button) byId("ends").focus();
  line.hidden = hidden;
  setText(text, leftBehind(end.left_behind ?? []));
  setText(button, stopping ? "Stopping…" : "Stop");
  button.setAttribute("aria-disabled", String(stopping));
  button.setAttribute("aria-label", `${button.textContent} what ${end.model}, ${place(end)}, left behind`);
}

/** The processes that a backend left behind, and that still run, in a line. */
export function leftBehind(processes) {
  const shown = processes.slice(0, MAX_PROCESSES).map(({ pid, name, bytes: size }) => `${pid} ${name ?? "unknown"} (${bytes(size)})`);
  if (processes.length > shown.length) shown.push(`${processes.length - shown.length} more`);
  return `Left ${plural(processes.length, "process", "processes")} behind: ${shown.join(", ")}`;
}
