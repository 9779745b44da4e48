"""A self-contained HTML page of a teacher's rationales: failures first, sortable, searchable.

All texts of rows and answers are escaped. The content security policy allows only the page's own
script and style, by their hashes, and no requests.
"""

import base64
import hashlib
import heapq
import html
import json
from collections.abc import Iterator
from typing import Any

from dss_jax.annotation.outcome import PROVENANCE, STATUSES
from dss_jax.annotation.report import read_annotated, to_text
from dss_jax.data.records import Row
from dss_jax.storage.atomic import atomic_target
from dss_jax.storage.files import PathLike

_CELL_CHARACTERS = 20_000

_STYLE = """
body{font:14px/1.45 system-ui,sans-serif;margin:1.5rem;color:#1a1a1a;background:#fff}
pre.figures{background:#f5f5f2;padding:.8rem;overflow-x:auto}
input{font:inherit;padding:.3rem .5rem;width:24rem;max-width:90%}
table{border-collapse:collapse;width:100%;margin-top:.8rem}
th,td{border-bottom:1px solid #ddd;padding:.35rem .5rem;text-align:left;vertical-align:top}
th button{font:inherit;font-weight:600;background:none;border:0;padding:0;cursor:pointer}
td.text{white-space:pre-wrap;overflow-wrap:anywhere;max-width:34rem}
tr.failed td,tr.unparsable td,tr.unasked td{background:#fdecea}
tr.undecided td,tr.doubtful td{background:#fff7e0}
details pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:.3rem 0}
"""

_SCRIPT = """
const table = document.querySelector('table'), body = table.tBodies[0];
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
table.tHead.querySelectorAll('button').forEach((button, column) => {
  button.addEventListener('click', () => {
    sign = column === sorted ? -sign : 1;
    sorted = column;
    const key = row => row.cells[column].dataset.key ?? row.cells[column].textContent;
    const ordered = Array.from(body.rows).sort((a, b) =>
      sign * key(a).localeCompare(key(b), undefined, {numeric: true}));
    body.append(...ordered);
  });
});
"""

_COLUMNS = ("line", "status", "input", "label", "teacher's label", "agreement", "rationale",
            "concerns", "answers")  # fmt: skip


def write_page(path: PathLike, page: PathLike, report: dict[str, Any], *, max_rows: int) -> None:
  """Writes the page of an annotated file.

  Args:
    report: report_on(path).
    max_rows: maximum number of rows; the worst rows are shown, in order of severity and line.
  """
  # Constant memory; the key has no rows, which cannot be compared.
  rows = heapq.nsmallest(
    max_rows, ((_rank(row), line, row) for line, row in read_annotated(path)), key=lambda r: r[:2]
  )
  with atomic_target(page) as file:
    for part in _page(report, [(line, row) for _, line, row in rows]):
      file.write(part.encode("utf-8"))


def _rank(row: Row) -> int:
  """Returns the sort key: failures, then disagreement, then other concerns, then the rest."""
  provenance = row[PROVENANCE]
  status = STATUSES.index(provenance["status"])
  if provenance["status"] != "answered":
    return status if status < STATUSES.index("answered") else 99
  if provenance.get("agrees_with_gold") is False:
    return 10
  return 20 if provenance.get("concerns") else 30


def _page(report: dict[str, Any], rows: list[tuple[int, Row]]) -> Iterator[str]:
  policy = (
    f"default-src 'none'; script-src 'sha256-{_hash(_SCRIPT)}'; style-src 'sha256-{_hash(_STYLE)}'"
  )
  left = report["rows"] - len(rows)
  more = f" ({left:,} more rows are in the file)" if left else ""
  heads = "".join(f'<th scope="col"><button>{html.escape(name)}</button></th>' for name in _COLUMNS)
  yield (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">'
    '<meta name="viewport" content="width=device-width">'
    f"<title>Rationales of {html.escape(report['file'])}</title><style>{_STYLE}</style></head>\n"
    f'<body><h1>Rationales</h1><pre class="figures">{html.escape(to_text(report))}</pre>\n'
    f'<p><label>Search <input id="search" type="search" autocomplete="off"></label> '
    f'<span id="shown">{len(rows)}</span> of {len(rows):,} rows{more}</p>\n'
    f"<table><thead><tr>{heads}</tr></thead><tbody>\n"
  )
  for line, row in rows:
    yield _row(line, row)
  yield f"</tbody></table><script>{_SCRIPT}</script></body></html>\n"


def _row(line: int, row: Row) -> str:
  provenance = row[PROVENANCE]
  status = provenance["status"]
  doubtful = provenance.get("agrees_with_gold") is False or provenance.get("concerns")
  css = f"{status} doubtful" if doubtful else status
  samples = provenance.get("samples", [])
  rationale = row.get("rationale") or provenance.get("reason", "")
  if "rationales" in row and isinstance(row["rationales"], list):
    rationale = "\n\n".join(map(str, row["rationales"]))
  agreement = provenance.get("agreement")
  concerns = [*provenance.get("concerns", [])]
  concerns += [f"dropped for {name}" for name in provenance.get("dropped_for", [])]
  # If every row gets the teacher's label, provenance has the row's own.
  gold = provenance.get("gold_label") or row.get("output_text", "")
  cells = [
    f'<td data-key="{line}">{line}</td>',
    f'<td data-key="{STATUSES.index(status)}">{html.escape(status)}</td>',
    _text(row["input_text"]),
    _text(gold),
    _text(provenance.get("label") or ""),
    f"<td>{'' if agreement is None else html.escape(f'{agreement:.2f}')}</td>",
    _text(rationale),
    f"<td>{html.escape(', '.join(concerns))}</td>",
    f"<td>{_answers(samples)}</td>",
  ]
  return f'<tr class="{html.escape(css)}">{"".join(cells)}</tr>\n'


def _text(value: Any) -> str:
  text = value if isinstance(value, str) else json.dumps(value)
  return f'<td class="text">{html.escape(_cut(text))}</td>'


def _answers(samples: list[dict[str, Any]]) -> str:
  if not samples:
    return ""
  raw = "".join(f"<pre>{html.escape(_cut(str(one.get('raw', ''))))}</pre>" for one in samples)
  return f"<details><summary>{len(samples)}</summary>{raw}</details>"


def _cut(text: str) -> str:
  return text if len(text) <= _CELL_CHARACTERS else text[:_CELL_CHARACTERS] + " ... (cut)"


def _hash(text: str) -> str:
  return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
