"""T5X's network under our model class against the student's own step, on the same examples."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dss_jax.data.batches import TrainBatches
from dss_jax.data.sources import training_source_from_file
from dss_jax.data.token_store import open_token_store
from dss_jax.data.vocabularies import load_vocabulary
from dss_jax.losses.kinds import make_objective
from dss_jax.train.metrics import named_metrics
from dss_jax.train.step import batch_loss

WHY = "T5X is not installed (docs/t5x.md)"
pytestmark = pytest.mark.t5x
pytest.importorskip("t5x.models", reason=WHY, exc_type=ImportError)
data = pytest.importorskip("dss_jax.t5x.data")
model = pytest.importorskip("dss_jax.t5x.model")
t5x_trainer = pytest.importorskip("t5x.trainer")

BATCH_SIZE, SEED = 12, 5
CONVERTER = model.StepByStepFeatureConverter


@pytest.fixture(scope="module")
def our_batch(run_config):
  """The first batch of `dss distill`, in its own packing."""
  config = run_config.data
  store = open_token_store(
    training_source_from_file(config.dataset),
    load_vocabulary("bytes"),
    max_input_tokens=config.max_input_tokens,
    max_output_tokens=config.max_output_tokens,
  )

  def costs(rows, inputs, targets):
    return rows * (inputs + targets)

  batches = TrainBatches(store, batch_size=BATCH_SIZE, seed=SEED, kinds=(0, 1), costs=costs)
  return batches.packed.fill(*batches.pack(0))


@pytest.fixture(scope="module")
def t5x_batch(run_config, dataset_config):
  """The first batch under T5X: with packing, as many rows as hold the same examples."""
  mixture = data.training_mixture(run_config.data)

  def t5x_batch(*, pack):
    cfg = dataset_config(mixture, batch_size=BATCH_SIZE, seed=SEED)
    if not pack:
      return next(data.get_dataset(cfg, 0, 1, CONVERTER).as_numpy_iterator())
    examples = data._Examples(cfg)
    numbers = examples.stream(SEED, None).take(BATCH_SIZE)
    long = dataclasses.replace(cfg, pack=True, task_feature_lengths={"inputs": 300, "targets": 300})
    rows = list(examples.rows(numbers, long, CONVERTER).as_numpy_iterator())
    assert 1 < len(rows) < BATCH_SIZE
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

  return t5x_batch


@pytest.fixture(scope="module")
def ours(run_config, params, our_batch):
  """Loss, sums and gradient of the student's step; the key only says that it trains."""
  denominators = make_objective(run_config.loss).denominators(our_batch)

  @jax.jit
  def step(params, batch):
    return jax.value_and_grad(batch_loss, has_aux=True)(
      params, batch, denominators, jax.random.key(0), config=run_config
    )

  return step(params, our_batch)


@pytest.fixture(scope="module")
def t5x_model(make_t5x_model, run_config):
  loss = run_config.loss
  return make_t5x_model(alpha=loss.alpha, label_smoothing=loss.label_smoothing, z_loss=loss.z_loss)


def assert_same_gradient(got, want):
  for (path, theirs), ours in zip(
    jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True
  ):
    size = np.linalg.norm(ours)
    assert size > 0, path
    assert np.linalg.norm(theirs - ours) <= 1e-5 * size, jax.tree_util.keystr(path)


@pytest.mark.parametrize("pack", [False, True])
def test_loss_and_gradient_are_the_steps(pack, t5x_model, params, t5x_batch, ours):
  batch = t5x_batch(pack=pack)
  step = jax.jit(jax.value_and_grad(t5x_model.loss_fn, has_aux=True))
  (loss, metrics), gradient = step(params, batch, jax.random.PRNGKey(0))
  (want, sums), want_gradient = ours
  np.testing.assert_allclose(loss, want, rtol=1e-5)
  assert_same_gradient(gradient, want_gradient)
  for name, value in named_metrics(t5x_model.objective, sums, "train").items():
    np.testing.assert_allclose(metrics[name].compute(), value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("parts", [1, 3])
def test_microbatches_give_the_whole_batchs_gradient(parts, t5x_model, params, t5x_batch, ours):
  batch = model.with_denominators(t5x_batch(pack=False), t5x_model.objective)

  class State:
    flax_mutables = None

  state = State()
  state.params = params
  gradient, metrics, _ = t5x_trainer.accumulate_grads_microbatched(
    t5x_model, state, batch, jax.random.PRNGKey(0), parts
  )
  (want, sums), want_gradient = ours
  assert_same_gradient(gradient, want_gradient)
  np.testing.assert_allclose(metrics["loss"].total, want, rtol=1e-5)
  for name, value in named_metrics(t5x_model.objective, sums, "train").items():
    np.testing.assert_allclose(metrics[name].compute(), value, rtol=1e-5, err_msg=name)


def test_evaluation_is_without_smoothing(t5x_model, make_t5x_model, params, t5x_batch, run_config):
  batch = t5x_batch(pack=False)
  loss, metrics = t5x_model.eval_fn(params, batch)
  plain, _ = make_t5x_model(alpha=run_config.loss.alpha).eval_fn(params, batch)
  np.testing.assert_allclose(loss, plain, rtol=1e-6)
  np.testing.assert_allclose(metrics["eval_total_loss"].compute(), loss, rtol=1e-6)
  assert not [name for name in metrics if "train_" in name]


def test_empty_rows_count_for_nothing(t5x_model, params, t5x_batch):
  """The last batch of an evaluation is filled up with them."""
  batch = t5x_batch(pack=False)
  filled = {name: np.concatenate([x, np.zeros_like(x)]) for name, x in batch.items()}
  loss, metrics = t5x_model.eval_fn(params, batch)
  again, more = t5x_model.eval_fn(params, filled)
  assert jnp.isfinite(again)
  np.testing.assert_allclose(again, loss, rtol=1e-6)
  for name in ("eval_num_predictions", "label/eval_accuracy", "rationale/eval_loss"):
    np.testing.assert_allclose(more[name].compute(), metrics[name].compute(), rtol=1e-6)


def test_alpha_has_bounds(make_t5x_model):
  with pytest.raises(Exception, match=r"ALPHA is 1\.5, but it must lie from 0 to 1"):
    make_t5x_model(alpha=1.5)
