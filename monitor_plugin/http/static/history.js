// CPU and memory of each backend over the last 15 minutes: first from GET /history, then from the
// answers of GET /backends.

import { cpuOf, memoryOf } from "./conditions.js";

export const SPAN_SECONDS = 15 * 60;
// The page reads the backends itself if sweeps are rarer (feed.js), so it has points more often.
const MAX_INTERVAL_SECONDS = 15;

const keyOf = (item) => `${item.node ?? ""}/${item.pid}/${item.model}`;

export class History {
  #interval = 5;
  #series = new Map();

  /** Replace the points by those of an answer of GET /history. */
  load(answer) {
    this.#interval = Math.min(answer.interval_seconds || this.#interval, MAX_INTERVAL_SECONDS);
    this.#series.clear();
    for (const each of answer.backends) {
      const from = answer.times.length - each.memory.length;
      this.#series.set(keyOf(each), {
        times: answer.times.slice(from),
        cpu: [...each.cpu_percent],
        memory: [...each.memory],
      });
    }
  }

  /** Add a point for each item of GET /backends; drop old points and backends that are gone. */
  add(items, now) {
    const live = new Set();
    for (const item of items) {
      const key = keyOf(item);
      live.add(key);
      if (!this.#series.has(key)) this.#series.set(key, { times: [], cpu: [], memory: [] });
      const { times, cpu, memory } = this.#series.get(key);
      if (times.length > 0 && now - times.at(-1) < this.#interval * 0.8) continue;
      times.push(now);
      cpu.push(cpuOf(item));
      memory.push(memoryOf(item));
      let old = 0;
      while (times[old] < now - SPAN_SECONDS) old += 1;
      for (const list of [times, cpu, memory]) list.splice(0, old);
    }
    for (const key of this.#series.keys()) if (!live.has(key)) this.#series.delete(key);
  }

  of(item) {
    return this.#series.get(keyOf(item)) ?? { times: [], cpu: [], memory: [] };
  }
}
