// Small charts of the last 15 minutes, drawn by uPlot, which index.html loads.

import { element, setText } from "./dom.js";
import { SPAN_SECONDS } from "./history.js";

const WIDTH = 132;
const HEIGHT = 34;

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// Charts off the screen are not drawn: there may be a thousand.
const drawnBy = new WeakMap();
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) drawnBy.get(entry.target)?.look(entry.isIntersecting);
}, { rootMargin: "200px" });

export class Chart {
  #plot = null;
  #seen = false;
  #data = [[], []];
  #range = [0, 1];
  #top = 1;

  /** What it shows, how a figure is written, the colour's variable, and what the scale is at least. */
  constructor(what, written, colourName, atLeast) {
    this.what = what;
    this.written = written;
    this.colourName = colourName;
    this.atLeast = atLeast;
    this.now = element("span", { class: "now" });
    this.peak = element("span", { class: "more" });
    this.box = element("div", { class: "chart", role: "img" });
    this.nodes = [element("div", { class: "figure" }, this.now, " ", this.peak), this.box];
    drawnBy.set(this.box, this);
    watcher.observe(this.box);
  }

  /** Show a text, and the figures until `end`: seconds since the epoch, and values or null. */
  update(figure, times, values, end) {
    const known = values.filter((value) => value !== null);
    const peak = known.length > 0 ? Math.max(...known) : null;
    setText(this.now, figure);
    setText(this.peak, peak === null ? "" : `peak ${this.written(peak)}`);
    const past = peak === null
      ? "nothing is known of it"
      : `between ${this.written(Math.min(...known))} and ${this.written(peak)}`;
    const label = `${this.what}, last 15 minutes: ${past}`;
    if (this.box.getAttribute("aria-label") !== label) this.box.setAttribute("aria-label", label);
    this.#data = [times, values];
    this.#range = [end - SPAN_SECONDS, end];
    this.#top = Math.max((peak ?? 0) * 1.1, this.atLeast);
    this.redraw();
  }

  /** Be told whether it is on the screen. */
  look(seen) {
    this.#seen = seen;
    this.redraw();
  }

  #draw() {
    if (this.#plot === null) this.#plot = new window.uPlot(this.#options(), this.#data, this.box);
    else this.#plot.setData(this.#data);
  }

  #options() {
    return {
      width: WIDTH,
      height: HEIGHT,
      padding: [2, 0, 1, 0],
      cursor: { show: false },
      legend: { show: false },
      axes: [{ show: false }, { show: false }],
      scales: { x: { time: false, range: () => this.#range }, y: { range: () => [0, this.#top] } },
      series: [
        {},
        {
          stroke: () => colour(this.colourName),
          fill: () => `${colour(this.colourName)}22`,
          width: 1.25,
          points: { show: () => this.#data[0].length === 1, size: 3 },
        },
      ],
    };
  }

  /** Draw it anew, in other colours say. */
  redraw() {
    if (this.#seen) this.#draw();
  }

  close() {
    watcher.unobserve(this.box);
    this.#plot?.destroy();
  }
}
