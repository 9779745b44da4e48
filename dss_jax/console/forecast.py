"""What a job will cost and take, as far as it can be known before it runs.

The teacher's tokens are counted as `dss annotate --dry-run` does. Times come from earlier jobs of
this server; without one, that of TPUs comes from their published speed, and that of other devices
is not known.
"""

import dataclasses
import datetime
import json
import statistics
from collections.abc import Iterator
from typing import NamedTuple

from dss_jax.annotation.annotate_file import dry_run_file
from dss_jax.annotation.teacher_settings import annotation_settings
from dss_jax.annotation.usage import Prices
from dss_jax.config.mesh_presets import mesh_choice
from dss_jax.config.schema import RunConfig
from dss_jax.data.report.figures import DatasetReport
from dss_jax.jobs.bodies.job_config import read_config
from dss_jax.jobs.encryption.working_folder import is_private
from dss_jax.jobs.queue.job_files import METRICS_FILE, tail
from dss_jax.jobs.service import JobService
from dss_jax.jobs.settings import AcceleratorType
from dss_jax.jobs.store import ENDED, Job
from dss_jax.model.flops import step_flops
from dss_jax.plan.hardware import HARDWARE, USUAL_FRACTION
from dss_jax.teachers.base import split_teacher

_EARLIER_JOBS = 50
# Where nothing was counted: tokens of a rationale, and characters of a token.
_RATIONALE_TOKENS = 80
_CHARACTERS_PER_TOKEN = 4
_T5_VOCABULARY_SIZE = 32_128


class Annotation(NamedTuple):
  """The teacher's work.

  Attributes:
    kind: "openai" (a server), "recorded" (answers that are there) or "t5" (a student here).
    cost, most_cost: in the currency of the operator's prices; None where they are not known.
    seconds: from an earlier job with this teacher; None without one.
  """

  kind: str
  requests: int
  prompt_tokens: int
  completion_tokens: int
  most_completion_tokens: int
  cost: float | None
  most_cost: float | None
  seconds: float | None


class Training(NamedTuple):
  """The student's training.

  Attributes:
    seconds: None where it is not known.
    basis: "job" (an earlier one here), "speed" (published, of TPUs) or "".
  """

  steps: int
  batch_size: int
  epochs: float
  seconds: float | None
  basis: str


@dataclasses.dataclass(frozen=True)
class Forecast:
  """Attributes:

  annotation: None for a run without a teacher.
  waiting: jobs of the accelerator type that are before this one.
  """

  annotation: Annotation | None
  training: Training
  waiting: int


def forecast(service: JobService, job: Job, report: DatasetReport) -> Forecast:
  """Returns what is known of a job that is not created yet.

  Args:
    report: on the rows that it trains on.
  """
  config = read_config(job.config)
  return Forecast(
    _annotation(service, job, config),
    _training(service, job, config, report),
    sum(
      other.accelerator == job.accelerator
      for other in service.store.in_states(("QUEUED", "PENDING", "RUNNING", "CANCELLING"))
    ),
  )


def _annotation(service: JobService, job: Job, config: RunConfig) -> Annotation | None:
  if config.teacher.name is None or config.data.dataset is None:
    return None
  teacher = service.settings.teachers.get(job.plan["teacher"] or "")
  prices = Prices(*teacher.prices) if teacher is not None and teacher.prices else Prices()
  found = dry_run_file(
    config.data.dataset,
    *annotation_settings(config.teacher, prices),
    labels_as_text=config.data.labels_as_text,
    prompt=config.teacher.prompt,
  )
  pace = next(_answer_paces(service, job), None)
  return Annotation(
    kind=split_teacher(config.teacher.name)[0],
    requests=found["requests"],
    prompt_tokens=found["expected_prompt_tokens"],
    completion_tokens=found["expected_completion_tokens"],
    most_completion_tokens=found["most_completion_tokens"],
    cost=found["expected_cost"],
    most_cost=found["most_cost"],
    seconds=None if pace is None else pace * found["requests"],
  )


def _training(service: JobService, job: Job, config: RunConfig, report: DatasetReport) -> Training:
  seconds, basis = next(_step_paces(service, job, config), None), "job"
  if seconds is None:
    seconds, basis = _published_pace(service, job, config, report), "speed"
  return Training(
    steps=config.train_steps,
    batch_size=config.batch_size,
    epochs=config.train_steps * config.batch_size / max(report.train.rows, 1),
    seconds=None if seconds is None else seconds * config.train_steps,
    basis="" if seconds is None else basis,
  )


def _earlier(service: JobService) -> list[Job]:
  """Returns the last jobs that ended, newest first; what encrypted ones took is not told."""
  found = service.store.in_states(ENDED)[: -_EARLIER_JOBS - 1 : -1]
  return [job for job in found if not is_private(job)]


def _answer_paces(service: JobService, job: Job) -> Iterator[float]:
  """Yields the seconds for each answer in earlier jobs with the same teacher."""
  for earlier in _earlier(service):
    if earlier.project != job.project or earlier.plan["teacher"] != job.plan["teacher"]:
      continue
    for task in service.store.tasks(earlier.name):
      answers = (task.metadata.get("figures") or {}).get("answers")
      if task.name == "annotate" and task.state == "SUCCEEDED" and answers and task.start_time:
        yield _seconds(task.start_time, task.end_time or task.start_time) / answers


def _step_paces(service: JobService, job: Job, config: RunConfig) -> Iterator[float]:
  """Yields the seconds of a step in earlier jobs with such a student on such devices."""
  for earlier in _earlier(service):
    is_alike = (earlier.accelerator, earlier.plan["student"], earlier.plan["devices"]) == (
      job.accelerator, job.plan["student"], job.plan["devices"]
    )  # fmt: skip
    if not is_alike:
      continue
    before = read_config(earlier.config)
    if (before.batch_size, before.data.feature_lengths) != (
      config.batch_size, config.data.feature_lengths
    ):  # fmt: skip
      continue
    lines = [json.loads(line) for line in tail(service, earlier, METRICS_FILE)[0]]
    rates = [rate for line in lines if (rate := line.get("time/steps_per_second"))]
    if rates:
      yield 1 / statistics.median(rates)


def _published_pace(
  service: JobService, job: Job, config: RunConfig, report: DatasetReport
) -> float | None:
  """Returns the seconds of a step at the usual share of a TPU slice's speed."""
  kind: AcceleratorType = "TPU" if job.accelerator == "TPU" else "GPU"
  tpu_slice = mesh_choice(service.settings.accelerator(kind).mesh).slice
  if tpu_slice is None:
    return None
  sequences = 1 if config.data.shared_encoder else 2
  inputs = min(_tokens(report, "input", 0), config.data.max_input_tokens)
  targets = _tokens(report, "label", 0) + _tokens(report, "rationale", _RATIONALE_TOKENS)
  model = config.model
  flops = step_flops(
    dataclasses.replace(model, vocab_size=model.vocab_size or _T5_VOCABULARY_SIZE),
    config.batch_size,
    sequences * inputs,
    targets,
  )
  peak = HARDWARE[tpu_slice.generation].flops * tpu_slice.devices
  return flops.executed / peak / USUAL_FRACTION


def _tokens(report: DatasetReport, field: str, default: int) -> int:
  """Returns the mean number of tokens of a field."""
  lengths = report.train.lengths[field]
  if lengths.tokens is not None and lengths.tokens.count:
    return round(lengths.tokens.mean)
  if lengths.characters.count:
    return round(lengths.characters.mean / _CHARACTERS_PER_TOKEN) + 1
  return default


def _seconds(start: str, end: str) -> float:
  begin, finish = datetime.datetime.fromisoformat(start), datetime.datetime.fromisoformat(end)
  return (finish - begin).total_seconds()
