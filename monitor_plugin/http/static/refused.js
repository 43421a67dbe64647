// The table of processes that the monitor refused to register as backends.

import { byId, cell, element, fill, named, setText } from "./dom.js";

/** Show `refused` of an answer of GET /backends; without any the whole section is hidden. */
export function showRefused(refused) {
  byId("refused-section").hidden = refused.length === 0;
  fill(byId("refused-table").tBodies[0], refused, makeRow, showRefusal);
}

function makeRow() {
  return element(
    "tr",
    { role: "row", "data-tone": "warn" },
    element("th", { role: "rowheader", scope: "row" }, named("")),
    cell("Reason", named("")),
    cell("Address", named("")),
    cell("PID"),
  );
}

function showRefusal(row, { model, reason, address, pid, node }) {
  const [name, why, where, process] = row.cells;
  setText(name.firstElementChild, model);
  setText(why.firstElementChild, reason);
  setText(where.firstElementChild, address);
  setText(process, node ? `${pid} on ${node}` : String(pid));
}
