"""A whole encrypted job beside a plain one: the same student, and nothing of it on a disk."""

import base64
import json
import os
import pathlib
import shutil
import signal
import time
from typing import Any, NamedTuple

import numpy as np
import pytest
from starlette.testclient import TestClient

from dss_jax.data.vocabularies import load_vocabulary
from dss_jax.jobs.api.access import Access
from dss_jax.jobs.api.app import make_app
from dss_jax.jobs.api.job_stream import log_lines
from dss_jax.jobs.queue.runner import Runner
from dss_jax.jobs.queue.worker_lock import holder
from dss_jax.jobs.service import JobService
from dss_jax.jobs.store import Job
from dss_jax.storage.keys import write_key
from dss_jax.storage.sealed_folders import open_folder
from dss_jax.student.export import best_weights
from dss_jax.student.sealed_student import SEALED
from dss_jax.student.student import Student
from tests.jobs.workplace import PARENT, Workplace, pipeline

KEY = "projects/my-project/locations/europe-west4/keyRings/ring/cryptoKeys/key"
_SECONDS = 900
_BLOCK = 32

pytestmark = [
  pytest.mark.slow,
  pytest.mark.timeout(1800),
  pytest.mark.skipif(not pathlib.Path("/dev/shm").is_dir(), reason="no /dev/shm"),
]


class Done(NamedTuple):
  """A job that has ended, and where everything of it may be."""

  workplace: Workplace
  service: JobService
  job: Job
  notes: dict[str, Any]

  @property
  def version(self):
    return self.service.registry("my-project").version("wombats@1")

  @property
  def output(self):
    return self.workplace.bucket / "out" / self.job.job_id


def rows(start, count):
  """Rows whose texts are nowhere else."""
  return [
    {
      "input_text": f"How many wombats are {number} and {number + 7}, quokka?",
      "output_text": f"wombats-{2 * number + 7}-x",
      "rationale": f"{number}+{number + 7} numbats",
    }
    for number in range(start, start + count)
  ]


def prepared(folder, key=None):
  """A workplace with rows and a queue, whose jobs keep caches and temporary files below it."""
  workplace = Workplace(folder)
  found = rows(1000, 40)
  workplace.write("train.jsonl", [{"input_text": row["input_text"]} for row in found])
  workplace.write("eval.jsonl", rows(2000, 12))
  answers = [
    {"index": number, "llm_output": f"{row['rationale']}\nThe answer is {row['output_text']}"}
    for number, row in enumerate(found)
  ]
  workplace.write("../teacher.jsonl", answers)
  settings = {} if key is None else {"keys": {KEY: {"file": str(key)}}}
  service = workplace.open(**settings)
  with pytest.MonkeyPatch.context() as patch:
    for name, place in (("DSS_CACHE_DIR", "cache"), ("TMPDIR", "tmp")):
      (folder / place).mkdir()
      patch.setenv(name, str(folder / place))
    runner = Runner(service)
  return workplace, service, runner


def body(**fields):
  parameters = {
    "train_steps": 60,
    "evaluation_data_uri": "gs://my-bucket/eval.jsonl",
    "evaluation_interval": 5,
    "enable_early_stopping": False,
    "model_display_name": "wombats",
    "evaluation_output_root_dir": "gs://my-bucket/evaluated",
  }
  return pipeline(parameters, **fields)


def ended(service, name):
  deadline = time.monotonic() + _SECONDS
  while not (job := service.get(name)).has_ended:
    assert time.monotonic() < deadline, job
    time.sleep(0.2)
  assert job.state == "SUCCEEDED", job
  return job


def killed(service, name, watched):
  """Kills the job's process once it has sealed a checkpoint; returns what was seen before."""
  deadline = time.monotonic() + _SECONDS
  folder = service.folder(service.get(name))
  while not list(folder.glob("model/checkpoints/*.sealed")):
    assert time.monotonic() < deadline
    time.sleep(0.02)
  process = holder(folder)
  notes = {each: pathlib.Path(f"/proc/{process}/{each}").read_bytes() for each in watched}
  os.kill(process, signal.SIGKILL)
  assert service.get(name).state == "RUNNING"
  return notes


@pytest.fixture(scope="module")
def done(tmp_path_factory):
  """A plain job, and one with a key whose process is killed while it trains."""
  folder = tmp_path_factory.mktemp("encrypted")
  key = folder / "key"
  write_key(key)
  places = {"plain": prepared(folder / "plain"), "private": prepared(folder / "private", key)}
  found = {}
  for name, (_, service, runner) in places.items():
    fields = {} if name == "plain" else {"encryptionSpec": {"kmsKeyName": KEY}}
    sent = body(**fields)
    found[name] = service.create("pipelineJobs", "my-project", "europe-west4", sent).name
    runner.start()
  try:
    notes = killed(places["private"][1], found["private"], ("cmdline", "environ"))
    notes["key"] = base64.b64decode(key.read_bytes())
    jobs = {name: ended(places[name][1], found[name]) for name in places}
    deadline = time.monotonic() + 60
    memory = places["private"][1].private.memory
    while list(memory.iterdir()):
      assert time.monotonic() < deadline, "the folder in memory stays"
      time.sleep(0.1)
  finally:
    for _, _, runner in places.values():
      runner.stop()
  yield {name: Done(*places[name][:2], jobs[name], notes) for name in places}
  shutil.rmtree(memory, ignore_errors=True)


def needles(folder):
  """What must not be found, by kind; the weights are those of a student's plain folder."""
  texts = rows(1000, 40) + rows(2000, 12)
  vocabulary = load_vocabulary("bytes")
  ids = [vocabulary.encode(row["input_text"])[8:30] for row in texts]
  step, arrays = best_weights(Student.open(folder))
  stored = [path.read_bytes() for path in folder.glob(f"checkpoints/{step}/params/**/d/*")]
  return {
    "rows": [row["input_text"].encode() for row in texts],
    "labels": [row["output_text"].encode() for row in texts],
    "rationales": [row["rationale"].encode() for row in texts],
    "tokens as int32": [np.array(each, np.int32).tobytes() for each in ids],
    "tokens as int16": [np.array(each, np.int16).tobytes() for each in ids],
    "weights": [block for array in arrays.values() for block in blocks(array.whole().tobytes())],
    "files of weights": [block for content in stored for block in blocks(content)],
  }


def blocks(content):
  found = (content[place : place + _BLOCK] for place in range(0, len(content), 8 * _BLOCK))
  return [block for block in found if len(set(block)) > _BLOCK // 2]


def found_in(folders, wanted):
  """The kinds of which something is in a file, with the file."""
  found = {}
  for folder in folders:
    for path in folder.rglob("*"):
      content = path.read_bytes() if path.is_file() else b""
      for kind, each in wanted.items():
        if any(needle in content for needle in each):
          found.setdefault(kind, path)
  return found


def everything(done):
  folder = done.workplace.folder
  outputs = [done.workplace.bucket / name for name in ("out", "evaluated")]
  return [folder / "root", folder / "cache", folder / "tmp", *outputs]


def test_nothing_of_an_encrypted_job_is_on_a_disk(done):
  plain, private = done["plain"], done["private"]
  with private.service.private.opened(private.version) as folder:
    wanted = needles(folder)
  assert all(wanted.values())
  assert found_in(everything(private), wanted) == {}
  # The search finds what it looks for where nothing is encrypted; nothing stores int16.
  found = found_in(everything(plain), wanted)
  assert found.keys() >= {"rows", "labels", "rationales", "tokens as int32", "files of weights"}
  sealed = {path.name for path in private.workplace.root.rglob("*.sealed")}
  assert {"annotated.jsonl.sealed", "metrics.jsonl.sealed", "worker.log.sealed", SEALED} <= sealed


def test_the_key_is_nowhere(done):
  private = done["private"]
  secret = private.notes["key"]
  forms = {"key": [secret, base64.b64encode(secret), secret.hex().encode()]}
  assert found_in([*everything(private), pathlib.Path(private.service.private.memory)], forms) == {}
  for each in ("cmdline", "environ"):
    assert not any(form in private.notes[each] for form in forms["key"])
  assert b"DSS_PRIVATE_JOB=" in private.notes["environ"]
  data_key = private.service.private.key_of(private.job).secret
  assert found_in(everything(private), {"data key": [data_key, base64.b64encode(data_key)]}) == {}


def test_the_student_is_that_of_an_undisturbed_plain_job(done):
  plain, private = done["plain"], done["private"]
  step, arrays = best_weights(Student.open(plain.version.folder))
  with private.service.private.opened(private.version) as folder:
    other_step, others = best_weights(Student.open(folder))
    assert (step, set(arrays)) == (other_step, set(others))
    for name, array in arrays.items():
      np.testing.assert_array_equal(array.whole(), others[name].whole(), strict=True)
  record = private.version.record
  assert not record.keys() & {"metrics", "lineage", "report"}


def test_the_store_has_no_figures(done):
  private = done["private"]
  tasks = {task.name: task for task in private.service.store.tasks(private.job.name)}
  assert tasks["tune"].metadata.keys() == {"steps", "best_step", "stopped_early"}
  assert tasks["annotate"].metadata == tasks["evaluate"].metadata == {}
  history = [each["state"] for each in tasks["tune"].history]
  assert history == ["PENDING", "RUNNING", "SUCCEEDED"]


def test_its_outputs_are_opened_with_the_key(done, dss, tmp_path):
  plain, private = done["plain"], done["private"]
  key = private.workplace.folder.parent / "key"
  names = {path.name for path in plain.output.iterdir()}
  assert {path.name for path in private.output.iterdir()} == {f"{name}.sealed" for name in names}
  evaluated = private.workplace.bucket / "evaluated" / private.job.job_id
  opened = tmp_path / "evaluation.json"
  source = evaluated / "evaluation.json.sealed"
  outcome = dss("jobs", "open", source, "--key", key, "--output", opened)
  assert outcome.code == 0, outcome.err
  expected = json.loads((plain.output / "evaluation.json").read_text())
  assert json.loads(opened.read_text())["exact_match"] == expected["exact_match"]
  root = private.workplace.root
  for name in ("annotated.jsonl", "metrics.jsonl"):
    source, target = private.output / f"{name}.sealed", tmp_path / name
    assert dss("jobs", "open", source, "--root", root, "--output", target).code == 0
  assert "wombats-2007-x" in (tmp_path / "annotated.jsonl").read_text()
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  steps = [json.loads(line)["step"] for line in lines]
  assert sorted(set(steps)) == list(range(1, 61))
  write_key(tmp_path / "other")
  for arguments in (("--key", tmp_path / "other"), ("--key", tmp_path / "none"), ()):
    outcome = dss("jobs", "open", source, *arguments, "--output", tmp_path / "no")
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1), outcome
    assert not (tmp_path / "no").exists()


def test_the_registered_student_is_opened_and_exported_with_the_key(done, dss, tmp_path):
  private = done["private"]
  registry = private.workplace.root / "registry" / "my-project"
  dss.write("questions.jsonl", [{"input_text": "How many?"}])
  for command in (("predict", "--dataset", "questions.jsonl"), ("export", "--format", "hf")):
    outcome = dss(
      command[0], "--model", "wombats", "--registry", registry, *command[1:],
      "--output", tmp_path / "none",
    )  # fmt: skip
    assert (outcome.code, outcome.err.count("\n")) == (2, 1), outcome
    assert f"is encrypted with the key {KEY}" in outcome.err
  key = private.workplace.folder.parent / "key"
  sealed, folder = private.version.folder / SEALED, tmp_path / "student"
  assert dss("jobs", "open", sealed, "--key", key, "--output", folder).code == 0
  exported = dss("export", "--model", folder, "--format", "hf", "--output", tmp_path / "hf")
  assert exported.code == 0, exported.err
  assert (tmp_path / "hf" / "model.safetensors").exists()


def test_its_endpoint_and_batches_answer_with_the_key_alone(done, tmp_path):
  private = done["private"]
  key = private.workplace.folder.parent / "key"
  away = key.with_name("away")
  private.workplace.write("questions.jsonl", [{"prompt": "How many?"}, {"prompt": "And now?"}])
  batch = {
    "displayName": "b",
    "model": f"{PARENT}/models/wombats@1",
    "inputConfig": {
      "instancesFormat": "jsonl", "gcsSource": {"uris": ["gs://my-bucket/questions.jsonl"]},
    },
    "outputConfig": {
      "predictionsFormat": "jsonl",
      "gcsDestination": {"outputUriPrefix": "gs://my-bucket/answers"},
    },
  }  # fmt: skip
  app = make_app(private.service, Access())
  with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:

    def ask():
      answer = client.post(
        f"/v1/{private.job.result['endpoint']}:predict", json={"instances": [{"prompt": "Why?"}]}
      )
      return answer.status_code, answer.json()

    def answered():
      created = client.post(f"/v1/{PARENT}/batchPredictionJobs", json=batch).json()
      deadline = time.monotonic() + 120
      while not (job := client.get(f"/v1/{created['name']}").json()).get("endTime"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
      return job

    def exported():
      config = {"artifactDestination": {"outputUriPrefix": "gs://my-bucket/exports"}}
      sent = {"outputConfig": {"exportFormatId": "hf", **config}}
      operation = client.post(f"/v1/{PARENT}/models/wombats:export", json=sent).json()
      deadline = time.monotonic() + 120
      while not operation["done"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
        operation = client.get(f"/v1/{operation['name']}").json()
      return operation

    status, answer = ask()
    assert status == 200, answer
    assert "response" in exported()
    (path,) = (private.workplace.bucket / "exports").rglob("*.sealed")
    keyring = private.service.private.keyring
    open_folder(path, keyring.unlock_for("my-project"), tmp_path / "hf")
    assert (tmp_path / "hf" / "model.safetensors").exists()
    assert list(private.service.private.memory.iterdir()) == []
    assert answered()["completionStats"]["successfulCount"] == "2"
    key.rename(away)
    try:
      status, answer = ask()
      assert (status, answer["error"]["status"]) == (400, "FAILED_PRECONDITION")
      assert KEY in answer["error"]["message"]
      job = answered()
      assert (job["state"], job["error"]["code"]) == ("JOB_STATE_FAILED", 9)
    finally:
      away.rename(key)
    assert ask()[0] == 200


def test_a_failure_quotes_no_row(done):
  """The sentence that says what is wrong, with the row in it, is in the encrypted log alone."""
  private = done["private"]
  workplace, service = private.workplace, private.service
  workplace.write("bad.jsonl", [{"input_text": "a"}, {"input_text": ["numbat 77"]}])
  sent = pipeline({"dataset_uri": "gs://my-bucket/bad.jsonl"}, encryptionSpec={"kmsKeyName": KEY})
  name = service.create("pipelineJobs", "my-project", "europe-west4", sent).name
  runner = Runner(service)
  runner.start()
  try:
    deadline = time.monotonic() + _SECONDS
    while not (job := service.get(name)).has_ended:
      assert time.monotonic() < deadline
      time.sleep(0.1)
    while service.working_folder(job).exists():
      assert time.monotonic() < deadline
      time.sleep(0.1)
  finally:
    runner.stop()
  assert job.error == {
    "code": 3, "message": "the task validate failed; the job's log, which is encrypted, says why",
  }  # fmt: skip
  assert "bad.jsonl:2" in "\n".join(log_lines(service, job, follow=False))
  assert found_in(everything(private), {"row": [b"bad.jsonl:2", b"numbat 77"]}) == {}
