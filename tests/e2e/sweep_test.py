"""`dss sweep`: all points of a grid, resuming after a kill, table and hparams."""

import json
import signal

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dss_jax.pipelines import distill

GRID = "SweepConfig.grid = {'SEED': [0, 1], 'ALPHA': [0.5]}\n"
KILLED_IN_THE_SECOND_POINT = """
import os, signal
from dss_jax.train.metrics import MetricsWriter
write = MetricsWriter.write
def write_and_kill(self, step, metrics):
  write(self, step, metrics)
  if step == 3 and os.path.exists("sweep/sweep.json"):
    os.kill(os.getpid(), signal.SIGKILL)
MetricsWriter.write = write_and_kill
from dss_jax.cli.main import main; main()
"""


def test_a_killed_sweep_is_resumed(with_student):
  (with_student.folder / "grid.gin").write_text(GRID)
  arguments = ("sweep", "grid.gin", *with_student.flags("sweep"))
  outcome = with_student.finish(with_student.start(*arguments, code=KILLED_IN_THE_SECOND_POINT))
  assert outcome.code == -signal.SIGKILL, outcome.err
  first = with_student.tree("sweep/SEED=0,ALPHA=0.5")
  assert with_student.card("sweep/SEED=0,ALPHA=0.5")["finished"]
  assert not with_student.card("sweep/SEED=1,ALPHA=0.5")["finished"]

  outcome = with_student(*arguments)
  assert outcome.code == 0, outcome.err
  assert "sweep 1/2: SEED=0,ALPHA=0.5" in outcome.err
  assert "SEED=0,ALPHA=0.5 is finished" in outcome.err
  assert with_student.tree("sweep/SEED=0,ALPHA=0.5") == first
  # Another process may round differently.
  point, student = with_student.numbers("sweep/SEED=0,ALPHA=0.5"), with_student.numbers("student")
  assert len(point) == len(student)
  for numbers, expected in zip(point, student, strict=True):
    assert numbers == pytest.approx(expected, rel=1e-5)

  results = json.loads((with_student.folder / "sweep" / "sweep.json").read_text())
  assert [result["values"] for result in results] == [
    {"SEED": 0, "ALPHA": 0.5},
    {"SEED": 1, "ALPHA": 0.5},
  ]
  for result in results:
    card = with_student.card(f"sweep/{result['run']}")
    assert card["finished"]
    assert result["metrics"] == card["metrics"]
    assert result["steps"] == 4
    check_hparams(with_student.folder / "sweep" / "tensorboard" / result["run"], result)
  check_table(outcome.out, results)

  before = with_student.tree("sweep/SEED=1,ALPHA=0.5")
  assert with_student(*arguments).out == outcome.out
  assert with_student.tree("sweep/SEED=1,ALPHA=0.5") == before
  assert len(list((with_student.folder / "sweep" / "tensorboard").rglob("events*"))) == 2


def check_hparams(folder, result):
  events = EventAccumulator(str(folder))
  events.Reload()
  assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= set(
    events.PluginTagToContent("hparams")
  )
  for name, value in result["metrics"].items():
    (scalar,) = events.Scalars(name)
    assert scalar.step == result["best_step"]
    assert scalar.value == pytest.approx(value)


def check_table(text, results):
  lines = text.splitlines()
  for name in ("SEED", "ALPHA", "steps", "best step", "label accuracy"):
    assert all(word in text for word in name.split())
  for result in results:
    shown = f"{result['metrics']['eval_total_loss']:.4f}"
    (line,) = [line for line in lines if shown in line]
    for name in ("label/eval_accuracy", "label/eval_sequence_accuracy"):
      assert f"{result['metrics'][name]:.4f}" in line


def test_a_point_that_diverges_is_recorded_and_the_sweep_continues(with_student):
  (with_student.folder / "grid.gin").write_text(
    "SweepConfig.grid = {'LEARNING_RATE_MULTIPLIER': [1e30, 1.0]}\n"
  )
  outcome = with_student("sweep", "grid.gin", *with_student.flags("sweep"))
  assert outcome.code == 0, outcome.err
  assert "warning: step 2: " in outcome.err
  (line,) = [line for line in outcome.out.splitlines() if "diverged" in line]
  assert "1e+30" in line
  results = json.loads((with_student.folder / "sweep" / "sweep.json").read_text())
  assert "no checkpoint was saved yet" in results[0]["failed"]
  assert results[1]["metrics"] == with_student.card()["metrics"]


def test_a_sweep_over_students_uses_their_sizes(dss, monkeypatch):
  configs = []

  def run(config):
    configs.append(config)
    return {"steps": 1, "best_step": 1, "metrics": {}}

  monkeypatch.setattr(distill, "run", run)
  (dss.folder / "grid.gin").write_text("SweepConfig.grid = {'STUDENT': ['mini', 'small']}\n")
  (dss.folder / "sweep").mkdir()
  outcome = dss("sweep", "grid.gin", *dss.flags("sweep"))
  assert outcome.code == 0, outcome.err
  assert [(config.student, config.model.emb_dim) for config in configs] == [
    ("mini", 256),
    ("small", 512),
  ]
  assert [config.model_dir for config in configs] == ["sweep/STUDENT=mini", "sweep/STUDENT=small"]


def test_another_configuration_in_a_folder_is_refused_before_any_run(with_student, refuses):
  (with_student.folder / "grid.gin").write_text(GRID)
  (with_student.folder / "sweep").mkdir()
  (with_student.folder / "student").rename(with_student.folder / "sweep" / "SEED=1,ALPHA=0.5")
  says = ["sweep/SEED=1,ALPHA=0.5", "RunConfig.seed was 0, is 1"]
  flags = with_student.flags("sweep")
  refuses("sweep", "grid.gin", *flags, says=says, workshop=with_student)
