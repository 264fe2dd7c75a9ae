// Numbers for people: three digits that matter, and a unit.

const NBSP = "\u00a0";
const NONE = "\u2013";

export function digits(value) {
  if (Number.isInteger(value) || value >= 1000) return Math.round(value).toLocaleString("en");
  if (value >= 100) return value.toFixed(0);
  if (value >= 10) return value.toFixed(1);
  return value >= 0.1 ? value.toFixed(2) : value.toPrecision(1);
}

function scaled(value, base, units) {
  let index = 0;
  while (value >= base && index < units.length - 1) {
    value /= base;
    index += 1;
  }
  const shown = value >= 100 || Number.isInteger(value) ? value.toFixed(0) : value.toFixed(1);
  return `${shown}${NBSP}${units[index]}`;
}

export const bytes = (value) => scaled(value, 1024, ["B", "KiB", "MiB", "GiB", "TiB"]);

export const bytesPerSecond = (perSecond) => scaled(perSecond, 1000, ["B/s", "kB/s", "MB/s", "GB/s", "TB/s"]);

export function duration(seconds) {
  if (seconds === null) return NONE;
  if (seconds < 0.9995) return `${digits(seconds * 1000)}${NBSP}ms`;
  return `${digits(seconds)}${NBSP}s`;
}

export const percent = (part) => `${(part * 100).toFixed(part < 0.0995 && part > 0 ? 1 : 0)}${NBSP}%`;

export const plural = (count, noun) => `${count.toLocaleString("en")}${NBSP}${noun}${count === 1 ? "" : "s"}`;

export const none = NONE;
