// Keeps the page up to date: waits for events, then gets the backends, again and again.

import { get, Refused } from "./api.js";

// CPU and memory cause no events, so this is also how often they are updated.
const WAIT_SECONDS = 5;
const STALE_SECONDS = 3 * WAIT_SECONDS;
const MAX_PAUSE_SECONDS = 15;

export class Feed {
  #after = null;
  #failures = 0;
  #changes = new Map();
  #wake = () => {};

  /** `listener` has the functions onHistory(answer), onAnswer(answer, events),
   *  onUnreachable(reason, seconds) and the async onUnauthorized(). */
  constructor(listener) {
    this.listener = listener;
  }

  /** End a pause, if there is one. */
  wake() {
    this.#wake();
  }

  async run() {
    for (;;) {
      await tabIsVisible();
      try {
        await this.#update();
        this.#failures = 0;
      } catch (error) {
        this.#after = null;
        if (error instanceof Refused && error.status === 401) {
          await this.listener.onUnauthorized();
          continue;
        }
        this.#failures += 1;
        const seconds = Math.min(2 ** (this.#failures - 1), MAX_PAUSE_SECONDS);
        this.listener.onUnreachable(error.message, seconds);
        await this.#pause(seconds);
      }
    }
  }

  async #update() {
    let events = [];
    if (this.#after === null) {
      // Get the position first, so that events which happen meanwhile are listed afterwards.
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
    // After a while in the background the charts would have a gap, so get the history again.
    if (document.hidden) this.#after = null;
  }

  async #backends(events) {
    // A monitor without periodic sweeps reads its backends only on request.
    let answer = await get("backends?fresh=false");
    if (areStale(answer.backends)) answer = await get("backends");
    this.#applyChanges(answer.backends, events);
    this.listener.onAnswer(answer, events);
  }

  /** Apply changes of state that are newer than the listed readings: an event is there before the
   *  sweep that caused it has ended. */
  #applyChanges(backends, events) {
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

/** Wait until the tab is visible: a hidden one must not take threads of the monitor. */
export function tabIsVisible() {
  if (!document.hidden) return Promise.resolve();
  return new Promise((resolve) => {
    document.addEventListener("visibilitychange", function listener() {
      if (document.hidden) return;
      document.removeEventListener("visibilitychange", listener);
      resolve();
    });
  });
}
