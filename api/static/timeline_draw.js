// The picture of the timeline: groups of rows over a time axis, on a canvas.

import { colourOf, palette } from "./palette.js";

const AXIS = 22;
const GROUP_GAP = 14;
const MAX_ROW = 14;
const MIN_ROW = 2;
const LABELLED_ROW = 9;
const HEIGHT = 300;
const MAX_HEIGHT = 640;
const TICKS = [0.5, 1, 2, 5, 10, 20, 30];

// Where everything goes, in CSS pixels: `rows` have `top`, `height` and what they show.
export function layOut(groups, width, from, to) {
  const count = groups.reduce((total, group) => total + group.rows.length, 0);
  const row = rowHeight(Math.max(1, count));
  const gutter = groups.some((group) => group.label) || row >= LABELLED_ROW ? (width < 600 ? 50 : 84) : 1;
  const rows = [];
  const labels = [];
  let top = AXIS;
  for (const group of groups) {
    labels.push({ text: group.label, note: group.note, top, height: group.rows.length * row });
    for (const each of group.rows) {
      rows.push({ ...each, top, height: row });
      top += row;
    }
    top += GROUP_GAP;
  }
  const scale = (width - gutter) / (to - from);
  return {
    rows,
    labels,
    row,
    gutter,
    width,
    from,
    to,
    height: Math.max(AXIS + HEIGHT / 2, top),
    xOf: (time) => gutter + (time - from) * scale,
    timeAt: (x) => from + (x - gutter) / scale,
  };
}

// Half pixels keep edges sharp, until there are so many rows that nothing does.
function rowHeight(count) {
  const even = Math.max(MIN_ROW, Math.min(MAX_ROW, Math.floor((HEIGHT / count) * 2) / 2));
  return even * count <= MAX_HEIGHT ? even : MAX_HEIGHT / count;
}

export function draw(context, plan, { clock, tenants, selected }) {
  const colours = palette();
  context.clearRect(0, 0, plan.width, plan.height);
  context.font = `11px ${colours.font}`;
  drawGrid(context, plan, colours, clock);
  context.save();
  context.beginPath();
  context.rect(plan.gutter, 0, plan.width - plan.gutter, plan.height);
  context.clip();
  for (const row of plan.rows) if (row.from !== null) drawLife(context, plan, row, colours);
  drawSlices(context, plan, colours, tenants);
  if (selected !== null) drawSelection(context, plan, selected, colours);
  context.restore();
  drawLabels(context, plan, colours);
}

// `clock` turns engine time into the hour of the day.
function drawGrid(context, plan, colours, clock) {
  const wanted = ((plan.to - plan.from) / 1000 / (plan.width - plan.gutter)) * 90;
  const step = (TICKS.find((tick) => tick >= wanted) ?? 60) * 1000;
  context.fillStyle = colours.soft;
  context.textAlign = "center";
  context.textBaseline = "alphabetic";
  const shift = clock(0) % step;
  for (let time = Math.ceil((plan.from + shift) / step) * step - shift; time <= plan.to; time += step) {
    const x = Math.round(plan.xOf(time)) + 0.5;
    context.strokeStyle = colours.line;
    line(context, x, AXIS - 5, x, plan.height - GROUP_GAP);
    const date = new Date(Math.round(clock(time)));
    const text = step < 1000 ? `${date.getSeconds()}.${Math.floor(date.getMilliseconds() / 100)}` : hour(date);
    const half = context.measureText(text).width / 2;
    if (x - half > plan.gutter - 10 && x + half < plan.width) context.fillText(text, x, AXIS - 10);
  }
  context.strokeStyle = colours.faint;
  for (const row of plan.row >= 5 ? plan.rows.filter((each) => each.from === null) : []) {
    line(context, plan.gutter, row.top + row.height - 0.5, plan.width, row.top + row.height - 0.5);
  }
}

function hour(date) {
  return [date.getHours(), date.getMinutes(), date.getSeconds()].map((part) => String(part).padStart(2, "0")).join(":");
}

function drawLabels(context, plan, colours) {
  context.textBaseline = "middle";
  for (const { text, note, top, height } of plan.labels) {
    context.textAlign = "left";
    context.fillStyle = colours.ink;
    context.fillText(text, 0, top + Math.min(8, height / 2));
    context.fillStyle = colours.soft;
    if (note) context.fillText(note, 0, top + 22);
    context.strokeStyle = colours.line;
    line(context, plan.gutter - 0.5, top, plan.gutter - 0.5, top + height);
  }
  context.textAlign = "right";
  context.fillStyle = colours.soft;
  for (const row of plan.row >= LABELLED_ROW ? plan.rows : []) {
    if (row.label) context.fillText(row.label, plan.gutter - 8, row.top + row.height / 2);
  }
}

function drawLife(context, plan, row, colours) {
  const y = Math.round(row.top + row.height / 2) - 0.5;
  context.strokeStyle = colours.wait;
  line(context, plan.xOf(row.from), y, plan.xOf(row.to ?? plan.to), y);
}

// Rectangles are gathered by colour first: to change it is what costs. Marks come after bodies, on top.
function drawSlices(context, plan, colours, tenants) {
  const bodies = new Map();
  const marks = new Map();
  for (const row of plan.rows) {
    for (const slice of row.slices) gather(plan, row, slice, colours, tenants, bodies, marks);
  }
  for (const [colour, boxes] of [...bodies, ...marks]) {
    context.fillStyle = colour;
    for (const [x, y, width, height] of boxes) context.fillRect(x, y, width, height);
  }
}

function gather(plan, row, slice, colours, tenants, bodies, marks) {
  const end = slice.end ?? plan.to;
  if (end < plan.from || slice.start > plan.to) return;
  const { x, y, width, height } = box(plan, row, slice);
  const index = colourOf(slice, tenants);
  put(bodies, index === null ? colours.others : colours.tenants[index], [x, y, width, height]);
  const prefillEnd = slice.firstToken ?? (slice.sampled === 0 && slice.prefilled > 0 ? end : slice.start);
  if (index !== null && prefillEnd > slice.start) {
    put(marks, colours.deep[index], [x, y, Math.min(width, Math.max(1, plan.xOf(prefillEnd) - x)), height]);
  }
  if (slice.fate === "extended" || slice.fate === "preempted" || slice.fate === null) return;
  const colour = slice.fate === "stop" || slice.fate === "length" ? colours.ink : colours.bad;
  put(marks, colour, [x + width - 2, y, 2, height]);
}

function put(groups, colour, box) {
  const known = groups.get(colour);
  if (known === undefined) groups.set(colour, [box]);
  else known.push(box);
}

function box(plan, row, slice) {
  const gap = row.height >= 6 ? 2 : row.height >= 3 ? 1 : 0;
  const x = plan.xOf(slice.start);
  const right = plan.xOf(slice.end ?? plan.to);
  const between = right - x > 3 ? 1 : 0;
  return { x, y: row.top + gap / 2, width: Math.max(1, right - x - between), height: row.height - gap };
}

function drawSelection(context, plan, selected, colours) {
  const row = plan.rows.find((each) => each.slices.includes(selected));
  if (row === undefined) return;
  const { x, y, width, height } = box(plan, row, selected);
  context.strokeStyle = colours.ink;
  context.lineWidth = 2;
  context.strokeRect(x - 1, y - 1, width + 2, height + 2);
  context.lineWidth = 1;
}

function line(context, x1, y1, x2, y2) {
  context.beginPath();
  context.moveTo(x1, y1);
  context.lineTo(x2, y2);
  context.stroke();
}

// The slice at a point, or null. Thin ones are as wide as a finger is steady.
export function sliceAt(plan, x, y) {
  const row = plan.rows.find((each) => y >= each.top && y < each.top + each.height);
  if (row === undefined || x < plan.gutter) return null;
  const distance = (slice) => {
    const left = plan.xOf(slice.start);
    const right = plan.xOf(slice.end ?? plan.to);
    return x < left ? left - x : Math.max(0, x - right);
  };
  let best = null;
  for (const slice of row.slices) if (best === null || distance(slice) < distance(best)) best = slice;
  return best !== null && distance(best) <= 4 ? best : null;
}
