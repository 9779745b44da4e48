"""Steps on sampled targets: the loss by hand, what is sampled, and a run that is taken up again."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dss_jax.config.schema import (
  LossConfig,
  OnPolicyConfig,
  OptimizerConfig,
  ResponseConfig,
  SignalConfig,
)
from dss_jax.data.batches import TrainBatches
from dss_jax.data.on_policy import OnPolicyBatches
from dss_jax.errors import Preempted, UserError
from dss_jax.model.t5 import Transformer
from dss_jax.train import loop as looping
from dss_jax.train.loop import Loop
from dss_jax.train.on_policy import OnPolicy, check_on_policy, max_tokens, sampled_kinds
from dss_jax.train.optimizer import make_optimizer
from dss_jax.train.step import Trainer
from dss_jax.train.teacher_network import TeacherNetwork
from tests.fixtures.small_runs import keep_gradient

# Half a minute and more; CI runs the same kinds from the command line (tests/e2e).
pytestmark = pytest.mark.slow

BATCH_SIZE = 8
EXAMPLES = 20
EOS_ID, PAD_ID = 1, 0
ALPHA, WEIGHT, TEMPERATURE = 0.3, 0.7, 2.0


@pytest.fixture(scope="module")
def make_run(make_config):
  """A run in which every step is on-policy, unless its share is given."""

  def make_run(model_dir="unused", *, on_policy=None, **changes):
    return make_config(
      model_dir,
      batch_size=BATCH_SIZE,
      loss=LossConfig(
        alpha=ALPHA,
        extra_terms={"response": WEIGHT},
        response=ResponseConfig(divergence="reverse", temperature=TEMPERATURE),
      ),
      signals=SignalConfig(model="teacher"),
      on_policy=OnPolicyConfig(**{"share": 1.0, "max_tokens": 12, **(on_policy or {})}),
      **changes,
    )

  return make_run


@pytest.fixture(scope="module")
def store(make_store):
  return make_store(EXAMPLES)


@pytest.fixture(scope="module")
def params(make_run, random_params):
  """Weights whose samples are of many lengths, since the end is likely."""
  params = random_params(make_run().model, seed=1)
  params["decoder"]["logits_dense"]["kernel"][:, EOS_ID] *= 6
  return params


@pytest.fixture(scope="module")
def teacher_params(make_run, random_params):
  return random_params(make_run().model, seed=2)


@pytest.fixture(scope="module")
def make_parts(store, row_costs, mesh_of, teacher_params):
  """The trainer, the batches and the sampler of a run."""

  def make_parts(config, mesh=(1, 1), optimizer=None):
    mesh = mesh_of(*mesh)
    teacher = TeacherNetwork(config.model, mesh)
    teacher.load(jax.tree.map(jnp.asarray, teacher_params))
    trainer = Trainer(config, optimizer or keep_gradient(), mesh, teacher)
    packing = {"costs": row_costs, "row_multiple": 8 * config.accumulation_steps}
    train = TrainBatches(store, batch_size=BATCH_SIZE, seed=0, kinds=(0, 1), **packing)
    sampled = OnPolicyBatches(
      store, train, kinds=sampled_kinds(config), max_tokens=max_tokens(config), **packing
    )
    return trainer, train, OnPolicy(config, trainer, sampled, eos_id=EOS_ID, pad_id=PAD_ID)

  return make_parts


@pytest.fixture(scope="module")
def sample(make_run, make_parts, params):
  """The targets of step 3, by (example, kind)."""

  def sample(mesh=(1, 1), step=3, **changes):
    trainer, _, on_policy = make_parts(make_run(**changes), mesh)
    found = on_policy.sample(trainer.state_from_params(params).params, step)
    return dict(zip(found.sequences, [each.tolist() for each in found.targets], strict=True))

  return sample


@pytest.fixture(scope="module")
def samples(sample):
  return sample()


def test_samples_of_many_lengths(samples):
  """Else the tests here would pass with targets that are cut wrongly."""
  lengths = [len(each) for each in samples.values()]
  assert {kind for _, kind in samples} == {0, 1}
  assert min(lengths) < 4
  assert max(lengths) == 12
  assert len(set(lengths)) > 4
  assert all((each[-1] == EOS_ID) == (len(each) < 12) for each in samples.values())


def test_devices_and_microbatches_sample_the_same(sample, samples):
  assert sample(mesh=(8, 1)) == samples
  assert sample(mesh=(2, 4)) == samples
  assert sample(accumulation_steps=3) == samples


def test_other_seeds_and_steps_sample_others(sample, samples):
  other = sample(seed=1)
  assert other.keys() == samples.keys()
  assert sum(other[each] == samples[each] for each in samples) < len(samples) / 2


def test_the_longest_target_of_the_rows_is_that_of_samples(make_run):
  data = dataclasses.replace(make_run().data, feature_lengths={"inputs": 64, "targets": 5})
  assert max_tokens(dataclasses.replace(make_run(), data=data)) == 5
  assert max_tokens(make_run()) == 12


@pytest.fixture(scope="module")
def by_hand(make_run, params, teacher_params, store, samples):
  """The response term alone and its gradient, from whole logits, a sample in a row."""
  inputs = np.zeros((len(samples), 20), np.int32)
  targets, kinds = np.zeros((len(samples), 12), np.int32), np.zeros(len(samples), int)
  real = np.zeros((len(samples), 12), np.int32)
  for row, ((example, kind), target) in enumerate(samples.items()):
    tokens = store.input_tokens(example, kind)
    inputs[row, : len(tokens)], kinds[row] = tokens, kind
    targets[row, : len(target)], real[row, : len(target)] = target, 1
  shifted = np.pad(targets, [(0, 0), (1, 0)])[:, :-1]
  arguments = inputs, (inputs > 0).astype(np.int32), shifted, real

  def loss(params):
    student, teacher = (
      jax.nn.log_softmax(
        Transformer(make_run().model).apply({"params": each}, *arguments) / TEMPERATURE
      )
      for each in (params, teacher_params)
    )
    apart = TEMPERATURE**2 * jnp.sum(jnp.exp(student) * (student - teacher), axis=-1)
    total = 0.0
    for kind, share in ((0, ALPHA), (1, 1 - ALPHA)):
      weights = real * (kinds == kind)[:, None]
      total += WEIGHT * share * jnp.sum(apart * weights) / jnp.sum(weights)
    return total

  return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize(
  ("mesh", "parts"), [((1, 1), 1), ((8, 1), 1), pytest.param((1, 1), 3, marks=pytest.mark.slow)]
)
def test_a_step_is_the_loss_by_hand(make_run, make_parts, params, samples, by_hand, mesh, parts):
  config = make_run(accumulation_steps=parts)
  trainer, _, on_policy = make_parts(config, mesh)
  state = trainer.state_from_params(params)
  batch, figures = on_policy.batch(state.params, 3)
  after, metrics = trainer.train_step(state, batch, on_policy=True)
  want, gradient = by_hand
  total = trainer.on_policy_objective.total(jax.device_get(metrics["sums"]))
  np.testing.assert_allclose(total, want, rtol=1e-5)
  ours = jax.device_get(after.opt_state)
  for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(gradient), strict=True):
    assert np.linalg.norm(mine - other) <= 2e-5 * np.linalg.norm(other)
  lengths = np.array([len(each) for each in samples.values()])
  assert figures["target_tokens"] == lengths.mean()
  assert figures["cut_off"] == (lengths == 12).mean()


def test_one_kind_alone_is_sampled(sample, samples):
  found = sample(on_policy={"kinds": ("rationale",)})
  assert found == {key: target for key, target in samples.items() if key[1] == 1}


def test_a_step_whose_rows_lack_the_kind_is_an_ordinary_one(make_run, make_parts, monkeypatch):
  _, _, on_policy = make_parts(make_run(on_policy={"kinds": ("rationale",)}))
  assert on_policy.takes(5)
  monkeypatch.setattr(on_policy._batches, "sequences", lambda step: [])
  assert not on_policy.takes(5)


@pytest.fixture(scope="module")
def run_loop(tmp_path_factory, make_run, make_parts, params):
  """Runs six steps, half of them on-policy, in a folder; gives metrics.jsonl's lines."""
  top = tmp_path_factory.mktemp("runs")
  options = {"on_policy": {"share": 0.5}, "train_steps": 6, "checkpoint_interval_steps": 1}
  optimizer = make_optimizer(OptimizerConfig(name="adamw", base_learning_rate=1e-2), 6)
  trainer, train, on_policy = make_parts(make_run(**options), optimizer=optimizer)

  def run_loop(name):
    (top / name).mkdir(exist_ok=True)
    loop = Loop(make_run(top / name, **options), trainer, train, None, on_policy)
    loop.run(lambda: trainer.state_from_params(params))
    return read(top / name)

  def read(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]

  return run_loop


def test_metrics_of_a_run(run_loop):
  lines = run_loop("whole")
  taken = [line["step"] for line in lines if "on_policy/ended" in line]
  assert 0 < len(taken) < 6
  for line in lines:
    assert line["train_total_loss"] > 0
    if line["step"] not in taken:
      assert line["label/train_loss"] > 0
      assert line["response_label/train_loss"] > 0
      assert not any(name.startswith("on_policy/") for name in line)
      continue
    own = {name for name in line if name.startswith("on_policy/")}
    losses = {f"on_policy/response_{kind}_loss" for kind in ("label", "rationale")}
    assert own == losses | {
      f"on_policy/{name}" for name in ("ended", "empty", "cut_off", "target_tokens")
    }
    assert line.keys() - own == {
      "step", "train_total_loss", "train_num_predictions", "train_gradient_norm"
    }  # fmt: skip
    total = sum(
      WEIGHT * share * line[f"on_policy/response_{kind}_loss"]
      for kind, share in (("label", ALPHA), ("rationale", 1 - ALPHA))
    )
    assert line["train_total_loss"] == pytest.approx(total, rel=1e-5)


def test_a_run_that_is_stopped_after_each_step_is_the_same_run(run_loop, monkeypatch):
  """The present weights sample: those of a checkpoint are the same, bit for bit."""
  whole = run_loop("whole")
  with monkeypatch.context() as patch:
    patch.setattr(looping.StopVote, "cast", lambda self, number: 15)
    for _ in range(5):
      with pytest.raises(Preempted):
        run_loop("stopped")
  assert run_loop("stopped") == whole


def refused(config):
  with pytest.raises(UserError) as caught:
    check_on_policy(config)
  assert "\n" not in str(caught.value)
  return str(caught.value)


def test_refusals(make_run):
  config = make_run()
  check_on_policy(config)
  check_on_policy(dataclasses.replace(config, on_policy=OnPolicyConfig(), signals=SignalConfig()))

  alone = dataclasses.replace(config, signals=SignalConfig())
  assert "share of 1 of the steps; give --teacher-model" in refused(alone)
  recorded = dataclasses.replace(config, signals=SignalConfig(logits="next.npz"))
  assert "--teacher-logits next.npz knows the rows' own targets alone" in refused(recorded)

  loss = dataclasses.replace(config.loss, extra_terms={"entropy": -0.1})
  assert "--teacher-model teacher; add --kind response" in refused(
    dataclasses.replace(config, loss=loss)
  )
  labels = dataclasses.replace(config.loss, alpha=1.0)
  kinds = make_run(on_policy={"kinds": ("rationale",)}).on_policy
  assert "OnPolicyConfig.kinds ('rationale',): LossConfig.alpha 1 trains on none" in refused(
    dataclasses.replace(config, loss=labels, on_policy=kinds)
  )
