"""The report on an annotated file: parse rate, agreement, concerns, failures; as text and JSON."""

import os
from collections.abc import Iterator
from typing import Any

from dss_jax.annotation.filters import CONCERNS
from dss_jax.annotation.outcome import PROVENANCE, STATUSES, is_provenance
from dss_jax.annotation.usage import Tally
from dss_jax.data.records import Row, numbered_rows
from dss_jax.errors import UserError
from dss_jax.storage.files import PathLike

_SHOWN_REASONS = 20
_SHOWN_LINES = 5
# Below this agreement with gold the report shows a warning.
_MIN_AGREEING_PERCENT = 50.0
_MEANING = {
  "failed": "no request succeeded; run the same command again to retry",
  "unasked": "the budget was spent",
  "unparsable": "the answer has no rationale",
  "undecided": "a rationale, but not a single label",
  "answered": "a rationale and a label",
  "untouched": "nothing was missing",
}


def read_annotated(path: PathLike) -> Iterator[tuple[int, Row]]:
  """Reads (line number, row); raises UserError if a row was not written by dss annotate."""
  for line, row in numbered_rows(path):
    provenance = row.get(PROVENANCE)
    if not is_provenance(provenance):
      raise UserError(
        f'{os.fspath(path)}:{line}: the row has no "{PROVENANCE}" of dss annotate; give a file'
        " that it wrote"
      )
    yield line, row


def report_on(path: PathLike) -> dict[str, Any]:
  """Returns the figures of Tally, and the reasons of missing rationales and labels with lines."""
  tally = Tally()
  reasons: dict[tuple[str, str], list[int]] = {}
  counts: dict[tuple[str, str], int] = {}
  for line, row in read_annotated(path):
    tally.add(row)
    provenance = row[PROVENANCE]
    reason = provenance.get("reason")
    if not isinstance(reason, str):
      continue
    # The text after the colon is specific to the row.
    key = (provenance["status"], reason.partition(": ")[0])
    # Reasons can quote answers, so their number must be limited.
    if key not in counts and len(counts) >= 1000:
      key = (provenance["status"], "other reasons")
    counts[key] = counts.get(key, 0) + 1
    lines = reasons.setdefault(key, [])
    if len(lines) < _SHOWN_LINES:
      lines.append(line)
  most = sorted(counts, key=lambda key: -counts[key])[:_SHOWN_REASONS]
  return {
    "file": os.fspath(path),
    **tally.to_json(),
    "reasons": [
      {"status": key[0], "reason": key[1], "rows": counts[key], "lines": reasons[key]}
      for key in most
    ],
    "kinds_of_reasons": len(counts),
  }


def to_text(report: dict[str, Any]) -> str:
  """Formats the report as text."""
  lines = [f"{report['file']}: {report['rows']:,} rows"]
  for status in STATUSES:
    count = report["statuses"][status]
    if count:
      lines.append(f"  {status:<11}{count:>9,}  {_MEANING[status]}")
  lines.append(f"parsed answers: {report['parsed']:,} ({report['parsed_percent']:.2f} %)")
  if report["compared_with_gold"]:
    lines.append(
      f"answers that agree with the row's own label: {report['agreeing']:,} of"
      f" {report['compared_with_gold']:,} ({report['agreeing_percent']:.2f} %)"
    )
    if report["agreeing_percent"] < _MIN_AGREEING_PERCENT:
      lines.append(
        "  warning: most of this teacher's labels are wrong here; do not train on its labels,"
        " and drop the rationales that lead to them (--filter gold)"
      )
  if report["answers"] > report["rows"] - report["statuses"]["untouched"]:
    lines.append(f"mean share of samples that agree: {report['mean_agreement_of_samples']:.3f}")
  lines.append(
    f"to train on: {report['labelled']:,} labels, {report['with_rationale']:,} rationales"
    f" ({report['rows_that_lost_their_rationale']:,} dropped by filters)"
  )
  if report["prompt_tokens"]:
    lines.append(
      f"tokens: {report['prompt_tokens']:,} in prompts, {report['completion_tokens']:,} in answers"
    )
  concerns = {name: count for name, count in report["concerns"].items() if count}
  if concerns:
    lines.append("concerns (drop such rationales with --filter NAME):")
    lines += [f"  {name:<11}{count:>9,}  {CONCERNS[name]}" for name, count in concerns.items()]
  if report["reasons"]:
    lines.append("reasons for missing rationales or labels:")
    for one in report["reasons"]:
      where = ", ".join(map(str, one["lines"])) + (", ..." if one["rows"] > _SHOWN_LINES else "")
      lines.append(f"  {one['rows']:>9,}  {one['status']}: {one['reason']} (line {where})")
  return "\n".join(lines)
