// The table of backends: one row each. The order does not change while the user points at a row.

import { Palette } from "./bars.js";
import { condition, cpuOf, memoryOf } from "./conditions.js";
import { byId, setText } from "./dom.js";
import { Row } from "./row.js";

const GONE_ROW_MS = 5000;

const byName = (one, other) =>
  one.model.localeCompare(other.model, undefined, { numeric: true }) ||
  (one.node ?? "").localeCompare(other.node ?? "", undefined, { numeric: true }) ||
  one.pid - other.pid;
const largest = (figure) => (one, other) =>
  (figure(other) ?? -1) - (figure(one) ?? -1) || byName(one, other);
const ORDERS = {
  trouble: (one, other) =>
    Number(condition(other).trouble) - Number(condition(one).trouble) || byName(one, other),
  name: byName,
  memory: largest(memoryOf),
  cpu: largest(cpuOf),
};

// In a cluster, different nodes may have the same PID.
const keyOf = (item) => `${item.node ?? ""}/${item.pid}/${item.created_at}`;

export class BackendsTable {
  #rows = new Map();
  #palette = new Palette();
  #answer = null;

  constructor(history, onStop) {
    this.history = history;
    this.onStop = onStop;
    this.table = byId("backends-table");
    this.body = this.table.tBodies[0];
    this.find = byId("find");
    this.sort = byId("sort");
    this.find.addEventListener("input", () => this.#arrange(true));
    this.sort.addEventListener("change", () => this.#arrange(true));
    byId("view").addEventListener("submit", (event) => event.preventDefault());
  }

  /** Show an answer of GET /backends. */
  update(answer, now) {
    this.#answer = answer;
    const live = new Set();
    const machines = new Map((answer.nodes ?? []).map(({ node, machine }) => [node, machine]));
    for (const item of answer.backends) {
      const key = keyOf(item);
      live.add(key);
      let row = this.#rows.get(key);
      if (!row) {
        row = new Row(item, this.#palette, this.onStop);
        this.#rows.set(key, row);
      }
      const machine = machines.get(item.node) ?? answer.machine;
      const gpus = (answer.gpus ?? []).filter(({ node }) => node === item.node);
      row.update(item, machine, gpus, this.history.of(item), now);
    }
    for (const [key, row] of this.#rows) {
      if (!live.has(key) && !row.gone) this.#removeLater(key, row, answer.ended);
    }
    this.#arrange(false);
  }

  /** The rows of a model, or of one of its backends. */
  rowsOf(model, one) {
    return [...this.#rows.values()].filter(
      ({ item, gone }) => !gone && item.model === model && (one === null || keyOf(item) === keyOf(one)),
    );
  }

  redraw() {
    for (const row of this.#rows.values()) {
      row.cpu.redraw();
      row.trend.redraw();
    }
  }

  #removeLater(key, row, ended) {
    row.markGone(ended.find((end) => keyOf(end) === key) ?? ended.find((end) => end.pid === row.item.pid && end.node === row.item.node));
    setTimeout(() => {
      const hadFocus = row.node.contains(document.activeElement);
      const next = row.node.nextElementSibling ?? row.node.previousElementSibling;
      row.close();
      this.#rows.delete(key);
      this.#arrange(false);
      if (hadFocus) (next?.querySelector("button.stop") ?? byId("backends")).focus();
    }, GONE_ROW_MS);
  }

  /** Sort the rows, unless the pointer or the focus is in the table and `force` is false. */
  #arrange(force) {
    const rows = [...this.#rows.values()];
    const inUse = this.body.matches(":hover") || this.body.contains(document.activeElement);
    if (force || !inUse) {
      const order = ORDERS[this.sort.value] ?? ORDERS.trouble;
      rows.sort((one, other) => order(one.item, other.item));
      rows.forEach((row, index) => {
        const current = this.body.children[index] ?? null;
        if (current !== row.node) this.body.insertBefore(row.node, current);
      });
    } else {
      for (const row of rows) if (!row.node.isConnected) this.body.append(row.node);
    }
    const sought = this.find.value.trim().toLocaleLowerCase();
    let shown = 0;
    for (const { node, item } of rows) {
      node.hidden = !item.model.toLocaleLowerCase().includes(sought);
      shown += Number(!node.hidden);
    }
    this.table.hidden = shown === 0;
    const none = byId("backends-none");
    none.hidden = shown > 0 || this.#answer === null;
    setText(none, rows.length > 0 ? "No model’s name has this in it." : "No backend is registered.");
  }
}
