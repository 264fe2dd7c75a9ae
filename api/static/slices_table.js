// The latest slices as a table, for those who do not see pictures. Filled only while it is open and the timeline
// is not paused.

import { byId, element, keyed, setText } from "./dom.js";
import { duration } from "./format.js";

const MAX_ROWS = 50;

export function updateSlicesTable(store) {
  const details = byId("slices-table");
  if (!details.open || store.keepsAll) return;
  keyed(
    details.querySelector("tbody"),
    store.ended.slice(-MAX_ROWS).reverse(),
    (slice) => `${slice.model}\n${slice.device}\n${slice.slot}\n${slice.start_ns}`,
    () => element("tr", {}, ...Array.from({ length: 7 }, () => element("td"))),
    (row, slice) => {
      const { prompt, tenant, device, start, end, prefilled, sampled, fate } = slice;
      const texts = [prompt || "", tenant || "another", device, duration((end - start) / 1000), prefilled, sampled, fate];
      texts.forEach((text, index) => setText(row.children[index], String(text)));
    },
  );
}
