// Messages: changes for screen readers, and errors for everybody.

import { byId, element } from "./dom.js";
import { bytes, plural } from "./format.js";

const MAX_AT_ONCE = 4;
const MAX_LINES = 30;

// What a watchdog does with a backend. Other actions, such as `tell`, need attention.
const WATCHDOG = {
  stop: "is being stopped",
  restart: "is being restarted",
  gave_up: "is left as it is, after too many restarts",
};

/** Have screen readers read changes, without moving the focus. */
export function announce(changes) {
  if (changes.length === 0) return;
  const log = byId("changes");
  const lines = changes.slice(0, MAX_AT_ONCE);
  if (changes.length > lines.length) lines.push(`and ${changes.length - lines.length} more changes`);
  for (const change of lines) log.append(element("p", {}, change));
  while (log.children.length > MAX_LINES) log.firstElementChild.remove();
}

/** Show an error until the user closes it. */
export function showError(text) {
  const button = element("button", { type: "button" }, "Close");
  const notice = element("div", { class: "notice", role: "alert" }, element("p", {}, text), button);
  button.addEventListener("click", () => notice.remove());
  byId("notices").append(notice);
}

/** Describe an event of GET /events in a sentence; null for events that are not shown. */
export function sentence(event) {
  switch (event.type) {
    case "registered": return `${event.model} was registered`;
    case "state_changed": return `${event.model} is ${event.current_name ?? "in another state"}`;
    case "address_owner":
      if (!event.address_owner) return null;
      return `${event.model}: its address is served by another process, ${event.address_owner.pid ?? "unknown"}`;
    case "oom_kill": return `${event.model} lost a process, killed by the kernel for want of memory`;
    case "ended": return `${event.model} ${event.description ?? "ended"}`;
    case "left_behind": return `${event.model} left ${plural(event.pids.length, "process", "processes")} behind`;
    case "member_ended": return `${event.model}: process ${event.member?.pid} ${event.description ?? "ended"}`;
    case "watchdog": return `${event.model} ${WATCHDOG[event.action] ?? "needs attention"} (${event.watchdog}): ${event.reason}`;
    case "shutdown_phase": return `${event.model}: ${event.phase}`;
    case "shutdown_finished": return `the shutdown of ${event.model}: ${event.outcome}${givenBack(event.freed)}`;
    default: return null;
  }
}

/** The memory that a shutdown gave back, as text to append to a sentence; empty if unknown. */
function givenBack(freed) {
  const amounts = [];
  if (freed?.memory) amounts.push(bytes(freed.memory));
  if (freed?.gpu) amounts.push(`${bytes(freed.gpu)} of GPU memory`);
  const parts = amounts.length ? [`gave back ${amounts.join(" and ")}`] : [];
  if (freed?.gpu_left) parts.push(`${bytes(freed.gpu_left)} of GPU memory is not free`);
  return parts.map((part) => `, ${part}`).join("");
}
