"""A request for a job of either kind: its checked body, what it asks for, and under what names."""

import dataclasses
from typing import Any

from dss_jax.jobs.api_error import ApiError
from dss_jax.jobs.bodies.job_config import Wish
from dss_jax.jobs.bodies.pipeline_body import PipelineBody, pipeline_wish, read_body
from dss_jax.jobs.bodies.schema import shown
from dss_jax.jobs.bodies.tuning_body import TuningBody, tuning_wish
from dss_jax.jobs.places import resolve
from dss_jax.jobs.settings import Settings
from dss_jax.jobs.store import Kind


@dataclasses.dataclass(frozen=True)
class JobRequest:
  """A request for a job.

  Attributes:
    body: with the API's own names, whichever of the two spellings the client took.
    display_name: of the job.
    account: the serviceAccount, if it names one.
    location: of the model.
    output, evaluation_output: folders that get copies of the results, if any.
    key: the kmsKeyName of the key that its files are encrypted with, if any.
  """

  wish: Wish
  body: dict[str, Any]
  display_name: str
  account: str | None
  location: str
  output: str | None = None
  evaluation_output: str | None = None
  key: str | None = None


def read_request(
  kind: Kind, body: Any, project: str, location: str, settings: Settings, problems: list[str]
) -> JobRequest:
  """Returns what a body asks for.

  Args:
    problems: a sentence is added for each wrong value.

  Raises ApiError for a body of another form, or what no job of this server has.
  """
  if kind == "pipelineJobs":
    request = _pipeline_request(body, project, location, settings, problems)
  else:
    request = _tuning_request(body, project, location, settings, problems)
  if request.key is not None and request.wish.review_rationales:
    problems.append(
      "review_rationales: nobody reads the rationales of an encrypted job; leave it out, or the key"
    )
  account = settings.service_accounts.get(request.account or "")
  if request.account and (account is None or not account.is_for(project)):
    problems.append(
      f"serviceAccount is {shown(request.account)}, which the operator has not configured"
    )
  return request


def _pipeline_request(
  body: Any, project: str, location: str, settings: Settings, problems: list[str]
) -> JobRequest:
  parsed = read_body(PipelineBody, body, "PipelineJob")
  wish, values = pipeline_wish(parsed, project, location, problems)

  def folder(uri: str | None, field: str) -> str | None:
    try:
      return resolve(settings, uri, field, project) if uri else None
    except ApiError as error:
      problems.append(str(error))
      return None

  keys = {parsed.encryption_spec.kms_key_name, values["encryption_spec_key_name"] or ""} - {""}
  if len(keys) > 1:
    problems.append("encryption_spec_key_name is another key than encryptionSpec.kmsKeyName")
  directory = parsed.runtime_config.gcs_output_directory
  if directory == "":
    problems.append("gcsOutputDirectory is required")
  return JobRequest(
    wish=wish,
    body=_canonical(parsed),
    display_name=parsed.display_name,
    account=parsed.service_account or None,
    location=values["location"],
    output=folder(directory, "gcsOutputDirectory"),
    evaluation_output=folder(values["evaluation_output_root_dir"], "evaluation_output_root_dir"),
    key=min(keys, default=None),
  )


def _tuning_request(
  body: Any, project: str, location: str, settings: Settings, problems: list[str]
) -> JobRequest:
  parsed = read_body(TuningBody, body, "TuningJob")
  return JobRequest(
    wish=tuning_wish(parsed, project, settings, problems),
    body=_canonical(parsed),
    display_name=parsed.tuned_model_display_name,
    account=parsed.service_account or None,
    location=location,
    key=parsed.encryption_spec.kms_key_name or None,
  )


def _canonical(parsed: PipelineBody | TuningBody) -> dict[str, Any]:
  return parsed.model_dump(mode="json", by_alias=True, exclude_unset=True)
