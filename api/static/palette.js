// Colours of tenants. They are defined in base.css, for light and dark; canvases read them here.

const COUNT = 8;

let colours = null;

document.addEventListener("themechange", () => {
  colours = null;
});

function read() {
  const style = getComputedStyle(document.documentElement);
  const get = (name) => style.getPropertyValue(name).trim();
  return {
    tenants: Array.from({ length: COUNT }, (_, index) => get(`--t${index}`)),
    deep: Array.from({ length: COUNT }, (_, index) => get(`--d${index}`)),
    others: get("--others"),
    ink: get("--ink"),
    soft: get("--soft"),
    line: get("--line"),
    faint: get("--faint"),
    wait: get("--wait"),
    paper: get("--paper"),
    bad: get("--bad"),
    font: get("--font"),
  };
}

export function palette() {
  colours ??= read();
  return colours;
}

// The number of a colour, or null for the tenants that are shown as one. A tenant that is alone would make all
// one colour, which tells nothing: then each prompt has its own.
export function colourOf(slice, tenants) {
  if (slice.tenant === "") return null;
  const index = tenants.length > 1 ? tenants.indexOf(slice.tenant) : slice.prompt;
  return index % COUNT;
}
