// The timeline: what part of the past it shows, what is selected in it, and when it is drawn.

import { byId, setText } from "./dom.js";
import { duration, plural } from "./format.js";
import { PERIOD_MS } from "./feed.js";
import { draw, layOut, sliceAt } from "./timeline_draw.js";
import { promptRows, SlotRows } from "./timeline_rows.js";

const DELAY_MS = PERIOD_MS + 200; // behind the engine, so that what is drawn is known
const MAX_PIXEL_RATIO = 2;
const FRAME_MS = 30;
const MAX_DUTY = 0.25; // of the time may go into drawing

export class Timeline {
  selected = null;
  span = 20_000;
  mode = "slots";
  #canvas = byId("timeline");
  #detail = byId("detail");
  #store;
  #slots = new SlotRows();
  #pausedAt = null; // the end of the view, by the engine's clock
  #plan = null;
  #wasDrawn = 0;
  #cost = 0; // of a drawing, in milliseconds
  #calm = matchMedia("(prefers-reduced-motion: reduce)");

  constructor(store) {
    this.#store = store;
    const frame = () => {
      this.#drawIfMoving();
      requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
    new ResizeObserver(() => this.draw()).observe(this.#canvas.parentElement);
    document.addEventListener("themechange", () => this.draw());
  }

  get isPaused() {
    return this.#pausedAt !== null;
  }

  pause(isPaused) {
    this.#pausedAt = isPaused ? this.#end() : null;
    this.#store.keepsAll = isPaused;
    this.draw();
  }

  // Move the view by so many milliseconds, as far as there is something to see.
  pan(by) {
    if (!this.isPaused) this.pause(true);
    const oldest = this.#store.ended[0]?.start ?? this.#end();
    this.#pausedAt = Math.max(oldest, Math.min(this.#store.time, this.#pausedAt + by));
    this.draw();
  }

  zoom(factor) {
    this.span = Math.max(500, Math.min(120_000, this.span * factor));
    this.draw();
  }

  clear() {
    this.#slots.clear();
    this.select(null);
  }

  // New data came.
  update() {
    if (this.#calm.matches && !this.isPaused) this.draw();
    this.#canvas.setAttribute("aria-label", this.#summary());
    if (this.selected !== null && this.selected.end === null) this.select(this.#refound());
  }

  pointAt(x, y) {
    const found = this.#plan === null ? null : sliceAt(this.#plan, x, y);
    if (found !== this.selected) this.select(found);
  }

  millisecondsPerPixel() {
    return this.#plan === null ? 0 : (this.#plan.to - this.#plan.from) / (this.#plan.width - this.#plan.gutter);
  }

  // Select the neighbour in a direction: "left" and "right" in the row, "up" and "down" in the next with slices.
  step(direction) {
    if (this.#plan === null) return;
    const rows = this.#plan.rows.filter((row) => row.slices.some((slice) => this.#isSeen(slice)));
    const at = rows.findIndex((row) => row.slices.includes(this.selected));
    if (rows.length === 0) return;
    if (at < 0) {
      this.select(rows[0].slices.filter((slice) => this.#isSeen(slice)).at(-1));
      return;
    }
    const own = rows[at].slices;
    if (direction === "left" || direction === "right") {
      const next = own[own.indexOf(this.selected) + (direction === "left" ? -1 : 1)];
      if (next !== undefined && this.#isSeen(next)) this.select(next);
    } else {
      const row = rows[at + (direction === "up" ? -1 : 1)];
      if (row !== undefined) this.select(nearest(row.slices, this.selected));
    }
  }

  select(slice) {
    this.selected = slice;
    setText(this.#detail, slice === null ? "" : describe(slice));
    this.draw();
  }

  draw() {
    if (this.#store.state === null) return;
    const began = performance.now();
    const width = this.#canvas.parentElement.clientWidth;
    const to = this.#end();
    const from = to - this.span;
    const slices = [...this.#store.endedSince(from), ...this.#store.inForce];
    const groups =
      this.mode === "slots" ? this.#slots.rows(slices, this.#store.state) : promptRows(slices, from, to);
    this.#plan = layOut(groups, width, from, to);
    const shift = Date.now() - this.#store.clock;
    draw(this.#context(), this.#plan, {
      clock: (time) => time + shift,
      tenants: this.#store.tenants,
      selected: this.selected,
    });
    this.#wasDrawn = performance.now();
    this.#cost += 0.2 * (this.#wasDrawn - began - this.#cost);
  }

  #drawIfMoving() {
    const isDue = performance.now() - this.#wasDrawn > Math.max(FRAME_MS, this.#cost / MAX_DUTY);
    if (isDue && !this.isPaused && !this.#calm.matches && !document.hidden) this.draw();
  }

  #end() {
    return this.#pausedAt ?? Math.min(this.#store.clock - DELAY_MS, this.#store.time);
  }

  #isSeen(slice) {
    return (slice.end ?? this.#plan.to) >= this.#plan.from && slice.start <= this.#plan.to;
  }

  // A slice in force is another object in every answer, and then one that ended.
  #refound() {
    const { model, prompt, start, slot } = this.selected;
    const isSame = (each) =>
      each.model === model && each.prompt === prompt && each.start === start && each.slot === slot;
    return this.#store.inForce.find(isSame) ?? this.#store.ended.findLast(isSame) ?? null;
  }

  #context() {
    const ratio = Math.min(MAX_PIXEL_RATIO, devicePixelRatio);
    const { width, height } = this.#plan;
    const canvas = this.#canvas;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
      canvas.style.height = `${height}px`;
    }
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    return context;
  }

  #summary() {
    const since = this.#end() - this.span;
    const recent = this.#store.ended.filter((slice) => slice.end >= since);
    const prompts = new Set(recent.map((slice) => `${slice.model}\n${slice.prompt}`)).size;
    return (
      `Timeline of the last ${this.span / 1000} seconds: ${plural(recent.length, "slice")} of ` +
      `${plural(prompts, "prompt")} ended, ${this.#store.inForce.length} in force`
    );
  }
}

function nearest(slices, other) {
  const distance = (slice) => Math.abs(slice.start - other.start);
  return slices.reduce((best, slice) => (distance(slice) < distance(best) ? slice : best));
}

const ENDS = {
  extended: "the next followed at once",
  preempted: "preempted",
  stop: "the prompt ended",
  length: "the prompt reached its limit",
  abort: "aborted",
  error: "failed",
};

export function describe(slice) {
  const length = slice.end === null ? "in force" : duration((slice.end - slice.start) / 1000);
  if (slice.prompt === 0) return `Another tenant's slice on ${slice.device}: ${length}`;
  const parts = [length];
  if (slice.prefilled > 0) parts.push(`${slice.prefilled} prefilled`);
  if (slice.sampled > 0) parts.push(`${slice.sampled} sampled`);
  if (slice.firstToken !== null) {
    parts.push(`first token after ${duration((slice.firstToken - slice.arrival) / 1000)}`);
  }
  if (slice.fate !== null) parts.push(ENDS[slice.fate]);
  return `Prompt ${slice.prompt} of ${slice.tenant} on ${slice.device}: ${parts.join(", ")}`;
}
