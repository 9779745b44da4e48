"""The JSON of a TuningJob that a client sends, checked, and what it asks for."""

import math
from typing import Annotated, Any

import pydantic

from dss_jax.data.records import check_rows
from dss_jax.errors import UserError
from dss_jax.jobs.api_error import ApiError, invalid
from dss_jax.jobs.bodies.job_config import Wish, batch_size
from dss_jax.jobs.bodies.pipeline_body import Body, EncryptionSpec, Labels, Text
from dss_jax.jobs.places import resolve
from dss_jax.jobs.settings import Settings
from dss_jax.storage.files import is_file

# Epochs, if a request does not say; the service's own number depended on the rows.
_EPOCHS = 3


class HyperParameters(Body):
  """What of Google's hyperparameters has a meaning here.

  Attributes:
    epoch_count: int64, which proto-JSON writes as a text.
    adapter_size: taken, and without effect: students are trained whole.
  """

  epoch_count: (
    Annotated[int, pydantic.Field(ge=1, le=1_000_000), pydantic.PlainSerializer(str)] | None
  ) = None
  learning_rate_multiplier: Annotated[float, pydantic.Field(gt=0, le=1e6)] = 1.0
  batch_size: Annotated[int, pydantic.Field(ge=1, le=65536)] | None = None
  adapter_size: Any = None


class SupervisedSpec(Body):
  training_dataset_uri: Text
  validation_dataset_uri: Text = ""
  hyper_parameters: HyperParameters = HyperParameters()
  export_last_checkpoint_only: bool = False


class DistillationSpec(Body):
  """A distillation; `review_rationales` is ours."""

  prompt_dataset_uri: Text = ""
  training_dataset_uri: Text = ""
  validation_dataset_uri: Text = ""
  base_teacher_model: Text = ""
  tuned_teacher_model_source: Text = ""
  student_model: Text = ""
  pipeline_root_directory: Text = ""
  hyper_parameters: HyperParameters = HyperParameters()
  sft_loss_weight_multiplier: Annotated[float, pydantic.Field(ge=0, le=1)] | None = None
  tuning_mode: Any = None
  review_rationales: bool = False


class TuningBody(Body):
  """What a client may send; what only the server says is taken and has no effect."""

  base_model: Text = ""
  tuned_model_display_name: Annotated[str, pydantic.Field(max_length=128)] = ""
  description: Annotated[str, pydantic.Field(max_length=4096)] = ""
  labels: Labels = pydantic.Field(default_factory=dict)
  supervised_tuning_spec: SupervisedSpec | None = None
  distillation_spec: DistillationSpec | None = None
  encryption_spec: EncryptionSpec = EncryptionSpec()
  service_account: Text = ""
  name: Any = None
  state: Any = None
  create_time: Any = None
  start_time: Any = None
  end_time: Any = None
  update_time: Any = None
  error: Any = None
  experiment: Any = None
  tuned_model: Any = None
  tuning_data_stats: Any = None


def tuning_wish(body: TuningBody, project: str, settings: Settings, problems: list[str]) -> Wish:
  """Returns what a tuning job asks for.

  Args:
    problems: a sentence is added for each wrong value.
  """
  supervised, distillation = body.supervised_tuning_spec, body.distillation_spec
  if (supervised is None) == (distillation is None):
    raise invalid("give one of supervisedTuningSpec and distillationSpec, the two kinds here")
  accelerator = settings.device_sets[0].accelerators[0]
  spec: SupervisedSpec | DistillationSpec
  if supervised is not None:
    spec, place, teacher = supervised, "supervisedTuningSpec", None
    dataset, dataset_field = supervised.training_dataset_uri, "trainingDatasetUri"
  else:
    assert distillation is not None
    spec, place, teacher = distillation, "distillationSpec", _teacher(distillation, problems)
    dataset, dataset_field = distillation.prompt_dataset_uri, "promptDatasetUri"
    if not dataset:
      dataset, dataset_field = distillation.training_dataset_uri, "trainingDatasetUri"
  base = body.base_model or (distillation.student_model if distillation else "")
  student = settings.student(_last_part(base))
  if not base:
    problems.append("baseModel is required: the student")
  if not dataset:
    problems.append(f"{place}.{dataset_field} is required")
  hyper = spec.hyper_parameters
  values: dict[str, Any] = {}
  weight = None if distillation is None else distillation.sft_loss_weight_multiplier
  if weight is not None:
    # Times the label's half of the loss; the two weights then add up to 1.
    values["LossConfig.alpha"] = weight / (weight + 1)
  if hyper.batch_size is not None:
    values["RunConfig.batch_size"] = hyper.batch_size
  examples = (
    ({} if student is None else student.settings).get("RunConfig.batch_size")
    or hyper.batch_size
    or batch_size(accelerator, settings)
  )
  rows = _count_rows(dataset, f"{place}.{dataset_field}", settings, project) if dataset else 0
  return Wish(
    kind="tune" if supervised is not None else "distill",
    project=project,
    dataset_uri=dataset or None,
    student_model_reference=_last_part(base),
    model_display_name=body.tuned_model_display_name or f"tuned-{_last_part(base)}",
    teacher_model_reference=teacher,
    train_steps=max(1, math.ceil((hyper.epoch_count or _EPOCHS) * rows / examples)),
    learning_rate_multiplier=hyper.learning_rate_multiplier,
    evaluation_data_uri=spec.validation_dataset_uri or None,
    accelerator_type=accelerator,
    review_rationales=distillation is not None and distillation.review_rationales,
    settings=values,
    fields={
      "dataset_uri": f"{place}.{dataset_field}",
      "evaluation_data_uri": f"{place}.validationDatasetUri",
      "student_model_reference": "baseModel",
      "teacher_model_reference": f"{place}.baseTeacherModel",
      "accelerator_type": "the accelerator type",
    },
  )


def _teacher(spec: DistillationSpec, problems: list[str]) -> str | None:
  given = [each for each in (spec.base_teacher_model, spec.tuned_teacher_model_source) if each]
  if len(given) != 1:
    problems.append("give one of distillationSpec.baseTeacherModel and tunedTeacherModelSource")
    return None
  return given[0] if spec.tuned_teacher_model_source else _last_part(given[0])


def _last_part(model: str) -> str:
  """Returns the name of a model that may be given as publishers/P/models/NAME."""
  return model.rpartition("/")[2]


def _count_rows(uri: str, field: str, settings: Settings, project: str) -> int:
  """Returns the number of rows; raises ApiError for rows that no run could use.

  A file that is not there has none: what reads the configuration says so.
  """
  try:
    path = resolve(settings, uri, field, project)
  except ApiError:
    return 0
  try:
    return check_rows(path) if is_file(path) else 0
  except UserError as error:
    raise invalid(str(error).replace(path, uri)) from None
