"""The dataset report as text for a terminal."""

from dss_jax.data.report.figures import (
  DatasetReport,
  LabelStatistics,
  LineNumbers,
  Repeats,
  RewrittenTexts,
  SplitReport,
)


def to_text(report: DatasetReport) -> str:
  """Returns the report as lines of text, warnings last."""
  lines = _split_lines(report.train)
  lines.append(_row("conflicting labels", _repeats(report.conflicts, "contradicts line")))
  if report.evaluation is not None and report.overlap is not None:
    lines += ["", *_split_lines(report.evaluation)]
    lines.append(_row("also in training", _repeats(report.overlap, "is training line")))
  if report.warnings:
    lines += ["", "warnings", *(f"  - {warning}" for warning in report.warnings)]
  return "\n".join(lines) + "\n"


def named_lines(found: LineNumbers | Repeats) -> str:
  """Returns `line 3`, or `lines 3, 17, ...` if there are more lines than are named."""
  numbers = [line[0] if isinstance(line, tuple) else line for line in found.lines]
  named = ", ".join(map(str, numbers))
  more = ", ..." if found.count > len(numbers) else ""
  return f"line{plural_s(found.count)} {named}{more}"


def plural_s(count: int) -> str:
  """Returns the "s" of a plural."""
  return "" if count == 1 else "s"


def rewriting_causes(found: RewrittenTexts) -> str:
  """Returns how many texts the vocabulary rewrites for which reason."""
  causes = {
    "with other spaces, tabs or line breaks": found.spaces,
    "with characters that it lacks": found.unknown,
    "with normalised characters": found.normalised,
  }
  return ", ".join(f"{count:,} {cause}" for cause, count in causes.items() if count)


def round_trip(text: str, written: str) -> str:
  """Returns `"the text" becomes "the text of its tokens"`."""
  return f"{quoted(text)} becomes {quoted(written)}"


def quoted(text: str) -> str:
  """Returns the text in double quotes on one line, invisible characters escaped."""
  escaped = (
    one if one.isprintable() else one.encode("unicode_escape").decode()
    for one in text.replace("\\", "\\\\").replace('"', '\\"')
  )
  return f'"{"".join(escaped)}"'


def _split_lines(split: SplitReport) -> list[str]:
  lines = [split.name, _row("rows", f"{split.rows:,}")]
  lines.append(_row("labelled", _share(split.labelled, split.rows)))
  lines.append(_row("with rationale", _share(split.with_rationale, split.rows)))
  if split.rationale_without_label.count:
    lines.append(_row("rationale, no label", _lines(split.rationale_without_label)))
  lines.append(_row("duplicate rows", _repeats(split.duplicates, "repeats line")))
  for field, lengths in split.lengths.items():
    shown = lengths.tokens or lengths.characters
    if shown.count:
      unit = "tokens" if lengths.tokens else "characters"
      cut = "" if lengths.cut is None else f"; cut at {lengths.limit:,}: {_lines(lengths.cut)}"
      figures = f"50 % {shown.p50:,}, 90 % {shown.p90:,}, 99 % {shown.p99:,}"
      lines.append(_row(f"{field} {unit}", f"{figures}, longest {shown.longest:,}{cut}"))
  for field, rewritten in split.rewritten.items():
    if rewritten.rows.count:
      figures = f"{_lines(rewritten.rows)}: {rewriting_causes(rewritten)}"
      lines.append(_row(f"{field}s rewritten", figures))
      lines += [
        _row(f"  line {one.line}", round_trip(one.text, one.written)) for one in rewritten.examples
      ]
  if split.labelled:
    lines.append(_row("labels", _labels(split.labels, split.labelled)))
  if split.instruction is None:
    lines.append(_row("instruction", "none: no opening or closing words are shared by most rows"))
  else:
    found = split.instruction
    lines.append(_row("instruction", f'{found.where} "{found.words}": {found.rows:,} rows'))
    lines.append(_row("  rows without it", _lines(found.missing)))
  if split.with_rationale:
    without = f"{_lines(split.label_not_mentioned)} of {split.mention_checked:,} checked"
    lines.append(_row("label not mentioned", without))
    lines.append(_row("ends mid-sentence", _lines(split.mid_sentence)))
  return lines


def _row(title: str, value: str) -> str:
  return f"  {title:<21}{value}"


def _share(count: int, total: int) -> str:
  return f"{count:,} ({count / max(total, 1):.1%})"


def _lines(found: LineNumbers) -> str:
  return f"{found.count:,} ({named_lines(found)})" if found.count else "0"


def _repeats(found: Repeats, verb: str) -> str:
  pairs = [f"line {line} {verb} {earlier}" for line, earlier in found.lines]
  more = ["..."] if found.count > len(pairs) else []
  return f"{found.count:,} ({', '.join(pairs + more)})" if found.count else "0"


def _labels(labels: LabelStatistics, labelled: int) -> str:
  if not labels.are_classes:
    number = "over 1,000" if labels.distinct is None else f"{labels.distinct:,}"
    return f"free text, {number} different"
  shown = [f'"{label}" {count / labelled:.1%}' for label, count in labels.most_common]
  more = ["..."] if labels.distinct and labels.distinct > len(shown) else []
  return f"{labels.distinct:,} different: {', '.join(shown + more)}"
