"""The configuration of a run: frozen dataclasses, each field with its type and bounds."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from dss_jax.config.bounds import (
  Bounds,
  Count,
  Length,
  NonNegative,
  NonNegativeInt,
  NotEmpty,
  Seed,
  Share,
  TermWeight,
)
from dss_jax.config.kinds import (
  AttentionConfig,
  FeatureConfig,
  MutualInformationConfig,
  RelationConfig,
  ResponseConfig,
  SelfAverageConfig,
  SelfLayersConfig,
  UniversalConfig,
)
from dss_jax.errors import UserError

# What a sequence teaches the student to write: a row's label or its rationale.
TARGET_KINDS = ("label", "rationale")
LABEL, RATIONALE = range(len(TARGET_KINDS))

# Reasons to distrust a rationale: annotation/filters.py explains each.
Concern = Literal[
  "agreement", "gold", "length", "unmentioned", "cut-off", "echo", "several-answers"
]
# Parts of a request that some servers do not take: teachers/request_form.py explains each.
RequestPart = Literal["max_completion_tokens", "no-stop", "no-temperature", "no-system-role"]

# The student of a run that names neither a student nor an initial checkpoint.
DEFAULT_STUDENT = "small"


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
  # ("gelu", "linear") is T5 1.1's gated unit, ("silu", "linear") UL2's, ("relu",) is T5 1.0's.
  mlp_activations: Annotated[tuple[Literal["gelu", "relu", "silu", "linear"], ...], NotEmpty()] = (
    "gelu",
    "linear",
  )
  # True ties the logits to the embedding, as T5 1.0 does.
  logits_via_embedding: bool = False
  # Whether tied logits are scaled by 1/sqrt(emb_dim), as T5 1.0's are.
  scale_tied_logits: bool = True
  # False gives each layer its own relative position bias, as umT5 and T5X's scanned models do.
  shared_relpos_bias: bool = True
  dropout_rate: Annotated[float, Bounds(0, 0.99)] = 0.1
  dtype: Literal["float32", "bfloat16"] = "float32"
  # Runs the layers of a stack as one loop, so that compile time does not grow with their number.
  scan_layers: bool = False
  # What the backward pass recomputes to save memory: "none"; "minimal", all but the products of
  # activations and weights; "full", everything within a layer. T5X's names.
  remat: Literal["none", "minimal", "full"] = "none"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
  """The rows of a run and the longest sequences, in tokens."""

  # Either a JSONL file, or a task (shipped name or path) with the folder of its files.
  dataset: str | None = None
  task: str | None = None
  data_dir: str | None = None
  # Whose labels a task trains on: its own, or the teacher's recorded ones.
  label_source: Literal["gold", "teacher"] = "gold"
  eval_dataset: str | None = None
  # Whether labels that are numbers or booleans are taken as their text, not refused.
  labels_as_text: bool = False
  vocabulary: str | None = None
  feature_lengths: Mapping[Literal["inputs", "targets"], Length] = dataclasses.field(
    default_factory=lambda: {"inputs": 7168, "targets": 1024}
  )

  # Whether a row's input is encoded once for its label and its rationale (data/shared_encoder.py).
  shared_encoder: bool = False

  @property
  def max_input_tokens(self) -> int:
    return self.feature_lengths["inputs"]

  @property
  def max_output_tokens(self) -> int:
    return self.feature_lengths["targets"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherConfig:
  """The teacher that adds missing labels and rationales before training."""

  # openai:MODEL, recorded:FILE or t5:MODEL; None for no teacher.
  name: str | None = None
  url: str | None = None
  # The environment variable with the API key; the key itself is never written.
  key_env: str = "OPENAI_API_KEY"
  # Which of OpenAI's APIs: chat messages, or a plain text to continue.
  api: Literal["chat", "completion"] = "chat"
  prompt: str | None = None
  # Which rows get the teacher's label: none, those without a label, or all.
  labels: Literal["keep", "missing", "teacher"] = "missing"
  # Whether the prompt shows the teacher a row's own label, to explain it.
  show_labels: bool = True
  # Answers per row, and how many different rationales of theirs the row keeps at most.
  samples: Annotated[int, Bounds(1, 1000)] = 1
  temperature: Annotated[float, Bounds(0, 2)] = 0.0
  rationales_per_row: Annotated[int, Bounds(1, 1000)] = 1
  # Concerns that drop a row's rationale, and their limits.
  filters: tuple[Concern, ...] = ()
  min_agreement: Share = 0.5
  rationale_words: tuple[NonNegativeInt, NonNegativeInt] = (3, 300)
  max_requests_in_flight: Annotated[int, Bounds(1, 4096)] = 32
  # Of one attempt of a request, and attempts of a request before its row is given up.
  timeout_seconds: Annotated[float, Bounds(0.001)] = 120.0
  attempts: Annotated[int, Bounds(1, 100)] = 6
  # What is known of the server's form of requests; the rest is found out from its refusals.
  request_form: tuple[RequestPart, ...] = ()
  budget_tokens: Count | None = None
  # Whether to go on where many rows in a row are refused, or no answer of the first ones parses.
  keep_going: bool = False


# How decoding stores matrices; "int8" has a float32 scale for each output.
WeightType = Literal["float32", "bfloat16", "int8"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodingConfig:
  """How a student writes: greedily, sampled (temperature above 0), or by beam search."""

  temperature: Annotated[float, Bounds(0, 100)] = 0.0
  # Sampling draws from the so many most likely tokens, and from the smallest set of them whose
  # probabilities sum up to top_p.
  top_k: Count | None = None
  top_p: Annotated[float, Bounds(1e-6, 1)] = 1.0
  # 1 is no search. Scores are divided by ((5 + tokens) / 6)^brevity_penalty.
  beams: Annotated[int, Bounds(1, 64)] = 1
  brevity_penalty: NonNegative = 0.6
  # Different answers of each row, sampled, or the best ones of a search.
  num_candidates: Annotated[int, Bounds(1, 64)] = 1
  seed: Seed = 0
  log_probabilities: bool = False
  # So many likely tokens are listed at each position of an answer, beside the chosen one.
  top_log_probabilities: Annotated[int, Bounds(0, 20)] = 0
  # An answer ends before the first of these texts.
  stop: tuple[str, ...] = ()
  weights: WeightType = "float32"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
  """alpha * label + (1 - alpha) * rationale; alpha 1.0 is plain supervised tuning."""

  alpha: Share = 0.5
  # Of the cross-entropies of labels and rationales together; 0 trains on the other terms alone.
  cross_entropy_weight: NonNegative = 1.0
  # Further terms by name, with their weights: the kinds of losses/kinds.py, and losses of the
  # student alone, such as {"entropy": -0.01}, which rewards unsure predictions.
  extra_terms: Mapping[str, TermWeight] = dataclasses.field(default_factory=dict)
  # Weights each row by the share of the teacher's answers to it that agree (data/agreement.py).
  agreement_weights: bool = False
  label_smoothing: Annotated[float, Bounds(0, 0.99)] = 0.0
  z_loss: NonNegative = 0.0
  response: ResponseConfig = dataclasses.field(default_factory=ResponseConfig)
  feature: FeatureConfig = dataclasses.field(default_factory=FeatureConfig)
  relation: RelationConfig = dataclasses.field(default_factory=RelationConfig)
  attention: AttentionConfig = dataclasses.field(default_factory=AttentionConfig)
  self_average: SelfAverageConfig = dataclasses.field(default_factory=SelfAverageConfig)
  self_layers: SelfLayersConfig = dataclasses.field(default_factory=SelfLayersConfig)
  mutual_information: MutualInformationConfig = dataclasses.field(
    default_factory=MutualInformationConfig
  )
  universal: UniversalConfig = dataclasses.field(default_factory=UniversalConfig)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SignalConfig:
  """The teacher whose next tokens or hidden states the student is trained on."""

  # A T5-family model: a student's folder or name, or a T5X or Hugging Face checkpoint.
  model: str | None = None
  # Of a checkpoint that has none beside it; None takes the run's own.
  vocabulary: str | None = None
  # How its matrices are kept in memory.
  weights: WeightType = "float32"
  # A folder of next tokens that `dss annotate --signal logits` wrote.
  logits: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnPolicyConfig:
  """Steps whose targets the student samples itself, for the teacher network to compare with."""

  # Of all steps; these are trained on the terms of the teacher network alone.
  share: Share = 0.0
  # Of the softmax that is sampled from; 0 takes the most likely tokens.
  temperature: Annotated[float, Bounds(0, 100)] = 1.0
  # Longer samples are cut off, and so are those longer than the rows' own targets may be.
  max_tokens: Count = 128
  # Which targets are sampled, among those that the run trains on.
  kinds: Annotated[tuple[Literal["label", "rationale"], ...], NotEmpty()] = (
    "label",
    "rationale",
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
  """The update rule and its learning rate: base_learning_rate * learning_rate_multiplier."""

  name: Literal["adafactor", "adamw"] = "adafactor"
  base_learning_rate: NonNegative = 1e-3
  learning_rate_multiplier: NonNegative = 1.0
  schedule: Literal["constant", "linear"] = "constant"
  warmup_steps: NonNegativeInt = 0
  weight_decay: NonNegative = 0.0
  # The gradient's global norm is clipped to this value; None turns clipping off.
  clip_norm: Annotated[float, Bounds(1e-9)] | None = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
  """When to evaluate, when to stop early, and which checkpoint becomes the student.

  Early stopping ends the run after `patience` evaluations in a row without an improvement.
  Checkpoint selection takes the best checkpoint instead of the last. Both follow the rule
  `selection` (train/selection.py):

  "noise-aware": among the checkpoints within one standard error of the one with the most labels
  wholly right, the one with the lowest label loss; a new best is an improvement. Differences of
  up to `min_improvement` are within the error, too.
  "token-accuracy": the highest share of correct label tokens, then the lowest label loss; an
  improvement exceeds the highest share by more than `min_improvement`.
  """

  interval_steps: Count = 20
  early_stopping: bool = True
  patience: Count = 5
  min_improvement: NonNegative = 0.0
  checkpoint_selection: bool = True
  selection: Literal["noise-aware", "token-accuracy"] = "noise-aware"
  # Whether the gradient norm of each term by itself is computed, too, on the step's batch.
  term_gradients: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
  """Devices along the two mesh axes; data None uses as many as the batch size divides by."""

  data: Count | None = None
  model: Count = 1
  # Whether weights are sharded over 'data', too; None does so for large students.
  weights_over_data: bool | None = None
  # The kind of device that the mesh is made for; None uses any.
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
  signals: SignalConfig = SignalConfig()
  on_policy: OnPolicyConfig = OnPolicyConfig()
  optimizer: OptimizerConfig = OptimizerConfig()
  evaluation: EvaluationConfig = EvaluationConfig()
  mesh: MeshConfig = MeshConfig()
  train_steps: Count = 300
  # Examples per step, each with its label and its rationale, whatever the packing.
  batch_size: Count = 24
  # Number of microbatches: the same gradient in less memory.
  accumulation_steps: Count = 1
  # None: EvaluationConfig.interval_steps.
  checkpoint_interval_steps: Count | None = None
  initial_checkpoint: str | None = None
  # Which of its layers a student with fewer starts from (student/layer_choice.py); None for all.
  initial_layers: str | None = None
  # Whether Adafactor starts from the moments in a T5X checkpoint.
  initial_optimizer_state: bool = False
  seed: Seed = 0
  # The name under which the student is registered when the run ends, and the registry's folder
  # (None: the user's own).
  display_name: str | None = None
  registry: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepConfig:
  """The grid of a sweep: the name of a macro or field to the list of its values."""

  grid: Mapping[str, list[Any]]


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
  """How a process joins the others of its run.

  Attributes:
    coordinator, num_processes, process_id: HOST:PORT of process 0, the number of processes and
      this one's number; JAX detects those that are None (on TPU pods, under Slurm, Open MPI and
      Kubernetes).
    start_timeout_seconds: how long to wait for the others at the start.
    heartbeat_timeout_seconds: a process that is silent for longer counts as lost.
  """

  coordinator: str | None = None
  num_processes: Count | None = None
  process_id: NonNegativeInt | None = None
  start_timeout_seconds: Count = 300
  heartbeat_timeout_seconds: Annotated[int, Bounds(5)] = 60


# Fields that may change when a run resumes: where rows, vocabulary and the teacher's files are,
# since their digests say whether they are the same (student/model_dir.py,
# pipelines/annotate_stage.py); the folder's path and the student's name; the devices and their
# memory; and how the teacher is reached.
MUTABLE_ON_RESUME = (
  "DataConfig.dataset",
  "DataConfig.task",
  "DataConfig.data_dir",
  "DataConfig.label_source",
  "DataConfig.eval_dataset",
  "DataConfig.labels_as_text",
  "DataConfig.vocabulary",
  "RunConfig.model_dir",
  "RunConfig.display_name",
  "RunConfig.registry",
  "MeshConfig.data",
  "MeshConfig.model",
  "MeshConfig.weights_over_data",
  "MeshConfig.platform",
  "T5Config.remat",
  "EvaluationConfig.term_gradients",
  "SignalConfig.model",
  "SignalConfig.logits",
  "SignalConfig.vocabulary",
  "TeacherConfig.name",
  "TeacherConfig.prompt",
  "TeacherConfig.url",
  "TeacherConfig.key_env",
  "TeacherConfig.max_requests_in_flight",
  "TeacherConfig.timeout_seconds",
  "TeacherConfig.attempts",
  "TeacherConfig.request_form",
  "TeacherConfig.keep_going",
)


def check_decoding(config: DecodingConfig) -> None:
  """Raises UserError if a setting has no effect beside the others, or contradicts them."""
  for flag, number in (("temperature", config.temperature), ("top-p", config.top_p)):
    if math.isnan(number):
      raise UserError(f"--{flag} nan is not a number; give one")
  sampled, searched = config.temperature > 0, config.beams > 1
  if sampled and searched:
    raise UserError(
      f"--beams {config.beams} searches and --temperature {config.temperature:g} samples; leave "
      "one of them out"
    )
  if not sampled:
    for flag, value, unset in (("top-k", config.top_k, None), ("top-p", config.top_p, 1.0)):
      if value != unset:
        raise UserError(
          f"--{flag} {value} has no effect on the most likely tokens; give a --temperature above 0"
        )
    if config.num_candidates > config.beams:
      raise UserError(
        f"--num-candidates {config.num_candidates} would be the same answer again; give a "
        f"--temperature above 0, or --beams {config.num_candidates} or more"
      )
  if searched and config.log_probabilities:
    raise UserError(
      f"--log-probabilities are those of one answer, and --beams {config.beams} gives scores; "
      "leave one of them out"
    )
  if searched and config.stop:
    raise UserError(
      f"--stop {config.stop[0]!r} does not end the beams of --beams {config.beams}; leave one of "
      "them out"
    )
  if "" in config.stop:
    raise UserError("--stop '' is empty; give the text before which an answer ends")


def flatten(config: Any) -> dict[str, Any]:
  """Returns every field of a configuration and its parts as `Class.field` to value."""
  flat = {}
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if dataclasses.is_dataclass(value):
      flat.update(flatten(value))
    else:
      flat[f"{type(config).__name__}.{field.name}"] = value
  return flat


def shipped_folder(name: Literal["tasks", "gin_configs"]) -> pathlib.Path:
  """Returns the folder in a checkout or an installed wheel."""
  package = pathlib.Path(__file__).parent.parent
  inside = package / name
  return inside if inside.is_dir() else package.parent / name


def student_names() -> list[str]:
  """Returns the sizes that `--student` accepts: the files of gin_configs/models."""
  return sorted(path.stem for path in (shipped_folder("gin_configs") / "models").glob("*.gin"))


def student_file(name: str, place: str) -> str:
  """Returns the gin file of a student; raises UserError, beginning with `place`, if unknown."""
  if name not in student_names():
    raise UserError(
      f"{place}: there is no student {name!r}; choose one of {', '.join(student_names())}"
    )
  return f"models/{name}.gin"
