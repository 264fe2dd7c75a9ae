// A line of the last minute, without axes: its shape is the message.

import { shape } from "./dom.js";

const WIDTH = 160;
const HEIGHT = 34;
const SPAN_MS = 60_000;

// `points` have a `time` and a `value`, null where there is none.
export function drawSparkline(svg, points, now) {
  const shown = points.filter((point) => point.value !== null && point.time >= now - SPAN_MS);
  const top = Math.max(1e-9, ...shown.map((point) => point.value));
  const x = (time) => (WIDTH * (1 - (now - time) / SPAN_MS)).toFixed(1);
  const y = (value) => (HEIGHT - 2 - (HEIGHT - 5) * (value / top)).toFixed(1);
  const path = shown.map((point, index) => `${index ? "L" : "M"}${x(point.time)} ${y(point.value)}`).join("");
  const [area, line] = svg.children;
  line.setAttribute("d", path);
  const first = shown[0];
  area.setAttribute("d", first ? `${path}L${x(shown.at(-1).time)} ${HEIGHT}L${x(first.time)} ${HEIGHT}Z` : "");
}

export function newSparkline() {
  return shape(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", class: "spark", "aria-hidden": "true" },
    shape("path", { class: "area" }),
    shape("path", { class: "stroke" }),
  );
}
