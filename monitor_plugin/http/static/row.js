// One backend's row. Updates change its nodes in place, so that focus and selection stay.

import { drawBar, listParts } from "./bars.js";
import { Chart } from "./charts.js";
import { condition, cpuOf, loadOf, memoryOf, partsOf } from "./conditions.js";
import { cell, element, linkToModel, setText } from "./dom.js";
import { bytes, count, duration, moment, percent, place } from "./format.js";
import { describeLimits, describeUnit, memoryLimit } from "./limits.js";

const MEMORY_SOURCES = {
  backend: "as it reports",
  pss: "of its processes (PSS)",
  rss: "of its processes (RSS: shared pages count more than once)",
};
/** Tells backends apart: in a cluster, different nodes may have the same PID. */
export const keyOf = (item) => `${item.node ?? ""}/${item.pid}/${item.created_at}`;

const OLD_SECONDS = 20;
const MAX_PARTS = 5;

/** The process that serves a backend's address. */
function servedBy({ served_by: pid, address_owner: owner }) {
  if (owner) return `${owner.pid ?? "another process"}, which is none of its processes`;
  return (pid ?? null) === null ? "unknown" : `PID ${pid}`;
}

/** The note for memory of files; empty if there is none. */
const droppable = (size) => (size > 0 ? " (the kernel can drop it)" : "");

function ago(seconds) {
  return (seconds ?? null) === null ? "unknown" : `${duration(seconds)} ago`;
}

/** The memory on GPUs; null is "none" if it is known of each device which processes use it. */
function gpuMemory(tree, gpus) {
  const { vram, gtt } = tree ?? {};
  const amounts = [bytes(vram)];
  if (tree && (vram ?? null) === null && gpus.every(({ ours }) => (ours ?? null) !== null)) {
    amounts[0] = gpus.length === 0 ? "no GPU is seen" : "none";
  }
  if ((gtt ?? null) !== null) amounts.push(`GTT ${bytes(gtt)}`);
  return amounts.join(", ");
}

function makeButton(kind, onClick) {
  const button = element("button", { type: "button", class: kind });
  button.addEventListener("click", () => {
    if (button.getAttribute("aria-disabled") !== "true") onClick(button);
  });
  return button;
}

export class Row {
  gone = false;
  #pending = null;
  #last = null;

  /** `palette` colours the components, `operations` stops and restarts the model, and `large` is
   *  whether the charts are as wide as the page. */
  constructor(item, palette, operations, large = false) {
    this.palette = palette;
    this.operations = operations;
    this.item = item;
    this.word = element("span", { class: "badge" });
    this.why = element("div", { class: "more" });
    this.since = element("div", { class: "more" });
    this.load = element("div", { class: "more" });
    this.under = element("span");
    this.facts = element("dl");
    this.details = element("details", {}, element("summary", {}, this.under), this.facts);
    this.total = element("span", { class: "now" });
    this.share = element("span", { class: "more" });
    this.bar = element("div", { class: "bar", "aria-hidden": "true" });
    this.parts = element("ul", { class: "parts" });
    this.cpu = new Chart("CPU", percent, "--cpu", 100, large);
    this.trend = new Chart("Memory", bytes, "--memory", 1, large);
    this.stop = makeButton("stop", (button) => operations.askToStop(this.item, button));
    this.restart = makeButton("restart", (button) => operations.askToRestart(this.item, button));
    this.node = element(
      "tr",
      { role: "row" },
      element("th", { role: "rowheader", scope: "row" }, linkToModel(item.model), this.details),
      cell("State", this.word, this.why, this.since, this.load),
      cell("Memory", element("div", { class: "figure" }, this.total, " ", this.share), this.bar, this.parts),
      cell("CPU, last 15 min", ...this.cpu.nodes),
      cell("Memory, last 15 min", ...this.trend.nodes),
      cell("", this.stop, " ", this.restart),
    );
  }

  /** Show a newer item of the same backend; `machine` and `gpus` are those of its node. */
  update(item, machine, gpus, series, now) {
    this.item = item;
    this.#last = [item, machine, gpus, series, now];
    this.#state(item, now);
    setText(this.load, loadOf(item));
    this.#facts(item, machine, gpus);
    this.#memory(item, machine);
    this.cpu.update(percent(cpuOf(item)), series.times, series.cpu, now);
    this.trend.update("", series.times, series.memory, now);
    const stopping = this.#pending !== null || (item.shutdown ?? null) !== null;
    const doing = this.operations.wordOf(item);
    this.#button(this.stop, stopping, stopping ? "Stopping…" : "Stop");
    this.#button(this.restart, stopping || doing !== null, doing ?? "Restart");
  }

  /** Show that the backend is gone; `end` is its item of `ended`, if there is one. */
  markGone(end) {
    this.gone = true;
    this.node.classList.add("gone");
    this.#badge("gone", "quiet", end ? `It ${end.description}` : "", "");
    setText(this.load, "");
    this.#button(this.stop, true, "Gone");
    this.restart.hidden = true;
  }

  /** Show a state until the monitor reports the shutdown itself; null removes it. */
  setPending(word) {
    this.#pending = word;
    if (!this.gone) this.update(...this.#last);
  }

  close() {
    this.cpu.close();
    this.trend.close();
    this.node.remove();
  }

  #badge(word, tone, why, since) {
    this.word.dataset.tone = tone;
    this.node.dataset.tone = tone;
    setText(this.word, word);
    setText(this.why, why);
    setText(this.since, since);
  }

  #state(item, now) {
    if (this.#pending !== null && !item.shutdown) {
      this.#badge(this.#pending, "stopping", "", "");
      return;
    }
    const { word, tone, why } = condition(item);
    const notes = [];
    if (item.shutdown) notes.push(`for ${duration(item.shutdown.seconds)}`);
    else if (item.state_changed_at && (item.state ?? null) !== null) {
      notes.push(`for ${duration(now - Date.parse(item.state_changed_at) / 1000)}`);
    }
    const zombies = item.process?.tree?.zombies ?? 0;
    if (zombies > 0) notes.push(`${zombies} zombie${zombies > 1 ? "s" : ""}`);
    if (item.age_seconds > OLD_SECONDS) notes.push(`read ${duration(item.age_seconds)} ago`);
    this.#badge(word, tone, why, notes.join(", "));
  }

  #facts(item, machine, gpus) {
    setText(this.under, `${place(item)}, up ${duration(item.uptime_seconds)}`);
    const tree = item.process?.tree;
    const facts = [
      ["Address", item.address],
      ["Served by", servedBy(item)],
      ["Started", moment(item.created_at)],
      ["Read by", (item.source ?? "unknown") + (item.protocol ? ` (${item.protocol})` : "")],
      ["Processes", count(tree?.processes)],
      ["RSS, PSS", `${bytes(tree?.rss)}, ${bytes(tree?.pss)}`],
      ["Peak RSS", bytes(tree?.peak_rss)],
      ["Anonymous", bytes(tree?.anonymous)],
      ["File", `${bytes(tree?.file)}${droppable(tree?.file)}`],
      ["Shared", bytes(tree?.shared)],
      ["Swap", bytes(tree?.swap)],
      ["Memory read", ago(tree?.memory_age_seconds)],
      ["GPU memory", gpuMemory(tree, gpus)],
      ["Limits", describeLimits(machine, item.limits)],
      ["Unit", item.unit ? describeUnit(item.unit) : "unknown"],
      ["Threads", count(tree?.threads)],
      ["Open files", count(tree?.open_files)],
    ];
    if (this.facts.children.length === 0) {
      for (const [name] of facts) {
        this.facts.append(element("div", {}, element("dt", {}, name), element("dd")));
      }
    }
    facts.forEach(([, text], index) => setText(this.facts.children[index].lastElementChild, text));
  }

  #memory(item, machine) {
    const total = memoryOf(item);
    setText(this.total, bytes(total));
    const { size: usable, text: base } = memoryLimit(machine, item.limits);
    const share = total !== null && usable ? `${percent((100 * total) / usable)} of ${base}` : "";
    setText(this.share, share);
    this.share.title = MEMORY_SOURCES[item.memory_source] ?? "";
    const { main, gpu } = partsOf(item);
    const colour = (part) => ({ ...part, colour: this.palette.of(part) });
    const undivided = main.length + gpu.length === 0;
    const bar = undivided && total !== null ? [{ size: total, colour: "rest" }] : main.map(colour);
    drawBar(this.bar, bar, usable);
    const onGpu = gpu.map((part) => ({ ...part, name: `${part.name} (GPU)`, colour: "gpu" }));
    listParts(this.parts, [...main.map(colour), ...onGpu], MAX_PARTS);
  }

  #button(button, disabled, text) {
    setText(button, text);
    // The attribute `disabled` would take the focus away.
    if (disabled) button.setAttribute("aria-disabled", "true");
    else button.removeAttribute("aria-disabled");
    button.setAttribute("aria-label", `${text} ${this.item.model}, ${place(this.item)}`);
  }
}
