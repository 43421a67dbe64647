// Keeps what is shown up to date: waits for events, then asks for the backends, over and over.

import { get, Refused } from "./api.js";

// Figures have no events, so each wait is no longer than they may be old.
const WAIT_SECONDS = 5;
const STALE_SECONDS = 3 * WAIT_SECONDS;
const LONGEST_PAUSE_SECONDS = 15;

export class Feed {
  #after = null;
  #failures = 0;
  #changes = new Map();
  #wake = () => {};

  /** Functions to call: onHistory(answer), onAnswer(answer, events), onAway(reason, seconds), and
   *  onUnauthorized(), which is waited for. */
  constructor(listener) {
    this.listener = listener;
  }

  /** Ask at once, where it pauses. */
  wake() {
    this.#wake();
  }

  async run() {
    for (;;) {
      await visible();
      try {
        await this.#turn();
        this.#failures = 0;
      } catch (error) {
        this.#after = null;
        if (error instanceof Refused && error.status === 401) {
          await this.listener.onUnauthorized();
          continue;
        }
        this.#failures += 1;
        const seconds = Math.min(2 ** (this.#failures - 1), LONGEST_PAUSE_SECONDS);
        this.listener.onAway(error.message, seconds);
        await this.#pause(seconds);
      }
    }
  }

  async #turn() {
    let events = [];
    if (this.#after === null) {
      // The position first: what happens while the rest is fetched is then told afterwards.
      const { next } = await get("events?after=0");
      this.listener.onHistory(await get("history"));
      await this.#backends(events);
      this.#after = next;
    }
    const news = await get(`events?after=${this.#after}&wait=${WAIT_SECONDS}`);
    if (news.gap) this.listener.onHistory(await get("history"));
    events = news.events;
    await this.#backends(events);
    this.#after = news.next;
    if (news.poll_after_seconds > 0) await this.#pause(news.poll_after_seconds);
    // Left for a while in another tab, the charts would have a hole.
    if (document.hidden) this.#after = null;
  }

  async #backends(events) {
    // Where the monitor makes no sweeps of its own, readings are only made when they are asked for.
    let answer = await get("backends?fresh=false");
    if (areStale(answer.backends)) answer = await get("backends");
    this.#amend(answer.backends, events);
    this.listener.onAnswer(answer, events);
  }

  /** Events come before the sweep that found them is over: where a change of state is newer than
   *  the reading that is listed, it counts. */
  #amend(backends, events) {
    for (const event of events) {
      if (event.type === "state_changed") this.#changes.set(keyOf(event), event);
    }
    const changes = new Map();
    for (const item of backends) {
      const change = this.#changes.get(keyOf(item));
      if (!change) continue;
      const now = Date.parse(item.created_at) / 1000 + item.uptime_seconds;
      const read = item.age_seconds === null ? -Infinity : now - item.age_seconds;
      if (Date.parse(change.at) / 1000 <= read) continue;
      changes.set(keyOf(item), change);
      item.state = change.current;
      item.state_name = change.current_name;
      item.state_changed_at = change.at;
    }
    this.#changes = changes;
  }

  #pause(seconds) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, seconds * 1000);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }
}

const keyOf = ({ model, node, pid }) => `${node ?? ""}/${pid}/${model}`;

function areStale(backends) {
  const ages = backends.map((item) => item.age_seconds ?? Infinity);
  return ages.length > 0 && Math.min(...ages) > STALE_SECONDS;
}

/** Wait until the tab is looked at: one that is not shall not hold the monitor's threads. */
function visible() {
  if (!document.hidden) return Promise.resolve();
  return new Promise((resolve) => {
    document.addEventListener("visibilitychange", function look() {
      if (document.hidden) return;
      document.removeEventListener("visibilitychange", look);
      resolve();
    });
  });
}
