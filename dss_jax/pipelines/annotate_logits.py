"""Writes a teacher's next tokens for the rows of a run, once, so that training needs no teacher.

In one process: the mesh refuses machines that are part of a group.
"""

import contextlib
import dataclasses
from typing import Any

import jax
import numpy as np

from dss_jax.config.schema import LABEL, RATIONALE, DataConfig, RunConfig
from dss_jax.data.alignment import aligned_positions
from dss_jax.data.batches import BatchLayout, EvalBatches
from dss_jax.data.packing import Packing, aligned_tokens
from dss_jax.data.pipeline import sources, tokenise_source
from dss_jax.data.shared_encoder import shared_starts
from dss_jax.data.token_store import TokenStore
from dss_jax.data.vocabularies import T5_VOCABULARY, Vocabulary, load_vocabulary
from dss_jax.errors import UserError
from dss_jax.model.flops import forward_flops
from dss_jax.parallel.mesh import make_mesh
from dss_jax.parallel.sharding import rows_sharding
from dss_jax.progress import progress_line, say
from dss_jax.student.teacher_model import TeacherModel
from dss_jax.teachers.logit_files import LogitMeta, LogitSettings, Mode
from dss_jax.teachers.logit_writer import LogitWriter, check_output, locked
from dss_jax.train.next_tokens import NextTokenFunction, Reduce, draws, likeliest, numbers_of

_KINDS = (LABEL, RATIONALE)


@dataclasses.dataclass(frozen=True)
class Kept:
  """What is kept of each next-token distribution: one of top_k and draws.

  Attributes:
    top_k: number of the likeliest words.
    draws: number of words that are drawn.
    temperature: the logits are divided by it.
    teacher_lengths: the lengths to which sequences are cut in the teacher's own vocabulary;
      None where they are the student's.
  """

  top_k: int | None
  draws: int | None
  temperature: float
  teacher_lengths: tuple[int | None, int | None] = (None, None)


@dataclasses.dataclass(frozen=True)
class _Sequences:
  """The rows in the student's tokens and in the teacher's; one store if they are the same."""

  student: TokenStore
  vocabulary: Vocabulary
  teacher: TokenStore
  teacher_vocabulary: Vocabulary

  @property
  def have_one_vocabulary(self) -> bool:
    return self.vocabulary.digest == self.teacher_vocabulary.digest

  def places(self, example: int, kind: int) -> np.ndarray | None:
    """Returns the teacher's position for each of the student's; None where they are the same."""
    if self.have_one_vocabulary:
      return None
    return aligned_positions(
      self.student.target_tokens(example, kind),
      self.vocabulary,
      self.teacher.target_tokens(example, kind),
      self.teacher_vocabulary,
    )


def run(config: RunConfig, output: str, kept: Kept) -> dict[str, Any]:
  """Writes the folder, or goes on with it; returns a report on it.

  Args:
    config: that of a run on the same rows, with its teacher model.

  User errors are raised before anything is written to the folder.
  """
  _check_kept(kept)
  mesh = make_mesh(config.mesh, config.batch_size)
  source, _ = sources(config.data)
  vocabulary = load_vocabulary(config.data.vocabulary or T5_VOCABULARY)
  teacher = TeacherModel(config, vocabulary, any_vocabulary=True)
  words = _words(teacher)
  _check_count(kept, teacher, vocabulary, words)
  student_store = tokenise_source(source, vocabulary, config.data)
  sequences = _Sequences(student_store, vocabulary, student_store, teacher.vocabulary)
  if not sequences.have_one_vocabulary:
    data = _of_teacher(config.data, kept)
    teacher_store = tokenise_source(source, teacher.vocabulary, data)
    sequences = dataclasses.replace(sequences, teacher=teacher_store)
  settings = _settings(config, kept, sequences, teacher, words)
  _say_truncated(sequences)
  meta = check_output(output, settings, config.batch_size)
  if meta is not None:
    say(f"{output} is finished; nothing is left to do")
    return _report(output, meta, sequences)
  batches = EvalBatches(
    sequences.teacher,
    batch_size=config.batch_size,
    kinds=_KINDS,
    costs=forward_flops(teacher.config).of_rows,
    row_multiple=mesh.shape["data"],
    length_multiple=aligned_tokens(teacher.config.dtype),
    layout=BatchLayout(
      shared_starts(config.data, teacher.vocabulary),
      features=() if kept.draws is None else numbers_of(sequences.teacher.target_lengths),
    ),
  )
  network = teacher.network(mesh)
  teacher.load(network)
  function = NextTokenFunction(
    network, _reduction(kept, config.seed), words=words, temperature=kept.temperature
  )
  with (
    locked(output) as folder,
    contextlib.closing(LogitWriter(folder, settings, config.batch_size)) as writer,
  ):
    _write(writer, function, batches, sequences, teacher)
    meta = writer.finish(teacher.path, int(sequences.student.target_lengths.sum()))
  return _report(output, meta, sequences)


def _write(
  writer: LogitWriter,
  function: NextTokenFunction,
  batches: EvalBatches,
  sequences: _Sequences,
  teacher: TeacherModel,
) -> None:
  """Writes the batches that the folder does not have yet."""
  done = sum(len(group) for group in batches.groups[: writer.batches])
  total = sum(map(len, batches.groups))
  with progress_line("next tokens of examples", total, done) as line:
    for group in batches.groups[writer.batches :]:
      packing, packed = batches.packed.pack(group)
      batch = batches.packed.fill(packing, packed)
      arrays = function(jax.device_put(batch, rows_sharding(function.mesh)))
      found = _by_sequence(packing, packed, arrays, sequences.teacher.target_lengths)
      chosen = [
        _of_student(found[example, kind], sequences.places(example, kind))
        for example in map(int, group)
        for kind in _KINDS
        if (example, kind) in found
      ]
      joined = tuple(np.concatenate(parts) for parts in zip(*chosen, strict=True))
      try:
        columns = writer.settings.encoded(joined)
      except ValueError:
        raise UserError(
          f"--teacher-model {teacher.path}: its next tokens are non-finite among rows "
          f"{sequences.student.row_numbers[group[0]] + 1} to "
          f"{sequences.student.row_numbers[group[-1]] + 1}; give a teacher whose weights are whole"
        ) from None
      writer.append(columns, int(np.isfinite(joined[1].reshape(len(joined[1]), -1)[:, 0]).sum()))
      done += len(group)
      line.update(done)


def _by_sequence(
  packing: Packing,
  sequences: list[tuple[int, int]],
  arrays: tuple[np.ndarray, ...],
  lengths: np.ndarray,
) -> dict[tuple[int, int], tuple[np.ndarray, ...]]:
  """Returns the values at the positions of each (example, kind) of a packed batch."""
  found = {}
  for row, numbers in enumerate(packing.members):
    start = 0
    for number in numbers:
      stop = start + lengths[sequences[number]]
      found[sequences[number]] = tuple(array[row, start:stop] for array in arrays)
      start = stop
  return found


def _of_student(
  values: tuple[np.ndarray, ...], places: np.ndarray | None
) -> tuple[np.ndarray, ...]:
  """Returns the ids and log probabilities at the student's positions, -inf where there is none."""
  if places is None:
    return values
  ids, log_probabilities = (array[places] for array in values)
  log_probabilities[places < 0] = -np.inf
  return ids, log_probabilities


def _reduction(kept: Kept, seed: int) -> Reduce:
  if kept.top_k is not None:
    return likeliest(kept.top_k)
  assert kept.draws is not None
  return draws(kept.draws, seed)


def _check_kept(kept: Kept) -> None:
  if (kept.top_k is None) == (kept.draws is None):
    both = "both" if kept.top_k is not None else "neither"
    raise UserError(
      f"{both} of --top-k and --draws given; give --top-k K, the likeliest words of each "
      "position, or --draws K, words drawn from the distribution"
    )


def _check_count(kept: Kept, teacher: TeacherModel, vocabulary: Vocabulary, words: int) -> None:
  if kept.top_k is not None and kept.top_k > words:
    raise UserError(f"--top-k {kept.top_k}: the teacher has {words:,} words; give at most {words}")
  if teacher.vocabulary.digest == vocabulary.digest:
    if kept.teacher_lengths != (None, None):
      raise UserError(
        "--teacher-max-input-tokens and --teacher-max-output-tokens are for a teacher with another "
        "vocabulary, and this one has the student's; leave them out"
      )
  elif kept.draws is not None:
    raise UserError(
      f"--draws {kept.draws}: the teacher's vocabulary is {teacher.vocabulary.spec} and the "
      f"student's {vocabulary.spec}, so words cannot be compared one by one; give --top-k"
    )


def _words(teacher: TeacherModel) -> int:
  """Returns the number of words of the distributions: the rows that a student has by default."""
  return min(teacher.config.vocab_size or 0, -(-teacher.vocabulary.size // 128) * 128)


def _of_teacher(data: DataConfig, kept: Kept) -> DataConfig:
  """Returns the rows with the lengths of the teacher."""
  inputs, targets = kept.teacher_lengths
  return dataclasses.replace(
    data,
    feature_lengths={
      "inputs": inputs or data.max_input_tokens,
      "targets": targets or data.max_output_tokens,
    },
  )


def _settings(
  config: RunConfig, kept: Kept, sequences: _Sequences, teacher: TeacherModel, words: int
) -> LogitSettings:
  mode: Mode = "top-k" if sequences.have_one_vocabulary else "sorted"
  return LogitSettings(
    mode="draws" if kept.draws is not None else mode,
    count=kept.draws or kept.top_k or 0,
    temperature=kept.temperature,
    words=words,
    seed=None if kept.draws is None else config.seed,
    tokens=sequences.student.fingerprint,
    teacher_tokens=sequences.teacher.fingerprint,
    vocabulary={"spec": sequences.vocabulary.spec, "digest": sequences.vocabulary.digest},
    lengths={"inputs": config.data.max_input_tokens, "targets": config.data.max_output_tokens},
    teacher=teacher.digest,
  )


def _say_truncated(sequences: _Sequences) -> None:
  stores = {"": sequences.student}
  if not sequences.have_one_vocabulary:
    stores["the teacher's "] = sequences.teacher
  for whose, store in stores.items():
    for feature in ("inputs", "targets"):
      cut = sum(of_kind[feature] for of_kind in store.truncated.values())
      if cut:
        say(f"warning: {cut:,} of {whose}{feature} were truncated")


def _report(output: str, meta: LogitMeta, sequences: _Sequences) -> dict[str, Any]:
  say(
    f"{meta.tokens:,} target tokens, {meta.bytes_per_token:.1f} bytes a token"
    + (
      ""
      if sequences.have_one_vocabulary
      else f"; the teacher has read the same text at {meta.aligned / meta.tokens:.1%} of them"
    )
  )
  return {
    "output": output,
    "mode": meta.settings.mode,
    "examples": sequences.student.num_examples,
    "tokens": meta.tokens,
    "bytes_per_token": round(meta.bytes_per_token, 2),
    "aligned_percent": round(100 * meta.aligned / meta.tokens, 2),
  }
