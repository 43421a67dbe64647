// Memory as a stacked bar, and as the list beneath it.

import { bytes } from "./format.js";
import { element, fill, named, setText } from "./dom.js";

const COLOURS = 8;

/** Assigns a colour to each name, the same for all backends. */
export class Palette {
  #colours = new Map();

  of(part) {
    if (part.rest) return "rest";
    if (part.kind) return part.kind;
    if (!this.#colours.has(part.name)) this.#colours.set(part.name, this.#colours.size % COLOURS);
    return String(this.#colours.get(part.name));
  }
}

/** Draw parts, `{name, size, colour}`, on a bar whose length is `available` bytes. */
export function drawBar(bar, parts, available) {
  const sum = parts.reduce((total, part) => total + part.size, 0);
  const scale = Math.max(available ?? 0, sum, 1);
  const shown = parts.filter((part) => part.size > 0);
  fill(bar, shown, () => element("span"), (span, part) => {
    span.dataset.colour = part.colour;
    span.style.width = `${(100 * part.size) / scale}%`;
  });
}

/** List parts in at most `most` lines; the last line sums up the rest. */
export function listParts(list, parts, most) {
  const shown = parts.length > most ? parts.slice(0, most - 1) : parts;
  const rest = parts.slice(shown.length);
  const lines = [...shown];
  if (rest.length > 0) {
    const size = rest.reduce((total, part) => total + part.size, 0);
    lines.push({ name: `${rest.length} more`, size, colour: "rest" });
  }
  fill(list, lines, makeLine, (line, part) => {
    line.firstElementChild.dataset.colour = part.colour;
    setText(line.children[1], part.name);
    setText(line.children[2], bytes(part.size));
  });
}

function makeLine() {
  const swatch = element("span", { class: "swatch", "aria-hidden": "true" });
  return element("li", {}, swatch, named(""), " ", element("b"));
}
