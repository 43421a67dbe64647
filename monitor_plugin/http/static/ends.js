// The table of backends that have ended.

import { ending } from "./conditions.js";
import { byId, cell, element, fill, named, setText } from "./dom.js";
import { duration, moment, secondsBetween } from "./format.js";

const SHORT_LIST = 10;

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
    this.more.hidden = ended.length <= SHORT_LIST;
    setText(this.more, this.#all ? `Show the newest ${SHORT_LIST} alone` : `Show all ${ended.length}`);
    fill(this.table.tBodies[0], this.#all ? ended : ended.slice(0, SHORT_LIST), makeRow, (row, end) => showEnd(row, end, now));
  }
}

function makeRow() {
  return element(
    "tr",
    { role: "row" },
    element("th", { role: "rowheader", scope: "row" }, named("")),
    cell("Cause", element("span", { class: "badge" }), " ", element("span", { class: "more" })),
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
  setText(cause.lastElementChild, why);
  const time = when.firstElementChild;
  time.dateTime = end.ended_at;
  time.title = moment(end.ended_at);
  setText(time, `${duration(now - Date.parse(end.ended_at) / 1000)} ago`);
  setText(ran, duration(secondsBetween(end.created_at, end.ended_at)));
  setText(pid, end.node ? `${end.pid} on ${end.node}` : String(end.pid));
}
