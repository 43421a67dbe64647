// Requests to the monitor, with the tab's token. Addresses are relative: a prefix may lead to us.

const KEY = "monitor-token";
const PATIENCE_MS = 30_000;

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export class Away extends Error {}

export const token = {
  get: () => sessionStorage.getItem(KEY),
  keep: (text) => sessionStorage.setItem(KEY, text),
  forget: () => sessionStorage.removeItem(KEY),
};

/** Ask for a path, relative to the page; gives the JSON. Throws Refused or Away. */
export async function get(path) {
  return ask(path, { signal: AbortSignal.timeout(PATIENCE_MS) });
}

/** Stop a model, or one of its backends; comes back when it is gone. */
export async function stop(model, one, force) {
  const body = JSON.stringify({ model, force, pid: one?.pid, node: one?.node });
  const headers = { "Content-Type": "application/json" };
  return ask("backend/shutdown", { method: "POST", headers, body });
}

async function ask(path, options) {
  const secret = token.get();
  const headers = { Accept: "application/json", ...options.headers };
  if (secret !== null) headers.Authorization = `Bearer ${secret}`;
  let answer;
  let text;
  try {
    answer = await fetch(path, { ...options, headers, cache: "no-store", credentials: "same-origin" });
    text = await answer.text();
  } catch (error) {
    throw new Away("it cannot be reached", { cause: error });
  }
  let body = null;
  try {
    body = JSON.parse(text);
  } catch {
    // A proxy's own page, say.
  }
  if (answer.ok && body !== null) return body;
  throw new Refused(answer.status, body?.error?.message ?? `it answered with HTTP ${answer.status}`);
}
