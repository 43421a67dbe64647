// The tables of backends: one row each. The order does not change while the user points at a row.

import { condition, cpuOf, memoryOf } from "./conditions.js";
import { byId, setText } from "./dom.js";
import { keyOf, Row } from "./row.js";

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

/** A table of backends; a backend that is gone stays in it for some seconds. */
export class BackendsTable {
  #rows = new Map();

  /** `makeRow(item)` makes a row, and `heading` gets the focus if the row with the focus is gone
   *  and no other is left. */
  constructor(table, heading, history, makeRow) {
    this.table = table;
    this.heading = heading;
    this.history = history;
    this.makeRow = makeRow;
    this.body = table.tBodies[0];
    this.order = byName;
    this.isShown = () => true;
    this.onArranged = () => {};
  }

  /** Show `backends` of an answer of GET /backends, all or some. */
  update(backends, answer, now) {
    const live = new Set();
    const machines = new Map((answer.nodes ?? []).map(({ node, machine }) => [node, machine]));
    for (const item of backends) {
      const key = keyOf(item);
      live.add(key);
      let row = this.#rows.get(key);
      if (!row) {
        row = this.makeRow(item);
        this.#rows.set(key, row);
      }
      const machine = machines.get(item.node) ?? answer.machine;
      const gpus = (answer.gpus ?? []).filter(({ node }) => node === item.node);
      row.update(item, machine, gpus, this.history.of(item), now);
    }
    for (const [key, row] of this.#rows) {
      if (!live.has(key) && !row.gone) this.#removeLater(key, row, answer.ended);
    }
    this.arrange(false);
  }

  /** The rows of a model, or of one of its backends. */
  rowsOf(model, one) {
    return [...this.#rows.values()].filter(
      ({ item, gone }) => !gone && item.model === model && (one === null || keyOf(item) === keyOf(one)),
    );
  }

  /** Draw the charts again, as the colours have changed. */
  redraw() {
    for (const row of this.#rows.values()) {
      row.cpu.redraw();
      row.trend.redraw();
    }
  }

  /** Remove all rows. */
  clear() {
    for (const row of this.#rows.values()) row.close();
    this.#rows.clear();
  }

  /** Sort the rows, unless the pointer or the focus is in the table and `force` is false. */
  arrange(force) {
    const rows = [...this.#rows.values()];
    const inUse = this.body.matches(":hover") || this.body.contains(document.activeElement);
    if (force || !inUse) {
      rows.sort((one, other) => this.order(one.item, other.item));
      rows.forEach((row, index) => {
        const current = this.body.children[index] ?? null;
        if (current !== row.node) this.body.insertBefore(row.node, current);
      });
    } else {
      for (const row of rows) if (!row.node.isConnected) this.body.append(row.node);
    }
    let shown = 0;
    for (const { node, item } of rows) {
      node.hidden = !this.isShown(item);
      shown += Number(!node.hidden);
    }
    this.table.hidden = shown === 0;
    this.onArranged(shown, rows.length);
  }

  #removeLater(key, row, ended) {
    row.markGone(ended.find((end) => keyOf(end) === key) ?? ended.find((end) => end.pid === row.item.pid && end.node === row.item.node));
    setTimeout(() => {
      if (this.#rows.get(key) !== row) return; // the table was cleared
      const hadFocus = row.node.contains(document.activeElement);
      const next = row.node.nextElementSibling ?? row.node.previousElementSibling;
      row.close();
      this.#rows.delete(key);
      this.arrange(false);
      if (hadFocus) (next?.querySelector("button.stop") ?? this.heading).focus();
    }, GONE_ROW_MS);
  }
}

/** The table of all backends, in the order and with the names that the user wants to see. */
export class AllBackends extends BackendsTable {
  #isAnswered = false;

  /** `onFind()` is called when the user looks for other names: see `isSought`. */
  constructor(history, palette, operations, onFind) {
    super(byId("backends-table"), byId("backends"), history, (item) => new Row(item, palette, operations));
    const find = byId("find");
    const sort = byId("sort");
    this.isSought = ({ model }) =>
      model.toLocaleLowerCase().includes(find.value.trim().toLocaleLowerCase());
    this.isShown = this.isSought;
    this.order = (one, other) => (ORDERS[sort.value] ?? ORDERS.trouble)(one, other);
    find.addEventListener("input", () => {
      this.arrange(true);
      onFind();
    });
    sort.addEventListener("change", () => this.arrange(true));
    byId("view").addEventListener("submit", (event) => event.preventDefault());
    this.onArranged = (shown, all) => {
      const none = byId("backends-none");
      none.hidden = shown > 0 || !this.#isAnswered;
      setText(none, all > 0 ? "No model’s name has this in it." : "No backend is registered.");
    };
  }

  update(backends, answer, now) {
    this.#isAnswered = true;
    super.update(backends, answer, now);
  }
}
