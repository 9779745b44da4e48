"""The figures of `dss evaluate` as a short text."""

from typing import Any

_MOST_CLASSES = 20
# What is worth a line of free text, and of classes.
_SCORES = ("exact_match", "value_match", "token_f1", "squad_exact_match", "squad_f1", "rougeL")
_SCORES_OF_CLASSES = ("exact_match", "value_match")


def to_text(result: dict[str, Any]) -> str:
  """Returns the report of a student, or of several and their comparisons, as lines."""
  if "models" not in result:
    return "\n".join(_student(result))
  lines = [line for report in result["models"] for line in (*_student(report), "")]
  for each in result["comparisons"]:
    lines.append(f"{each['model']} against {each['compared_with']}, on the same rows")
    lines += [_difference(name, figures) for name, figures in _compared(each, result)]
  return "\n".join(lines)


def score_name(name: str) -> str:
  """Returns a score's name in words."""
  names = {"squad_exact_match": "SQuAD exact match", "squad_f1": "SQuAD F1", "token_f1": "token F1"}
  return names.get(name, name.replace("_", " ").replace("rouge", "ROUGE-"))


def score_names(report: dict[str, Any]) -> list[str]:
  """Returns the scores that say something about a student's labels: fewer if they are classes."""
  labels = report["labels"]
  shown = _SCORES_OF_CLASSES if labels["classes"] else _SCORES
  return [name for name in shown if name in labels["scores"]]


def _student(report: dict[str, Any]) -> list[str]:
  labels, rationales = report["labels"], report["rationales"]
  lines = [
    f"{report['model']}: step {report['best_step']}, {report['labelled']:,} labelled rows",
    *(_score(score_name(name), labels["scores"][name]) for name in score_names(report)),
  ]
  if labels["classes"]:
    lines.append(_score("macro F1", labels["classes"]["macro_f1"]))
  lines += [
    f"  {f'task: {name}':<22}{value:.2f}"
    for name, value in report["task_metrics"].items()
    if isinstance(value, int | float)
  ]
  calibration = labels["calibration"]
  lines.append(
    f"  {'calibration':<22}mean probability {calibration['mean_probability']:.3f}, "
    f"ECE {calibration['ece']:.3f}, Brier score {calibration['brier']:.3f}"
  )
  if rationales:
    named = (f"{score_name(name)} of rationale" for name in rationales["scores"])
    lines += map(_score, named, rationales["scores"].values())
    lines.append(_score("mentions its label", rationales["label_follows"]))
  if labels["classes"]:
    lines += _classes(labels["classes"]["table"])
  return lines


def _score(name: str, figures: dict[str, Any]) -> str:
  low, high = figures["interval"]
  return f"  {name:<22}{figures['mean']:7.2%}  [{low:.2%}, {high:.2%}]"


def _classes(table: list[dict[str, Any]]) -> list[str]:
  width = max(5, *(len(row["label"]) for row in table[:_MOST_CLASSES]))
  lines = [f"  {'class':<{width}}   rows  predicted  precision  recall      F1"]
  for row in table[:_MOST_CLASSES]:
    lines.append(
      f"  {row['label']:<{width}}{row['rows']:>7,}{row['predicted']:>11,}"
      f"{row['precision']:>11.3f}{row['recall']:>8.3f}{row['f1']:>8.3f}"
    )
  more = len(table) - _MOST_CLASSES
  return [*lines, f"  and {more} more classes"] if more > 0 else lines


def _compared(each: dict[str, Any], result: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
  shown = score_names(result["models"][0])
  return [(name, figures) for name, figures in each["scores"].items() if name in shown]


def _difference(name: str, figures: dict[str, Any]) -> str:
  low, high = (100 * bound for bound in figures["interval"])
  return (
    f"  {score_name(name):<22}{100 * figures['difference']:+7.2f} points  [{low:+.2f}, {high:+.2f}]"
    f"  p = {figures['p_value']:.3g} ({figures['test']})"
  )
