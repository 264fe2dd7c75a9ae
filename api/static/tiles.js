// The numbers that matter, each with its last minute.

import { element, setText } from "./dom.js";
import { bytesPerSecond, digits, duration, none, percent, plural } from "./format.js";
import { drawSparkline, newSparkline } from "./sparkline.js";

const orNone = (value, show) => (value === null ? none : show(value));

const latencyTile = (name, label) => ({
  label,
  value: (store) => duration(store.latency(name, 0.5)),
  note: (store) => `p90 ${duration(store.latency(name, 0.9))}, p99 ${duration(store.latency(name, 0.99))}`,
  read: (store) => store.latency(name, 0.5),
});

const idlePart = (store) => {
  const past = store.before(2000);
  const busy = store.last.busy - past.busy;
  const idle = store.last.idle - past.idle;
  return busy + idle > 0 ? idle / (busy + idle) : null;
};

const TILES = [
  {
    label: "Tokens per second",
    value: (store) => orNone(store.rate((sample) => sample.tokens), digits),
    note: (store) => `${plural(store.last.tokens, "token")} in all`,
    points: (store) => store.rates((sample) => sample.tokens),
  },
  latencyTile("first_token", "First token, median"),
  latencyTile("gap", "Token gap, median"),
  {
    label: "Prompts running",
    value: (store) => digits(store.last.running),
    note: (store) => `${store.last.waiting.toLocaleString("en")} waiting`,
    points: (store) => store.samples.map((sample) => ({ time: sample.time, value: sample.running })),
  },
  {
    label: "Preemptions per second",
    value: (store) => orNone(store.rate((sample) => sample.preemptions), digits),
    note: (store) => `device idle with work queued: ${orNone(idlePart(store), percent)}`,
    points: (store) => store.rates((sample) => sample.preemptions),
  },
  {
    label: "Pages moved",
    value: (store) => orNone(store.rate((sample) => sample.bytes), bytesPerSecond),
    note: (store) => `compute waited ${duration(waited(store))} in all`,
    points: (store) => store.rates((sample) => sample.bytes),
  },
];

const waited = (store) => store.state.models.reduce((total, model) => total + model.move_wait_ns, 0) / 1e9;

export class Tiles {
  #tiles;
  #store;

  constructor(parent, store) {
    this.#store = store;
    this.#tiles = TILES.map((tile) => {
      const value = element("strong", {}, none);
      const note = element("span", {}, "\u00a0");
      const spark = newSparkline();
      const words = [element("dt", {}, tile.label), element("dd", {}, value, note)];
      parent.append(element("div", { class: "tile" }, ...words, spark));
      return { ...tile, value, show: tile.value, note, tell: tile.note, spark, history: [] };
    });
  }

  update() {
    const store = this.#store;
    for (const tile of this.#tiles) {
      setText(tile.value, tile.show(store));
      setText(tile.note, tile.tell(store));
      drawSparkline(tile.spark, this.#points(tile), store.time);
    }
  }

  // Percentiles have a past only since we look.
  #points(tile) {
    if (tile.points) return tile.points(this.#store);
    tile.history.push({ time: this.#store.time, value: tile.read(this.#store) });
    if (tile.history.length > 150) tile.history.shift();
    return tile.history;
  }
}
