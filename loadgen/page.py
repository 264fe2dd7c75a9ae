"""The HTML of reports: one file with its style and plots inside, light or dark as the reader's system is."""

from collections.abc import Iterable, Sequence
from html import escape

from loadgen.plots import PALETTE_CSS, Plot

_STYLE = """
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 2.5rem 1.5rem 4rem; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
header p { color: var(--ink-soft); margin: 0.2rem 0 0; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; font-weight: 650; letter-spacing: -0.02em; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 0.95rem; font-weight: 600; margin: 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 0.8rem;
  margin: 1.6rem 0; }
.tile, .card, figure { background: var(--card); border: 1px solid var(--grid); border-radius: 10px; }
.tile { padding: 0.8rem 1rem; }
.tile span { display: block; color: var(--ink-soft); font-size: 0.8rem; }
.tile strong { font-size: 1.45rem; font-weight: 600; letter-spacing: -0.02em; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.bad strong { color: var(--bad); }
.note { border-left: 3px solid var(--warn); padding: 0.35rem 0.9rem; margin: 0.5rem 0; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 1rem;
  margin: 1.4rem 0; }
figure { margin: 0; padding: 1rem 1rem 0.5rem; }
figcaption p, .card > p { color: var(--ink-soft); font-size: 0.82rem; margin: 0.15rem 0 0.5rem; }
figure svg { display: block; width: 100%; height: auto; }
svg text { font-family: inherit; }
.card { padding: 1rem; margin: 1rem 0; overflow-x: auto; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 0 1rem;
  align-items: start; }
table { border-collapse: collapse; width: 100%; font-size: 0.86rem; margin-top: 0.5rem; }
th { color: var(--ink-soft); font-weight: 500; }
th, td { text-align: right; padding: 0.32rem 0.6rem; font-variant-numeric: tabular-nums;
  border-top: 1px solid var(--grid); }
thead th { border-top: 0; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td:first-child { color: var(--ink-soft); white-space: nowrap; }
td { overflow-wrap: anywhere; }
.method { color: var(--ink-soft); font-size: 0.82rem; max-width: 78ch; }
"""


def page(title: str, subtitle: str, parts: Iterable[str]) -> str:
    """A whole page; title and subtitle are text, parts are HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{PALETTE_CSS}{_STYLE}</style></head>\n"
        f"<body><header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></header>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def tiles(*cells: str) -> str:
    return f'<div class="tiles">{"".join(cells)}</div>'


def tile(label: str, value: str, *, bad: bool = False) -> str:
    """One number that matters, with its name."""
    style = "tile bad" if bad else "tile"
    return f'<div class="{style}"><span>{escape(label)}</span><strong>{escape(value)}</strong></div>'


def figure(plot: Plot, svg: str) -> str:
    caption = f"<figcaption><h2>{escape(plot.title)}</h2><p>{escape(plot.note)}</p></figcaption>"
    return f"<figure>{caption}{svg}</figure>"


def card(title: str, body: str, note: str = "") -> str:
    below = f"<p>{escape(note)}</p>" if note else ""
    return f'<section class="card"><h2>{escape(title)}</h2>{below}{body}</section>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are text. A head of empty names is left out."""
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    top = f"<thead><tr>{names}</tr></thead>" if any(head) else ""
    lines = ("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>{top}<tbody>{''.join(lines)}</tbody></table>"
