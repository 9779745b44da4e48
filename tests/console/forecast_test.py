"""What a job is expected to take and to cost."""

import dataclasses
import json

import pytest

from dss_jax.config.schema import DataConfig
from dss_jax.console.examination import Examiner, Source
from dss_jax.console.forecast import forecast
from dss_jax.jobs.bodies.job_config import read_config
from dss_jax.model.flops import step_flops
from tests.jobs.workplace import Workplace, pipeline

PRICED = {"name": "openai:big", "url": "http://127.0.0.1:9/v1", "prices": [2.0, 10.0]}


@pytest.fixture
def workplace(tmp_path):
  return Workplace(tmp_path)


def prepare(service, **parameters):
  return service.prepare("pipelineJobs", "my-project", "europe-west4", pipeline(parameters))


def foresee(service, workplace, job):
  source = Source(str(workplace.bucket / "train.jsonl"), "train.jsonl")
  report = Examiner().examine(source, None, DataConfig(vocabulary="bytes")).report
  return forecast(service, job, report)


def test_the_price_of_the_teacher(workplace):
  service = workplace.open(teachers={"big": PRICED})
  found = foresee(service, workplace, prepare(service, teacher_model_reference="big")).annotation
  assert (found.kind, found.requests) == ("openai", 40)
  assert found.completion_tokens == 40 * 80
  assert found.cost == pytest.approx(
    (2 * found.prompt_tokens + 10 * found.completion_tokens) / 1e6, rel=1e-3
  )
  assert found.most_cost > found.cost
  assert found.seconds is None


def test_no_price_is_invented(workplace):
  service = workplace.open(teachers={"big": {**PRICED, "prices": None}})
  found = foresee(service, workplace, prepare(service, teacher_model_reference="big")).annotation
  assert (found.cost, found.most_cost) == (None, None)


def test_nothing_is_known_of_devices_that_no_job_ran_on(workplace):
  service = workplace.open()
  training = foresee(service, workplace, prepare(service, train_steps=20)).training
  assert (training.steps, training.batch_size, training.epochs) == (20, 4, 2.0)
  assert (training.seconds, training.basis) == (None, "")


def test_an_earlier_job_gives_the_times(workplace):
  service = workplace.open()
  job = service.store.create(prepare(service))
  folder = service.folder(job) / "model"
  folder.mkdir(parents=True)
  lines = [{"step": step, "time/steps_per_second": rate} for step, rate in ((1, 1), (2, 4), (3, 4))]
  (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  service.store.change_task(job.name, "annotate", "RUNNING")
  figures = {"figures": {"answers": 40}}
  service.store.change_task(job.name, "annotate", "SUCCEEDED", metadata=figures)
  service.store.change(job.name, ("QUEUED",), state="CANCELLED")
  found = foresee(service, workplace, prepare(service, train_steps=20))
  assert (found.training.seconds, found.training.basis) == (5.0, "job")
  task = next(task for task in service.store.tasks(job.name) if task.name == "annotate")
  assert found.annotation.seconds is not None
  assert task.start_time is not None
  # Another context takes other steps.
  longer = foresee(service, workplace, prepare(service, student_model_reference="t5-small"))
  assert longer.training.basis == ""


def test_an_encrypted_job_tells_nothing(workplace):
  """Its key may have gone, or be another project's."""
  service = workplace.open()
  job = prepare(service)
  key = {"name": "projects/p/locations/l/keyRings/r/cryptoKeys/k", "wrapped": "eA=="}
  job = service.store.create(dataclasses.replace(job, plan={**job.plan, "key": key}))
  service.store.change(job.name, ("QUEUED",), state="CANCELLED")
  assert foresee(service, workplace, prepare(service)).training.basis == ""


def test_tpus_have_a_published_speed(workplace):
  service = workplace.open(
    accelerators={"TPU": {"mesh": "v3-64"}},
    device_sets=[{"name": "pod", "accelerators": ["TPU"], "platform": "tpu", "devices": 64}],
    students={"small": {"student": "small", "settings": {"T5Config.vocab_size": 32128}}},
  )
  job = prepare(service, student_model_reference="small", train_steps=10)
  training = foresee(service, workplace, job).training
  model = read_config(job.config).model
  # "predict: Add 1 and 2." in bytes with its end mark, twice; a rationale of 80 tokens.
  inputs = len("predict: Add 1 and 2.") + 1
  flops = step_flops(model, 24, 2 * inputs, 80).executed
  assert training.basis == "speed"
  assert training.seconds == pytest.approx(10 * flops / (64 * 123e12 / 2) / 0.4, rel=1e-6)


def test_other_jobs_come_before(workplace):
  service = workplace.open()
  service.store.create(prepare(service))
  assert foresee(service, workplace, prepare(service)).waiting == 1
