"""The JSON of a PipelineJob that a client sends, checked, and what it asks for."""

import re
from collections.abc import Mapping
from typing import Annotated, Any

import pydantic
from pydantic.alias_generators import to_camel

from dss_jax.jobs.api_error import ApiError, invalid
from dss_jax.jobs.bodies.job_config import Wish
from dss_jax.jobs.bodies.schema import parameter_values, read_parameters, shown

_DISTILLATION = "distillation"
_LABEL = re.compile(r"[\w-]{0,63}")
_MAX_LABELS = 64
Text = Annotated[str, pydantic.Field(max_length=1024)]


class Body(pydantic.BaseModel):
  """A part of a request; names are written in camelCase, or as in the protocol buffer."""

  model_config = pydantic.ConfigDict(
    extra="forbid", alias_generator=to_camel, populate_by_name=True, frozen=True
  )


class EncryptionSpec(Body):
  kms_key_name: Text = ""


class RuntimeConfig(Body):
  """Attributes:

  gcs_output_directory: gets copies of the results; null, which no client of the service sends,
    leaves them with the job alone.
  """

  gcs_output_directory: Text | None
  parameter_values: dict[str, Any] = {}
  parameters: dict[str, Any] = {}
  failure_policy: Any = None
  input_artifacts: Any = None
  default_runtime: Any = None


def _check_labels(labels: Mapping[str, str]) -> Mapping[str, str]:
  if len(labels) > _MAX_LABELS:
    raise ValueError(f"more than {_MAX_LABELS} labels")
  for text in (*labels, *labels.values()):
    if not _LABEL.fullmatch(text) or text != text.lower():
      raise ValueError(f"{shown(text)}: a label has up to 63 small letters, digits, '_' and '-'")
  return labels


Labels = Annotated[dict[str, str], pydantic.AfterValidator(_check_labels)]


class PipelineBody(Body):
  """What a client may send; what only the server says is taken and has no effect."""

  display_name: Annotated[str, pydantic.Field(max_length=128)] = ""
  runtime_config: RuntimeConfig
  pipeline_spec: dict[str, Any] | None = None
  template_uri: Text = ""
  labels: Labels = pydantic.Field(default_factory=dict)
  encryption_spec: EncryptionSpec = EncryptionSpec()
  service_account: Text = ""
  network: Any = None
  reserved_ip_ranges: Any = None
  psc_interface_config: Any = None
  preflight_validations: Any = None
  name: Any = None
  create_time: Any = None
  start_time: Any = None
  end_time: Any = None
  update_time: Any = None
  state: Any = None
  job_detail: Any = None
  error: Any = None
  template_metadata: Any = None
  schedule_name: Any = None
  original_pipeline_job_id: Any = None
  pipeline_task_rerun_configs: Any = None


def read_body(kind: type[pydantic.BaseModel], body: Any, what: str) -> Any:
  """Returns a checked body; raises ApiError with everything that is wrong in it."""
  if not isinstance(body, dict):
    raise invalid(f"the body must be the JSON object of a {what}")
  try:
    return kind.model_validate(body)
  except pydantic.ValidationError as error:
    raise invalid("; ".join(_sentence(each) for each in error.errors(include_url=False))) from None


def _sentence(error: Any) -> str:
  place = ".".join(str(part)[:60] for part in error["loc"])
  if error["type"] == "extra_forbidden":
    return f"there is no field {place}"
  if error["type"] == "missing":
    return f"{place} is required"
  message = error["msg"].removeprefix("Value error, ")
  return f"{place} is {shown(error['input'])}: {message[:1].lower()}{message[1:]}"


def pipeline_wish(
  body: PipelineBody, project: str, location: str, problems: list[str]
) -> tuple[Wish, dict[str, Any]]:
  """Returns what a pipeline asks for, and all of its parameters.

  Args:
    problems: a sentence is added for each wrong parameter.

  Raises ApiError for what no pipeline of this server has.
  """
  template = body.template_uri or _name_of(body.pipeline_spec)
  if not template:
    raise invalid("templateUri or pipelineSpec is required; give the distillation template's URI")
  if _DISTILLATION not in template:
    raise ApiError(
      "UNIMPLEMENTED",
      f"{shown(template)} is no distillation pipeline, the only one here; tune with tuningJobs",
    )
  runtime = body.runtime_config
  given = parameter_values(
    {"parameterValues": runtime.parameter_values, "parameters": runtime.parameters}
  )
  values = read_parameters(given, problems)
  if values["project"] is not None and values["project"] != project:
    problems.append(f"project is {shown(values['project'])}, but the path says {project!r}")
  values["location"] = values["location"] or location
  names = Wish.__dataclass_fields__.keys() & values.keys() - {"project"}
  wish = Wish(kind="distill", project=project, **{name: values[name] for name in names})
  return wish, values


def _name_of(spec: Mapping[str, Any] | None) -> str:
  """Returns the name of a compiled pipeline, "" if it has none."""
  info = (spec or {}).get("pipelineInfo")
  name = info.get("name") if isinstance(info, dict) else None
  return name if isinstance(name, str) else ""
