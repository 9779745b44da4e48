"""What is evaluated, during tuning and after it."""

import dataclasses
from typing import Any

from dss_jax.language_models.arguments import (
  ArgumentError,
  check_flag,
  check_integer,
  check_text,
)


@dataclasses.dataclass
class TuningEvaluationSpec:
  """The evaluation during a tuning job.

  Attributes:
    evaluation_data: JSONL rows. Early stopping and checkpoint selection need them.
    evaluation_interval: steps between evaluations, 20 by default.
    enable_early_stopping: whether the run may stop before its last step; on by default.
    enable_checkpoint_selection: whether the best checkpoint becomes the student, not the last;
      on by default.
    tensorboard: has no effect: every run writes TensorBoard's files into its folder.
  """

  evaluation_data: str | None = None
  evaluation_interval: int | None = None
  enable_early_stopping: bool | None = None
  enable_checkpoint_selection: bool | None = None
  tensorboard: Any = None

  def check(self, name: str) -> None:
    """Raises ArgumentError for a wrong attribute, with `name` before its own."""
    if self.evaluation_data is not None:
      check_text(f"{name}.evaluation_data", self.evaluation_data)
    check_integer(f"{name}.evaluation_interval", self.evaluation_interval, 1)
    for flag in ("enable_early_stopping", "enable_checkpoint_selection"):
      if check_flag(f"{name}.{flag}", getattr(self, flag)) and self.evaluation_data is None:
        raise ArgumentError(f"{name}.{flag}: needs evaluation data; give evaluation_data, too")


@dataclasses.dataclass
class EvaluationTextGenerationSpec:
  """The rows to evaluate a model on: one JSONL file with `input_text` and `output_text`."""

  ground_truth_data: str | list[str]

  def file(self, name: str) -> str:
    """Returns the file; raises ArgumentError, with `name`, unless it is one."""
    data = self.ground_truth_data
    if isinstance(data, list) and len(data) == 1:
      data = data[0]
    if isinstance(data, list):
      raise ArgumentError(
        f"{name}.ground_truth_data: has {len(data)} files, but must be one; join them"
      )
    return check_text(f"{name}.ground_truth_data", data)


def check_evaluation_spec(name: str, spec: Any) -> TuningEvaluationSpec:
  """Returns the specification, an empty one for None; raises ArgumentError if it is wrong."""
  if spec is None:
    return TuningEvaluationSpec()
  if not isinstance(spec, TuningEvaluationSpec):
    raise ArgumentError(f"{name}: is {spec!r:.60}, but must be a TuningEvaluationSpec")
  spec.check(name)
  return spec
