// The table of backends that have ended.

import { ending } from "./conditions.js";
import { byId, cell, element, fill, named, setText } from "./dom.js";
import { bytes, duration, moment, plural, secondsBetween } from "./format.js";

const SHORT_LIST = 10;
const MAX_PROCESSES = 8;

export class EndsTable {
  #all = false;
  #ended = [];
  #now = 0;

  constructor() {
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
    fill(this.table.tBodies[0], this.#all ? ended : shown, makeRow, (row, end) => showEnd(row, end, now));
  }
}

function makeRow() {
  return element(
    "tr",
    { role: "row" },
    element("th", { role: "rowheader", scope: "row" }, named("")),
    cell("Cause", element("span", { class: "badge" }), " ", element("span", { class: "more" }), element("p", { class: "left" })),
    cell("When", element("time")),
    cell("Had run for"),
    cell("PID"),
  );
}

function showEnd(row, end, now) {
  const [model, cause, when, ran, pid] = row.cells;
  const { word, tone, why } = ending(end);
  setText(model.firstElementChild, end.model);
  row.dataset.tone = tone;
  cause.firstElementChild.dataset.tone = tone;
  setText(cause.firstElementChild, word);
  setText(cause.children[1], why);
  cause.lastElementChild.hidden = !(end.left_behind?.length > 0);
  setText(cause.lastElementChild, leftBehind(end.left_behind ?? []));
  const time = when.firstElementChild;
  time.dateTime = end.ended_at;
  time.title = moment(end.ended_at);
  setText(time, `${duration(now - Date.parse(end.ended_at) / 1000)} ago`);
  setText(ran, duration(secondsBetween(end.created_at, end.ended_at)));
  setText(pid, end.node ? `${end.pid} on ${end.node}` : String(end.pid));
}

/** The processes that a backend left behind, and that still run, in a line. */
function leftBehind(processes) {
  const shown = processes.slice(0, MAX_PROCESSES).map(({ pid, name, bytes: size }) => `${pid} ${name ?? "unknown"} (${bytes(size)})`);
  if (processes.length > shown.length) shown.push(`${processes.length - shown.length} more`);
  return `Left ${plural(processes.length, "process", "processes")} behind: ${shown.join(", ")}`;
}
