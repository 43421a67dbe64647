// The ends of a model's backends in its panel, each with all that is known of it: GET /ended/ID.

import { get, Refused } from "./api.js";
import { condition, ending } from "./conditions.js";
import { element, fillByKey, setText } from "./dom.js";
import { bytes, count, duration, moment, percent, place, plural } from "./format.js";
import { leftBehind } from "./ends.js";

// Parts of what is known, such as the last output, become known some seconds after the end.
const FRESH_SECONDS = 30;

export class PostMortems {
  /** `isOwn(item)` says whether the node that answers has the item, and the async
   *  `onUnauthorized()` asks for a token. */
  constructor(list, isOwn, onUnauthorized) {
    this.list = list;
    this.isOwn = isOwn;
    this.onUnauthorized = onUnauthorized;
  }

  /** Show items of `ended`, the newest first; `now` is in seconds. */
  update(ended, now) {
    const keyOf = (end) => JSON.stringify([end.node ?? "", end.pid, end.ended_at]);
    fillByKey(this.list, ended, keyOf, () => this.#make(), (line, end) => this.#show(line, end, now));
  }

  #make() {
    const summary = element("summary", {}, element("span", { class: "badge" }), " ", element("span"));
    const details = element("details", {}, summary, element("div", { class: "whole" }));
    const line = element("li", {}, details);
    details.addEventListener("toggle", () => {
      if (details.open) this.#load(line);
    });
    return line;
  }

  #show(line, end, now) {
    line.end = end;
    const details = line.firstElementChild;
    const [badge, text] = details.firstElementChild.children;
    const { word, tone } = ending(end);
    badge.dataset.tone = tone;
    setText(badge, word);
    const seconds = now - Date.parse(end.ended_at) / 1000;
    setText(text, `${place(end)} ${end.description}, ${duration(seconds)} ago`);
    if (details.open && seconds < FRESH_SECONDS) this.#load(line);
  }

  async #load(line) {
    const box = line.firstElementChild.lastElementChild;
    if (!this.isOwn(line.end)) {
      setText(box, `More of it is on the page of node ${line.end.node}.`);
      return;
    }
    try {
      showWhole(box, await get(`ended/${line.end.id}`));
    } catch (error) {
      if (error instanceof Refused && error.status === 401) await this.onUnauthorized();
      else if (box.children.length === 0) setText(box, error.message);
    }
  }
}

/** Show an answer of GET /ended/ID. */
function showWhole(box, end) {
  const facts = [
    ["Cause", end.cause === "oom" ? "out of memory" : end.cause],
    ["Code, signal", [end.exit_code, end.signal_name ?? end.signal].filter((each) => (each ?? null) !== null).join(", ") || "unknown"],
    ["Killed by OOM", killedByOom(end)],
    ["Ended", moment(end.ended_at)],
    ["Had run for", duration(end.uptime_seconds)],
    ["Ready after", duration(end.ready_seconds)],
    ["Last hour", (end.ends_last_hour ?? null) === null ? "unknown" : plural(end.ends_last_hour, "end")],
    ["Peak RSS", bytes(end.peak_rss)],
    ["Left behind", leftOver(end.left_behind)],
    ["Last reading", lastReading(end)],
  ];
  const list = element("dl", {}, ...facts.map(([name, text]) => element("div", {}, element("dt", {}, name), element("dd", {}, text))));
  const output = end.last_output
    ? [element("p", {}, "Its last output:"), element("pre", { class: "output", tabindex: "0", role: "region", "aria-label": "Its last output" }, end.last_output)]
    : [];
  // Replace only what has changed: the user may have selected a text.
  const shown = element("div", {}, list, ...output);
  if (box.firstElementChild?.isEqualNode(shown)) return;
  box.replaceChildren(shown);
}

function killedByOom({ oom, oom_certain: isCertain }) {
  if ((oom ?? null) === null) return "unknown";
  if (!oom) return "no";
  return isCertain === false ? "yes, or another process of its control group was" : "yes";
}

function leftOver(processes) {
  if ((processes ?? null) === null) return "unknown";
  return processes.length > 0 ? leftBehind(processes) : "nothing";
}

function lastReading({ last_reading: reading }) {
  if (!reading) return "unknown";
  const { word, why } = condition({ ...reading, source: reading.source ?? null });
  const state = why ? `${word} (${why})` : word;
  return [
    `${moment(reading.at)}: ${state}`,
    `memory ${bytes(reading.memory?.total)}`,
    `RSS ${bytes(reading.rss)}`,
    `CPU ${percent(reading.cpu_percent)}`,
    `${count(reading.processes)} processes`,
  ].join(", ");
}
