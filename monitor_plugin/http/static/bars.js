// Memory as a stacked bar, and the list beneath it that says the same in words.

import { bytes } from "./format.js";
import { element, fill, named, setText } from "./dom.js";

const COLOURS = 8;

/** Gives each name a colour, the same wherever it appears. */
export class Palette {
  #given = new Map();

  of(part) {
    if (part.rest) return "rest";
    if (!this.#given.has(part.name)) this.#given.set(part.name, this.#given.size % COLOURS);
    return String(this.#given.get(part.name));
  }
}

/** Draw parts, `{name, size, colour}`, on a bar that stands for `whole` bytes. */
export function drawBar(bar, parts, whole) {
  const sum = parts.reduce((total, part) => total + part.size, 0);
  const scale = Math.max(whole ?? 0, sum, 1);
  const shown = parts.filter((part) => part.size > 0);
  fill(bar, shown, () => element("span"), (span, part) => {
    span.dataset.colour = part.colour;
    span.style.width = `${(100 * part.size) / scale}%`;
  });
}

/** List parts; those over `most` are summed up. */
export function listParts(list, parts, most) {
  const shown = parts.length > most ? parts.slice(0, most - 1) : parts;
  const left = parts.slice(shown.length);
  const lines = [...shown];
  if (left.length > 0) {
    const size = left.reduce((total, part) => total + part.size, 0);
    lines.push({ name: `${left.length} more`, size, colour: "rest" });
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
