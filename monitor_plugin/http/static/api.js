// Requests to the monitor, with the token of this tab. URLs are relative, as a proxy may add a prefix.

const KEY = "monitor-token";
const TIMEOUT_MS = 30_000;

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export class Unreachable extends Error {}

export const token = {
  get: () => sessionStorage.getItem(KEY),
  set: (text) => sessionStorage.setItem(KEY, text),
  remove: () => sessionStorage.removeItem(KEY),
};

/** GET a path relative to the page; returns the JSON. Throws Refused or Unreachable. */
export async function get(path) {
  return (await send(path, { signal: AbortSignal.timeout(TIMEOUT_MS) })).body;
}

/** GET the name and version of the program, and in a cluster the name of the node that answers. */
export async function getVersion() {
  const { body, headers } = await send("version", { signal: AbortSignal.timeout(TIMEOUT_MS) });
  return { ...body, node: headers.get("X-Monitor-Node") };
}

/** Stop a model, or the backend `one` of it; returns when the processes have ended. */
export const stop = (model, one, force) =>
  post("backend/shutdown", { model, force, pid: one?.pid, node: one?.node });

/** Start a model, in a cluster on a node; returns when it is ready. */
export const start = (model, node) => post("backend/load", { model, node });

/** Stop a model, or one of its backends, and start the model; returns when it is ready again. */
export const restart = (model, pid, node, force) => post("backend/restart", { model, pid, node, force });

async function post(path, fields) {
  const headers = { "Content-Type": "application/json" };
  return (await send(path, { method: "POST", headers, body: JSON.stringify(fields) })).body;
}

async function send(path, options) {
  const secret = token.get();
  const headers = { Accept: "application/json", ...options.headers };
  if (secret !== null) headers.Authorization = `Bearer ${secret}`;
  let answer;
  let text;
  try {
    answer = await fetch(path, { ...options, headers, cache: "no-store", credentials: "same-origin" });
    text = await answer.text();
  } catch (error) {
    throw new Unreachable("it cannot be reached", { cause: error });
  }
  let body = null;
  try {
    body = JSON.parse(text);
  } catch {
    // It is no JSON: perhaps an error page of a proxy.
  }
  if (answer.ok && body !== null) return { body, headers: answer.headers };
  throw new Refused(answer.status, body?.error?.message ?? `it answered with HTTP ${answer.status}`);
}
