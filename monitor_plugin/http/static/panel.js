// The panel of one model: its backends with large charts, their processes, its log, events and ends.
// The page's address names the model, so that a link leads to it. Only an open panel makes requests.

import { get, Refused } from "./api.js";
import { BackendsTable } from "./backends.js";
import { byId, element, fillByKey, named, setText } from "./dom.js";
import { moment } from "./format.js";
import { LogView } from "./log.js";
import { showMembers } from "./members.js";
import { ModelsTable } from "./models.js";
import { sentence } from "./notices.js";
import { PostMortems } from "./postmortems.js";
import { hashOf, modelInAddress } from "./route.js";
import { Row } from "./row.js";

const MAX_EVENTS = 100;

export class Panel {
  #model = null;
  #last = null;
  #events = [];
  #asking = null;
  #node = null;

  /** `onChange()` updates the page, and the async `onUnauthorized()` asks for a token. */
  constructor({ history, palette, operations, onChange, onUnauthorized }) {
    this.onChange = onChange;
    this.onUnauthorized = onUnauthorized;
    this.title = byId("panel-title");
    const makeRow = (item) => new Row(item, palette, operations, true);
    this.table = new BackendsTable(byId("panel-table"), this.title, history, makeRow);
    this.models = new ModelsTable(byId("panel-models"), this.title, operations, () => true);
    this.ends = new PostMortems(byId("panel-ends"), (item) => this.#isOwn(item), onUnauthorized);
    this.log = new LogView(onUnauthorized);
    window.addEventListener("hashchange", () => this.follow());
  }

  /** The model whose panel is open; null if the list of all is shown. */
  get model() {
    return this.#model;
  }

  /** Set the name of the node that answers; null without a cluster. */
  setNode(node) {
    this.#node = node;
    this.#show();
  }

  /** Show an answer of GET /backends, and the events since the one before. */
  update(answer, now, events) {
    this.#last = { answer, now };
    if (this.#model === null) return;
    this.#addEvents(events);
    this.#show();
    this.#askForMembers();
  }

  /** Get the events again, as some may have been missed. */
  async reload() {
    const model = this.#model;
    if (model === null) return;
    try {
      const { events } = await get("events?after=0");
      if (model !== this.#model) return;
      this.#addEvents(events);
      this.#show();
    } catch {
      // The feed notices and reports it.
    }
  }

  rowsOf(model, one) {
    return this.table.rowsOf(model, one);
  }

  redraw() {
    this.table.redraw();
  }

  /** Open the panel of the model that the address names, or close it. */
  follow() {
    const model = modelInAddress();
    if (model === this.#model) return;
    const before = this.#model;
    this.#model = model;
    this.#events = [];
    this.table.clear();
    byId("panel-members").replaceChildren();
    byId("panel-events").replaceChildren();
    byId("panel-ends").replaceChildren();
    this.log.close();
    document.body.dataset.view = model === null ? "all" : "model";
    byId("panel").hidden = model === null;
    if (model === null) {
      const links = [...document.querySelectorAll("main a.model")];
      const link = links.find((each) => each.getAttribute("href") === hashOf(before));
      (link?.getClientRects().length > 0 ? link : byId("backends")).focus();
      this.onChange();
      return;
    }
    this.title.replaceChildren(named(model));
    this.title.focus();
    this.#show();
    this.#askForMembers();
    this.reload();
    this.onChange();
  }

  #show() {
    if (this.#model === null || this.#last === null) return;
    const { answer, now } = this.#last;
    const isIts = ({ model }) => model === this.#model;
    const backends = answer.backends.filter(isIts);
    const models = (answer.models ?? []).filter(isIts);
    const ended = answer.ended.filter(isIts);
    this.table.update(backends, answer, now);
    this.models.update(models);
    this.ends.update(ended, now);
    byId("panel-ends-none").hidden = ended.length > 0;
    const items = [...backends, ...models, ...ended];
    const isKnown = items.length > 0 || this.#events.length > 0;
    const note = byId("panel-none");
    note.hidden = backends.length + models.length > 0;
    setText(note, isKnown ? "No backend of this model is registered." : "No model of this name is known.");
    this.#showNodes(items, answer.nodes ?? []);
    const own = backends.filter((item) => this.#isOwn(item));
    const isHere = isKnown && (items.length === 0 || items.some((item) => this.#isOwn(item)));
    if (isHere) this.log.show(this.#model, own.map(({ pid }) => pid));
    else this.log.close();
    for (const id of ["members", "log", "events"]) byId(`${id}-section`).hidden = !isHere;
    byId("ends-of-model").hidden = !isKnown;
    if (own.length === 0) byId("panel-members").replaceChildren();
    byId("members-section").hidden ||= own.length === 0;
  }

  #isOwn({ node }) {
    return node === undefined || node === this.#node;
  }

  /** Say on which other nodes' pages there is more of the model. */
  #showNodes(items, nodes) {
    const names = [...new Set(items.filter((item) => !this.#isOwn(item)).map(({ node }) => node))].sort();
    const urls = new Map(nodes.map(({ node, url }) => [node, url]));
    byId("panel-nodes").hidden = names.length === 0;
    fillByKey(byId("panel-nodes"), names, (name) => name, () => element("li"), (line, name) => {
      const url = urls.get(name) ?? "";
      const text = "Its processes, log and events there are on the page of node ";
      const where = /^https?:\/\//.test(url)
        ? element("a", { href: `${url}/${hashOf(this.#model)}` }, named(name))
        : element("span", {}, named(name), ", which does not tell its address");
      const shown = element("span", {}, text, where, ".");
      if (!line.firstElementChild?.isEqualNode(shown)) line.replaceChildren(shown);
    });
  }

  async #askForMembers() {
    const model = this.#model;
    const own = this.#last?.answer.backends.filter((item) => item.model === model && this.#isOwn(item)) ?? [];
    if (own.length === 0 || this.#asking === model) return;
    this.#asking = model;
    try {
      const { backends } = await get(`backend/members?${new URLSearchParams({ model })}`);
      if (model === this.#model) showMembers(byId("panel-members"), backends);
    } catch (error) {
      // The feed reports a monitor that is away; a model may have ended meanwhile.
      if (error instanceof Refused && error.status === 401) await this.onUnauthorized();
    } finally {
      if (this.#asking === model) this.#asking = null;
    }
  }

  #addEvents(events) {
    const known = new Set(this.#events.map(({ id }) => id));
    const added = events.filter(({ id, model }) => model === this.#model && !known.has(id));
    this.#events = [...this.#events, ...added].sort((one, other) => other.id - one.id).slice(0, MAX_EVENTS);
    const shown = this.#events.map((event) => ({ ...event, text: sentence(event) })).filter(({ text }) => text !== null);
    fillByKey(byId("panel-events"), shown, ({ id }) => String(id), makeEvent, () => {});
    byId("panel-events-none").hidden = shown.length > 0;
  }
}

function makeEvent({ at, text, pid }) {
  const time = element("time", { datetime: at }, moment(at));
  return element("li", {}, time, " ", element("span", {}, text), " ", element("span", { class: "more" }, `PID ${pid}`));
}
