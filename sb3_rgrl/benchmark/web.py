"""The report as one HTML file that needs nothing else: pictures are inside, tables can be sorted, no network."""

import base64
import html
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sb3_rgrl.benchmark.tables import Table

LOOK = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1b1b1b; background: #fff; margin: 2rem auto; max-width: 76rem;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; } p { max-width: 60rem; }
.pictures { display: flex; flex-wrap: wrap; gap: 1.5rem; } figure { margin: 0; max-width: 100%; width: min-content; }
figure img { max-width: 74rem; height: auto; } figcaption { color: #555; font-size: 0.9rem; }
@media (max-width: 76rem) { figure { width: auto; } figure img { max-width: 100%; } }
.scroll { overflow: auto; max-height: 40rem; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: 0.2rem 0.6rem; border-bottom: 1px solid #e3e3e3; text-align: left; vertical-align: top; }
td { white-space: nowrap; } td.number { text-align: right; } td.long { white-space: normal; }
thead th { position: sticky; top: 0; background: #f4f4f4; }
th button { all: unset; cursor: pointer; font-weight: 600; } th button:focus-visible { outline: 2px solid #0072b2; }
th[aria-sort="ascending"] button::after { content: " \\2191"; }
th[aria-sort="descending"] button::after { content: " \\2193"; }
tbody tr:hover { background: #f7fafc; } pre { overflow: auto; background: #f6f6f6; padding: 0.6rem; }
.warning { border-left: 4px solid #d55e00; padding-left: 0.8rem; }
"""

SORT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const keyOf = (row) => {
      const cell = row.cells[column];
      if (cell.dataset.key === undefined) return cell.textContent;
      return cell.dataset.key === "" ? null : Number(cell.dataset.key);
    };
    const order = (one, two) => {
      const [a, b] = [keyOf(one), keyOf(two)];
      if (a === null || b === null) return (a === null) - (b === null);
      const sign = typeof a === "number" ? Math.sign(a - b) || 0 : a.localeCompare(b, "en", { numeric: true });
      return up ? sign : -sign;
    };
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
  }));
}
"""


class Image(NamedTuple):
    """A picture in the page."""

    caption: str
    png: bytes
    width: int
    """In pixels of the page."""


def page(
    title: str,
    pictures: Mapping[str, Image],
    tables: Sequence[Table],
    warnings: Sequence[str],
    conditions: Mapping[str, str],
) -> str:
    """
    :param title: Of the page.
    :param pictures: By name.
    :param tables: In their order.
    :param warnings: What to know before comparing.
    :param conditions: Heading -> text about how it was measured.
    :return: The whole file.
    """
    sections = [
        *(f'<p class="warning">{html.escape(text)}</p>' for text in warnings),
        '<div class="pictures">',
        *(_figure(name, image) for name, image in pictures.items()),
        "</div>",
        *(table.html() for table in tables),
        "<h2>How it was measured</h2>",
        *(
            f"<details><summary>{html.escape(name)}</summary><pre>{html.escape(text)}</pre></details>"
            for name, text in conditions.items()
        ),
    ]
    body = "\n".join(sections)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{html.escape(title)}</title>\n'
        f'<link rel="icon" href="data:,">\n<style>{LOOK}</style>\n</head>\n<body>\n<h1>{html.escape(title)}</h1>\n{body}\n'
        f"<script>{SORT}</script>\n</body>\n</html>\n"
    )


def _figure(name: str, image: Image) -> str:
    data = base64.b64encode(image.png).decode()
    return (
        f'<figure><img alt="{html.escape(name)}" width="{image.width}" src="data:image/png;base64,{data}">'
        f"<figcaption>{html.escape(image.caption)}</figcaption></figure>"
    )
