// The top of the page: the number of backends by condition, and the memory by model.

import { drawBar, listParts } from "./bars.js";
import { condition, memoryOf, modelCondition } from "./conditions.js";
import { byId, element, fill, setText } from "./dom.js";
import { bytes, percent, plural } from "./format.js";
import { memoryLimit, resources, sumOfLimits } from "./limits.js";

const TOP = 6;
const ORDER = ["bad", "warn", "stopping", "busy", "waiting", "ready", "quiet"];

/** Show an answer of GET /backends; returns how many backends and models need attention. */
export function showOverview({ backends, ended, models, machine, nodes, cluster_error: unconnected }) {
  byId("overview").hidden = false;
  const conditions = backends.map(condition);
  const counts = new Map();
  for (const { word, tone } of conditions) {
    const shown = tone === "warn" ? "without an answer" : word === "unknown" ? "of unknown state" : word;
    const known = counts.get(shown) ?? { shown, tone, number: 0 };
    counts.set(shown, { ...known, number: known.number + 1 });
  }
  const troubles = (models ?? []).map(modelCondition).filter(({ trouble }) => trouble);
  for (const { word, tone } of troubles) {
    const shown = word === "waiting" ? "waiting to start again" : word;
    const known = counts.get(shown) ?? { shown, tone, number: 0 };
    counts.set(shown, { ...known, number: known.number + 1 });
  }
  const sorted = [...counts.values()].sort((one, other) => ORDER.indexOf(one.tone) - ORDER.indexOf(other.tone));
  const left = ended.reduce((total, end) => total + (end.left_behind?.length ?? 0), 0);
  if (left > 0) {
    const shown = `${left === 1 ? "process" : "processes"} left behind`;
    sorted.unshift({ shown, tone: "bad", number: left });
  }
  const silent = (nodes ?? []).filter(({ error }) => error).map(({ node }) => node);
  if (silent.length > 0) {
    const shown = `${silent.length === 1 ? "node" : "nodes"} without an answer (${silent.join(", ")})`;
    sorted.unshift({ shown, tone: "bad", number: silent.length });
  }
  if (unconnected) sorted.unshift({ shown: "connection to NATS down", tone: "bad", number: 1 });
  fill(byId("counts"), sorted, () => element("li"), (line, { shown, tone, number }) => {
    line.dataset.tone = tone;
    setText(line, `${number} ${shown}`);
  });
  showMemory(backends, sumOfLimits(nodes ? nodes.map((node) => node.machine) : [machine]));
  showMachines(machine, nodes);
  return conditions.filter(({ trouble }) => trouble).length + troubles.length;
}

/** Show the available memory, the CPU cores and the pressures of each machine. */
function showMachines(machine, nodes) {
  const lines = nodes
    ? nodes.filter((node) => node.machine).map((node) => [`${node.node}: ${memoryLimit(node.machine).text}`, ...resources(node.machine)])
    : [resources(machine ?? {})];
  fill(byId("machines"), lines.filter((texts) => texts.length > 0), () => element("li"), (line, texts) => setText(line, texts.join(", ")));
}

function showMemory(backends, { size: usable, text: base }) {
  const models = new Map();
  let unknown = 0;
  for (const item of backends) {
    const size = memoryOf(item);
    if (size === null) unknown += 1;
    else models.set(item.model, (models.get(item.model) ?? 0) + size);
  }
  const sorted = [...models].map(([name, size]) => ({ name, size })).sort((one, other) => other.size - one.size);
  const most = sorted.length > TOP ? TOP - 1 : TOP;
  const parts = sorted.slice(0, most).map((part, rank) => ({ ...part, colour: String(rank) }));
  const others = sorted.slice(most);
  if (others.length > 0) {
    const size = others.reduce((total, part) => total + part.size, 0);
    parts.push({ name: `${others.length} more`, size, colour: "rest" });
  }
  const sum = sorted.reduce((total, part) => total + part.size, 0);
  const share = usable ? ` of ${base}, ${percent((100 * sum) / usable)}` : "";
  const gap = unknown > 0 ? `; what ${plural(unknown, "backend holds", "backends hold")} is unknown` : "";
  const least = unknown > 0 ? "at least " : "";
  const summary = sorted.length > 0 ? `hold ${least}${bytes(sum)}${share}${gap}` : "hold an unknown amount of memory";
  setText(byId("held"), backends.length > 0 ? `${plural(backends.length, "backend")} ${summary}.` : "");
  drawBar(byId("held-bar"), parts, usable);
  listParts(byId("holders"), parts, TOP);
}
