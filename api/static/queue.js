// Tenants: what they weigh, what they got, and who of them runs or waits.

import { byId, element, keyed, setText } from "./dom.js";
import { digits, none, percent } from "./format.js";

const MAX_PIPS = 32;
const MAX_LEGEND = 12;
const SHARE_MS = 10_000;

// Tenants of all models together.
function tenantsOf(store) {
  const merged = new Map();
  for (const tenant of store.state.models.flatMap((model) => model.tenants)) {
    const before = merged.get(tenant.name) ?? { name: tenant.name, weight: null, running: 0, waiting: 0 };
    merged.set(tenant.name, {
      ...before,
      weight: tenant.weight ?? before.weight,
      running: before.running + tenant.num_running,
      waiting: before.waiting + tenant.num_waiting,
    });
  }
  const past = store.before(SHARE_MS).service;
  const used = (name) => Math.max(0, (store.last.service.get(name) ?? 0) - (past.get(name) ?? 0));
  const total = [...merged.keys()].reduce((sum, name) => sum + used(name), 0);
  const rows = [...merged.values()];
  const weights = rows.reduce((sum, row) => sum + (row.weight ?? 0), 0);
  const knowsAll = rows.every((row) => row.name !== "" || row.running + row.waiting === 0);
  for (const row of rows) {
    row.share = total > 0 ? used(row.name) / total : 0;
    row.due = knowsAll && row.weight !== null && weights > 0 ? row.weight / weights : null;
  }
  return store.tenants.map((name) => rows.find((row) => row.name === name)).filter((row) => row !== undefined);
}

function makeRow() {
  const bar = element("div", { class: "share", "aria-hidden": "true" }, element("i"), element("b"));
  const counts = element("span", { class: "counts" });
  return element(
    "tr",
    {},
    element("th", { scope: "row" }, element("i", { class: "swatch own" }), element("span")),
    element("td", { class: "number" }),
    element("td", { class: "wide" }, bar, element("span")),
    element("td", {}, element("span", { class: "pips", "aria-hidden": "true" }), counts),
  );
}

function updateRow(node, row, index, isAlone) {
  const [name, weight, share, prompts] = node.children;
  const colour = row.name === "" ? "others" : isAlone ? "accent" : `t${index % 8}`;
  node.style.setProperty("--own", `var(--${colour})`);
  setText(name.lastChild, row.name === "" ? "all others" : row.name);
  setText(weight, row.weight === null ? none : digits(row.weight));
  const [bar, text] = share.children;
  bar.firstChild.style.width = `${row.share * 100}%`;
  bar.lastChild.hidden = row.due === null;
  bar.lastChild.style.left = `${(row.due ?? 0) * 100}%`;
  setText(text, percent(row.share));
  const [pips, counts] = prompts.children;
  drawPips(pips, row);
  setText(counts, `${row.running} running, ${row.waiting} waiting`);
}

function drawPips(pips, row) {
  const running = Math.min(row.running, MAX_PIPS);
  const waiting = Math.min(row.waiting, MAX_PIPS - running);
  const wanted = `${running},${waiting}`;
  if (pips.dataset.shown === wanted) return;
  pips.dataset.shown = wanted;
  const made = Array.from({ length: running + waiting }, (_, index) =>
    element("i", { class: index < running ? "on" : "off" }),
  );
  pips.replaceChildren(...made);
}

export function updateQueue(store) {
  const rows = tenantsOf(store);
  keyed(
    byId("tenants"),
    rows,
    (row) => row.name,
    makeRow,
    (node, row) => updateRow(node, row, store.tenants.indexOf(row.name), store.tenants.length === 1),
  );
}

export function updateLegend(store) {
  const items = store.tenants.length > 1 ? store.tenants.slice(0, MAX_LEGEND) : [];
  keyed(
    byId("legend"),
    items,
    (name) => name,
    () => element("li", {}, element("i"), element("span")),
    (node, name) => {
      node.firstChild.className = `swatch ${name === "" ? "others" : `c${items.indexOf(name) % 8}`}`;
      setText(node.lastChild, name === "" ? "all others" : name);
    },
  );
}
