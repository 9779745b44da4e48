"""T5X's own loaders and decoders on what the student writes, and the student's on T5X's."""

import functools

import jax
import numpy as np
import pytest

from dss_jax.checkpoints.arrays import in_memory
from dss_jax.checkpoints.t5x_write import write_t5x, write_t5x_orbax
from dss_jax.decoding.beam import beam_search
from dss_jax.decoding.greedy import greedy
from dss_jax.student.open_checkpoint import open_checkpoint

WHY = "T5X is not installed (docs/t5x.md)"
pytestmark = pytest.mark.t5x
pytest.importorskip("t5x.models", reason=WHY, exc_type=ImportError)
checkpoints = pytest.importorskip("t5x.checkpoints")
decoding = pytest.importorskip("t5x.decoding")
partitioning = pytest.importorskip("t5x.partitioning")
utils = pytest.importorskip("t5x.utils")

STEP = 7
WRITERS = {"t5x": write_t5x, "t5x-orbax": write_t5x_orbax}
TOKENS = 12


@pytest.fixture(scope="module")
def written(params, tmp_path_factory):
  """The checkpoints by format, written as `dss export` does."""
  leaves = jax.tree_util.tree_leaves_with_path(params)
  arrays = {".".join(key.key for key in path): in_memory(leaf) for path, leaf in leaves}
  return {
    name: write(arrays, tmp_path_factory.mktemp(name), step=STEP, dtype=np.dtype("f"))
    for name, write in WRITERS.items()
  }


@pytest.fixture(scope="module")
def t5x_model(make_t5x_model):
  return make_t5x_model()


@pytest.fixture(scope="module")
def restored(t5x_model, written, tmp_path_factory):
  """T5X's state after it restored a format, as its trainer does before the first step."""
  shapes = {"encoder_input_tokens": (8, 4), "decoder_input_tokens": (8, 4)}
  partitioner = partitioning.PjitPartitioner(num_partitions=1)

  @functools.cache
  def restored(form):
    initializer = utils.TrainStateInitializer(
      optimizer_def=t5x_model.optimizer_def,
      init_fn=t5x_model.get_initial_variables,
      input_shapes=shapes,
      input_types=dict.fromkeys(shapes, np.int32),
      partitioner=partitioner,
    )
    path = str(written[form])
    state, _ = utils.create_checkpoint_manager_and_restore(
      initializer,
      partitioner,
      utils.RestoreCheckpointConfig(
        path=path, mode="specific", dtype="float32", assignment_map=(), fallback_to_scratch=True
      ),
      path,
      jax.random.PRNGKey(99),
      save_checkpoint_cfg=utils.SaveCheckpointConfig(period=1, save_dataset=False),
      model_dir=str(tmp_path_factory.mktemp("model_dir")),
      use_orbax=True,
    )
    return state

  return restored


def assert_same(got, want):
  assert set(got) == set(want)
  for name, branch in want.items():
    if isinstance(branch, dict):
      assert_same(got[name], branch)
    else:
      np.testing.assert_array_equal(np.asarray(got[name]), branch, strict=True)


def test_t5xs_loader_reads_the_native_format(written, params):
  loaded = checkpoints.load_t5x_checkpoint(str(written["t5x"]))
  assert_same(loaded["target"], params)
  assert int(loaded["state"]["step"]) == STEP


@pytest.mark.parametrize("form", WRITERS)
def test_t5xs_trainer_starts_from_it(form, restored, params):
  """All weights, bit for bit, and the step; the moments, which are not there, start fresh."""
  state = restored(form)
  assert_same(state.params, params)
  assert int(state.step) == STEP
  assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(state.param_states))


@pytest.mark.parametrize("form", ["native", "orbax"])
def test_what_t5x_writes_is_read(form, restored, params, tmp_path):
  state = restored("t5x")
  partitioner = partitioning.PjitPartitioner(num_partitions=1)
  if form == "native":
    writer = checkpoints.Checkpointer(state, partitioner, str(tmp_path))
  else:
    writer = checkpoints.OrbaxCheckpointManagerInterface(str(tmp_path), state, partitioner)
  writer.save(state)
  if form == "orbax":
    writer.close()
  opened = open_checkpoint(str(tmp_path / f"checkpoint_{STEP}"))
  leaves = jax.tree_util.tree_leaves_with_path(params)
  assert {".".join(key.key for key in path) for path, _ in leaves} == set(opened.arrays)
  for path, leaf in leaves:
    name = ".".join(key.key for key in path)
    np.testing.assert_array_equal(opened.arrays[name].whole(), leaf, strict=True)


@pytest.mark.parametrize("beams", [1, 4])
def test_t5x_decodes_the_students_ids(beams, t5x_model, restored, params, run_config):
  inputs = np.random.default_rng(2).integers(3, 300, (6, 14)).astype(np.int32)
  inputs[::2, 9:] = 0
  batch = {
    "encoder_input_tokens": inputs,
    "decoder_input_tokens": np.zeros((len(inputs), TOKENS), np.int32),
  }
  options = {"max_decode_tokens": TOKENS, "eos_id": 1, "pad_id": 0}
  if beams == 1:
    ours = greedy(params, run_config.model, inputs, **options)
    t5x_model._decode_fn = functools.partial(decoding.temperature_sample, temperature=0.0)
  else:
    ids, _ = beam_search(params, run_config.model, inputs, beams=beams, alpha=0.6, **options)
    ours = ids[:, 0]
    t5x_model._decode_fn = decoding.beam_search
  theirs, _ = t5x_model.predict_batch_with_aux(
    restored("t5x").params, batch, rng=jax.random.PRNGKey(0), num_decodes=beams
  )
  np.testing.assert_array_equal(np.asarray(theirs), np.asarray(ours))
