"""The prompt of a task that has none, built from a handful of the user's own labelled rows."""

from collections.abc import Iterable

from dss_jax.annotation.parsing import ParseRules
from dss_jax.annotation.prompts import Exemplar, Prompt
from dss_jax.data.records import Row

MAX_EXEMPLARS = 5
MAX_EXEMPLAR_CHARACTERS = 2_000
# Labels of which each is seen several times, and of which there are few, are all there are.
MAX_CLASSES = 30
ROWS_A_CLASS = 4

_INSTRUCTION = (
  "You are given a text. Work out the answer that it calls for. First explain your reasoning in"
  " one to four plain sentences that name what decides the matter. Then write the answer on a"
  ' line of its own that begins with "Answer:". Write nothing after it.'
)


def default_prompt(rows: Iterable[Row]) -> Prompt:
  """A prompt from one pass over the rows, the same for the same rows.

  Exemplars are the first short rows, explained ones before others, each label once before any
  comes twice. Where the rows' labels are a few classes, the prompt names them and no other
  label is accepted.
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
    exemplars=tuple(candidates.chosen()),
    parse=ParseRules(labels=classes),
  )


class _Candidates:
  """Possible exemplars and the labels seen, in constant memory."""

  def __init__(self) -> None:
    self._labelled = 0
    self._counts: dict[str, int] = {}
    # By whether the row is explained, then by label: the first few rows.
    self._rows: dict[bool, dict[str, list[Exemplar]]] = {True: {}, False: {}}

  def add(self, row: Row) -> None:
    label = row.get("output_text")
    if not label:
      return
    self._labelled += 1
    if label in self._counts or len(self._counts) <= MAX_CLASSES:
      self._counts[label] = self._counts.get(label, 0) + 1
    rationale = row.get("rationale")
    if len(row["input_text"]) + len(rationale or "") + len(label) > MAX_EXEMPLAR_CHARACTERS:
      return
    by_label = self._rows[bool(rationale)]
    if label not in by_label and len(by_label) == MAX_EXEMPLARS:
      return
    rows = by_label.setdefault(label, [])
    if len(rows) < MAX_EXEMPLARS and all(one.input != row["input_text"] for one in rows):
      rows.append(Exemplar(row["input_text"], label, rationale))

  @property
  def classes(self) -> tuple[str, ...] | None:
    counts = self._counts
    if not 2 <= len(counts) <= MAX_CLASSES or self._labelled < ROWS_A_CLASS * len(counts):
      return None
    return tuple(sorted(counts))

  def chosen(self) -> list[Exemplar]:
    explained = _round_robin(self._rows[True])
    return (explained or _round_robin(self._rows[False]))[:MAX_EXEMPLARS]


def _round_robin(by_label: dict[str, list[Exemplar]]) -> list[Exemplar]:
  turns = range(max(map(len, by_label.values()), default=0))
  return [rows[turn] for turn in turns for rows in by_label.values() if turn < len(rows)]
