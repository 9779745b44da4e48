"""e-SNLI's validation set with PaLM's outputs: `dss distill --task esnli --data-dir FOLDER`.

FOLDER contains valid.jsonl and valid_palm_cot.jsonl, the only published files; their rows are
split into train, validation and test. Adjacent rows can share a premise; the splits begin where
it changes, so that no premise is in two splits.
"""

from dss_jax.data.task_files import (
  Answer,
  Split,
  TaskDefinition,
  UnparsableAnswer,
  accuracy,
  is_no_label,
)

_LABELS = ("entailment", "neutral", "contradiction")
_INSTRUCTION = (
  "Does the premise entail the hypothesis, contradict it, or neither?"
  " Answer entailment, contradiction or neutral."
)
_FILES = ("valid.jsonl", "valid_palm_cot.jsonl")


def _to_row(published):
  premise, hypothesis = published["premise"], published["hypothesis"]
  return {
    "input_text": f"{_INSTRUCTION}\nPremise: {premise}\nHypothesis: {hypothesis}",
    "output_text": _label(published["label"]),
  }


def _label(published):
  if is_no_label(published):
    return None
  return published if published in _LABELS else dict(enumerate(_LABELS))[published]


def _parse_answer(text):
  rationale, answer, rest = text.partition("\nAnswer:")
  label = rest.partition("\n")[0].strip()
  if not answer or "\nPremise:" in rationale:
    raise UnparsableAnswer('no "Answer:" line in the first answer')
  if label not in _LABELS:
    raise UnparsableAnswer(f"the answer {label!r} is not one of {', '.join(_LABELS)}")
  return Answer(rationale.strip(), label)


TASK = TaskDefinition(
  name="esnli",
  splits={
    "train": Split(*_FILES, stop=8608),
    "validation": Split(*_FILES, start=8608, stop=8857),
    "test": Split(*_FILES, start=8857),
  },
  to_row=_to_row,
  parse_answer=_parse_answer,
  same_label=str.__eq__,
  metric=accuracy,
)
