"""The service's names, and two files that hold the same numbers, also after a kill."""

import json
import math

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dss_jax.config.schema import LossConfig
from dss_jax.errors import UserError
from dss_jax.losses.base import LossSum, Term
from dss_jax.losses.kinds import make_objective
from dss_jax.losses.objective import Objective
from dss_jax.train.metrics import MetricsWriter, named_metrics, on_policy_metrics


def sums(label=(8.0, 4.0, 3.0), rationale=(60.0, 20.0, 5.0)):
  """(summed loss, tokens, correct tokens) of each target kind."""
  parts = {}
  for kind, (loss, tokens, correct) in (("label", label), ("rationale", rationale)):
    parts[f"{kind}/loss"] = LossSum(np.float32(loss), np.float32(tokens))
    parts[f"{kind}/accuracy"] = LossSum(np.float32(correct), np.float32(tokens))
  return parts


def metrics_of(sums, prefix, *, alpha):
  return named_metrics(make_objective(LossConfig(alpha=alpha)), sums, prefix)


def test_train_metrics_by_hand():
  """The three names are the service's, letter for letter."""
  assert metrics_of(sums(), "train", alpha=0.25) == {
    "train_total_loss": 0.25 * 2.0 + 0.75 * 3.0,
    "train_fraction_of_correct_next_step_preds": pytest.approx(8 / 24),
    "train_num_predictions": 24.0,
    "label/train_loss": 2.0,
    "label/train_accuracy": 0.75,
    "rationale/train_loss": 3.0,
    "rationale/train_accuracy": 0.25,
  }


def test_eval_metrics_have_the_three_twins():
  train, evaluation = (metrics_of(sums(), prefix, alpha=0.5) for prefix in ("train", "eval"))
  assert list(evaluation) == [name.replace("train_", "eval_") for name in train]
  assert list(evaluation)[:3] == [
    "eval_total_loss",
    "eval_fraction_of_correct_next_step_preds",
    "eval_num_predictions",
  ]
  assert list(evaluation.values()) == list(train.values())


def test_metrics_of_sampled_targets_by_hand():
  """A term without tokens has no name of its own."""
  terms = tuple(
    Term(name, weight, (kind,), lambda *_: 0.0, "teacher")
    for kind, (name, weight) in enumerate([("response_label", 0.25), ("response_rationale", 0.5)])
  )
  of_terms = {
    "response_label/loss": LossSum(np.float32(12.0), np.float32(4.0)),
    "label/accuracy": LossSum(np.float32(3.0), np.float32(4.0)),
    "response_rationale/loss": LossSum(np.float32(0.0), np.float32(0.0)),
    "rationale/accuracy": LossSum(np.float32(0.0), np.float32(0.0)),
  }
  assert on_policy_metrics(Objective(terms), of_terms, {"ended": 0.5}) == {
    "train_total_loss": 0.25 * 3.0,
    "train_num_predictions": 4.0,
    "on_policy/response_label_loss": 3.0,
    "on_policy/ended": 0.5,
  }


def test_a_kind_without_tokens_has_no_names_of_its_own():
  named = metrics_of(sums(rationale=(0.0, 0.0, 0.0)), "train", alpha=1.0)
  assert named["train_total_loss"] == 2.0
  assert not any(name.startswith("rationale/") for name in named)
  nothing = metrics_of(sums((0, 0, 0), (0, 0, 0)), "train", alpha=0.5)
  assert nothing == {
    "train_total_loss": 0.0,
    "train_fraction_of_correct_next_step_preds": 0.0,
    "train_num_predictions": 0.0,
  }


def test_metrics_are_plain_floats():
  assert {type(value) for value in metrics_of(sums(), "train", alpha=0.5).values()} == {float}


def lines_of(directory):
  text = (directory / "metrics.jsonl").read_text(encoding="utf-8")
  return [json.loads(line) for line in text.splitlines()]


def tensorboard_of(directory):
  """{name: [(step, value)]} as TensorBoard's own reader has it."""
  events = EventAccumulator(str(directory / "tensorboard"), size_guidance={"scalars": 0})
  events.Reload()
  return {
    name: [(event.step, event.value) for event in events.Scalars(name)]
    for name in events.Tags()["scalars"]
  }


def assert_same_numbers(directory):
  """TensorBoard keeps 32 bits of each number."""
  wanted = {}
  for line in lines_of(directory):
    step = line.pop("step")
    for name, value in line.items():
      wanted.setdefault(name, []).append((step, float(np.float32(value))))
  assert tensorboard_of(directory) == wanted


@pytest.fixture
def write(tmp_path):
  """Writes steps as a run does, and leaves the files open, as a kill does."""
  writers = []

  def write(steps, *, resume_step=0, offset=0.0):
    writer = MetricsWriter(tmp_path, resume_step=resume_step)
    writers.append(writer)
    for step in steps:
      train = {"train_total_loss": 1 / step + offset, "label/train_loss": math.pi * step}
      writer.write(step, train)
      if step % 2 == 0:
        writer.write(step, {"eval_total_loss": step + offset, "eval_num_predictions": 7.0})

  yield write
  for writer in writers:
    writer.close()


def test_both_files_hold_the_same_numbers(tmp_path, write):
  write(range(1, 6))
  assert [line["step"] for line in lines_of(tmp_path)] == [1, 2, 2, 3, 4, 4, 5]
  assert lines_of(tmp_path)[1] == {
    "step": 2, "train_total_loss": 0.5, "label/train_loss": math.pi * 2
  }  # fmt: skip
  assert set(tensorboard_of(tmp_path)) == {
    "train_total_loss", "label/train_loss", "eval_total_loss", "eval_num_predictions"
  }  # fmt: skip
  assert_same_numbers(tmp_path)


def test_numbers_are_there_while_the_run_goes_on(tmp_path, write):
  """Without flush or close: whoever looks, and whoever is killed, has all of them."""
  write(range(1, 60))
  assert lines_of(tmp_path)[-1]["step"] == 59
  assert_same_numbers(tmp_path)


@pytest.mark.parametrize("resume_step", [0, 1, 2, 4])
def test_a_resumed_run_drops_what_it_will_write_again(tmp_path, write, resume_step):
  """0 is a run that was killed before its first checkpoint."""
  write(range(1, 6))
  write(range(resume_step + 1, 7), resume_step=resume_step, offset=100.0)
  lines = lines_of(tmp_path)
  assert [line["step"] for line in lines] == [1, 2, 2, 3, 4, 4, 5, 6, 6]
  for line in lines:
    offset = 100.0 if line["step"] > resume_step else 0.0
    if "train_total_loss" in line:
      assert line["train_total_loss"] == 1 / line["step"] + offset
  assert_same_numbers(tmp_path)


@pytest.mark.parametrize("length", [1, 5, 20, 60])
def test_a_half_written_last_line_is_dropped(tmp_path, write, length):
  write(range(1, 4))
  path = tmp_path / "metrics.jsonl"
  whole = path.read_text()
  path.write_text(
    whole + '{"step": 4, "train_total_loss": 0.25, "label/train_loss": 12.5}'[:length]
  )
  write(range(4, 5), resume_step=3)
  assert path.read_text().startswith(whole)
  assert [line["step"] for line in lines_of(tmp_path)] == [1, 2, 2, 3, 4, 4]


def test_a_last_line_without_its_newline_is_kept_whole(tmp_path, write):
  write(range(1, 4))
  path = tmp_path / "metrics.jsonl"
  path.write_text(path.read_text().rstrip("\n"))
  write(range(4, 5), resume_step=3)
  assert [line["step"] for line in lines_of(tmp_path)] == [1, 2, 2, 3, 4, 4]


def test_numbers_survive_the_round_trip_to_the_last_bit(tmp_path, write):
  writer = MetricsWriter(tmp_path, resume_step=0)
  value = float(np.float32(0.1)) / 3
  writer.write(1, {"train_total_loss": value})
  writer.close()
  assert lines_of(tmp_path)[0]["train_total_loss"] == value


def test_nothing_else_is_left_in_the_folder(tmp_path, write):
  write(range(1, 4))
  write(range(3, 4), resume_step=2)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "tensorboard"]


def test_no_room_for_metrics_is_one_sentence(tmp_path):
  writer = MetricsWriter(tmp_path, resume_step=0)
  writer._file = open("/dev/full", "w")  # noqa: SIM115
  with pytest.raises(UserError, match=r"metrics.jsonl: cannot be written \(No space left"):
    writer.write(1, {"loss": 1.0})
  writer.close()
