"""Turns the answers to one row into the row that is written: label, rationale, provenance."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from dss_jax.annotation.filters import Limits, RationaleFilter
from dss_jax.annotation.journal import Entry
from dss_jax.annotation.parsing import Parsed
from dss_jax.annotation.prompts import Mode, Prompt
from dss_jax.annotation.self_consistency import Vote, vote
from dss_jax.data.records import Row
from dss_jax.errors import UserError
from dss_jax.teachers.base import TeacherResponse

TeacherLabels = Literal["keep", "missing", "teacher"]

# The status of a row. "answered": rationale and label; "undecided": a rationale without a single
# label; "unparsable": neither; "failed": no request succeeded; "unasked": the budget was spent;
# "untouched": nothing was missing.
Status = Literal["answered", "undecided", "unparsable", "failed", "unasked", "untouched"]
STATUSES: tuple[Status, ...] = (
  "failed",
  "unasked",
  "unparsable",
  "undecided",
  "answered",
  "untouched",
)
PROVENANCE = "provenance"
RATIONALES = "rationales"


class Failure(NamedTuple):
  """The reason why a sample has no answer."""

  status: Literal["failed", "unasked"]
  reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnnotationConfig:
  """What is requested for a row and what is kept.

  Attributes:
    teacher_labels: "keep": no row gets the teacher's label; "missing": rows without a label get it;
      "teacher": every row gets it.
    show_labels: whether the teacher sees the row's own label, if the row keeps it.
    samples: number of answers per row.
    temperature: sampling temperature; 0 is greedy.
    rationales_per_row: maximum number of rationales that a row keeps.
    filters: concerns for which a rationale is dropped.
    limits: thresholds of concerns.
  """

  teacher_labels: TeacherLabels = "missing"
  show_labels: bool = True
  samples: int = 1
  temperature: float = 0.0
  rationales_per_row: int = 1
  filters: frozenset[str] = frozenset()
  limits: Limits = dataclasses.field(default_factory=Limits)

  def __post_init__(self) -> None:
    """Raises UserError if several samples would be identical."""
    if self.samples > 1 and self.temperature == 0:
      raise UserError(
        f"--samples {self.samples}: at temperature 0 all samples of a row are the same; give"
        " --temperature 0.7, or one sample"
      )

  def mode(self, row: Row) -> Mode | None:
    """Returns what is requested for a row; None if nothing is missing."""
    wants_label = self.wants_label(row)
    if row.get("rationale"):
      return "label" if wants_label else None
    if row.get("output_text") and not wants_label and self.show_labels:
      return "rationale"
    return "both"

  def wants_label(self, row: Row) -> bool:
    """Returns whether the row gets the teacher's label."""
    is_missing = not row.get("output_text")
    return self.teacher_labels == "teacher" or (self.teacher_labels == "missing" and is_missing)

  def is_useful(self, parsed: Parsed, row: Row) -> bool:
    """Returns whether an answer has what the row lacks."""
    return parsed.label is not None or (parsed.rationale is not None and not self.wants_label(row))


class _Sample(NamedTuple):
  number: int
  entry: Entry
  parsed: Parsed
  concerns: list[str]


class Outcomes:
  """Makes annotated rows from answers."""

  def __init__(self, teacher: str, prompt: Prompt, config: AnnotationConfig):
    self._teacher = teacher
    self._prompt = prompt
    self._config = config
    self._filter = RationaleFilter(prompt, config.limits)

  def untouched(self, row: Row) -> Row:
    """Returns a row in which nothing is missing; keeps the provenance of an earlier run."""
    if is_provenance(row.get(PROVENANCE)):
      return row
    own = {name: value for name, value in _own_values(row).items() if name != f"own_{RATIONALES}"}
    return {**row, PROVENANCE: {"status": "untouched", **own}}

  def row(self, row: Row, mode: Mode, answers: Sequence[Entry | Failure]) -> Row:
    """Returns the row with label, rationales and provenance."""
    gold = row.get("output_text")
    samples = [
      self._sample(number, answer, row, mode)
      for number, answer in enumerate(answers)
      if isinstance(answer, Entry)
    ]
    same_label = self._prompt.parse.same_label
    result = vote([one.parsed.label for one in samples], same_label)
    label = gold if gold and self._config.teacher_labels != "teacher" else result.label
    concerns, kept = self._judge(samples, result, label, gold, mode)
    dropped = sorted(self._config.filters.intersection(concerns))
    own_rationale = row.get("rationale")
    rationales = [] if dropped or own_rationale else kept
    # A label with low agreement is as doubtful as its rationale.
    label_is_dropped = "agreement" in dropped or ("gold" in dropped and label != gold)
    status, reason = _status(samples, answers, result, mode)
    provenance: dict[str, Any] = {
      "status": status,
      **({"reason": reason} if reason else {}),
      "teacher": self._teacher,
      "prompt": self._prompt.digest,
      "mode": mode,
      "temperature": self._config.temperature,
      "label": result.label,
      "agreement": round(result.share, 4),
      "agrees_with_gold": _agrees(gold, result, mode, samples, same_label),
      **({"gold_label": gold} if gold and self._config.teacher_labels == "teacher" else {}),
      "concerns": concerns,
      "dropped_for": dropped,
      "samples": [_sample_values(one) for one in samples],
      **_failures(answers),
      **_own_values(row),
    }
    texts = {
      "output_text": self._label(label, gold, label_is_dropped),
      "rationale": own_rationale or (rationales[0] if rationales else None),
      RATIONALES: rationales if len(rationales) > 1 else None,
    }
    rest = {key: value for key, value in row.items() if key not in (*texts, PROVENANCE)}
    input_text = rest.pop("input_text")
    return {
      "input_text": input_text,
      **{key: value for key, value in texts.items() if value},
      **rest,
      PROVENANCE: provenance,
    }

  def parsed(self, response: TeacherResponse, row: Row, mode: Mode) -> Parsed:
    """Parses one answer to the row."""
    if response.remark and not response.text.strip():
      return Parsed(None, None, response.remark)
    return self._prompt.read(response.text, row, mode, cut_off=response.was_cut_off)

  def _label(self, label: str | None, gold: str | None, is_dropped: bool) -> str | None:
    if self._config.teacher_labels == "keep":
      return gold
    if gold and self._config.teacher_labels == "missing":
      return gold
    return None if is_dropped else label

  def _sample(self, number: int, entry: Entry, row: Row, mode: Mode) -> _Sample:
    parsed = self.parsed(entry.response, row, mode)
    cut_off = entry.response.was_cut_off
    concerns: list[str] = []
    if parsed.rationale is not None and mode != "label":
      label = row["output_text"] if mode == "rationale" else parsed.label
      cut_in_reasoning = cut_off and parsed.label is None
      concerns = self._filter.concerns(parsed.rationale, label, row["input_text"], cut_in_reasoning)
    concerns += ["several-answers"] if parsed.has_several else []
    return _Sample(number, entry, parsed, concerns)

  def _judge(
    self,
    samples: list[_Sample],
    result: Vote,
    label: str | None,
    gold: str | None,
    mode: Mode,
  ) -> tuple[list[str], list[str]]:
    """Returns the concerns of the row, and the rationales that it may keep, best first."""
    same_label = self._prompt.parse.same_label
    with_rationale = [one for one in samples if one.parsed.rationale is not None]
    # Prefer rationales for the row's final label, then for the winning label, then any.
    matching = [
      one
      for one in with_rationale
      if label and one.parsed.label and same_label(one.parsed.label, label)
    ]
    candidates = (
      matching
      or [with_rationale[i] for i in _voter_positions(with_rationale, samples, result)]
      or with_rationale
    )
    sound = [one for one in candidates if not self._config.filters.intersection(one.concerns)]
    concerns: list[str] = []
    if with_rationale and result.share < self._config.limits.min_agreement:
      concerns.append("agreement")
    if with_rationale and mode != "rationale" and gold and result.label is not None:
      concerns += [] if same_label(result.label, gold) else ["gold"]
    if candidates:
      concerns += (sound or candidates)[0].concerns
    rationales = list(dict.fromkeys(str(one.parsed.rationale) for one in sound))
    return concerns, rationales[: self._config.rationales_per_row]


def _own_values(row: Row) -> dict[str, Any]:
  """Returns what a row of the user's has under the keys of annotations, to keep it."""
  provenance = row.get(PROVENANCE)
  if isinstance(provenance, dict) and is_provenance(provenance):
    return {name: value for name, value in provenance.items() if name.startswith("own_")}
  return {f"own_{key}": row[key] for key in (PROVENANCE, RATIONALES) if key in row}


def _voter_positions(
  with_rationale: list[_Sample], samples: list[_Sample], result: Vote
) -> list[int]:
  """Returns the positions in `with_rationale` of the samples with the winning label."""
  voters = {samples[position].number for position in result.voters}
  return [position for position, one in enumerate(with_rationale) if one.number in voters]


def _status(
  samples: list[_Sample], answers: Sequence[Entry | Failure], result: Vote, mode: Mode
) -> tuple[Status, str]:
  if result.label is not None:
    return "answered", ""
  if not samples:
    failure = next(answer for answer in answers if isinstance(answer, Failure))
    return failure.status, failure.reason
  if any(one.parsed.rationale is not None for one in samples) and mode != "label":
    return "undecided", next(one.parsed.reason for one in samples if one.parsed.rationale)
  return "unparsable", samples[0].parsed.reason


def _agrees(gold, result: Vote, mode: Mode, samples, same_label) -> bool | None:
  """Returns whether the teacher's label is gold; None if there is no gold or it was shown."""
  if not gold or mode == "rationale" or not samples:
    return None
  return result.label is not None and same_label(result.label, gold)


def _sample_values(sample: _Sample) -> dict[str, Any]:
  response = sample.entry.response
  values = {
    "raw": response.text,
    "time": sample.entry.time,
    "model": response.model,
    "finish": response.finish,
    "prompt_tokens": response.prompt_tokens,
    "completion_tokens": response.completion_tokens,
    "label": sample.parsed.label,
    "rationale": sample.parsed.rationale,
    "reason": sample.parsed.reason,
    "concerns": sample.concerns,
  }
  return {
    key: value for key, value in values.items() if key == "raw" or value not in (None, "", [])
  }


def _failures(answers: Sequence[Entry | Failure]) -> dict[str, Any]:
  failures = [answer for answer in answers if isinstance(answer, Failure)]
  if not failures:
    return {}
  return {"samples_without_answer": len(failures), "last_failure": failures[-1].reason}


def is_provenance(value: Any) -> bool:
  """Returns whether a value is a provenance of `dss annotate`, with the fields of reports."""
  if not isinstance(value, dict) or value.get("status") not in STATUSES:
    return False
  samples = value.get("samples", [])
  counts = ("prompt_tokens", "completion_tokens")
  return (
    _are_texts(value.get("concerns", []))
    and _are_texts(value.get("dropped_for", []))
    and type(value.get("agreement", 0)) in (int, float)
    and value.get("agrees_with_gold") in (None, True, False)
    and isinstance(samples, list)
    and all(isinstance(one, dict) for one in samples)
    and all(type(one.get(key, 0)) is int for one in samples for key in counts)
  )


def _are_texts(value: Any) -> bool:
  return isinstance(value, list) and all(isinstance(one, str) for one in value)
