"""Converts a run's TeacherConfig into the settings of an annotation."""

from dss_jax.annotation.annotate_file import TeacherOptions
from dss_jax.annotation.filters import Limits
from dss_jax.annotation.outcome import AnnotationConfig
from dss_jax.annotation.run import RequestConfig
from dss_jax.annotation.usage import Prices
from dss_jax.config.schema import TeacherConfig
from dss_jax.teachers.retrying import RetryPolicy


def annotation_settings(
  teacher: TeacherConfig, prices: Prices | None = None
) -> tuple[TeacherOptions, AnnotationConfig, RequestConfig]:
  """Returns the teacher, what is requested and kept, and how requests are sent."""
  assert teacher.name is not None
  options = TeacherOptions(
    teacher=teacher.name,
    url=teacher.url,
    key_env=teacher.key_env,
    timeout_seconds=teacher.timeout_seconds,
    request_form=teacher.request_form,
  )
  config = AnnotationConfig(
    teacher_labels=teacher.labels,
    show_labels=teacher.show_labels,
    samples=teacher.samples,
    temperature=teacher.temperature,
    rationales_per_row=teacher.rationales_per_row,
    filters=frozenset(teacher.filters),
    limits=Limits(min_agreement=teacher.min_agreement, rationale_words=teacher.rationale_words),
  )
  request_config = RequestConfig(
    api=teacher.api,
    max_requests_in_flight=teacher.max_requests_in_flight,
    budget_tokens=teacher.budget_tokens,
    prices=prices or Prices(),
    retry_policy=RetryPolicy(attempts=teacher.attempts),
    keep_going=teacher.keep_going,
  )
  return options, config, request_config
