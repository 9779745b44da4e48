"""The configuration of a tuning job, from the hosted service's arguments; all are checked here."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from dss_jax.language_models.arguments import (
  ArgumentError,
  check_choice,
  check_integer,
  check_names,
  check_number,
  check_text,
)
from dss_jax.language_models.specs import TuningEvaluationSpec
from dss_jax.storage.files import PathLike

if TYPE_CHECKING:
  from dss_jax.config.schema import RunConfig

# Input and output tokens, and examples per step, as in the hosted service.
CONTEXTS = {"8k": (7168, 1024, 24), "32k": (31744, 1024, 8)}


def tuning_config(
  kind: Literal["distill", "tune"],
  *,
  dataset: str,
  student: str | None,
  initial_checkpoint: str | None,
  teacher: str | None,
  train_steps: int | None,
  learning_rate_multiplier: float | None,
  evaluation_spec: TuningEvaluationSpec,
  accelerator_type: str | None,
  display_name: str,
  max_context_length: str | None,
  model_dir: str,
  registry: PathLike | None,
  settings: Mapping[str, Any] | None,
  mesh: str | None = None,
) -> "RunConfig":
  """Returns the configuration of a run; raises UserError for the first wrong argument.

  Args:
    student: a size; None for the architecture of `initial_checkpoint`.
    settings: fields of the schema by their gin names, such as "DataConfig.vocabulary"; they win.
    mesh: as `--mesh` takes it.
  """
  from dss_jax.config.gin_loader import Binding, load_config
  from dss_jax.config.mesh_presets import mesh_choice
  from dss_jax.config.schema import RunConfig, flatten, student_file

  values: dict[str, tuple[str, Any]] = {
    "MODEL_DIR": ("model_dir", check_text("model_dir", model_dir)),
    "DATASET": ("dataset", check_text("dataset", dataset)),
    "INITIAL_CHECKPOINT_PATH": ("model", initial_checkpoint),
    "TRAIN_STEPS": ("train_steps", check_integer("train_steps", train_steps, 1)),
    "LEARNING_RATE_MULTIPLIER": (
      "learning_rate_multiplier",
      check_number("learning_rate_multiplier", learning_rate_multiplier, 0),
    ),
    "EVAL_DATASET": ("evaluation_spec.evaluation_data", evaluation_spec.evaluation_data),
    "EVAL_PERIOD": ("evaluation_spec.evaluation_interval", evaluation_spec.evaluation_interval),
    "EvaluationConfig.early_stopping": (
      "evaluation_spec.enable_early_stopping",
      evaluation_spec.enable_early_stopping,
    ),
    "EvaluationConfig.checkpoint_selection": (
      "evaluation_spec.enable_checkpoint_selection",
      evaluation_spec.enable_checkpoint_selection,
    ),
    "TeacherConfig.name": ("teacher_model", teacher),
    "RunConfig.display_name": ("model_display_name", display_name),
    "RunConfig.registry": ("registry", None if registry is None else str(registry)),
  }
  platform = check_choice("accelerator_type", accelerator_type, ("TPU", "GPU", "CPU"))
  values["MeshConfig.platform"] = ("accelerator_type", platform and platform.lower())
  context = check_choice("max_context_length", max_context_length, tuple(CONTEXTS))
  if context is not None:
    inputs, targets, batch_size = CONTEXTS[context]
    values["TASK_FEATURE_LENGTHS"] = ("max_context_length", {"inputs": inputs, "targets": targets})
    values["BATCH_SIZE"] = ("max_context_length", batch_size)
  bindings = [
    Binding(name, value, place) for name, (place, value) in values.items() if value is not None
  ]
  files = [f"runs/{kind}.gin"]
  if student is None:
    from dss_jax.student.initialise import student_of

    assert initial_checkpoint is not None
    student, architecture = student_of(initial_checkpoint, model_dir)
    bindings += architecture
    files += [] if architecture else [student_file(student, "model")]
  else:
    files.append(student_file(student, "model"))
  choice = mesh_choice(mesh)
  files += choice.files
  bindings += [Binding(f"MeshConfig.{axis}", size, "mesh") for axis, size in choice.axes.items()]
  plain = load_config(RunConfig, files, bindings)
  if settings:
    known = flatten(plain)
    for name, value in check_names("settings", settings, known).items():
      bindings.append(Binding(name, value, f"settings[{name!r}]"))
    return load_config(RunConfig, files, bindings)
  return plain


def check_run(config: "RunConfig") -> None:
  """Raises UserError for what a run would refuse before its first step, but for the rows' content.

  The files are there and hold rows, the teacher is one, the folder and the name are free.
  """
  from dss_jax.data.records import check_rows
  from dss_jax.student.model_dir import check_directory
  from dss_jax.student.registry import Registry
  from dss_jax.teachers.base import split_teacher

  assert config.display_name is not None
  Registry(config.registry).prepare(config.display_name)
  if config.teacher.name is not None:
    kind, name = split_teacher(config.teacher.name)
    if kind == "t5":
      from dss_jax.student.student import Student

      Student.open(name, config.registry)
  for dataset in (config.data.dataset, config.data.eval_dataset):
    if dataset is not None:
      check_rows(dataset, config.data.labels_as_text)
  check_directory(config)


def teacher_text(teacher: Any, folder: str | None) -> str | None:
  """Returns a teacher as `--teacher` takes it: a text, or a student's folder; None for none."""
  if teacher is None or isinstance(teacher, str):
    return teacher
  if folder is None:
    raise ArgumentError(
      f"teacher_model: is {teacher!r:.60}, but must be openai:MODEL, recorded:FILE, t5:MODEL or a"
      " trained TextGenerationModel"
    )
  return f"t5:{folder}"
