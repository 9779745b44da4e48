"""A student's predictions for rows, decoded in batches of similar length, in order."""

import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from dss_jax.data.records import Row, check_rows, read_rows, write_rows
from dss_jax.decoding.greedy import greedy
from dss_jax.decoding.weights import decoding_weights
from dss_jax.errors import UserError
from dss_jax.model.layer_stacks import unrolled_config
from dss_jax.parallel.sharding import logical_rules, rows_sharding
from dss_jax.progress import ProgressLine, progress_line, say
from dss_jax.storage.files import PathLike
from dss_jax.student.student import Student

# This many rows are in memory, and sorted by length, at a time.
WINDOW_ROWS = 2048
# Inputs are padded to one of these lengths; each is compiled once.
LENGTHS = sorted({2**n for n in range(4, 14)} | {3 * 2**n for n in range(3, 12)})


class Predictor:
  """Decodes greedily with a student's best weights.

  Attributes:
    model: the student's architecture with its layers unrolled, as decoding needs them.
    params: its weights in this layout.
    cut_inputs: the number of truncated inputs so far, by target kind.
  """

  def __init__(self, student: Student, mesh: jax.sharding.Mesh, *, batch_size: int = 32):
    """Loads the weights.

    Args:
      batch_size: rows decoded at a time, a multiple of the mesh's data axis.
    """
    self._student = student
    self._mesh = mesh
    self.model = unrolled_config(student.config.model)
    self._rules = logical_rules(self.model, mesh)
    self._batch_size = batch_size
    self.cut_inputs = {"label": 0, "rationale": 0}
    self.params = student.params(mesh, scan_layers=self.model.scan_layers)
    vocabulary = student.vocabulary
    with jax.set_mesh(mesh), nn.logical_axis_rules(self._rules):
      self._weights = jax.jit(functools.partial(decoding_weights, config=self.model))(self.params)
    self._greedy = jax.jit(
      functools.partial(
        greedy, config=self.model, eos_id=vocabulary.eos_id, pad_id=vocabulary.pad_id
      ),
      static_argnames="max_decode_tokens",
    )

  def answers(
    self,
    texts: Sequence[str],
    kind: str,
    *,
    max_output_tokens: int | None = None,
    on_batch=lambda rows: None,
  ) -> list[str]:
    """Returns the prediction for each input text, in order.

    Args:
      kind: "label" or "rationale"; it determines the prefix.
      max_output_tokens: by default the longest target that the student was trained on.
      on_batch: called with the number of texts answered after each batch.

    Raises:
      UserError: the student was not trained on this kind.
    """
    self._check_trained(kind)
    if max_output_tokens is None:
      longest = self._student.card["longest_target_tokens"][kind]
      max_output_tokens = min(-(-longest // 8) * 8, self._student.config.data.max_output_tokens)
    encoded = [self._encode(text, kind) for text in texts]
    order = sorted(range(len(texts)), key=lambda i: len(encoded[i]))
    answers = [""] * len(texts)
    for start in range(0, len(order), self._batch_size):
      numbers = order[start : start + self._batch_size]
      written = self._decode([encoded[i] for i in numbers], max_output_tokens)
      for i, ids in zip(numbers, written, strict=True):
        answers[i] = self._student.vocabulary.decode(ids.tolist())
      on_batch(len(numbers))
    return answers

  def _check_trained(self, kind: str) -> None:
    alpha = self._student.config.loss.alpha
    if kind == "rationale" and alpha == 1.0:
      raise UserError(
        f"{self._student.directory}: was trained on labels alone and has no rationales to give; "
        "leave out --explain, or train a student with `dss distill`"
      )
    if kind == "label" and alpha == 0.0:
      raise UserError(
        f"{self._student.directory}: was trained on rationales alone and has no labels to give; "
        "train a student with an --alpha above 0"
      )

  def _encode(self, text: str, kind: str) -> list[int]:
    vocabulary = self._student.vocabulary
    ids = vocabulary.encode(self._student.card["prefixes"][kind] + text)
    most = self._student.config.data.max_input_tokens - 1
    self.cut_inputs[kind] += len(ids) > most
    return [*ids[:most], vocabulary.eos_id]

  def _decode(self, inputs: Sequence[list[int]], max_output_tokens: int) -> np.ndarray:
    """Returns the decoded ids of each input, int32 [len(inputs), max_output_tokens]."""
    longest = max(map(len, inputs))
    length = next((length for length in LENGTHS if length >= longest), longest)
    tokens = np.zeros((self._batch_size, length), np.int32)
    for row, ids in enumerate(inputs):
      tokens[row, : len(ids)] = ids
    sharding = rows_sharding(self._mesh)
    with jax.set_mesh(self._mesh), nn.logical_axis_rules(self._rules):
      written = self._greedy(
        self._weights,
        encoder_input_tokens_BL=jax.device_put(tokens, sharding),
        max_decode_tokens=max_output_tokens,
      )
    return np.asarray(written)[: len(inputs)]


def predict_file(
  predictor: Predictor,
  dataset: PathLike,
  output: PathLike,
  *,
  explain: bool = False,
  max_output_tokens: int | None = None,
  labels_as_text: bool = False,
) -> int:
  """Writes rows with `prediction` and, with `explain`, `rationale`; returns their number.

  A rationale that a row already has is replaced by the student's. The output appears only when
  complete, in the order of the input.
  """
  total = check_rows(dataset, labels_as_text)
  texts_a_row = 2 if explain else 1
  with progress_line("predicting", total * texts_a_row) as line:
    rows = _predicted(
      predictor, read_rows(dataset, labels_as_text), explain, max_output_tokens, line
    )
    written = write_rows(os.fspath(output), rows)
  if cut := predictor.cut_inputs["label"]:
    say(f"warning: {cut} of {total} inputs were cut to the longest that the student was trained on")
  return written


def _predicted(
  predictor: Predictor,
  rows: Iterable[Row],
  explain: bool,
  max_output_tokens: int | None,
  line: ProgressLine,
) -> Iterator[Row]:
  done = 0

  def advance(count: int) -> None:
    nonlocal done
    done += count
    line.update(done)

  for window in _windows(rows, WINDOW_ROWS):
    texts = [row["input_text"] for row in window]
    answers: dict[str, Any] = {}
    for key, kind in (("prediction", "label"), ("rationale", "rationale"))[: 1 + explain]:
      answers[key] = predictor.answers(
        texts, kind, max_output_tokens=max_output_tokens, on_batch=advance
      )
    for number, row in enumerate(window):
      yield {**row, **{key: texts[number] for key, texts in answers.items()}}


def _windows(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
  window = []
  for row in rows:
    window.append(row)
    if len(window) == size:
      yield window
      window = []
  if window:
    yield window
