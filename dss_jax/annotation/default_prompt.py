"""The default prompt, made from a few of the user's labelled rows."""

from collections.abc import Iterable

from dss_jax.annotation.parsing import ParseRules
from dss_jax.annotation.prompts import Exemplar, Prompt
from dss_jax.data.records import Row

_MAX_EXEMPLARS = 5
_MAX_EXEMPLAR_CHARACTERS = 2_000
# Few distinct labels, each seen several times, count as the complete set of classes.
_MAX_CLASSES = 30
_MIN_ROWS_PER_CLASS = 4

_INSTRUCTION = (
  "You are given a text. Work out the answer that it calls for. First explain your reasoning in"
  " one to four plain sentences that name what decides the matter. Then write the answer on a"
  ' line of its own that begins with "Answer:". Write nothing after it.'
)


def default_prompt(rows: Iterable[Row]) -> Prompt:
  """Makes a prompt in one pass over the rows; deterministic.

  Exemplars are the first short rows, those with a rationale before others; no label appears
  twice before each has appeared once. If the labels are a few classes, the prompt lists them and
  no other label is accepted.
  """
  candidates = _Candidates()
  for row in rows:
    candidates.add(row)
  classes = candidates.classes
  instruction = _INSTRUCTION
  if classes:
    instruction += f" The answer is one of: {'; '.join(classes)}."
  return Prompt(
    instruction=instruction,
    exemplars=tuple(candidates.exemplars()),
    parse=ParseRules(labels=classes),
  )


class _Candidates:
  """Candidate exemplars and label counts, in constant memory."""

  def __init__(self) -> None:
    self._labelled = 0
    self._counts: dict[str, int] = {}
    # Whether the row has a rationale -> label -> the first few rows.
    self._rows: dict[bool, dict[str, list[Exemplar]]] = {True: {}, False: {}}

  def add(self, row: Row) -> None:
    label = row.get("output_text")
    if not label:
      return
    self._labelled += 1
    if label in self._counts or len(self._counts) <= _MAX_CLASSES:
      self._counts[label] = self._counts.get(label, 0) + 1
    rationale = row.get("rationale")
    if len(row["input_text"]) + len(rationale or "") + len(label) > _MAX_EXEMPLAR_CHARACTERS:
      return
    by_label = self._rows[bool(rationale)]
    if label not in by_label and len(by_label) == _MAX_EXEMPLARS:
      return
    rows = by_label.setdefault(label, [])
    if len(rows) < _MAX_EXEMPLARS and all(one.input != row["input_text"] for one in rows):
      rows.append(Exemplar(row["input_text"], label, rationale))

  @property
  def classes(self) -> tuple[str, ...] | None:
    counts = self._counts
    if not 2 <= len(counts) <= _MAX_CLASSES or self._labelled < _MIN_ROWS_PER_CLASS * len(counts):
      return None
    return tuple(sorted(counts))

  def exemplars(self) -> list[Exemplar]:
    with_rationale = _round_robin(self._rows[True])
    return (with_rationale or _round_robin(self._rows[False]))[:_MAX_EXEMPLARS]


def _round_robin(by_label: dict[str, list[Exemplar]]) -> list[Exemplar]:
  turns = range(max(map(len, by_label.values()), default=0))
  return [rows[turn] for turn in turns for rows in by_label.values() if turn < len(rows)]
