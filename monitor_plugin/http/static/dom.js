// Makes and changes elements. Strings become text nodes: no markup is parsed anywhere.

import { hashOf } from "./route.js";

export const byId = (id) => document.getElementById(id);

/** Make an element; children are nodes, or strings, which become text. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Set a text if it differs, so that it is not drawn or read out again without need. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** An element for a model's or component's name, which keeps its own writing direction. */
export const named = (name) => element("bdi", {}, name);

/** A link to a model's panel, with its name. */
export function linkToModel(model) {
  const link = element("a", { class: "model" }, named(""));
  setModel(link, model);
  return link;
}

/** Have a link made by `linkToModel` lead to another model. */
export function setModel(link, model) {
  const address = hashOf(model);
  if (link.getAttribute("href") !== address) link.setAttribute("href", address);
  setText(link.firstElementChild, model);
}

/** Make a table cell with the column's name, for narrow screens, and an explicit role: in some
 *  browsers a table loses its roles when CSS changes its layout. */
export function cell(label, ...children) {
  return element("td", { role: "cell", "data-label": label }, ...children);
}

/** Give a node one child per item; update existing children in place. */
export function fill(parent, items, make, update) {
  while (parent.children.length > items.length) parent.lastElementChild.remove();
  items.forEach((item, index) => {
    if (!parent.children[index]) parent.append(make());
    update(parent.children[index], item);
  });
}

/** Give a node one child per item, in their order. An item with the same key keeps its child, and
 *  so the focus and what is open in it. */
export function fillByKey(parent, items, keyOf, make, update) {
  const old = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  items.forEach((item, index) => {
    const key = keyOf(item);
    let child = old.get(key);
    old.delete(key);
    if (!child) {
      child = make(item);
      child.dataset.key = key;
    }
    const current = parent.children[index] ?? null;
    if (current !== child) parent.insertBefore(child, current);
    update(child, item);
  });
  while (parent.children.length > items.length) parent.lastElementChild.remove();
}
