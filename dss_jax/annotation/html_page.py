"""A self-contained HTML page of a teacher's rationales: failures first, sortable, searchable.

All texts of rows and answers are escaped.
"""

import heapq
import html
import json
from collections.abc import Iterator
from typing import Any

from dss_jax import html_page
from dss_jax.annotation.outcome import PROVENANCE, STATUSES
from dss_jax.annotation.report import read_annotated, to_text
from dss_jax.data.records import Row
from dss_jax.storage.atomic import atomic_target
from dss_jax.storage.files import PathLike

_STYLE = """
tr.failed td,tr.unparsable td,tr.unasked td{background:#fdecea}
tr.undecided td,tr.doubtful td{background:#fff7e0}
"""

# The severity of a sound answer.
SOUND = 30
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
    max_rows,
    ((severity(row), line, row) for line, row in read_annotated(path)),
    key=lambda r: r[:2],
  )
  with atomic_target(page) as file:
    for part in _page(report, [(line, row) for _, line, row in rows]):
      file.write(part.encode("utf-8"))


def severity(row: Row) -> int:
  """Returns the sort key, to 99: failures, disagreement, other concerns, then the rest."""
  provenance = row[PROVENANCE]
  status = STATUSES.index(provenance["status"])
  if provenance["status"] != "answered":
    return status if status < STATUSES.index("answered") else 99
  if provenance.get("agrees_with_gold") is False:
    return 10
  return 20 if provenance.get("concerns") else SOUND


def _page(report: dict[str, Any], rows: list[tuple[int, Row]]) -> Iterator[str]:
  return html_page.page(f"Rationales of {report['file']}", _body(report, rows), style=_STYLE)


def _body(report: dict[str, Any], rows: list[tuple[int, Row]]) -> Iterator[str]:
  left = report["rows"] - len(rows)
  yield f'<h1>Rationales</h1><pre class="figures">{html.escape(to_text(report))}</pre>\n'
  yield from html_page.row_table(
    _COLUMNS,
    (_row(line, row) for line, row in rows),
    count=len(rows),
    note=f" ({left:,} more rows are in the file)" if left else "",
  )


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
    html_page.key_cell(str(line), line),
    html_page.key_cell(status, STATUSES.index(status)),
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
  return html_page.text_cell(text)


def _answers(samples: list[dict[str, Any]]) -> str:
  if not samples:
    return ""
  raw = "".join(
    f"<pre>{html.escape(html_page.cut(str(one.get('raw', ''))))}</pre>" for one in samples
  )
  return f"<details><summary>{len(samples)}</summary>{raw}</details>"
