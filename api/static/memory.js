// The map of memory: a card for each place with its pools as bars, and the links between the cards.

import { byId, element, keyed, setText } from "./dom.js";
import { bytes, bytesPerSecond, none, plural } from "./format.js";
import { drawLinks, newLinkLayer } from "./links.js";
import { linksOf, placesOf } from "./places.js";

const NAMES = {
  running: "running",
  waiting: "waiting, only here",
  clean: "waiting, mirrored",
  mirror: "mirrors",
  lent: "lent",
  leased: "lent, still empty",
  free: "free",
};

const nameOf = (part) => (part.of ? `${NAMES[part.kind]} of ${part.of}` : NAMES[part.kind]);

const noteOf = (place) => {
  if (place.kind === "host") return "host memory";
  const recalled = place.recalled ? `, ${plural(place.recalled, "segment")} recalled` : "";
  if (place.kind === "lender") return `lends${recalled}`;
  return place.isUp ? `${place.running} of ${place.batch} places` : "its runner is being started again";
};

const totalOf = (pool) => pool.parts.reduce((sum, part) => sum + part.bytes, 0);

const inWords = (pool) =>
  pool.parts
    .filter((part) => part.bytes > 0)
    .map((part) => `${nameOf(part)} ${bytes(part.bytes)}`)
    .join(", ");

function makeCard() {
  return element(
    "article",
    { class: "place" },
    element("header", {}, element("h3"), element("span", { class: "soft" }), element("span", { class: "size" })),
    element("div", { class: "pools" }),
  );
}

function updateCard(node, place) {
  const [title, note, size] = node.firstChild.children;
  node.dataset.kind = place.kind;
  setText(title, place.name);
  setText(note, noteOf(place));
  setText(size, bytes(place.pools.reduce((sum, pool) => sum + totalOf(pool), 0)));
  keyed(node.lastChild, place.pools, (pool) => pool.label, makePool, (bar, pool) => updatePool(bar, pool, place));
}

function makePool() {
  return element(
    "div",
    { class: "pool" },
    element("div", { class: "bar", role: "img" }),
    element("p", { class: "soft", "aria-hidden": "true" }),
  );
}

function updatePool(node, pool, place) {
  const [bar, words] = node.children;
  const total = Math.max(1, totalOf(pool));
  bar.setAttribute("aria-label", `${place.name}${pool.label ? `, ${pool.label}` : ""}: ${inWords(pool)}`);
  keyed(
    bar,
    pool.parts,
    nameOf,
    (part) => element("i", { class: `key ${part.kind}` }),
    (segment, part) => {
      segment.style.width = `${(part.bytes / total) * 100}%`;
      segment.title = `${nameOf(part)}: ${bytes(part.bytes)}`;
    },
  );
  setText(words, inWords(pool));
}

function updateTable(links) {
  keyed(
    byId("links-table").querySelector("tbody"),
    links,
    (link) => `${link.src}\n${link.dst}`,
    () => element("tr", {}, ...Array.from({ length: 5 }, () => element("td"))),
    (row, link) => {
      const cells = [link.src, link.dst, bytesPerSecond(link.rate), link.speed, bytes(link.total)];
      cells[3] = link.speed === null ? none : bytesPerSecond(link.speed);
      cells.forEach((text, index) => setText(row.children[index], text));
    },
  );
}

export class MemoryMap {
  #store;
  #near = element("div", { class: "column" });
  #far = element("div", { class: "column" });
  #layer = newLinkLayer();
  #list = element("ul", { class: "links" });

  constructor(store) {
    this.#store = store;
    byId("map").append(this.#near, this.#layer, this.#far, this.#list);
    new ResizeObserver(() => this.#drawLinks()).observe(byId("map"));
  }

  update() {
    const { near, far } = placesOf(this.#store.state);
    keyed(this.#near, near, (place) => place.name, makeCard, updateCard);
    keyed(this.#far, far, (place) => place.name, makeCard, updateCard);
    const links = linksOf(this.#store);
    updateTable(links);
    keyed(
      this.#list,
      links,
      (link) => `${link.src}\n${link.dst}`,
      (link) => element("li", {}, element("span", {}, `${link.src} \u2192 ${link.dst}`), element("span")),
      (item, link) => setText(item.lastChild, bytesPerSecond(link.rate)),
    );
    this.#drawLinks();
  }

  #drawLinks() {
    if (this.#store.state !== null) drawLinks(this.#layer, this.#near, this.#far, linksOf(this.#store));
  }
}
