// Charts of the last 15 minutes, drawn by uPlot, which index.html loads.

import { element, setText } from "./dom.js";
import { SPAN_SECONDS } from "./history.js";

const WIDTH = 132;
const HEIGHT = 34;
const LARGE_HEIGHT = 190;
const AXIS_WIDTH = 72;

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// Only charts on the screen are drawn, as there may be a thousand.
const chartOf = new WeakMap();
const observer = new IntersectionObserver((entries) => {
  for (const entry of entries) chartOf.get(entry.target)?.setVisible(entry.isIntersecting);
}, { rootMargin: "200px" });
const resizes = new ResizeObserver((entries) => {
  for (const entry of entries) chartOf.get(entry.target)?.redraw();
});

export class Chart {
  #plot = null;
  #visible = false;
  #data = [[], []];
  #range = [0, 1];
  #top = 1;

  /** `format` turns a value into text, `colourName` is a CSS variable, and the scale ends at
   *  `minTop` or above. A large chart has axes, and is as wide as its place. */
  constructor(label, format, colourName, minTop, large = false) {
    this.label = label;
    this.format = format;
    this.colourName = colourName;
    this.minTop = minTop;
    this.large = large;
    this.now = element("span", { class: "now" });
    this.peak = element("span", { class: "more" });
    this.box = element("div", { class: large ? "chart large" : "chart", role: "img" });
    this.nodes = [element("div", { class: "figure" }, this.now, " ", this.peak), this.box];
    chartOf.set(this.box, this);
    observer.observe(this.box);
    if (large) resizes.observe(this.box);
  }

  /** Show a text, and values (or null) at `times` until `end`, in seconds since the epoch. */
  update(figure, times, values, end) {
    const known = values.filter((value) => value !== null);
    const peak = known.length > 0 ? Math.max(...known) : null;
    setText(this.now, figure);
    setText(this.peak, peak === null ? "" : `peak ${this.format(peak)}`);
    const past = peak === null
      ? "nothing is known of it"
      : `between ${this.format(Math.min(...known))} and ${this.format(peak)}`;
    const label = `${this.label}, last 15 minutes: ${past}`;
    if (this.box.getAttribute("aria-label") !== label) this.box.setAttribute("aria-label", label);
    this.#data = [times, values];
    this.#range = [end - SPAN_SECONDS, end];
    this.#top = Math.max((peak ?? 0) * 1.1, this.minTop);
    this.redraw();
  }

  /** Set whether the chart is on the screen. */
  setVisible(visible) {
    this.#visible = visible;
    this.redraw();
  }

  #draw() {
    if (this.#plot === null) {
      this.#plot = new window.uPlot(this.#options(), this.#data, this.box);
      return;
    }
    const width = this.#width();
    if (width !== this.#plot.width) this.#plot.setSize({ width, height: LARGE_HEIGHT });
    this.#plot.setData(this.#data);
  }

  #width() {
    return this.large ? Math.max(this.box.clientWidth, WIDTH) : WIDTH;
  }

  #options() {
    const axis = {
      stroke: () => colour("--soft"),
      grid: { stroke: () => colour("--line"), width: 1 },
      ticks: { show: false },
    };
    const values = (plot, splits) => splits.map((value) => this.format(value));
    return {
      width: this.#width(),
      height: this.large ? LARGE_HEIGHT : HEIGHT,
      padding: this.large ? [8, 8, 0, 0] : [2, 0, 1, 0],
      cursor: { show: false },
      legend: { show: false },
      axes: this.large ? [axis, { ...axis, size: AXIS_WIDTH, values }] : [{ show: false }, { show: false }],
      scales: { x: { time: this.large, range: () => this.#range }, y: { range: () => [0, this.#top] } },
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

  /** Draw the chart again, for example after the colours have changed. */
  redraw() {
    if (this.#visible) this.#draw();
  }

  close() {
    observer.unobserve(this.box);
    resizes.unobserve(this.box);
    this.#plot?.destroy();
  }
}
