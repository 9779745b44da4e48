"""A job server's root folder with a bucket, a teacher and a student."""

import json

import yaml

from dss_jax.data.records import write_rows
from dss_jax.jobs.service import open_service
from tests.e2e.conftest import sums

PARENT = "projects/my-project/locations/europe-west4"
TEMPLATE = "https://us-kfp.pkg.dev/ml-pipeline/distillation/distillation/v1.0.0"
TINY = {
  "student": "tiny",
  "settings": {
    "DataConfig.vocabulary": "bytes",
    "DataConfig.feature_lengths": {"inputs": 64, "targets": 32},
    "T5Config.num_encoder_layers": 1,
    "T5Config.num_decoder_layers": 1,
    "RunConfig.batch_size": 4,
  },
}


class Workplace:
  """The folder of a server and what its operator configured."""

  def __init__(self, folder):
    self.folder = folder
    self.root = folder / "root"
    self.bucket = folder / "bucket"
    for path in (self.root, self.bucket, folder / "secret"):
      path.mkdir(parents=True)
    self.write("train.jsonl", [{"input_text": row["input_text"]} for row in sums(1, 40)])
    self.write("labelled.jsonl", sums(1, 40))
    self.write("eval.jsonl", sums(2, 12))
    answers = [
      {"index": number, "llm_output": f"{row['rationale']}\nThe answer is {row['output_text']}"}
      for number, row in enumerate(sums(1, 40))
    ]
    self.teacher = self.write("../teacher.jsonl", answers)
    (folder / "secret" / "train.jsonl").write_text('{"input_text": "secret"}\n')
    self.settings = {
      "projects": ["my-project", "other-project"],
      "buckets": {"my-bucket": str(self.bucket)},
      "teachers": {"text-unicorn@001": {"name": f"recorded:{self.teacher}"}},
      "students": {"text-bison@002": TINY, "t5-small": TINY},
      "accelerators": {"TPU": {"mesh": "cpu"}},
      "device_sets": [
        {"name": name, "accelerators": ["TPU"], "platform": "cpu", "devices": 1}
        for name in ("a", "b")
      ],
    }

  def write(self, name, rows):
    path = self.bucket / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path.resolve()

  def open(self, **settings):
    """The service of the root, with some settings changed."""
    text = yaml.safe_dump({**self.settings, **settings})
    (self.root / "jobs.yaml").write_text(text, encoding="utf-8")
    return open_service(self.root)


def annotate(service, job, count=6):
  """Writes a job's annotated rows as its task annotate does; the second one raises concerns."""
  folder = service.folder(job) / "model"
  folder.mkdir(parents=True)
  rows = []
  for number, row in enumerate(sums(1, count)):
    provenance = {
      "status": "answered",
      "label": row["output_text"],
      "agreement": 1.0,
      "concerns": ["unmentioned"] if number == 1 else [],
      "samples": [{"raw": "a secret of the teacher"}],
    }
    texts = {key: row[key] for key in ("input_text", "output_text", "rationale")}
    rows.append({**texts, "provenance": provenance})
  write_rows(folder / "annotated.jsonl", rows)


def paused(service, job_id="one", count=6):
  """Returns a pipeline job that waits for the review of its rows."""
  body = pipeline({"review_rationales": True})
  job = service.create("pipelineJobs", "my-project", "europe-west4", body, job_id=job_id)
  annotate(service, job, count)
  service.store.change(job.name, ("QUEUED",), state="PAUSED")
  return service.get(job.name)


def pipeline(parameters=None, **fields):
  """A PipelineJob as the old documentation's curl sends it, with other parameters or fields."""
  values = {
    "project": "my-project",
    "dataset_uri": "gs://my-bucket/train.jsonl",
    "accelerator_type": "TPU",
    **(parameters or {}),
  }
  runtime = {"gcsOutputDirectory": "gs://my-bucket/out", "parameterValues": values}
  return {
    "displayName": "my job",
    "runtimeConfig": {**runtime, **fields.pop("runtimeConfig", {})},
    "templateUri": TEMPLATE,
    **fields,
  }
