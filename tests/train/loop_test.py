"""The order of events: what is logged, evaluated, saved and when a run ends or goes on."""

import contextlib
import json
import math
import os
import signal

import jax
import numpy as np
import pytest

from dss_jax.config.schema import EvaluationConfig, LossConfig, OptimizerConfig
from dss_jax.data.batches import EvalBatches, TrainBatches
from dss_jax.errors import Preempted, TrainingDiverged, UserError
from dss_jax.losses.base import LossSum
from dss_jax.losses.kinds import make_objective
from dss_jax.train import loop as subject
from dss_jax.train.checkpointing import Checkpoints
from dss_jax.train.evaluation import Evaluation, SequenceFigures
from dss_jax.train.loop import Loop, Progress
from dss_jax.train.optimizer import make_optimizer
from dss_jax.train.step import Trainer

BATCH_SIZE = 6
STEPS = 6


@pytest.fixture(scope="module")
def compiled_trainer(make_config, mesh_of):
  """With moments of the gradient, so that resuming has something to get wrong."""
  config = make_config(batch_size=BATCH_SIZE)
  optimizer = make_optimizer(OptimizerConfig(name="adamw", base_learning_rate=1e-2), STEPS)
  trainer = Trainer(config, optimizer, mesh_of(1, 1))
  fresh = jax.device_get(trainer.init_state())
  trainer.init_state = lambda: jax.device_put(fresh, trainer.state_shardings)
  return trainer


@pytest.fixture
def trainer(compiled_trainer, monkeypatch):
  """The same, for a test that puts something in the place of its steps."""
  monkeypatch.setattr(compiled_trainer, "train_step", compiled_trainer.train_step)
  return compiled_trainer


@pytest.fixture(scope="module")
def batches(make_store, row_costs):
  """Training and evaluation batches, all of one shape."""
  options = {"batch_size": BATCH_SIZE, "kinds": (0, 1), "costs": row_costs}
  train = TrainBatches(make_store(20, ragged=False), seed=0, **options)
  return train, EvalBatches(make_store(12, ragged=False, seed=1), **options)


@pytest.fixture
def make_loop(tmp_path, make_config, trainer, batches):
  """A Loop in a folder of its own."""

  def make_loop(*, name="run", evaluated=True, evaluation=None, **changes):
    directory = tmp_path / name
    directory.mkdir(exist_ok=True)
    config = make_config(
      directory,
      batch_size=BATCH_SIZE,
      evaluation=EvaluationConfig(**{"interval_steps": 2, **(evaluation or {})}),
      **{"train_steps": STEPS, **changes},
    )
    return Loop(config, trainer, batches[0], batches[1] if evaluated else None)

  return make_loop


@pytest.fixture
def lines(tmp_path):
  """The lines of metrics.jsonl, without the rates, which are never the same."""

  def lines(name="run"):
    text = (tmp_path / name / "metrics.jsonl").read_text()
    return [
      {key: value for key, value in json.loads(line).items() if not key.startswith("time/")}
      for line in text.splitlines()
    ]

  return lines


@pytest.fixture
def kept(tmp_path):
  return lambda name="run": sorted(
    int(path.name) for path in (tmp_path / name / "checkpoints").iterdir()
  )


def scripted(accuracies, losses=None):
  """In place of `evaluate`: the accuracy of each evaluation in turn, on 100 labels of one token."""
  losses = losses or [1.0] * len(accuracies)
  script = iter(zip(accuracies, losses, strict=True))

  def evaluate(trainer, params, batches):
    accuracy, loss = next(script)
    each = [np.float32(value * 100) for value in (loss, accuracy)]
    hundred = np.float32(100)
    sums = {
      "label/loss": LossSum(each[0], hundred),
      "label/accuracy": LossSum(each[1], hundred),
      "rationale/loss": LossSum(hundred, hundred),
      "rationale/accuracy": LossSum(np.float32(50), hundred),
    }
    return evaluated(sums, label=np.arange(100) < round(accuracy * 100))

  return evaluate


def evaluated(sums, **right):
  """An Evaluation with the given targets wholly right, each of one token."""
  sequences = {
    name: SequenceFigures(np.arange(len(each)), np.zeros(len(each)), each, np.ones(len(each)))
    for name, each in right.items()
  }
  return Evaluation(sums, sequences)


@pytest.fixture(scope="module")
def whole():
  """metrics.jsonl's lines of a run without a break, once it has been run."""
  return {}


@pytest.fixture
def uninterrupted(make_loop, lines, whole):
  if not whole:
    make_loop(name="whole").run()
    whole["lines"] = lines("whole")
  return whole["lines"]


def test_a_whole_run(make_loop, lines, kept):
  outcome = make_loop().run()
  assert (outcome.step, outcome.stopped_early) == (STEPS, False)
  train = [line for line in lines() if "train_total_loss" in line]
  evaluations = {line["step"]: line for line in lines() if "eval_total_loss" in line}
  assert [line["step"] for line in train] == [1, 2, 3, 4, 5, 6]
  assert sorted(evaluations) == [2, 4, 6]
  assert len(lines()) == 9
  for line in train:
    # 6 examples a step: labels of 4 tokens, rationales of 16.
    assert line["train_num_predictions"] == 6 * (4 + 16)
    assert line["train_gradient_norm"] > 0
  for line in evaluations.values():
    assert line["eval_num_predictions"] == 12 * (4 + 16)
    assert line["label/eval_sequence_accuracy"] == 0.0
  best = max(
    evaluations,
    # No label is wholly right yet, so the loss decides.
    key=lambda step: (-evaluations[step]["label/eval_loss"], step),
  )  # fmt: skip
  assert outcome.best_step == best
  assert {"step": best, **outcome.evaluation} == evaluations[best]
  assert kept() == sorted({best, STEPS})
  assert 0 <= outcome.padding_shares["inputs"] < 1


def test_rates_are_logged_after_the_first_steps(make_loop, tmp_path):
  make_loop(evaluation={"interval_steps": 6}).run()
  text = (tmp_path / "run" / "metrics.jsonl").read_text()
  rates = [json.loads(line).get("time/steps_per_second") for line in text.splitlines()]
  assert rates[0] is None
  assert all(rate > 0 for rate in rates[2:6])


@pytest.fixture
def dying_after(trainer, monkeypatch):
  """While entered, the run dies in the step after so many; afterwards steps are as before."""

  @contextlib.contextmanager
  def dying_after(steps):
    real, taken = trainer.train_step, []

    def killed(state, batch):
      if len(taken) == steps:
        raise SystemError("killed")
      taken.append(1)
      return real(state, batch)

    with monkeypatch.context() as patch:
      patch.setattr(trainer, "train_step", killed)
      with pytest.raises(SystemError):
        yield

  return dying_after


@pytest.fixture
def signalled_in(trainer, monkeypatch):
  """Has a signal arrive during a step, counted from 1 over all runs of the test."""

  def signalled_in(step):
    real, taken = trainer.train_step, []

    def signalled(state, batch):
      taken.append(1)
      if len(taken) == step:
        os.kill(os.getpid(), signal.SIGTERM)
      return real(state, batch)

    monkeypatch.setattr(trainer, "train_step", signalled)

  return signalled_in


def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(
  make_loop, lines, kept, uninterrupted, dying_after
):
  """Bit for bit. The kill comes at step 5; the newest checkpoint is of step 4."""
  with dying_after(4):
    make_loop().run()
  assert max(kept()) == 4
  begun = []
  outcome = make_loop().run(on_start=begun.append)
  assert begun == [4]
  assert outcome.step == STEPS
  assert lines() == uninterrupted


def test_a_run_killed_before_its_first_checkpoint_begins_anew(
  make_loop, lines, uninterrupted, dying_after
):
  with dying_after(1):
    make_loop().run()
  make_loop().run()
  assert lines() == uninterrupted


@pytest.mark.parametrize("step", [1, 2, 5])
def test_a_signal_saves_at_the_next_step(make_loop, lines, kept, uninterrupted, signalled_in, step):
  signalled_in(step)
  with pytest.raises(Preempted, match=f"SIGTERM after step {step}") as caught:
    make_loop().run()
  assert caught.value.exit_code == 143
  assert max(kept()) == step
  assert make_loop().run().step == STEPS
  assert lines() == uninterrupted


def test_a_signal_during_the_last_step_ends_the_run_as_usual(make_loop, signalled_in):
  signalled_in(STEPS)
  assert make_loop().run().step == STEPS


def test_a_finished_run_takes_no_step_and_a_longer_one_goes_on(make_loop, lines, uninterrupted):
  make_loop(train_steps=4).run()
  again = make_loop(train_steps=4).run()
  assert again.step == 4
  assert make_loop().run().step == STEPS
  assert lines() == uninterrupted


@pytest.mark.parametrize(
  ("accuracies", "evaluation", "stops_at"),
  [
    # The best at the second evaluation; the third and the fourth do not grow.
    ([0.1, 0.5, 0.5, 0.4, 0.9], {"patience": 2}, 4),
    # Growth of 0.05 at a time is too little, counted from the best so far.
    ([0.1, 0.15, 0.2, 0.9], {"patience": 2, "min_improvement": 0.2}, 3),
    # Growth in between starts the count anew.
    ([0.1, 0.1, 0.2, 0.2, 0.3, 0.3], {"patience": 2}, None),
    ([0.5] * 6, {"patience": 2, "early_stopping": False}, None),
    ([0.5] * 6, {}, 6),  # five without growth after the first
  ],
)
def test_early_stopping(make_loop, monkeypatch, accuracies, evaluation, stops_at):
  monkeypatch.setattr(subject, "evaluate", scripted(accuracies))
  outcome = make_loop(evaluation={"interval_steps": 1, **evaluation}).run()
  assert outcome.stopped_early == (stops_at is not None)
  assert outcome.step == (stops_at or STEPS)


def test_a_run_that_stopped_early_stays_stopped(make_loop, monkeypatch):
  evaluation = {"interval_steps": 1, "patience": 1}
  monkeypatch.setattr(subject, "evaluate", scripted([0.5, 0.5]))
  first = make_loop(evaluation=evaluation).run()
  assert (first.step, first.best_step, first.stopped_early) == (2, 1, True)
  assert make_loop(evaluation=evaluation).run() == first


def test_patience_counts_on_across_a_stop(make_loop, monkeypatch, signalled_in):
  """One evaluation without growth before the signal, one after it."""
  evaluation = {"interval_steps": 1, "patience": 2}
  monkeypatch.setattr(subject, "evaluate", scripted([0.5, 0.5, 0.5, 0.5]))
  signalled_in(2)
  with pytest.raises(Preempted):
    make_loop(evaluation=evaluation).run()
  assert make_loop(evaluation=evaluation).run().step == 3


def test_the_best_checkpoint_is_handed_on(make_loop, monkeypatch, kept):
  script = scripted([0.1, 0.7, 0.7, 0.7, 0.2, 0.3], [1.0, 0.9, 0.5, 0.8, 0.1, 0.1])
  monkeypatch.setattr(subject, "evaluate", script)
  outcome = make_loop(evaluation={"interval_steps": 1, "early_stopping": False}).run()
  assert outcome.best_step == 3
  assert outcome.evaluation["label/eval_loss"] == 0.5
  assert kept() == [3, 6]


@pytest.mark.parametrize(("selection", "best"), [("noise-aware", 4), ("token-accuracy", 1)])
def test_each_rule_hands_on_its_own_checkpoint_and_goes_on_with_it_after_a_stop(
  make_loop, monkeypatch, kept, signalled_in, selection, best
):
  """One more label of 100 right is chance; the loss falls until step 4."""
  accuracies, losses = [0.53, 0.52, 0.51, 0.52, 0.52, 0.50], [1.5, 0.9, 0.8, 0.5, 0.6, 0.7]
  monkeypatch.setattr(subject, "evaluate", scripted(accuracies, losses))
  signalled_in(3)
  evaluation = {"interval_steps": 1, "selection": selection}
  with pytest.raises(Preempted):
    make_loop(evaluation=evaluation).run()
  outcome = make_loop(evaluation=evaluation).run()
  assert (outcome.best_step, kept()) == (best, [best, STEPS])
  assert outcome.evaluation["label/eval_loss"] == pytest.approx(losses[best - 1])


def test_a_checkpoint_of_an_older_program_is_refused(make_loop, monkeypatch):
  make_loop(train_steps=2).run()
  monkeypatch.setattr(Progress, "from_json", lambda value: pytest.fail("was read"))
  restore = Checkpoints.restore
  monkeypatch.setattr(
    Checkpoints, "restore", lambda *arguments: (restore(*arguments)[0], {"best_accuracy": 0.5})
  )
  with pytest.raises(UserError, match="was saved by an older dss_jax"):
    make_loop().run()


def test_without_selection_the_last_is_handed_on(make_loop, monkeypatch, kept):
  monkeypatch.setattr(subject, "evaluate", scripted([0.9, 0.5, 0.1]))
  outcome = make_loop(evaluation={"checkpoint_selection": False}).run()
  assert outcome.best_step == STEPS
  assert outcome.evaluation["label/eval_accuracy"] == pytest.approx(0.1)
  assert kept() == [6]


def test_without_evaluation_data(make_loop, lines, kept):
  outcome = make_loop(evaluated=False, evaluation={"patience": 1, "interval_steps": 1}).run()
  assert (outcome.step, outcome.best_step, outcome.evaluation) == (STEPS, STEPS, {})
  assert not any("eval_total_loss" in line for line in lines())
  assert kept() == [6]


def test_checkpoints_have_an_interval_of_their_own(make_loop, kept, dying_after):
  with dying_after(5):
    make_loop(checkpoint_interval_steps=5, evaluation={"interval_steps": 6}).run()
  assert kept() == [5]


def test_the_state_that_a_run_starts_from(make_loop, trainer, lines, uninterrupted):
  given = jax.device_get(trainer.init_state().params)

  def starting_from(scale):
    params = jax.tree.map(lambda leaf: scale * leaf, given)
    return lambda: trainer.state_from_params(params)

  make_loop(name="same").run(initial_state=starting_from(1.0))
  assert lines("same") == uninterrupted
  make_loop(name="other", train_steps=2).run(initial_state=starting_from(0.5))
  assert lines("other")[0] != uninterrupted[0]
  # A run with a checkpoint of its own does not ask for it.
  make_loop(name="other", train_steps=4).run(initial_state=lambda: pytest.fail("was asked"))


def poisoned(real, at, poison):
  """A train_step whose outcome is poisoned at the given step."""
  taken = []

  def train_step(state, batch):
    taken.append(1)
    state, metrics = real(state, batch)
    return poison(state, metrics) if len(taken) == at else (state, metrics)

  return train_step


def nan_loss(state, metrics):
  loss = LossSum(np.float32(math.nan), np.float32(24))
  return state, {**metrics, "sums": {**metrics["sums"], "label/loss": loss}}


def infinite_gradient(state, metrics):
  return state, {**metrics, "gradient_norm": np.float32(math.inf)}


def nan_weights(state, metrics):
  return state.replace(params=jax.tree.map(lambda leaf: leaf * math.nan, state.params)), metrics


@pytest.mark.parametrize("at", [3, 4])
@pytest.mark.parametrize("poison", [nan_loss, infinite_gradient, nan_weights])
def test_numbers_that_are_none_stop_the_run(
  make_loop, lines, kept, trainer, monkeypatch, poison, at
):
  """At a step that saves, and at one between; the good checkpoint of step 2 stands."""
  monkeypatch.setattr(trainer, "train_step", poisoned(trainer.train_step, at, poison))
  with pytest.raises(TrainingDiverged) as caught:
    make_loop(evaluation={"checkpoint_selection": False}).run()
  sentence = str(caught.value)
  noticed = 4 if poison is nan_weights else at
  assert sentence.startswith(f"step {noticed}: ")
  assert "the checkpoint of step 2 is kept" in sentence
  assert "--learning-rate-multiplier" in sentence
  assert "\n" not in sentence
  assert kept() == [2]
  numbers = [value for line in lines() for value in line.values()]
  assert all(map(math.isfinite, numbers))
  assert lines()[-1]["step"] < 4 or poison is nan_weights


def test_divergence_before_any_checkpoint(make_loop, trainer, monkeypatch):
  monkeypatch.setattr(trainer, "train_step", poisoned(trainer.train_step, 1, nan_loss))
  with pytest.raises(TrainingDiverged, match=r"step 1: .* no checkpoint was saved yet"):
    make_loop().run()


def test_an_evaluation_without_numbers_stops_the_run(make_loop, kept, monkeypatch):
  monkeypatch.setattr(subject, "evaluate", scripted([0.5, 0.5, 0.5], [1.0, math.nan, 1.0]))
  with pytest.raises(TrainingDiverged, match=r"step 4: .*the checkpoint of step 2 is kept"):
    make_loop().run()
  assert kept() == [2]


def test_a_run_on_rationales_alone_is_judged_by_them(make_loop, trainer, monkeypatch, capsys):
  def evaluate(trainer, params, batches):
    tokens = np.float32(10)
    sums = {
      "rationale/loss": LossSum(np.float32(20), tokens),
      "rationale/accuracy": LossSum(np.float32(5), tokens),
    }
    return evaluated(sums, rationale=np.zeros(3))

  monkeypatch.setattr(subject, "evaluate", evaluate)
  for name in ("objective", "evaluation_objective"):
    monkeypatch.setattr(trainer, name, make_objective(LossConfig(alpha=0.0)))
  outcome = make_loop(evaluation={"interval_steps": 6}).run()
  assert outcome.evaluation["rationale/eval_accuracy"] == 0.5
  assert "rationale accuracy 0.5000" in capsys.readouterr().err
