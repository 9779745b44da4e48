"""CommonsenseQA with PaLM's outputs: `dss distill --task cqa --data-dir FOLDER`.

FOLDER contains the published files train.jsonl, test.jsonl, and a *_palm_cot.jsonl for each.
The test file is the benchmark's validation set. Every 39th row of train.jsonl (250 of its
9,741) is held out for validation. A contiguous slice would be biased, because the file is sorted.
"""

import re

from dss_jax.data.task_files import (
  Answer,
  Split,
  TaskDefinition,
  UnparsableAnswer,
  accuracy,
  is_no_label,
)

_ANSWER = re.compile(r"(?P<rationale>.*?)So the answer is (?P<answer>[^\n]*\([a-e]\)[^\n]*)", re.S)
_ONE_CHOICE = re.compile(r"\([a-e]\) (?P<label>[^()]+)")


def _to_row(published):
  choices = zip("abcde", published["choices"], strict=True)
  lines = [published["question"], "Answer Choices:", *(f"({x}) {text}" for x, text in choices)]
  answer = published["answer"]
  return {"input_text": "\n".join(lines), "output_text": None if is_no_label(answer) else answer}


def _parse_answer(text):
  match = _ANSWER.match(text.split("\nQ:")[0].rstrip())
  if match is None:
    raise UnparsableAnswer('no "So the answer is (x) ..." in the first answer')
  # "either (a) pond or (b) lake" is an answer without a single label.
  choice = _ONE_CHOICE.fullmatch(match["answer"].removesuffix("."))
  return Answer(match["rationale"].strip(), choice["label"] if choice else None)


TASK = TaskDefinition(
  name="cqa",
  splits={
    "train": Split("train.jsonl", "train_palm_cot.jsonl", keep=lambda index: index % 39 != 0),
    "validation": Split("train.jsonl", "train_palm_cot.jsonl", keep=lambda index: index % 39 == 0),
    "test": Split("test.jsonl", "test_palm_cot.jsonl"),
  },
  to_row=_to_row,
  parse_answer=_parse_answer,
  same_label=str.__eq__,
  metric=accuracy,
)
