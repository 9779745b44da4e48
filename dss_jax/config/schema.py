"""The configuration of a run: frozen dataclasses, each field with its type and bounds."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from dss_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Bounds:
  """The least and the largest value of a number; None is unbounded."""

  low: float | None = None
  high: float | None = None

  def __str__(self) -> str:
    if self.low is None:
      return f"at most {self.high}"
    if self.high is None:
      return f"at least {self.low}"
    return f"from {self.low} to {self.high}"


class NotEmpty:
  """Marks a tuple that must hold something."""

  def __str__(self) -> str:
    return "at least one"


# What a sequence teaches the student to write: a row's label or its rationale.
TARGET_KINDS = ("label", "rationale")
LABEL, RATIONALE = range(len(TARGET_KINDS))

Count = Annotated[int, Bounds(1)]
NonNegativeInt = Annotated[int, Bounds(0)]
Share = Annotated[float, Bounds(0, 1)]
NonNegative = Annotated[float, Bounds(0)]
# Random keys have 32 bits of seed; a larger one would be the same as a smaller one.
Seed = Annotated[int, Bounds(0, 2**32 - 1)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config:
  """A student's architecture, in T5X's names."""

  emb_dim: Count
  num_heads: Count
  head_dim: Count
  mlp_dim: Count
  num_encoder_layers: Count
  num_decoder_layers: Count
  # None: the vocabulary's size, rounded up to a multiple of 128 as the public checkpoints are.
  vocab_size: Count | None = None
  # ("gelu", "linear") is T5 1.1's gated unit, ("relu",) is T5 1.0's.
  mlp_activations: Annotated[tuple[Literal["gelu", "relu", "linear"], ...], NotEmpty()] = (
    "gelu",
    "linear",
  )
  # True ties the logits to the embedding, scaled by 1/sqrt(emb_dim), as T5 1.0 does.
  logits_via_embedding: bool = False
  # False gives each layer its own relative position bias, as T5X's scanned models have it.
  shared_relpos_bias: bool = True
  dropout_rate: Annotated[float, Bounds(0, 0.99)] = 0.1
  dtype: Literal["float32", "bfloat16"] = "float32"
  # One loop over the layers of each stack: compiling takes as long as for one of them.
  scan_layers: bool = False
  # What the backward pass computes again, to hold less memory: nothing; what is no product of
  # activations and weights; or everything within a layer. T5X's names.
  remat: Literal["none", "minimal", "full"] = "none"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
  """Where the rows come from and how long their tokens may be."""

  # One of the two: a JSONL file, or a task (shipped name or path) with the folder of its files.
  dataset: str | None = None
  task: str | None = None
  data_dir: str | None = None
  labels: Literal["gold", "teacher"] = "gold"
  eval_dataset: str | None = None
  vocabulary: str | None = None
  feature_lengths: Mapping[Literal["inputs", "targets"], Count] = dataclasses.field(
    default_factory=lambda: {"inputs": 7168, "targets": 1024}
  )

  @property
  def max_input_tokens(self) -> int:
    return self.feature_lengths["inputs"]

  @property
  def max_output_tokens(self) -> int:
    return self.feature_lengths["targets"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherConfig:
  """Who is asked for the labels and rationales that the data set lacks, before training."""

  # openai:MODEL, recorded:FILE or t5:MODEL_DIR; None asks nobody.
  name: str | None = None
  url: str | None = None
  # The environment variable that holds the key; the key itself is written nowhere.
  key_env: str = "OPENAI_API_KEY"
  prompt: str | None = None
  labels: Literal["keep", "missing", "teacher"] = "missing"
  # Whether the teacher is shown a label that is kept, to explain it.
  show_labels: bool = True
  samples: Count = 1
  temperature: Annotated[float, Bounds(0, 2)] = 0.0
  rationales_per_row: Count = 1
  # Concerns that cost a row its rationale: agreement, gold, length, unmentioned, cut-off, echo.
  filters: tuple[str, ...] | None = None
  max_requests_in_flight: Count = 32
  budget_tokens: Count | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
  """alpha * label + (1 - alpha) * rationale; alpha 1.0 is plain supervised tuning."""

  alpha: Share = 0.5
  # Further terms by name, with their weights: {"entropy": -0.01} rewards unsure predictions.
  extra_terms: Mapping[str, float] = dataclasses.field(default_factory=dict)
  label_smoothing: Annotated[float, Bounds(0, 0.99)] = 0.0
  z_loss: NonNegative = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
  """The update rule and its learning rate: base_learning_rate * learning_rate_multiplier."""

  name: Literal["adafactor", "adamw"] = "adafactor"
  base_learning_rate: NonNegative = 1e-3
  learning_rate_multiplier: NonNegative = 1.0
  schedule: Literal["constant", "linear"] = "constant"
  warmup_steps: NonNegativeInt = 0
  weight_decay: NonNegative = 0.0
  # The whole gradient is scaled down to this Euclidean norm; None leaves it as it is.
  clip_norm: Annotated[float, Bounds(1e-9)] | None = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
  """When to evaluate, when to stop early, and which checkpoint to hand on.

  Early stopping ends the run when the label task's accuracy has not grown by more than
  `min_improvement` over its best in `patience` evaluations in a row.
  """

  interval_steps: Count = 20
  early_stopping: bool = True
  patience: Count = 5
  min_improvement: NonNegative = 0.0
  checkpoint_selection: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
  """Devices along the two mesh axes; data None takes as many as the batch divides over."""

  data: Count | None = None
  model: Count = 1
  # Whether weights are split over 'data', too; None does so for students that need it.
  weights_over_data: bool | None = None
  # The kind of device that the mesh is meant for; None takes what is there.
  platform: Literal["cpu", "gpu", "tpu"] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
  """Everything a training run depends on."""

  model_dir: str
  student: str
  model: T5Config
  data: DataConfig
  teacher: TeacherConfig = TeacherConfig()
  loss: LossConfig = LossConfig()
  optimizer: OptimizerConfig = OptimizerConfig()
  evaluation: EvaluationConfig = EvaluationConfig()
  mesh: MeshConfig = MeshConfig()
  train_steps: Count = 300
  # Examples a step, each seen in both tasks, whatever the packing.
  batch_size: Count = 24
  # The batch's rows are gone through in this many parts, for the same gradient in less memory.
  accumulation_steps: Count = 1
  # None: as often as the run evaluates.
  checkpoint_interval_steps: Count | None = None
  initial_checkpoint: str | None = None
  # Whether Adafactor goes on from the moments that T5X's trainer left in the checkpoint.
  initial_optimizer_state: bool = False
  seed: Seed = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepConfig:
  """The grid of a sweep: the name of a macro or field to the list of its values."""

  grid: Mapping[str, list[Any]]


# Resuming with another value of these is the same run: where it lies, on which devices and in
# how much of their memory, and how its teacher is reached.
FREE_ON_RESUME = (
  "RunConfig.model_dir",
  "MeshConfig.data",
  "MeshConfig.model",
  "MeshConfig.weights_over_data",
  "MeshConfig.platform",
  "T5Config.remat",
  "TeacherConfig.url",
  "TeacherConfig.key_env",
  "TeacherConfig.max_requests_in_flight",
)


def flatten(config: Any) -> dict[str, Any]:
  """Every field of a configuration and its parts as `Class.field` to value."""
  flat = {}
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if dataclasses.is_dataclass(value):
      flat.update(flatten(value))
    else:
      flat[f"{type(config).__name__}.{field.name}"] = value
  return flat


def shipped_folder(name: Literal["tasks", "gin_configs"]) -> pathlib.Path:
  """The folder as a checkout or a wheel carries it."""
  package = pathlib.Path(__file__).parent.parent
  inside = package / name
  return inside if inside.is_dir() else package.parent / name


def student_names() -> list[str]:
  """The sizes that `--student` takes: the files of gin_configs/models."""
  return sorted(path.stem for path in (shipped_folder("gin_configs") / "models").glob("*.gin"))


def student_file(name: str, place: str) -> str:
  """The gin file of a student; raises UserError, beginning with `place`, for an unknown one."""
  if name not in student_names():
    raise UserError(
      f"{place}: there is no student {name!r}; choose one of {', '.join(student_names())}"
    )
  return f"models/{name}.gin"
