// The page: what the feed brings goes to the tables, what is asked for to the monitor.

import { get, token } from "./api.js";
import { BackendsTable } from "./backends.js";
import { byId, setText } from "./dom.js";
import { EndsTable } from "./ends.js";
import { Feed } from "./feed.js";
import { History } from "./history.js";
import { announce, sentence } from "./notices.js";
import { showOverview } from "./overview.js";
import { Stopping } from "./stopping.js";
import { askForToken } from "./token.js";

const history = new History();
const stopping = new Stopping({
  rowsOf: (model, one) => table.rowsOf(model, one),
  onChange: () => feed.wake(),
  onUnauthorized: askForToken,
});
const table = new BackendsTable(history, (item, button) => stopping.ask(item, button));
const ends = new EndsTable();

function say(tone, text) {
  byId("connection").dataset.tone = tone;
  document.body.dataset.connection = tone;
  setText(byId("connection"), text);
}

async function showVersion() {
  const { name, version } = await get("version");
  setText(byId("version"), `${name} ${version}`);
}

let ahead = 0;

/** The monitor's own time, in seconds: this machine's clock may be wrong. */
function monitorsNow({ backends: [item] }) {
  const here = Date.now() / 1000;
  if (item) ahead = Date.parse(item.created_at) / 1000 + item.uptime_seconds - here;
  return here + ahead;
}

let told = "";
const feed = new Feed({
  onHistory: (answer) => {
    history.load(answer);
    showVersion().catch(() => {});
  },
  onAnswer: (answer, events) => {
    const now = monitorsNow(answer);
    history.add(answer.backends, now);
    table.update(answer, now);
    ends.update(answer.ended, now);
    const trouble = showOverview(answer);
    document.title = trouble > 0 ? `(${trouble}) Monitor` : "Monitor";
    announce(events.map(sentence).filter((text) => text !== null));
    told = `as of ${new Date().toLocaleTimeString()}`;
    say("good", "Live");
  },
  onAway: (reason, seconds) => {
    const old = told ? ` What is shown is ${told}.` : "";
    say("bad", `The monitor is away: ${reason}. Asking again every ${seconds} s.${old}`);
  },
  onUnauthorized: askForToken,
});

byId("forget").hidden = token.get() === null;
byId("forget").addEventListener("click", () => {
  token.forget();
  location.reload();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => table.redraw());
window.addEventListener("online", () => feed.wake());

feed.run();
