// Links between places as lines: one for each direction, as thick as it is busy. Beside each device that serves
// stand the speeds of its links; links between places of one column are lines from card to card.

import { keyed, setText, shape } from "./dom.js";
import { bytesPerSecond } from "./format.js";

const LABEL = 172; // pixels for the speeds beside a card
const APART = 7; // between the two directions

export const newLinkLayer = () => shape("svg", { class: "layer", "aria-hidden": "true" });

// 1 pixel for nothing, 6 for 100 GB/s.
const widthOf = (rate) => 1 + (5 * Math.log10(1 + rate / 1e3)) / 8;

function boxes(column, origin) {
  return new Map(
    [...column.children].map((card) => {
      const { left, right, top, bottom } = card.getBoundingClientRect();
      return [
        card.dataset.key,
        { left: left - origin.left, right: right - origin.left, top: top - origin.top, bottom: bottom - origin.top },
      ];
    }),
  );
}

// Both directions between two places as one.
function pairs(links) {
  const found = new Map();
  for (const link of links) {
    const ends = [link.src, link.dst].sort();
    const key = ends.join("\n");
    if (!found.has(key)) found.set(key, { key, ends, rates: new Map() });
    found.get(key).rates.set(`${link.src}\n${link.dst}`, link.rate);
  }
  return [...found.values()];
}

function portOf(box, index, count) {
  return box.top + ((box.bottom - box.top) * (index + 1)) / (count + 1);
}

// Lines between the columns; `ports` counts what ends at each place.
function across(all, near, far) {
  const between = [];
  for (const pair of all) {
    const [a, b] = pair.ends;
    if (near.has(a) && far.has(b)) between.push({ ...pair, here: a, there: b });
    else if (near.has(b) && far.has(a)) between.push({ ...pair, here: b, there: a });
  }
  const order = (column) => [...column.keys()];
  between.sort(
    (x, y) =>
      order(near).indexOf(x.here) - order(near).indexOf(y.here) ||
      order(far).indexOf(x.there) - order(far).indexOf(y.there),
  );
  return between.map((pair) => {
    const ours = between.filter((each) => each.here === pair.here);
    const theirs = between.filter((each) => each.there === pair.there);
    const from = near.get(pair.here);
    const to = far.get(pair.there);
    return {
      ...pair,
      x1: from.right + LABEL,
      y1: portOf(from, ours.indexOf(pair), ours.length),
      x2: to.left - 4,
      y2: portOf(to, theirs.indexOf(pair), theirs.length),
      label: from.right + 10,
    };
  });
}

function along(all, column) {
  const names = [...column.keys()];
  return all.flatMap((pair) => {
    const [first, second] = pair.ends.map((name) => names.indexOf(name)).sort((a, b) => a - b);
    if (first < 0 || second !== first + 1) return [];
    const above = column.get(names[first]);
    const below = column.get(names[second]);
    const x = above.left + 18;
    return [
      {
        ...pair,
        here: names[first],
        there: names[second],
        x1: x,
        y1: above.bottom + 3,
        x2: x,
        y2: below.top - 3,
        label: x + 16,
      },
    ];
  });
}

function curve({ x1, y1, x2, y2 }, side) {
  const shift = (side * APART) / 2;
  if (x1 === x2) return `M${x1 + shift} ${y1}V${y2}`;
  const middle = (x1 + x2) / 2;
  return `M${x1} ${y1 + shift}C${middle} ${y1 + shift} ${middle} ${y2 + shift} ${x2} ${y2 + shift}`;
}

function makeLink() {
  const label = shape("text", {}, shape("tspan", { class: "out" }), shape("tspan", { class: "in" }));
  return shape("g", {}, shape("path", { class: "out" }), shape("path", { class: "in" }), label);
}

function updateLink(node, link) {
  const out = link.rates.get(`${link.here}\n${link.there}`) ?? 0;
  const back = link.rates.get(`${link.there}\n${link.here}`) ?? 0;
  const [outPath, backPath, label] = node.children;
  const vertical = link.x1 === link.x2;
  for (const [path, side, rate] of [
    [outPath, -1, out],
    [backPath, 1, back],
  ]) {
    path.setAttribute("d", curve(link, side));
    path.setAttribute("stroke-width", widthOf(rate).toFixed(2));
    path.classList.toggle("busy", rate > 0);
  }
  const y = vertical ? (link.y1 + link.y2) / 2 : link.y1;
  const [outText, backText] = label.children;
  setText(outText, `${vertical ? "\u2193" : "\u2192"} ${bytesPerSecond(out)}`);
  setText(backText, `${vertical ? "\u2191" : "\u2190"} ${bytesPerSecond(back)}`);
  outText.setAttribute("x", link.label);
  outText.setAttribute("y", y + 4);
  backText.setAttribute("x", link.label + LABEL / 2 - 4);
  backText.setAttribute("y", y + 4);
}

export function drawLinks(layer, nearColumn, farColumn, links) {
  const origin = layer.getBoundingClientRect();
  if (origin.width === 0) return; // narrow pages have a list instead
  const near = boxes(nearColumn, origin);
  const far = boxes(farColumn, origin);
  const all = pairs(links);
  const drawn = [...across(all, near, far), ...along(all, near), ...along(all, far)];
  keyed(layer, drawn, (link) => link.key, makeLink, updateLink);
}
