"""Jobs that are cancelled: while they train, while they wait, and when they have ended."""

import concurrent.futures
import json
import threading

import pytest

from dss_jax import TextGenerationModel
from dss_jax.language_models.jobs import TuningJob
from dss_jax.student.registry import Registry
from dss_jax.train.metrics import MetricsWriter

CANCELLED = concurrent.futures.CancelledError


@pytest.fixture
def job_that_waits():
  """A job that ends when its event is set."""
  event = threading.Event()
  job = TuningJob("waits", "runs/waits", lambda: event.wait() and "waits@1", lambda name: name)
  yield job, event
  event.set()


def test_a_run_is_cancelled_and_goes_on(tmp_path, monkeypatch, capfd):
  monkeypatch.chdir(tmp_path)
  rows = [{"input_text": f"Say {n}.", "output_text": str(n), "rationale": "It is asked for."}
          for n in range(8)]  # fmt: skip
  (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

  def start():
    return TextGenerationModel.from_pretrained("tiny", registry="registry").distill_from(
      dataset="train.jsonl",
      train_steps=6,
      model_display_name="sayer",
      settings={"DataConfig.vocabulary": "bytes", "RunConfig.batch_size": 2},
    )

  begun, seen = threading.Event(), []
  write = MetricsWriter.write

  def cancelling(writer, step, metrics):
    write(writer, step, metrics)
    if step == 2:
      begun.wait()
      job.cancel()
      seen.append(job.state)

  with monkeypatch.context() as patch:
    patch.setattr(MetricsWriter, "write", cancelling)
    job = start()
    begun.set()
    with pytest.raises(CANCELLED, match=r"sayer was cancelled after step 4, which is saved"):
      job.get_tuned_model()
  assert seen == ["PIPELINE_STATE_CANCELLING"]
  assert job.state == "PIPELINE_STATE_CANCELLED"
  assert "sayer was cancelled after step 4" in capfd.readouterr().err
  assert Registry("registry").names() == []
  job = start()
  assert job.get_tuned_model().folder == tmp_path / "registry" / "sayer" / "1"
  assert job.state == "PIPELINE_STATE_SUCCEEDED"
  lines = (tmp_path / "runs" / "sayer" / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
  job.cancel()
  assert job.state == "PIPELINE_STATE_SUCCEEDED"


def test_a_job_that_waits_does_not_begin(job_that_waits):
  first, event = job_that_waits
  second = TuningJob("second", "runs/second", pytest.fail, str)
  assert second.state == "PIPELINE_STATE_QUEUED"
  second.cancel()
  assert second.state == "PIPELINE_STATE_CANCELLED"
  with pytest.raises(CANCELLED):
    second.wait()
  event.set()
  assert first.result() == "waits@1"
