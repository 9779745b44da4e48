"""Adafactor that goes on from stored moments makes the updates that it would have made."""

import jax
import numpy as np
import optax
import pytest

from dss_jax.checkpoints.adafactor_moments import StoredMoments
from dss_jax.checkpoints.adafactor_state import check_moments, with_moments
from dss_jax.checkpoints.arrays import in_memory, weight_name
from dss_jax.config.schema import MeshConfig, OptimizerConfig
from dss_jax.errors import UserError
from dss_jax.model.layer_stacks import stacked_params
from dss_jax.parallel.mesh import make_mesh
from dss_jax.parallel.sharding import shardings_like
from dss_jax.train.optimizer import make_optimizer

OPTIMIZER = make_optimizer(OptimizerConfig(), 300)


@jax.jit
def updated(params, state, gradient):
  return OPTIMIZER.update(gradient, state, params)


def factored(state):
  """The FactoredStates of an optimizer's state: one, or one for each stack and the rest."""
  is_one = lambda node: isinstance(node, optax.FactoredState)  # noqa: E731
  return [leaf for leaf in jax.tree.leaves(state, is_leaf=is_one) if is_one(leaf)]


def stored(state):
  """The moments of an unrolled network's optimizer, as a checkpoint has them."""
  (one,) = factored(state)

  def arrays(tree):
    return {
      weight_name(path): in_memory(np.asarray(leaf))
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
      if leaf.shape != (1,)
    }

  return StoredMoments(
    step=int(one.count),
    v=arrays(one.v),
    v_row=arrays(one.v_row),
    v_col=arrays(one.v_col),
    has_momentum=False,
  )


@pytest.fixture(scope="module")
def after_two(drawn_weights):
  """The state after two updates, and the third update."""
  params, *gradients = (drawn_weights(seed) for seed in range(4))
  state = OPTIMIZER.init(params)
  for gradient in gradients[:2]:
    _, state = updated(params, state, gradient)
  third, _ = updated(params, state, gradients[2])
  return state, third


@pytest.mark.parametrize("layout", [lambda tree: tree, stacked_params], ids=["unrolled", "scanned"])
def test_the_next_update_is_the_uninterrupted_ones(after_two, layout, drawn_weights):
  state, want = after_two
  params, gradient = layout(drawn_weights(0)), layout(drawn_weights(3))
  fresh = OPTIMIZER.init(params)
  check_moments(fresh, stored(state), "here")
  got, _ = updated(params, with_moments(fresh, stored(state)), gradient)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), got, layout(want))
  # Else the moments would not matter.
  other, _ = updated(params, fresh, gradient)
  differs = jax.tree.map(lambda a, b: not np.allclose(a, b, rtol=1e-2), got, other)
  assert all(jax.tree.leaves(differs))


def test_each_device_gets_its_part(after_two, drawn_weights):
  """Laid out as the optimizer's state is: a row's moments by 'model', as its weight is."""
  mesh = make_mesh(MeshConfig(data=2, model=4), 4)
  params = drawn_weights(0)

  def sharding(leaf):
    axis = "model" if leaf.shape[0] % 4 == 0 else None
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(axis))

  split = jax.tree.map(sharding, params)
  shape = jax.eval_shape(OPTIMIZER.init, params)
  shardings = shardings_like(shape, params, split, mesh)
  fresh = jax.device_put(OPTIMIZER.init(params), shardings)
  (got,) = factored(with_moments(fresh, stored(after_two[0])))
  (want,) = factored(after_two[0])
  jax.tree.map(np.testing.assert_array_equal, got, want)
  column = got.v_col["token_embedder"]["embedding"]
  assert {shard.data.shape for shard in column.addressable_shards} == {(160 // 4,)}


def test_moments_of_another_shape_are_named(after_two, drawn_weights):
  moments = stored(after_two[0])
  name = "encoder.layers_1.mlp.wo.kernel"
  wrong = {**moments.v_row, name: in_memory(np.ones(144, np.float32))}
  shape = jax.eval_shape(OPTIMIZER.init, drawn_weights(0))
  with pytest.raises(UserError, match="has the shape") as caught:
    check_moments(shape, StoredMoments(2, moments.v, wrong, moments.v_col, False), "here")
  assert f"here: Adafactor's v_row of the weight {name} has the shape (144,), but (128,) here" in (
    str(caught.value)
  )
  del wrong[name]
  with pytest.raises(UserError, match=r"has the shape \(1,\)"):
    check_moments(shape, StoredMoments(2, moments.v, wrong, moments.v_col, False), "here")
