// What an item of `backends` or `ended` of GET /backends means to the user.

import { percent } from "./format.js";

const PHASES = {
  asking: "asks the hooks for leave",
  draining: "waits until it is idle",
  stopping: "ends its processes",
  watching: "is gone; watches for a restart",
};

const NO_ANSWER = {
  DEADLINE_EXCEEDED: "no answer in time: busy, or stuck",
  UNAVAILABLE: "its address cannot be reached",
};

const LAST = { 0: "uninitialized", 1: "busy", 2: "ready", "-1": "in error" };

/** A backend's condition: the badge's word and tone, the reason, and whether it needs attention. */
export function condition(item) {
  if (item.shutdown) {
    const { phase } = item.shutdown;
    return { word: phase, tone: "stopping", why: PHASES[phase] ?? "", trouble: false };
  }
  if (item.state === null || item.state === undefined) return conditionWithoutState(item);
  const word = item.state_name === "unknown" ? `state ${item.state}` : item.state_name;
  if (item.state === -1) return { word, tone: "bad", why: "", trouble: true };
  const tone = { 0: "waiting", 1: "busy", 2: "ready" }[item.state] ?? "quiet";
  return { word, tone, why: tone === "quiet" ? "not in the protocol" : "", trouble: false };
}

function conditionWithoutState(item) {
  const code = item.rpc_error ?? null;
  const because = item.status_error ? `: ${item.status_error}` : "";
  if (item.state_name === "starting") {
    const why = `it has not answered yet${because}${code ? ` (${code})` : ""}`;
    return { word: "starting", tone: "waiting", why, trouble: false };
  }
  if (code === null || code === "UNIMPLEMENTED") {
    const why = code ? `it reports no state${because}` : item.source === null ? "not read yet" : "";
    return { word: "unknown", tone: "quiet", why, trouble: false };
  }
  const before = LAST[item.last_state];
  const last = before ? `; was ${before}` : "";
  const owner = item.address_owner ?? null;
  const why = owner ? `its address is served by ${processName(owner)}` : `${item.status_error ?? NO_ANSWER[code] ?? "its status cannot be read"} (${code})`;
  return { word: "unknown", tone: "warn", why: why + last, trouble: true };
}

// The states of models without a backend: how to show each, and whether it needs attention.
const MODEL_CONDITIONS = {
  running: { tone: "waiting", why: "and no backend of it is registered" },
  starting: { tone: "waiting", why: "" },
  stopped: { tone: "quiet", why: "" },
  waiting: { tone: "warn", why: "it has ended, and its host will start it again" },
  failed: { tone: "bad", why: "its host has given up" },
  exited: { tone: "quiet", why: "its host leaves it so" },
};

/** How to show an item of `models`. */
export function modelCondition({ state }) {
  const { tone, why } = MODEL_CONDITIONS[state] ?? { tone: "quiet", why: "" };
  return { word: state, tone, why, trouble: tone === "bad" || tone === "warn" };
}

/** A process as `4711 (python3)`, `4711` or `another process`. */
function processName({ pid, name }) {
  if ((pid ?? null) === null) return "another process";
  return name ? `${pid} (${name})` : String(pid);
}

/** How to show an end: in a quiet tone if it was intended. */
export function ending(end) {
  const intended = end.cause === "shutdown" || (end.cause === "exited" && end.exit_code === 0);
  const word = end.cause === "oom" ? "out of memory" : end.cause;
  return { word, tone: intended ? "quiet" : end.cause === "unknown" ? "warn" : "bad", why: end.description ?? "" };
}

/** What a backend reports of its requests: "2 running, 3 waiting"; empty if it reports nothing. */
export function loadOf(item) {
  const figures = [
    [item.requests_running, (count) => `${count} running`],
    [item.requests_waiting, (count) => `${count} waiting`],
    [item.tokens_per_second, (rate) => `${Number(rate.toFixed(1))} tokens/s`],
    [item.kv_cache_percent, (share) => `KV cache ${percent(share)}`],
  ];
  const known = figures.filter(([figure]) => typeof figure === "number");
  return known.map(([figure, text]) => text(figure)).join(", ");
}

/** CPU of the process tree in percent of one core, or null. */
export const cpuOf = (item) => item.process?.tree?.cpu_percent ?? item.process?.cpu_percent ?? null;

export const memoryOf = (item) => item.memory?.total ?? null;

const onGpu = (name) => /^(vram|gtt)(:|$)/.test(name);

// The kinds of memory that make up the PSS of a process tree, and their names on the page.
const KINDS = { anonymous: "anonymous", shared: "shared memory", file: "files (can be dropped)" };

/** The kinds of a backend's memory; empty unless its total is the PSS of its process tree. */
function kindsOf({ memory_source: source, process }) {
  const kinds = Object.entries(KINDS).map(([kind, name]) => ({ kind, name, size: process?.tree?.[kind] ?? null }));
  const known = source === "pss" && kinds.every(({ size }) => size !== null);
  return known ? kinds.filter(({ size }) => size > 0) : [];
}

/** The parts of a backend's memory: its components, the largest first, or else its kinds.
 *  Components on a GPU (`vram`, `vram:0`) are not part of the machine's memory. The rest of the
 *  total, beyond all components, is `other`. */
export function partsOf(item) {
  const components = Object.entries(item.memory?.breakdown ?? {})
    .map(([name, size]) => ({ name, size, gpu: onGpu(name) }))
    .sort((one, other) => other.size - one.size || (one.name < other.name ? -1 : 1));
  const explained = components
    .filter((part) => !part.gpu || item.memory_source === "backend")
    .reduce((sum, part) => sum + part.size, 0);
  const rest = (memoryOf(item) ?? 0) - explained;
  const main = components.filter((part) => !part.gpu);
  const kinds = main.length === 0 ? kindsOf(item) : [];
  if (kinds.length > 0) return { main: kinds, gpu: components };
  return {
    main: rest > 0 && components.length > 0 ? [...main, { name: "other", size: rest, rest: true }] : main,
    gpu: components.filter((part) => part.gpu),
  };
}
