"""Which registered student answers for a publisher's model, the retired ones of the service."""

from dss_jax.jobs.api_error import ApiError
from dss_jax.jobs.service import JobService
from dss_jax.jobs.students.versions import find_version
from dss_jax.student.registry import Version


def answering(service: JobService, project: str, name: str) -> Version:
  """Returns the registered version that answers for a publisher's model, by its id.

  Raises ApiError FAILED_PRECONDITION if the operator named none, NOT_FOUND if it is not there.
  """
  answers = service.settings.publisher_models
  reference = next((answers[key] for key in answers if is_same(key, name)), None)
  if reference is None:
    raise ApiError(
      "FAILED_PRECONDITION",
      f"{name}: no student answers for this model; the operator names one in `publisher_models`,"
      " or a tuned model's endpoint can be asked",
    )
  return find_version(service.registry(project), reference, "publisher_models")


def is_same(one: str, other: str) -> bool:
  """Returns whether two ids are one: clients write t5@small for the label t5-small."""
  return one.replace("@", "-").strip("-") == other.replace("@", "-").strip("-")
