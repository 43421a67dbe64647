// The page: connects the feed, the tables and the dialogs.

import { get, token } from "./api.js";
import { BackendsTable } from "./backends.js";
import { byId, setText } from "./dom.js";
import { EndsTable } from "./ends.js";
import { Feed } from "./feed.js";
import { showGpus } from "./gpus.js";
import { History } from "./history.js";
import { announce, sentence } from "./notices.js";
import { showOverview } from "./overview.js";
import { showRefused } from "./refused.js";
import { Stopping } from "./stopping.js";
import { askForToken } from "./token.js";

const history = new History();
const stopping = new Stopping({
  rowsOf: (model, one) => table.rowsOf(model, one),
  onChange: () => feed.wake(),
  onUnauthorized: askForToken,
});
const table = new BackendsTable(history, (item, button) => stopping.ask(item, button));
const ends = new EndsTable((end, button) => stopping.askLeftBehind(end, button, ends.rowsOf(end)));

function showConnection(tone, text) {
  byId("connection").dataset.tone = tone;
  document.body.dataset.connection = tone;
  setText(byId("connection"), text);
}

async function showVersion() {
  const { name, version } = await get("version");
  setText(byId("version"), `${name} ${version}`);
}

let clockOffset = 0;

/** The time of the monitor, in seconds: the clock of the browser's machine may be wrong. */
function monitorTime({ backends: [item] }) {
  const here = Date.now() / 1000;
  if (item) clockOffset = Date.parse(item.created_at) / 1000 + item.uptime_seconds - here;
  return here + clockOffset;
}

let updated = "";
const feed = new Feed({
  onHistory: (answer) => {
    history.load(answer);
    showVersion().catch(() => {});
  },
  onAnswer: (answer, events) => {
    const now = monitorTime(answer);
    history.add(answer.backends, now);
    table.update(answer, now);
    showGpus(answer.gpus ?? []);
    showRefused(answer.refused ?? []);
    ends.update(answer.ended, now);
    const trouble = showOverview(answer);
    document.title = trouble > 0 ? `(${trouble}) Monitor` : "Monitor";
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

byId("forget").hidden = token.get() === null;
byId("forget").addEventListener("click", () => {
  token.remove();
  location.reload();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => table.redraw());
window.addEventListener("online", () => feed.wake());

feed.run();
