// The limits of memory and CPU of a machine or a backend, and the pressure on them.

import { bytes, percent, plural } from "./format.js";

const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);

/** The memory that a backend may use, `{ size, text }`: its limit, or else the memory of its
 *  machine. `limits` is null if the backend has the limits of the monitor. */
export function memoryLimit(machine, limits = null) {
  const limit = (limits ?? machine)?.memory_limit ?? null;
  const total = machine?.memory_total ?? null;
  if (limit === null) return { size: total, text: bytes(total) };
  return { size: limit, text: `${bytes(limit)} (limit; the machine has ${bytes(total)})` };
}

/** The sum of the memory that backends on these machines may use, `{ size, text }`. */
export function sumOfLimits(machines) {
  if (machines.length === 1) {
    const { size, text } = memoryLimit(machines[0]);
    const limited = (machines[0]?.memory_limit ?? null) !== null;
    return { size, text: limited ? text : `the machine’s ${text}` };
  }
  const total = sum(machines.map((machine) => machine?.memory_total ?? 0));
  const size = sum(machines.map((machine) => memoryLimit(machine).size ?? 0));
  const limited = machines.some((machine) => (machine?.memory_limit ?? null) !== null);
  if (!limited) return { size: size || null, text: `the machines’ ${bytes(size)}` };
  return { size, text: `${bytes(size)} (limits; the machines have ${bytes(total)})` };
}

/** The available memory, the CPU cores and the pressures of a machine or a backend, as texts. */
export function resources({ memory_available: available, cpu_limit: limit, cpus, memory_pressure, cpu_pressure }) {
  const texts = [];
  if ((available ?? null) !== null) texts.push(`${bytes(available)} of memory available`);
  const limited = (limit ?? null) !== null && !(limit >= cpus);
  if (limited && cpus) texts.push(`${Number(limit.toFixed(2))} of ${plural(cpus, "CPU core")} (limit)`);
  else if (limited) texts.push(plural(Number(limit.toFixed(2)), "CPU core"));
  else if (cpus) texts.push(plural(cpus, "CPU core"));
  for (const [name, share] of [["memory", memory_pressure], ["CPU", cpu_pressure]]) {
    if (share > 0) texts.push(`${name} pressure ${percent(share)} of the last 10 s`);
  }
  return texts;
}

/** The limits of a backend as a text. */
export function describeLimits(machine, limits) {
  if ((limits ?? null) === null) return "those of the monitor";
  const memory = limits.memory_limit ?? null;
  const own = memory === null ? "no limit of memory" : memoryLimit(machine, limits).text;
  return [own, ...resources(limits)].join(", ");
}

/** The unit in which a host runs a backend, as a text without unknown figures. */
export function describeUnit(unit) {
  const known = (value) => (value ?? null) !== null;
  const texts = [`${unit.name} (${unit.manager})`];
  const limit = known(unit.memory_max) ? ` of ${bytes(unit.memory_max)}` : "";
  if (known(unit.memory_current)) texts.push(`memory ${bytes(unit.memory_current)}${limit}`);
  else if (limit) texts.push(`memory up to ${bytes(unit.memory_max)}`);
  if (known(unit.memory_peak)) texts.push(`peak ${bytes(unit.memory_peak)}`);
  if (known(unit.tasks)) texts.push(plural(unit.tasks, "task"));
  if (known(unit.cpu_quota)) texts.push(plural(Number(unit.cpu_quota.toFixed(2)), "CPU core"));
  if (known(unit.restarts)) texts.push(plural(unit.restarts, "restart"));
  return texts.join(", ");
}
