// The page: connects the feed, the tables and the dialogs.

import { getVersion, token } from "./api.js";
import { AllBackends } from "./backends.js";
import { Palette } from "./bars.js";
import { byId, setText } from "./dom.js";
import { EndsTable } from "./ends.js";
import { Feed } from "./feed.js";
import { showGpus } from "./gpus.js";
import { History } from "./history.js";
import { ModelsTable } from "./models.js";
import { announce, sentence } from "./notices.js";
import { Operations } from "./operations.js";
import { showOverview } from "./overview.js";
import { Panel } from "./panel.js";
import { showRefused } from "./refused.js";
import { askForToken } from "./token.js";

const history = new History();
const palette = new Palette();
const operations = new Operations({
  rowsOf: (model, one) => [...table.rowsOf(model, one), ...panel.rowsOf(model, one)],
  replicasOf: (model) => table.rowsOf(model, null).map(({ item }) => item),
  onChange: () => {
    showLast([]);
    feed.wake();
  },
  onUnauthorized: askForToken,
});
const table = new AllBackends(history, palette, operations, () => models.show());
const models = new ModelsTable(byId("models-section"), byId("backends"), operations, table.isSought);
const ends = new EndsTable((end, button) => operations.askLeftBehind(end, button, ends.rowsOf(end)));

function showConnection(tone, text) {
  byId("connection").dataset.tone = tone;
  document.body.dataset.connection = tone;
  setText(byId("connection"), text);
}

async function showVersion() {
  const { name, version, node } = await getVersion();
  setText(byId("version"), `${name} ${version}`);
  panel.setNode(node);
}

let clockOffset = 0;

/** The time of the monitor, in seconds: the clock of the browser's machine may be wrong. */
function monitorTime({ backends: [item] }) {
  const here = Date.now() / 1000;
  if (item) clockOffset = Date.parse(item.created_at) / 1000 + item.uptime_seconds - here;
  return here + clockOffset;
}

let updated = "";
let trouble = 0;
let last = null;

function showTitle() {
  const name = panel.model === null ? "Monitor" : `${panel.model} – Monitor`;
  document.title = trouble > 0 ? `(${trouble}) ${name}` : name;
}

/** Show the last answer of GET /backends, if there is one, with the events since the one before. */
function showLast(events) {
  if (last === null) return;
  const { answer, now } = last;
  table.update(answer.backends, answer, now);
  models.update(answer.models ?? []);
  ends.update(answer.ended, now);
  panel.update(answer, now, events);
}

const feed = new Feed({
  onHistory: (answer) => {
    history.load(answer);
    showVersion().catch(() => {});
    panel.reload();
  },
  onAnswer: (answer, events) => {
    const now = monitorTime(answer);
    history.add(answer.backends, now);
    last = { answer, now };
    showLast(events);
    showGpus(answer.gpus ?? []);
    showRefused(answer.refused ?? []);
    trouble = showOverview(answer);
    showTitle();
    announce(events.map(sentence).filter((text) => text !== null));
    updated = `as of ${new Date().toLocaleTimeString()}`;
    showConnection("good", "Live");
  },
  onUnreachable: (reason, seconds) => {
    const old = updated ? ` What is shown is ${updated}.` : "";
    showConnection("bad", `The monitor is away: ${reason}. Asking again every ${seconds} s.${old}`);
  },
  onUnauthorized: askForToken,
});

const panel = new Panel({ history, palette, operations, onChange: showTitle, onUnauthorized: askForToken });
panel.follow();

byId("forget").hidden = token.get() === null;
byId("forget").addEventListener("click", () => {
  token.remove();
  location.reload();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  table.redraw();
  panel.redraw();
});
byId("skip").addEventListener("click", (event) => {
  if (panel.model === null) return;
  event.preventDefault(); // another address would close the panel
  byId("panel-title").focus();
});
window.addEventListener("online", () => feed.wake());

feed.run();
