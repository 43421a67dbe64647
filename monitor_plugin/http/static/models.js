// The table of models that a host can run, and of which no backend runs.

import { modelCondition } from "./conditions.js";
import { cell, element, fillByKey, linkToModel, setModel, setText } from "./dom.js";

const keyOf = ({ model, node }) => JSON.stringify([model, node ?? ""]);

export class ModelsTable {
  #models = [];

  /** `section` has the table, `heading` gets the focus if the row with the focus is gone, and
   *  `isShown(item)` says whether the user wants to see a model. */
  constructor(section, heading, operations, isShown) {
    this.section = section;
    this.heading = heading;
    this.operations = operations;
    this.isShown = isShown;
    this.body = section.querySelector("tbody");
  }

  /** Show `models` of an answer of GET /backends; without any the whole section is hidden. */
  update(models) {
    this.#models = models;
    this.show();
  }

  /** Show the same models again, as what the user wants to see, or what is being done, has changed. */
  show() {
    const shown = this.#models.filter(this.isShown);
    const hadFocus = this.body.contains(document.activeElement);
    this.section.hidden = shown.length === 0;
    fillByKey(this.body, shown, keyOf, () => this.#makeRow(), (row, item) => this.#showModel(row, item));
    if (hadFocus && !this.body.contains(document.activeElement)) this.heading.focus();
  }

  #makeRow() {
    const button = element("button", { type: "button", class: "start" });
    const row = element(
      "tr",
      { role: "row" },
      element("th", { role: "rowheader", scope: "row" }, linkToModel("")),
      cell("State", element("span", { class: "badge" }), " ", element("span", { class: "more" })),
      cell("The host says", element("bdi")),
      cell("", button),
    );
    button.addEventListener("click", () => {
      if (button.getAttribute("aria-disabled") !== "true") this.operations.start(row.item);
    });
    return row;
  }

  #showModel(row, item) {
    row.item = item;
    const [model, state, detail, last] = row.cells;
    const { word, tone, why } = modelCondition(item);
    setModel(model.firstElementChild, item.model);
    row.dataset.tone = tone;
    state.firstElementChild.dataset.tone = tone;
    setText(state.firstElementChild, word);
    setText(state.lastElementChild, item.node ? `on ${item.node}${why ? `; ${why}` : ""}` : why);
    setText(detail.firstElementChild, item.detail ?? "");
    const button = last.firstElementChild;
    const doing = this.operations.wordOf(item);
    button.hidden = !item.can_start && doing === null;
    setText(button, doing ?? "Start");
    button.setAttribute("aria-disabled", String(doing !== null));
    button.setAttribute("aria-label", `${button.textContent} ${item.model}${item.node ? ` on ${item.node}` : ""}`);
  }
}
