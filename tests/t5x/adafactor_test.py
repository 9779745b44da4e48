"""The student's Adafactor against T5X's, as T5X fine-tunes: weights and moments, step by step."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from dss_jax.checkpoints.adafactor_moments import moments_of
from dss_jax.checkpoints.adafactor_state import check_moments, with_moments
from dss_jax.checkpoints.arrays import in_memory
from dss_jax.checkpoints.orbax import read_t5x_orbax_moments
from dss_jax.checkpoints.t5x_read import read_t5x_moments
from dss_jax.config.schema import OptimizerConfig
from dss_jax.train.optimizer import make_optimizer

WHY = "T5X is not installed (docs/t5x.md)"
pytestmark = pytest.mark.t5x
pytest.importorskip("t5x.models", reason=WHY, exc_type=ImportError)
adafactor = pytest.importorskip("t5x.adafactor")
checkpoints = pytest.importorskip("t5x.checkpoints")
partitioning = pytest.importorskip("t5x.partitioning")
train_state = pytest.importorskip("t5x.train_state")

UPDATES = 4
LAYERS = 3


@pytest.fixture(scope="module")
def state(make_t5x_model, run_config):
  """T5X's state of a model most of whose matrices are factored, and others not.

  The factor rules come from the network's logical axes, as under T5X's trainer. Some weights
  are so small that the scale's floor of 1e-3 counts.
  """
  # Factored: both sides at least 128; wi and wo have one that is less, the bias two.
  sizes = dataclasses.replace(run_config.model, emb_dim=128, head_dim=40, mlp_dim=120)
  model = make_t5x_model(sizes=sizes)
  shapes = {"encoder_input_tokens": (1, 4), "decoder_input_tokens": (1, 4)}
  types = dict.fromkeys(shapes, np.int32)
  variables = model.get_initial_variables(jax.random.PRNGKey(0), shapes, types)
  made = train_state.FlaxOptimTrainState.create(model.optimizer_def, variables)
  generator = np.random.default_rng(0)

  def draw(leaf):
    return (generator.choice([1e-5, 1e-2, 1.0]) * generator.normal(size=leaf.shape)).astype("f")

  return made.replace_params(jax.tree.map(draw, made.params))


@pytest.fixture(scope="module")
def gradients(state):
  """A gradient for each update, its elements of very different sizes, some of them zero."""
  generator = np.random.default_rng(1)

  def draw(leaf):
    noise = generator.normal(size=leaf.shape) * np.exp(3 * generator.normal(size=leaf.shape))
    return np.where(generator.random(leaf.shape) < 0.1, 0, 1e-3 * noise).astype(np.float32)

  return [jax.tree.map(draw, plain(state.params)) for _ in range(UPDATES)]


def plain(tree):
  """Nested dicts of numpy arrays, whatever T5X's mappings are."""
  return {
    name: plain(branch) if hasattr(branch, "items") else np.asarray(branch)
    for name, branch in tree.items()
  }


def moments_of_student(state):
  """{"v", "v_row", "v_col"} of the student's optimizer."""
  (factored,) = [
    leaf
    for leaf in jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, optax.FactoredState))
    if isinstance(leaf, optax.FactoredState)
  ]
  return factored


def test_weights_and_moments_are_t5xs(state, gradients):
  optimizer = make_optimizer(OptimizerConfig(clip_norm=None), 300)
  params = plain(state.params)
  opt_state = optimizer.init(params)
  theirs = state
  factored = 0
  for gradient in gradients:
    before = params
    theirs = theirs.apply_gradient(gradient, learning_rate=1e-3)
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    params = jax.tree.map(np.asarray, optax.apply_updates(params, updates))
    moments = moments_of_student(opt_state)
    wanted, their_moments = plain(theirs.params), theirs.param_states
    for path, weight in jax.tree_util.tree_leaves_with_path(params):
      name = jax.tree_util.keystr(path)
      want, old = at(wanted, path), at(before, path)
      # Of the step, not of the weight, which hides a wrong step.
      step = np.abs(want - old).max()
      assert step > 0, name
      np.testing.assert_allclose(weight, want, rtol=1e-6, atol=1e-5 * step, err_msg=name)
      their_state = at(their_moments, path)
      for kind in ("v", "v_row", "v_col"):
        got, expected = at(getattr(moments, kind), path), getattr(their_state, kind)
        assert got.shape == expected.shape, (name, kind)
        np.testing.assert_allclose(got, expected, rtol=1e-5, err_msg=f"{name} {kind}")
      factored += their_state.v_row.size > 1
  assert 0 < factored < UPDATES * len(jax.tree.leaves(params))


@pytest.mark.parametrize("form", ["native", "orbax"])
def test_an_update_goes_on_from_t5xs_moments(form, state, gradients, tmp_path):
  """T5X takes two updates and saves; the third is then the same here as there."""
  theirs = state
  for gradient in gradients[:2]:
    theirs = theirs.apply_gradient(gradient, learning_rate=1e-3)
  partitioner = partitioning.PjitPartitioner(num_partitions=1)
  if form == "native":
    checkpoints.Checkpointer(theirs, partitioner, str(tmp_path)).save(theirs)
    stored = read_t5x_moments(tmp_path / "checkpoint_2")
  else:
    writer = checkpoints.OrbaxCheckpointManagerInterface(str(tmp_path), theirs, partitioner)
    writer.save(theirs)
    writer.close()
    stored = read_t5x_orbax_moments(tmp_path / "checkpoint_2")
  assert stored.step == 2
  optimizer = make_optimizer(OptimizerConfig(clip_norm=None), 300)
  params = plain(theirs.params)
  fresh = optimizer.init(params)
  check_moments(fresh, stored, "here")
  updates, opt_state = optimizer.update(gradients[2], with_moments(fresh, stored), params)
  assert moments_of_student(opt_state).count == 3
  after = plain(theirs.apply_gradient(gradients[2], learning_rate=1e-3).params)
  assert_steps(updates, params, after)


def assert_steps(updates, before, after):
  for path, update in jax.tree_util.tree_leaves_with_path(updates):
    want = at(after, path) - at(before, path)
    # The weights' own rounding, too.
    bound = 1e-5 * np.abs(want).max() + 1e-6 * np.abs(at(before, path)).max()
    np.testing.assert_allclose(update, want, rtol=1e-4, atol=bound, err_msg=str(path))


# Of scalable_t5's kernels: the axes of one layer, and how T5X factors the scanned array.
WIDTH, HEADS, HEAD_DIM, MLP = 130, 2, 70, 150
SCANNED = {
  "attention/query": (("embed", "layers", "heads", "kv"), (WIDTH, LAYERS, HEADS, HEAD_DIM)),
  "attention/out": (("heads", "layers", "kv", "embed"), (HEADS, LAYERS, HEAD_DIM, WIDTH)),
  "mlp/wi_0": (("embed", "layers", "mlp"), (WIDTH, LAYERS, MLP)),
  "mlp/wo": (("mlp", "layers", "embed"), (MLP, LAYERS, WIDTH)),
}


def of_layer(name, array, layer):
  """A layer's matrix out of the scanned array, its heads and their widths joined."""
  one = array[:, layer]
  return one.reshape((-1, WIDTH) if name.endswith(("out", "wo")) else (WIDTH, -1))


def test_an_update_goes_on_from_t5xs_scanned_moments():
  """T5X factors a stack by its logical axes; the student, each layer by its lengths."""
  rules = adafactor.standard_logical_factor_rules()
  factor_map = adafactor.HParamMap(
    [(f"{name}/kernel", tuple(rules[axis] for axis in axes)) for name, (axes, _) in SCANNED.items()]
  )
  optimizer_def = adafactor.Adafactor(factor_map=factor_map, decay_rate=0.8, step_offset=0)
  generator = np.random.default_rng(5)

  def draw(scale):
    tree = {}
    for name, (_, shape) in SCANNED.items():
      module, part = name.split("/")
      kernel = (scale * generator.normal(size=shape)).astype(np.float32)
      tree.setdefault(module, {})[part] = {"kernel": kernel}
    return {"encoder": {"encoder": tree}}

  params, *gradients = draw(1.0), draw(1e-3), draw(1e-2), draw(1e-3)
  theirs = optimizer_def.create(params)
  for gradient in gradients[:2]:
    theirs = theirs.apply_gradient(gradient, learning_rate=1e-3)
  arrays = {}
  for name in SCANNED:
    state = at_names(theirs.state.param_states, name)
    for kind in ("v", "v_row", "v_col", "m"):
      key = f"encoder.encoder.{name.replace('/', '.')}.kernel.{kind}"
      arrays[key] = in_memory(np.asarray(getattr(state, kind)))
  stored = moments_of(arrays, np.int32(2), "here")

  def unrolled(tree):
    layers = {f"layers_{number}": {"attention": {}, "mlp": {}} for number in range(LAYERS)}
    for name in SCANNED:
      module, part = name.split("/")
      for number in range(LAYERS):
        kernel = of_layer(name, np.asarray(at_names(tree, name)), number)
        layers[f"layers_{number}"][module][part] = {"kernel": kernel}
    return {"encoder": layers}

  before, gradient = unrolled(theirs.target), unrolled(gradients[2])
  optimizer = make_optimizer(OptimizerConfig(clip_norm=None), 300)
  fresh = optimizer.init(before)
  check_moments(fresh, stored, "here")
  updates, _ = optimizer.update(gradient, with_moments(fresh, stored), before)
  after = unrolled(theirs.apply_gradient(gradients[2], learning_rate=1e-3).target)
  assert_steps(updates, before, after)


def at_names(tree, name):
  module, part = name.split("/")
  return tree["encoder"]["encoder"][module][part]["kernel"]


def at(tree, path):
  for key in path:
    tree = tree[key.key]
  return tree
