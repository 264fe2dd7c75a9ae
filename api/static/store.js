// What the page knows: the latest answer, the slices of the last two minutes, and samples of every counter.
// Times are milliseconds of the engine's clock.

import { percentile, sinceThen } from "./percentiles.js";

export const KEPT_MS = 120_000;
const MAX_SLICES = 40_000;
const UNSORTED_MS = 1000;
const RATE_MS = 2000;
const LATENCY_MS = 30_000;

const ms = (ns) => ns / 1e6;

function readSlice(model, record) {
  return {
    model,
    ...record,
    arrival: ms(record.arrival_ns),
    start: ms(record.start_ns),
    firstToken: record.first_token_ns === null ? null : ms(record.first_token_ns),
    end: record.end_ns === null ? null : ms(record.end_ns),
  };
}

function sum(items, valueOf) {
  let total = 0;
  for (const item of items) total += valueOf(item);
  return total;
}

function takeSample(state) {
  const { models } = state;
  const devices = models.flatMap((model) => model.devices);
  const tenants = models.flatMap((model) => model.tenants);
  const paths = models.flatMap((model) => model.paths);
  const service = new Map();
  for (const tenant of tenants) {
    service.set(tenant.name, (service.get(tenant.name) ?? 0) + ms(tenant.service_ns));
  }
  const moved = new Map();
  for (const path of paths) {
    const name = `${path.src}\n${path.dst}`;
    const before = moved.get(name) ?? { bytes: 0, busy: 0 };
    moved.set(name, { bytes: before.bytes + path.num_bytes, busy: before.busy + ms(path.move_ns) });
  }
  return {
    time: ms(state.now_ns),
    tokens: sum(models, (model) => model.output_tokens),
    preemptions: sum(models, (model) => model.num_preemptions),
    running: sum(tenants, (tenant) => tenant.num_running),
    waiting: sum(tenants, (tenant) => tenant.num_waiting),
    busy: sum(devices, (device) => ms(device.busy_ns)),
    idle: sum(devices, (device) => ms(device.idle_ns)),
    bytes: sum(paths, (path) => path.num_bytes),
    service,
    moved,
    latencies: state.latencies,
  };
}

export class Store {
  state = null;
  ended = []; // in order of their end, but for those of several models that came in one answer
  inForce = [];
  samples = [];
  tenants = []; // names, in order of appearance
  keepsAll = false; // while the timeline is paused nothing of it is thrown away
  #offset = null; // engine's clock less the page's

  apply(state) {
    if (this.state !== null && this.state.engine_id !== state.engine_id) this.samples = []; // counters begin anew
    this.state = state;
    this.ended.push(...state.models.flatMap((model) => model.ended.map((each) => readSlice(model.name, each))));
    this.inForce = state.models.flatMap((model) => model.in_force.map((each) => readSlice(model.name, each)));
    this.samples.push(takeSample(state));
    this.#forget();
    this.#nameTenants();
    this.#setClock(ms(state.now_ns) - performance.now());
  }

  clear() {
    this.state = null;
    this.ended = [];
    this.inForce = [];
    this.samples = [];
    this.tenants = [];
  }

  // Slices that ended after this time, and maybe a few that ended shortly before it.
  endedSince(time) {
    let low = 0;
    let high = this.ended.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.ended[middle].end < time - UNSORTED_MS) low = middle + 1;
      else high = middle;
    }
    return this.ended.slice(low);
  }

  // Of the latest answer.
  get time() {
    return this.state === null ? 0 : ms(this.state.now_ns);
  }

  // Now, by the engine's clock.
  get clock() {
    return this.#offset === null ? 0 : performance.now() + this.#offset;
  }

  get last() {
    return this.samples.at(-1);
  }

  // The sample of about `age` milliseconds ago, or the oldest.
  before(age) {
    const wanted = this.time - age;
    let found = this.samples[0];
    for (const sample of this.samples) {
      if (sample.time > wanted) break;
      found = sample;
    }
    return found;
  }

  // Change per second of what `valueOf` reads, lately.
  rate(valueOf, age = RATE_MS) {
    return rateBetween(this.before(age), this.last, valueOf);
  }

  // The same at each sample, for a sparkline.
  rates(valueOf, age = RATE_MS) {
    let first = 0;
    return this.samples.map((sample, index) => {
      while (first + 1 < index && this.samples[first + 1].time <= sample.time - age) first += 1;
      return { time: sample.time, value: index === 0 ? null : rateBetween(this.samples[first], sample, valueOf) };
    });
  }

  // A percentile of a latency, over the last half minute.
  latency(name, part) {
    const past = this.before(LATENCY_MS);
    return percentile(sinceThen(past.latencies[name], this.last.latencies[name]), part);
  }

  #forget() {
    const oldest = this.time - KEPT_MS;
    while (this.samples.length > 2 && this.samples[0].time < oldest) this.samples.shift();
    if (this.keepsAll && this.ended.length <= MAX_SLICES) return;
    let count = Math.max(0, this.ended.length - MAX_SLICES);
    while (count < this.ended.length && this.ended[count].end < oldest) count += 1;
    if (count > 0) this.ended.splice(0, count);
  }

  #nameTenants() {
    for (const model of this.state.models) {
      for (const { name } of model.tenants) if (!this.tenants.includes(name)) this.tenants.push(name);
    }
    this.tenants.sort((a, b) => (a === "") - (b === "") || a.localeCompare(b));
  }

  #setClock(offset) {
    const isNear = this.#offset !== null && Math.abs(offset - this.#offset) < 1000;
    this.#offset = isNear ? this.#offset + 0.1 * (offset - this.#offset) : offset;
  }
}

function rateBetween(past, now, valueOf) {
  if (past === undefined || now === undefined || now.time <= past.time) return null;
  return Math.max(0, (valueOf(now) - valueOf(past)) / (now.time - past.time)) * 1000;
}
