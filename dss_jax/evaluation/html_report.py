"""The page of `dss evaluate --html`: curves, confusion, reliability; rows, failures first."""

import html
import json
from collections.abc import Iterator, Sequence
from typing import IO, Any

from dss_jax import html_page
from dss_jax.evaluation.charts import STYLE as CHART_STYLE
from dss_jax.evaluation.charts import Curve, line_chart, reliability_diagram
from dss_jax.evaluation.evaluate import Judgement
from dss_jax.evaluation.text_report import to_text

_STYLE = f"""{CHART_STYLE}
tr.wrong td{{background:#fdecea}}
tr.partly td{{background:#fff7e0}}
table.confusion{{width:auto}}
table.confusion td{{text-align:right}}
table.confusion td.right{{background:#e6f2e0;font-weight:600}}
table.confusion td.wrong{{background:#fdecea}}
"""

# The charts of metrics.jsonl: (title, (curve, metric), ...).
_CHARTS = (
  ("Total loss", ("training", "train_total_loss"), ("evaluation", "eval_total_loss")),
  ("Label loss", ("training", "label/train_loss"), ("evaluation", "label/eval_loss")),
  (
    "Label accuracy",
    ("training, tokens", "label/train_accuracy"),
    ("evaluation, tokens", "label/eval_accuracy"),
    ("whole labels", "label/eval_sequence_accuracy"),
  ),
)


def write_report(
  file: IO[bytes], judgements: Sequence[Judgement], result: dict[str, Any], *, max_rows: int
) -> None:
  """Writes the page of one student, or of several on the same rows.

  Args:
    result: what the command prints: the report, or compare_students.
    max_rows: the most rows of the table. Those that more students have wrong come first, of these
      the ones whose wrong answer has the highest probability.
  """
  names = ", ".join(str(each.directory) for each in judgements)
  body = _body(judgements, result, max_rows)
  for part in html_page.page(f"Evaluation of {names}", body, style=_STYLE):
    file.write(part.encode("utf-8"))


def _body(judgements: Sequence[Judgement], result: dict[str, Any], max_rows: int) -> Iterator[str]:
  yield f'<h1>Evaluation</h1><pre class="figures">{html.escape(to_text(result))}</pre>\n'
  for each in judgements:
    if len(judgements) > 1:
      yield f"<h2>{html.escape(str(each.directory))}</h2>\n"
    yield from _charts(each)
    yield reliability_diagram("Share right by probability", each.report["labels"]["calibration"])
    if each.report["labels"]["classes"]:
      yield _confusion(each.report["labels"]["classes"])
  yield "<h2>Rows</h2>\n"
  numbers = sorted(range(len(judgements[0].rows)), key=lambda i: _rank(judgements, i))[:max_rows]
  left = len(judgements[0].rows) - len(numbers)
  yield from html_page.row_table(
    _columns(judgements),
    (_row(judgements, i) for i in numbers),
    count=len(numbers),
    note=f" ({left:,} more rows are not shown)" if left else "",
  )


def _charts(judgement: Judgement) -> Iterator[str]:
  """Yields the learning curves; none if the student's folder has no metrics.jsonl."""
  points = _learning_curves(judgement)
  if points:
    step = judgement.report["best_step"]
    yield f"<p>The dotted line marks step {step}, whose weights are evaluated.</p>\n"
  for title, *curves in _CHARTS:
    yield line_chart(
      title,
      [Curve(name, points.get(metric, [])) for name, metric in curves],
      best_step=judgement.report["best_step"],
    )


def _learning_curves(judgement: Judgement) -> dict[str, list[tuple[float, float]]]:
  """Reads the points (step, value) of each metric; a line that is no JSON ends the file."""
  points: dict[str, list[tuple[float, float]]] = {}
  try:
    text = (judgement.directory / "metrics.jsonl").read_text(encoding="utf-8")
  except (OSError, ValueError):
    return points
  for line in text.splitlines():
    try:
      numbers = json.loads(line)
      step = numbers.pop("step")
      found = [(name, (float(step), float(value))) for name, value in numbers.items()]
    except (ValueError, TypeError, KeyError, AttributeError):
      break
    for name, point in found:
      points.setdefault(name, []).append(point)
  return points


def _confusion(classes: dict[str, Any]) -> str:
  names = [row["label"] for row in classes["table"]]
  heads = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in [*names, "other"])
  rows = []
  for place, (name, counts) in enumerate(zip(names, classes["confusion"], strict=True)):
    cells = "".join(
      f'<td class="{_cell_class(place, column, count)}">{count:,}</td>'
      for column, count in enumerate(counts)
    )
    rows.append(f'<tr><th scope="row">{html.escape(name)}</th>{cells}</tr>')
  return (
    "<figure><figcaption>Rows by label (down) and answer (across)</figcaption>"
    f'<table class="confusion"><thead><tr><td></td>{heads}</tr></thead>'
    f"<tbody>{''.join(rows)}</tbody></table></figure>\n"
  )


def _cell_class(row: int, column: int, count: int) -> str:
  if not count:
    return "none"
  return "right" if row == column else "wrong"


def _rank(judgements: Sequence[Judgement], i: int) -> tuple[float, float, int]:
  answers = [each.rows[i] for each in judgements]
  wrong = [answer.probability for answer in answers if not answer.is_right]
  return -len(wrong), -max(wrong, default=0.0), i


def _columns(judgements: Sequence[Judgement]) -> list[str]:
  columns = ["row", "result", "input", "label"]
  for each in judgements:
    of = f" of {each.directory.name}" if len(judgements) > 1 else ""
    columns += [f"answer{of}", f"probability{of}"]
    columns += [f"rationale{of}"] if _has_rationales(each) else []
  return columns


def _row(judgements: Sequence[Judgement], i: int) -> str:
  first, right = judgements[0].rows[i], [each.rows[i].is_right for each in judgements]
  css = "right" if all(right) else "partly" if any(right) else "wrong"
  shown = css if css != "partly" else f"{sum(right)} of {len(right)} right"
  cells = [
    html_page.key_cell(str(first.number), first.number),
    html_page.key_cell(shown, sum(right)),
    html_page.text_cell(first.input_text),
    html_page.text_cell(first.label),
  ]
  for each in judgements:
    answer = each.rows[i]
    cells += [html_page.text_cell(answer.prediction), f"<td>{answer.probability:.3f}</td>"]
    cells += [html_page.text_cell(answer.rationale or "")] if _has_rationales(each) else []
  return f'<tr class="{css}">{"".join(cells)}</tr>\n'


def _has_rationales(judgement: Judgement) -> bool:
  return judgement.report["rationales"] is not None
