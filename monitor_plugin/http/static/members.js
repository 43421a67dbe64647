// The processes of a backend as a tree, from GET /backend/members.

import { cell, element, fillByKey, setText } from "./dom.js";
import { bytes, count, moment, percent } from "./format.js";

const MAX_INDENTED = 10;

/** The members in the order of the tree, `{ member, depth }`: each before its children. */
export function treeOf(members) {
  const children = new Map();
  const known = new Set(members.map(({ pid }) => pid));
  const isTop = ({ pid, parent }, index) => index === 0 || parent === pid || !known.has(parent);
  members.forEach((member, index) => {
    const parent = isTop(member, index) ? null : member.parent;
    children.set(parent, [...(children.get(parent) ?? []), member]);
  });
  const found = [];
  const seen = new Set();
  // Tops first, then the others: PIDs that are one another's parents have no top.
  for (const top of [...(children.get(null) ?? []), ...members]) {
    const stack = [{ member: top, depth: 0 }];
    while (stack.length > 0) {
      const { member, depth } = stack.pop();
      if (seen.has(member.pid)) continue;
      seen.add(member.pid);
      found.push({ member, depth });
      const below = (children.get(member.pid) ?? []).map((child) => ({ member: child, depth: depth + 1 }));
      stack.push(...below.reverse());
    }
  }
  return found;
}

/** Show the backends of an answer of GET /backend/members, a table for each. */
export function showMembers(place, backends) {
  fillByKey(place, backends, ({ pid }) => String(pid), makeTable, (table, { pid, members }) => {
    setText(table.caption, `Processes of PID ${pid}`);
    const rows = treeOf(members);
    const keyOf = ({ member }) => `${member.pid}/${member.created_at}`;
    fillByKey(table.tBodies[0], rows, keyOf, makeRow, showMember);
  });
}

function makeTable() {
  const names = ["Process", "User", "RSS", "CPU", "Threads", "Started"];
  const head = names.map((name) => element("th", { role: "columnheader", scope: "col" }, name));
  return element(
    "table",
    { role: "table", class: "members" },
    element("caption"),
    element("thead", { role: "rowgroup" }, element("tr", { role: "row" }, ...head)),
    element("tbody", { role: "rowgroup" }),
  );
}

function makeRow() {
  const name = element("span", {}, element("b"), " ", element("bdi"), element("span", { class: "more" }));
  return element(
    "tr",
    { role: "row" },
    element("th", { role: "rowheader", scope: "row" }, name),
    ...["User", "RSS", "CPU", "Threads", "Started"].map((label) => cell(label)),
  );
}

function showMember(row, { member, depth }) {
  const [first, ...others] = row.cells;
  const name = first.firstElementChild;
  first.style.setProperty("--depth", String(Math.min(depth, MAX_INDENTED)));
  name.dataset.depth = String(depth);
  setText(name.children[0], String(member.pid));
  setText(name.children[1], member.name ?? "unknown");
  setText(name.children[2], notes(member, depth));
  const ended = member.is_zombie ? "none" : null;
  const texts = [
    member.user ?? "unknown",
    ended ?? bytes(member.rss),
    ended ?? percent(member.cpu_percent),
    ended ?? count(member.threads),
    moment(member.created_at),
  ];
  others.forEach((node, index) => setText(node, texts[index]));
}

function notes({ is_zombie: isZombie, parent }, depth) {
  const texts = [];
  if (isZombie) texts.push("a zombie");
  if (depth > 0) texts.push(`child of ${parent}`);
  return texts.length > 0 ? ` (${texts.join(", ")})` : "";
}
