"""A run's configuration from what a job asks for, and the devices that it needs."""

import dataclasses
import os
import re
import tempfile
from collections.abc import Mapping
from typing import Any, Literal

from dss_jax.config.gin_loader import load_config
from dss_jax.config.schema import RunConfig
from dss_jax.errors import UserError
from dss_jax.jobs.api_error import ApiError
from dss_jax.jobs.bodies.schema import shown
from dss_jax.jobs.devices import Need, need_of
from dss_jax.jobs.places import resolve
from dss_jax.jobs.settings import AcceleratorType, Settings, Student, Teacher
from dss_jax.language_models.specs import TuningEvaluationSpec
from dss_jax.language_models.tuning import CONTEXTS, tuning_config
from dss_jax.storage.files import PathLike, is_file
from dss_jax.student.registry import Registry

# Examples per step, as in the service; with 32k inputs, 8 on both.
_BATCH_SIZES: dict[str, int] = {"TPU": 24, "GPU": 8}
_LONG_CONTEXT, _LONG_BATCH_SIZE = "32k", 8
_MODEL = re.compile(
  r"projects/(?P<project>[^/]+)/locations/[^/]+/models/(?P<model>[A-Za-z0-9_.@-]+)"
)


@dataclasses.dataclass(frozen=True)
class Wish:
  """What a job asks for, in the words of the pipeline's parameters.

  Attributes:
    settings: further fields of the run by their gin names.
    fields: the names of attributes in the request, where they are others, for messages.
  """

  kind: Literal["distill", "tune"]
  project: str
  dataset_uri: str | None
  student_model_reference: str
  model_display_name: str
  teacher_model_reference: str | None = None
  train_steps: int = 300
  learning_rate_multiplier: float = 1.0
  evaluation_data_uri: str | None = None
  evaluation_interval: int = 20
  enable_early_stopping: bool = True
  enable_checkpoint_selection: bool | None = None
  accelerator_type: AcceleratorType = "GPU"
  max_context_length: str = "8k"
  temperature: float = 0.0
  review_rationales: bool = False
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  fields: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def field(self, name: str) -> str:
    return self.fields.get(name, name)


def model_id(display_name: str) -> str:
  """Returns the name of a model in the registry, which resource names can have, too."""
  name = re.sub(r"[^a-z0-9_-]+", "-", display_name.lower()).strip("-_")
  return name[:63].rstrip("-_") or "model"


def run_config(
  wish: Wish,
  settings: Settings,
  registry: Registry,
  model_dir: PathLike,
  problems: list[str],
) -> tuple[RunConfig, Need] | None:
  """Returns the run that a job asks for, and the devices that it needs.

  Args:
    registry: the project's.
    problems: a sentence is added for each wish that this server cannot fulfil; if there are any,
      None is returned.
  """
  dataset = _file(wish, "dataset_uri", settings, problems)
  evaluation = _file(wish, "evaluation_data_uri", settings, problems)
  student = settings.student(wish.student_model_reference)
  if student is None:
    problems.append(
      f"{wish.field('student_model_reference')} is {shown(wish.student_model_reference)}, which"
      f" the operator has not configured (there are {', '.join(settings.student_references)})"
    )
  teacher = _teacher(wish, settings, registry, problems)
  if problems or student is None or dataset is None:
    return None
  try:
    config = _config(wish, settings, student, teacher, dataset, evaluation, registry, model_dir)
  except UserError as error:
    problems.append(str(error))
    return None
  return config, need_of(config)


def read_config(text: str) -> RunConfig:
  """Returns the run of a job from its configuration as gin text."""
  with tempfile.NamedTemporaryFile("w", suffix=".gin", encoding="utf-8") as file:
    file.write(text)
    file.flush()
    return load_config(RunConfig, [file.name])


def check_students(settings: Settings) -> None:
  """Raises UserError if a student and an accelerator do not make a run."""
  kinds: tuple[AcceleratorType, ...] = ("GPU", "TPU")
  # An accelerator may be wrong, too, without a student of the operator.
  for name in settings.students or ("t5-small",):
    student = settings.student(name)
    assert student is not None
    for kind in kinds:
      wish = Wish("distill", "project", "rows", name, "model", accelerator_type=kind)
      try:
        _config(wish, settings, student, None, "rows", None, Registry("registry"), "model")
      except UserError as error:
        raise UserError(f"students: {name}: {error}") from None


def _config(
  wish: Wish,
  settings: Settings,
  student: Student,
  teacher: Teacher | None,
  dataset: str,
  evaluation: str | None,
  registry: Registry,
  model_dir: PathLike,
) -> RunConfig:
  """Returns the configuration of a run; raises UserError for one that cannot be."""
  accelerator = settings.accelerator(wish.accelerator_type)
  inputs, targets, _ = CONTEXTS[wish.max_context_length]
  values: dict[str, Any] = {
    "DataConfig.feature_lengths": {"inputs": inputs, "targets": targets},
    "RunConfig.batch_size": batch_size(wish.accelerator_type, settings, wish.max_context_length),
    **_teacher_fields(teacher, wish.temperature),
    **wish.settings,
    **student.settings,
  }
  return tuning_config(
    wish.kind,
    dataset=dataset,
    student=student.student,
    initial_checkpoint=student.initial_checkpoint,
    teacher=None if teacher is None else teacher.name,
    train_steps=wish.train_steps,
    learning_rate_multiplier=wish.learning_rate_multiplier,
    evaluation_spec=TuningEvaluationSpec(
      evaluation_data=evaluation,
      evaluation_interval=wish.evaluation_interval,
      enable_early_stopping=wish.enable_early_stopping,
      enable_checkpoint_selection=wish.enable_checkpoint_selection,
    ),
    accelerator_type=None,
    mesh=accelerator.mesh,
    display_name=model_id(wish.model_display_name),
    max_context_length=None,
    model_dir=os.fspath(model_dir),
    registry=registry.root,
    settings=values,
  )


def batch_size(kind: AcceleratorType, settings: Settings, context: str = "8k") -> int:
  """Returns the examples per step on an accelerator, as in the service."""
  size = settings.accelerator(kind).batch_size or _BATCH_SIZES[kind]
  return min(size, _LONG_BATCH_SIZE) if context == _LONG_CONTEXT else size


def _file(wish: Wish, name: str, settings: Settings, problems: list[str]) -> str | None:
  """Returns the path of a request's file, which must be there."""
  uri = getattr(wish, name)
  if uri is None:
    return None
  field = wish.field(name)
  try:
    path = resolve(settings, uri, field, wish.project)
    if is_file(path):
      return path
    problems.append(f"{field} is {shown(uri)}, where there is no file")
  except (ApiError, UserError) as error:
    problems.append(str(error))
  return None


def _teacher(
  wish: Wish, settings: Settings, registry: Registry, problems: list[str]
) -> Teacher | None:
  """Returns the operator's teacher, or a student of the project's registry that teaches."""
  reference = wish.teacher_model_reference
  if reference is None:
    return None
  teachers = {name: each for name, each in settings.teachers.items() if each.is_for(wish.project)}
  if reference in teachers:
    return teachers[reference]
  match = _MODEL.fullmatch(reference)
  if match and match["project"] == wish.project:
    try:
      version = registry.version(match["model"])
    except UserError:
      pass
    else:
      if version.is_sealed:
        problems.append(
          f"{wish.field('teacher_model_reference')} is {shown(reference)}, which is"
          " encrypted with a key, and so does not teach"
        )
        return None
      return Teacher(name=f"t5:{version.folder}")
  known = ", ".join(sorted(teachers)) or "none"
  problems.append(
    f"{wish.field('teacher_model_reference')} is {shown(reference)}, which the operator has not"
    f" configured (there are {known})"
  )
  return None


def _teacher_fields(teacher: Teacher | None, temperature: float) -> dict[str, Any]:
  if teacher is None:
    return {}
  given = {"url": teacher.url, "key_env": teacher.key_env, "temperature": temperature or None}
  fields = {**teacher.settings, **{name: value for name, value in given.items() if value}}
  return {f"TeacherConfig.{name}": value for name, value in fields.items()}
