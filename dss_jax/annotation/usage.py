"""Statistics of annotated rows: counts, percentages, tokens, cost."""

import collections
import dataclasses
from typing import Any

from dss_jax.annotation.filters import CONCERNS
from dss_jax.annotation.outcome import PROVENANCE, STATUSES
from dss_jax.data.records import Row
from dss_jax.data.task_files import percent


@dataclasses.dataclass(frozen=True)
class Prices:
  """Prices per million tokens, in any currency; None if unknown."""

  prompt: float | None = None
  completion: float | None = None

  def cost(self, prompt_tokens: float, completion_tokens: float) -> float | None:
    if self.prompt is None or self.completion is None:
      return None
    return (self.prompt * prompt_tokens + self.completion * completion_tokens) / 1e6


class Tally:
  """Counts annotated rows in constant memory."""

  def __init__(self) -> None:
    self.rows = 0
    self.prompt_tokens = self.completion_tokens = self.answers = 0
    self._statuses: collections.Counter[str] = collections.Counter()
    self._concerns: collections.Counter[str] = collections.Counter()
    self._dropped = self._labelled = self._with_rationale = 0
    self._compared = self._agreeing = 0
    self._agreement = 0.0
    self._voted = 0

  def add(self, row: Row) -> None:
    provenance = row[PROVENANCE]
    self.rows += 1
    self._labelled += bool(row.get("output_text"))
    self._with_rationale += bool(row.get("rationale"))
    self._statuses[provenance["status"]] += 1
    self._concerns.update(provenance.get("concerns", ()))
    self._dropped += bool(provenance.get("dropped_for"))
    if provenance.get("agrees_with_gold") is not None:
      self._compared += 1
      self._agreeing += provenance["agrees_with_gold"]
    samples = provenance.get("samples", ())
    if samples:
      self._voted += 1
      self._agreement += provenance.get("agreement", 0.0)
    for sample in samples:
      self.answers += 1
      self.prompt_tokens += sample.get("prompt_tokens", 0)
      self.completion_tokens += sample.get("completion_tokens", 0)

  def to_json(self) -> dict[str, Any]:
    """Returns the figures.

    parsed_percent is relative to the rows with an answer, agreeing_percent to those of them with
    their own label that the teacher did not see; both include unparsable answers.
    """
    statuses = {status: self._statuses[status] for status in STATUSES}
    answered = sum(statuses[s] for s in ("answered", "undecided", "unparsable"))
    parsed = statuses["answered"] + statuses["undecided"]
    return {
      "rows": self.rows,
      "labelled": self._labelled,
      "with_rationale": self._with_rationale,
      "statuses": statuses,
      "parsed": parsed,
      "parsed_percent": percent(parsed, answered),
      "compared_with_gold": self._compared,
      "agreeing": self._agreeing,
      "agreeing_percent": percent(self._agreeing, self._compared),
      "mean_agreement_of_samples": self._agreement / max(self._voted, 1),
      "concerns": {name: self._concerns[name] for name in CONCERNS},
      "rows_that_lost_their_rationale": self._dropped,
      "answers": self.answers,
      "prompt_tokens": self.prompt_tokens,
      "completion_tokens": self.completion_tokens,
    }
