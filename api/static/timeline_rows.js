// Which row of the timeline a slice is drawn in.

import { byName } from "./places.js";

const MAX_PROMPTS = 60;

const deviceOf = (slice) => `${slice.model}\n${slice.device}`;

// Rows are places in the batch of each device, as many as were ever seen.
export class SlotRows {
  #slots = new Map(); // by device: number of rows

  rows(slices, state) {
    const several = new Set(slices.map((slice) => slice.model)).size > 1;
    for (const model of state.models) {
      for (const device of model.devices) this.#grow(`${model.name}\n${device.name}`, 4);
    }
    for (const slice of slices) this.#grow(deviceOf(slice), slice.slot + 1);
    const devices = [...this.#slots].sort(([a], [b]) => byName(a, b));
    const groups = devices.map(([key, count]) => {
      const [model, device] = key.split("\n");
      return {
        key,
        label: device,
        note: several ? model : "",
        rows: Array.from({ length: count }, () => ({ label: "", slices: [], from: null, to: null })),
      };
    });
    const byKey = new Map(groups.map((group) => [group.key, group]));
    for (const slice of slices) byKey.get(deviceOf(slice)).rows[slice.slot].slices.push(slice);
    return groups;
  }

  clear() {
    this.#slots.clear();
  }

  #grow(key, count) {
    this.#slots.set(key, Math.max(this.#slots.get(key) ?? 0, count));
  }
}

// Rows are prompts in order of arrival, the latest of those to be seen. A thin line goes from a prompt's
// arrival to its end: where there is no slice on it, the prompt waited.
export function promptRows(slices, from, to) {
  const prompts = new Map();
  for (const slice of slices) {
    if (slice.prompt === 0) continue; // somebody else's
    const key = `${slice.model}\n${slice.prompt}`;
    if (!prompts.has(key)) prompts.set(key, { label: `${slice.prompt}`, slices: [], from: slice.arrival, to: null });
    prompts.get(key).slices.push(slice);
  }
  const rows = [...prompts.values()].filter((row) => {
    const last = row.slices.at(-1);
    const isOver = last.end !== null && last.fate !== "preempted" && last.fate !== "extended";
    row.to = isOver ? last.end : null;
    return row.from <= to && (row.to === null || row.to >= from);
  });
  rows.sort((a, b) => a.slices[0].prompt - b.slices[0].prompt);
  return [{ key: "prompts", label: "", note: "", rows: rows.slice(-MAX_PROMPTS) }];
}
