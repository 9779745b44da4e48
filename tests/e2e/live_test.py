"""The output of a running job: TensorBoard, metrics.jsonl, and progress lines."""

import re
import signal
import time

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SERVICE_NAMES = {
  f"{split}_{name}"
  for split in ("train", "eval")
  for name in ("total_loss", "fraction_of_correct_next_step_preds", "num_predictions")
}


def scalars(folder):
  """Returns every scalar in the event files: name to {step: value}."""
  events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
  events.Reload()
  return {
    name: {event.step: event.value for event in events.Scalars(name)}
    for name in events.Tags()["scalars"]
  }


def test_tensorboard_reads_a_running_job_and_a_signal_saves_it(dss):
  endless = ("--train-steps", "100000", "--evaluation-interval", "50", "--no-early-stopping")
  process = dss.start("distill", *dss.flags("student", *endless))
  folder = dss.folder / "student" / "tensorboard"
  deadline = time.monotonic() + 300
  found = {}
  while not found.keys() >= SERVICE_NAMES:
    assert process.poll() is None, process.communicate()
    assert time.monotonic() < deadline, found.keys()
    time.sleep(0.2)
    found = scalars(folder) if folder.exists() else {}
  assert process.poll() is None
  process.send_signal(signal.SIGTERM)
  outcome = dss.finish(process)
  assert outcome.code == 143
  last = outcome.err.splitlines()[-1]
  match = re.match(r"dss: stopped by SIGTERM after step (\d+), which is saved; ", last)
  assert match, last

  # Both have the same numbers, up to the last step.
  found = scalars(folder)
  lines = dss.read("student/metrics.jsonl")
  assert lines[-1]["step"] == int(match[1])
  logged = {}
  for line in lines:
    for name, value in line.items():
      if name != "step":
        logged.setdefault(name, {})[line["step"]] = value
  assert found.keys() == logged.keys() >= SERVICE_NAMES
  for name, values in logged.items():
    assert found[name].keys() == values.keys()
    assert all(
      abs(found[name][step] - value) <= 1e-5 * abs(value) for step, value in values.items()
    )


def test_the_curve_of_a_resumed_run_has_no_gap(with_student):
  with_student.train("student", "--train-steps", "6")
  found = scalars(with_student.folder / "student" / "tensorboard")
  assert list(found["train_total_loss"]) == [1, 2, 3, 4, 5, 6]
  assert list(found["eval_total_loss"]) == [2, 4, 6]


def test_plain_progress_lines_without_a_terminal(dss):
  lines = dss.train("student").err.splitlines()
  assert "training tiny (8,376 weights) in student" in lines
  assert any("learning rate 0.001 = base rate 0.001 x multiplier 1" in line for line in lines)
  assert any(
    re.match(r"step 2: evaluation loss \d+\.\d{4}, label accuracy", line) for line in lines
  )
  assert any(
    re.match(r"step 4/4  loss \d.* steps/s .* examples/s  0 s left", line) for line in lines
  )
  assert lines[-1].startswith("finished: trained for 4 steps, the selected checkpoint is of step ")
