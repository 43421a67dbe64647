// The panel of GPUs: each device, its memory, and the processes that hold the memory.

import { drawBar, listParts } from "./bars.js";
import { byId, cell, element, fill, named, setText } from "./dom.js";
import { bytes, duration, percent, plural } from "./format.js";

const OLD_SECONDS = 20;
const MAX_HOLDERS = 8;
const MAX_PARTS = 5;
// With more devices the panel is closed at first, because the backends are below it.
const MAX_OPEN = 8;

let seen = false;

/** Show `gpus` of an answer of GET /backends. The panel is hidden if the list is empty. */
export function showGpus(gpus) {
  byId("gpus-section").hidden = gpus.length === 0;
  if (gpus.length > 0 && !seen) {
    seen = true;
    byId("gpus-details").open = gpus.length <= MAX_OPEN;
  }
  const devices = inOrder(gpus);
  setText(byId("gpus-sum"), summary(devices.filter(({ instance }) => !instance).map(({ gpu }) => gpu)));
  fill(byId("gpus-table").tBodies[0], devices, makeRow, showGpu);
}

/** Each whole GPU, followed by its instances (MIG): `{ gpu, instance }`. */
function inOrder(gpus) {
  const isPartOf = (gpu, whole) => gpu.parent === whole.uuid && gpu.node === whole.node;
  const whole = gpus.filter((gpu) => !gpu.parent || !gpus.some((each) => !each.parent && isPartOf(gpu, each)));
  return whole.flatMap((gpu) => [
    { gpu, instance: false },
    ...gpus.filter((each) => each.parent && !gpu.parent && isPartOf(each, gpu)).map((each) => ({ gpu: each, instance: true })),
  ]);
}

function summary(gpus) {
  const sum = (name) => gpus.reduce((total, gpu) => total + (gpu[name] ?? 0), 0);
  const known = gpus.every(({ used, total }) => (used ?? null) !== null && (total ?? null) !== null);
  return plural(gpus.length, "device") + (known ? `, ${bytes(sum("used"))} of ${bytes(sum("total"))} used` : "");
}

function makeRow() {
  const more = () => element("div", { class: "more" });
  return element(
    "tr",
    { role: "row" },
    element("th", { role: "rowheader", scope: "row" }, named(""), more(), more(), more()),
    cell(
      "Memory used",
      element("div", { class: "figure" }, element("span", { class: "now" }), " ", element("span", { class: "more" })),
      element("div", { class: "bar", "aria-hidden": "true" }),
      element("ul", { class: "parts" }),
      more(),
    ),
    cell("Held by", element("ul", { class: "holders" }), more()),
    cell("Load", element("ul"), more()),
  );
}

function showGpu(row, { gpu, instance }) {
  row.classList.toggle("instance", instance);
  const [device, memory, held, load] = row.cells;
  showDevice(device, gpu);
  showMemory(memory, gpu);
  const holders = holdersOf(gpu);
  fill(held.firstElementChild, holders, makeHolder, showHolder);
  setOptional(held.children[1], gpu.note ?? "");
  fill(load.firstElementChild, loadOf(gpu), () => element("li"), setText);
  const old = gpu.age_seconds > OLD_SECONDS;
  setOptional(load.children[1], old ? `read ${duration(gpu.age_seconds)} ago` : "");
}

function setOptional(node, text) {
  node.hidden = text === "";
  setText(node, text);
}

function showDevice(device, { name, vendor, index, component, node, uuid, parent }) {
  const [title, where, identity, part] = device.children;
  setText(title, name || vendor || "unknown device");
  const number = (index ?? null) === null ? "" : `index ${index}, `;
  setText(where, `${number}${component}${node ? ` on ${node}` : ""}`);
  setOptional(identity, uuid ?? "");
  setOptional(part, parent ? `instance (MIG) of ${parent}` : "");
}

function showMemory(memory, gpu) {
  const [figure, bar, list, gtt] = memory.children;
  const { used, total } = gpu;
  setText(figure.firstElementChild, bytes(used));
  const share = total > 0 && (used ?? null) !== null ? ` (${percent((100 * used) / total)})` : "";
  setText(figure.lastElementChild, `of ${bytes(total)}${share}`);
  const parts = [
    { name: "our models", size: gpu.ours, colour: "ours" },
    { name: "other processes", size: gpu.others, colour: "others" },
    { name: "unexplained", size: gpu.unexplained, colour: "unexplained" },
  ];
  const unknown = parts.some(({ size }) => (size ?? null) === null);
  const rest = (used ?? 0) - parts.reduce((sum, { size }) => sum + (size ?? 0), 0);
  if (unknown && rest > 0) parts.push({ name: "of unknown owners", size: rest, colour: "rest" });
  drawBar(bar, parts, total);
  listParts(list, [...parts, { name: "free", size: gpu.free, colour: "free" }], MAX_PARTS);
  const known = (gpu.gtt_used ?? gpu.gtt_total ?? null) !== null;
  setOptional(gtt, known ? `GTT (system memory) ${bytes(gpu.gtt_used)} of ${bytes(gpu.gtt_total)}` : "");
}

/** The processes that use a GPU, the largest first. */
function holdersOf({ models, processes }) {
  const ours = (models ?? []).map((use) => ({ ...use, name: use.model, colour: "ours", what: `PID ${use.pid}` }));
  const others = (processes ?? []).map((use) => ({
    ...use,
    name: use.name ?? "unknown",
    colour: "others",
    what: `another process, PID ${use.pid}, user ${use.user ?? "unknown"}`,
  }));
  const all = [...ours, ...others].sort((one, other) => (other.memory ?? 0) - (one.memory ?? 0));
  if (all.length <= MAX_HOLDERS) return all;
  const rest = all.slice(MAX_HOLDERS - 1);
  const line = { name: `${rest.length} more`, colour: "rest", what: "", memory: sumOrNull(rest) };
  return [...all.slice(0, MAX_HOLDERS - 1), line];
}

function sumOrNull(uses) {
  if (uses.some(({ memory }) => (memory ?? null) === null)) return null;
  return uses.reduce((sum, { memory }) => sum + memory, 0);
}

function makeHolder() {
  const swatch = element("span", { class: "swatch", "aria-hidden": "true" });
  return element("li", {}, swatch, named(""), " ", element("b"), " ", element("span", { class: "more" }));
}

function showHolder(line, { name, memory, gtt, colour, what }) {
  const [swatch, who, size, more] = line.children;
  swatch.dataset.colour = colour;
  setText(who, name);
  setText(size, `${bytes(memory)}${(gtt ?? null) === null ? "" : ` and GTT ${bytes(gtt)}`}`);
  setText(more, what);
}

function loadOf({ utilization_percent: load, temperature_celsius: heat, power_watts: power }) {
  const texts = [];
  if ((load ?? null) !== null) texts.push(`${percent(load)} utilisation`);
  if ((heat ?? null) !== null) texts.push(`${Math.round(heat)} °C`);
  if ((power ?? null) !== null) texts.push(`${Math.round(power)} W`);
  return texts.length > 0 ? texts : ["unknown"];
}
