// What changed, said to screen readers, and what went wrong, said to everybody until it is closed.

import { byId, element } from "./dom.js";

const MOST_AT_ONCE = 4;
const MOST_KEPT = 30;

/** Say changes without taking the focus. */
export function announce(changes) {
  if (changes.length === 0) return;
  const log = byId("changes");
  const said = changes.slice(0, MOST_AT_ONCE);
  if (changes.length > said.length) said.push(`and ${changes.length - said.length} more changes`);
  for (const change of said) log.append(element("p", {}, change));
  while (log.children.length > MOST_KEPT) log.firstElementChild.remove();
}

/** Show what went wrong, until it is closed. */
export function complain(text) {
  const button = element("button", { type: "button" }, "Close");
  const notice = element("div", { class: "notice", role: "alert" }, element("p", {}, text), button);
  button.addEventListener("click", () => notice.remove());
  byId("notices").append(notice);
}

/** Tell of an event of GET /events in a sentence, or null where it is not worth one. */
export function sentence(event) {
  switch (event.type) {
    case "registered": return `${event.model} was registered`;
    case "state_changed": return `${event.model} is ${event.current_name ?? "in another state"}`;
    case "ended": return `${event.model} ${event.description ?? "ended"}`;
    case "shutdown_phase": return `${event.model}: ${event.phase}`;
    case "shutdown_finished": return `the shutdown of ${event.model}: ${event.outcome}`;
    default: return null;
  }
}
