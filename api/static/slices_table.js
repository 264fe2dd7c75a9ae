// The latest slices as a table, for those who do not see pictures. It is filled when it is opened, and then with
// every answer unless the timeline is paused.

import { byId, element, keyed, setText } from "./dom.js";
import { duration } from "./format.js";

const MAX_ROWS = 50;

const details = byId("slices-table");

export function connectSlicesTable(store) {
  details.addEventListener("toggle", () => details.open && fill(store));
}

export function updateSlicesTable(store) {
  if (details.open && !store.keepsAll) fill(store);
}

function fill(store) {
  keyed(
    details.querySelector("tbody"),
    store.ended.slice(-MAX_ROWS).reverse(),
    (slice) => `${slice.model}\n${slice.device}\n${slice.slot}\n${slice.start_ns}`,
    () => element("tr", {}, ...Array.from({ length: 7 }, () => element("td"))),
    (row, slice) => {
      const { prompt, tenant, device, start, end, prefilled, sampled, fate } = slice;
      const length = duration((end - start) / 1000);
      const texts = [prompt || "", tenant || "another", device, length, prefilled, sampled, fate];
      texts.forEach((text, index) => setText(row.children[index], String(text)));
    },
  );
}
