// Making and changing elements. Text only ever becomes text: no markup is parsed anywhere.

export const byId = (id) => document.getElementById(id);

/** Make an element; children are nodes, or strings, which become text. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Set a text where it differs, so that nothing is redrawn or read out again. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** A model's or component's name: any script, and its direction stays its own. */
export const named = (name) => element("bdi", {}, name);

/** A cell, with the column's name for narrow screens and an explicit role: styles that lay a table
 *  out anew take its meaning away in some browsers. */
export function cell(label, ...children) {
  return element("td", { role: "cell", "data-label": label }, ...children);
}

/** Set the children of a node to as many as there are items, each updated in its place. */
export function fill(parent, items, make, update) {
  while (parent.children.length > items.length) parent.lastElementChild.remove();
  items.forEach((item, index) => {
    if (!parent.children[index]) parent.append(make());
    update(parent.children[index], item);
  });
}
