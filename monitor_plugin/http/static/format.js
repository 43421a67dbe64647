// Formats figures for people. null becomes "unknown", never 0.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

const known = (number) => typeof number === "number" && Number.isFinite(number);

/** Bytes with up to three significant digits: "96 MiB", "1.25 GiB". */
export function bytes(number) {
  if (!known(number)) return "unknown";
  let unit = 0;
  while (number >= 999.5 && unit < UNITS.length - 1) {
    number /= 1024;
    unit += 1;
  }
  const digits = unit === 0 || number >= 99.95 ? 0 : number >= 9.995 ? 1 : 2;
  return `${Number(number.toFixed(digits))} ${UNITS[unit]}`;
}

export function percent(number) {
  if (!known(number)) return "unknown";
  return number > 0 && number < 0.1 ? "< 0.1 %" : `${Number(number.toFixed(number < 9.95 ? 1 : 0))} %`;
}

/** Seconds in at most two units: "12 s", "3 h 20 min". */
export function duration(seconds) {
  if (!known(seconds)) return "unknown";
  const total = Math.max(0, Math.floor(seconds));
  const [days, hours, minutes] = [Math.floor(total / 86400), Math.floor(total / 3600) % 24, Math.floor(total / 60) % 60];
  if (days) return hours ? `${days} d ${hours} h` : `${days} d`;
  if (hours) return minutes ? `${hours} h ${minutes} min` : `${hours} h`;
  return minutes ? `${minutes} min` : `${total} s`;
}

export const count = (number) => (known(number) ? String(number) : "unknown");

export function plural(number, one, many = `${one}s`) {
  return `${number} ${number === 1 ? one : many}`;
}

/** A time (RFC 3339 or milliseconds since the epoch) in the user's language and time zone. */
export function moment(when) {
  const date = new Date(when);
  return Number.isNaN(date.getTime()) ? "unknown" : date.toLocaleString();
}

export const secondsBetween = (from, to) => (Date.parse(to) - Date.parse(from)) / 1000;

/** A backend's PID, and its node in a cluster. */
export function place({ node, pid }) {
  return node ? `PID ${pid} on ${node}` : `PID ${pid}`;
}
