"""SVAMP arithmetic word problems with PaLM's outputs: `dss distill --task svamp --data-dir FOLDER`.

FOLDER contains the published files train.jsonl, test.jsonl, and a *_palm_cot.jsonl for each.
The label is an expression, compared by value: gold has "( 84.0 / 2.0 )", PaLM "(84 / 2)".
Every 10th row of train.jsonl (80 of its 800) is held out for validation.
"""

import re

from dss_jax.data.arithmetic import same_value, value_of
from dss_jax.data.task_files import (
  Answer,
  Split,
  TaskDefinition,
  UnparsableAnswer,
  accuracy,
  is_no_label,
  percent,
)

# Possessive (*+): without a closing bracket the match fails without backtracking.
_ANSWER = re.compile(r"The answer is (?P<answer>[^\n(]*+\([^\n)]*+\)[^\n]*)")


def _to_row(published):
  label = published["label"]
  return {"input_text": published["input"], "output_text": None if is_no_label(label) else label}


def _parse_answer(text):
  text = text.split("\nQ:")[0].rstrip()
  match = _ANSWER.search(text)
  if match is None:
    raise UnparsableAnswer('no "The answer is (...)" in the first answer')
  label = match["answer"].removesuffix(".")
  # "(some - 8)" and "(8 / 4) and (6 / 4)" are answers without a single value.
  return Answer(text[: match.start()].strip(), label if value_of(label) is not None else None)


def _metric(targets, predictions):
  right = sum(map(same_value, targets, predictions))
  exact = accuracy(targets, predictions)["accuracy"]
  return {"accuracy": percent(right, len(targets)), "exact_match": exact}


TASK = TaskDefinition(
  name="svamp",
  splits={
    "train": Split("train.jsonl", "train_palm_cot.jsonl", keep=lambda index: index % 10 != 0),
    "validation": Split("train.jsonl", "train_palm_cot.jsonl", keep=lambda index: index % 10 == 0),
    "test": Split("test.jsonl", "test_palm_cot.jsonl"),
  },
  to_row=_to_row,
  parse_answer=_parse_answer,
  same_label=same_value,
  metric=_metric,
)
