"""Self-contained HTML pages: one file without requests, with a table to search and to sort.

The content security policy allows only the page's own script and style, by their hashes. Whoever
fills a page escapes every text with `html.escape`, or with the functions here.
"""

import base64
import hashlib
import html
from collections.abc import Iterable, Iterator, Sequence

_CELL_CHARACTERS = 20_000

_STYLE = """
body{font:14px/1.45 system-ui,sans-serif;margin:1.5rem;color:#1a1a1a;background:#fff}
pre.figures{background:#f5f5f2;padding:.8rem;overflow-x:auto}
input{font:inherit;padding:.3rem .5rem;width:24rem;max-width:90%}
table{border-collapse:collapse;width:100%;margin-top:.8rem}
th,td{border-bottom:1px solid #ddd;padding:.35rem .5rem;text-align:left;vertical-align:top}
th button{font:inherit;font-weight:600;text-align:left;background:none;border:0;padding:0}
th button{cursor:pointer}
th[aria-sort=ascending] button::after{content:" \\2191"}
th[aria-sort=descending] button::after{content:" \\2193"}
td.text{white-space:pre-wrap;overflow-wrap:anywhere;min-width:5rem;max-width:34rem}
details pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:.3rem 0}
"""

_SCRIPT = """
const table = document.getElementById('rows'), body = table.tBodies[0];
const rows = Array.from(body.rows), shown = document.getElementById('shown');
const texts = rows.map(row => row.textContent.toLowerCase());
document.getElementById('search').addEventListener('input', event => {
  const words = event.target.value.toLowerCase().split(/\\s+/).filter(Boolean);
  let count = 0;
  rows.forEach((row, i) => {
    row.hidden = !words.every(word => texts[i].includes(word));
    count += !row.hidden;
  });
  shown.textContent = count;
});
let sorted = -1, sign = 1;
const heads = Array.from(table.tHead.querySelectorAll('th'));
heads.forEach((head, column) => {
  head.firstChild.addEventListener('click', () => {
    sign = column === sorted ? -sign : 1;
    sorted = column;
    heads.forEach(other => other.removeAttribute('aria-sort'));
    head.setAttribute('aria-sort', sign > 0 ? 'ascending' : 'descending');
    const key = row => row.cells[column].dataset.key ?? row.cells[column].textContent;
    const ordered = Array.from(body.rows).sort((a, b) =>
      sign * key(a).localeCompare(key(b), undefined, {numeric: true}));
    body.append(...ordered);
  });
});
"""


def page(title: str, body: Iterable[str], *, style: str = "") -> Iterator[str]:
  """Yields the parts of a page around `body`, which has exactly one row_table.

  Args:
    title: plain text.
    body: HTML.
    style: CSS in addition to that of every page.
  """
  style = _STYLE + style
  policy = (
    f"default-src 'none'; script-src 'sha256-{_hash(_SCRIPT)}'; style-src 'sha256-{_hash(style)}'"
  )
  yield (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">'
    '<meta name="viewport" content="width=device-width">'
    f"<title>{html.escape(title)}</title><style>{style}</style></head>\n<body>"
  )
  yield from body
  yield f"<script>{_SCRIPT}</script></body></html>\n"


def row_table(
  columns: Sequence[str], rows: Iterable[str], *, count: int, note: str = ""
) -> Iterator[str]:
  """Yields the table of rows under its search field.

  Args:
    columns: plain texts.
    rows: HTML of table rows, each with a cell a column; a cell is sorted by its data-key if any.
    count: the number of rows.
    note: plain text after the number of rows.
  """
  heads = "".join(f'<th scope="col"><button>{html.escape(name)}</button></th>' for name in columns)
  yield (
    '<p><label>Search <input id="search" type="search" autocomplete="off"></label> '
    f'<span id="shown" aria-live="polite">{count}</span> of {count:,} rows{html.escape(note)}</p>\n'
    f'<table id="rows"><thead><tr>{heads}</tr></thead><tbody>\n'
  )
  yield from rows
  yield "</tbody></table>"


def text_cell(text: str) -> str:
  """Returns a table cell that shows a text as it is."""
  return f'<td class="text">{html.escape(cut(text))}</td>'


def key_cell(text: str, key: object) -> str:
  """Returns a table cell that is sorted by another key than its text."""
  return f'<td data-key="{html.escape(str(key))}">{html.escape(text)}</td>'


def cut(text: str) -> str:
  """Returns the text, cut to what a page can show."""
  return text if len(text) <= _CELL_CHARACTERS else text[:_CELL_CHARACTERS] + " ... (cut)"


def _hash(text: str) -> str:
  return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
