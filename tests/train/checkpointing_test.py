"""Checkpoints: which are kept, that they come back to the last bit, and what damage says."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dss_jax.errors import UserError
from dss_jax.storage.durability import whenever_durable
from dss_jax.train.checkpointing import Checkpoints, has_checkpoint, rank_of
from dss_jax.train.step import TrainState

OPTIMIZER = optax.adam(1e-3)


def state_on(mesh, step, *, seed=0):
  """A state with random bits in every leaf, its kernel split over both axes of the mesh."""
  rng = np.random.default_rng(seed)

  def draw(leaf):
    if jnp.issubdtype(leaf.dtype, jnp.integer):
      return np.asarray(rng.integers(0, 1000), leaf.dtype)
    return rng.normal(size=leaf.shape).astype(leaf.dtype)

  params = {"layer": {"kernel": np.zeros((8, 4), np.float32)}, "scale": np.zeros(4, jnp.bfloat16)}
  state = TrainState(step=np.int32(step), params=params, opt_state=OPTIMIZER.init(params))
  state = dataclasses.replace(jax.tree.map(draw, state), step=np.int32(step))

  def place(leaf):
    spec = PartitionSpec("data", "model") if leaf.ndim == 2 else PartitionSpec()
    return jax.device_put(leaf, NamedSharding(mesh, spec))

  return jax.tree.map(place, state)


def shape_of(state):
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
  )


def assert_equal_bits(got, want):
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert ours.dtype == theirs.dtype
    assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


@pytest.fixture
def opened(tmp_path):
  """Opens tmp_path/checkpoints; what was opened is closed in the end."""
  with contextlib.ExitStack() as stack:

    def opened(**options):
      checkpoints = Checkpoints(tmp_path / "checkpoints", **{"keep_best": True, **options})
      stack.callback(checkpoints.close)
      return checkpoints

    yield opened


@pytest.fixture
def mesh(mesh_of):
  return mesh_of(8, 1)


@pytest.fixture
def steps_kept(tmp_path):
  return lambda: sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())


def metrics(accuracy, loss):
  return {"accuracy": accuracy, "loss": loss}


def test_the_newest_and_the_best_are_kept(opened, mesh, steps_kept):
  checkpoints = opened()
  kept = []
  for step, accuracy in enumerate((0.5, 0.7, 0.6, 0.4, 0.8, 0.1), 1):
    checkpoints.save(state_on(mesh, step), step, {}, metrics(accuracy, 1.0))
    checkpoints.wait()
    kept.append((steps_kept(), checkpoints.best_step(), checkpoints.latest_step()))
  assert kept == [
    ([1], 1, 1), ([2], 2, 2), ([2, 3], 2, 3), ([2, 4], 2, 4), ([5], 5, 5), ([5, 6], 5, 6)
  ]  # fmt: skip


@pytest.mark.parametrize(
  ("evaluations", "best"),
  [
    ([(0.5, 1.0), (0.5, 0.9), (0.5, 1.1)], 2),  # alike in accuracy, the smallest loss
    ([(0.5, 0.1), (0.6, 9.0), (0.5, 0.1)], 2),  # accuracy before loss
    ([(0.5, 1.0), (0.5, 1.0)], 2),  # alike in both, the newest
    ([(0.0, 1.0), (0.0, 0.5), (0.0, 0.7)], 2),
  ],
)
def test_checkpoints_of_older_programs_are_ranked_by_accuracy_then_loss(
  opened, mesh, evaluations, best
):
  checkpoints = opened()
  for step, each in enumerate(evaluations, 1):
    checkpoints.save(state_on(mesh, step), step, {}, metrics(*each))
  checkpoints.wait()
  assert checkpoints.best_step() == best
  assert (
    max(range(len(evaluations)), key=lambda i: (rank_of(metrics(*evaluations[i])), i)) + 1 == best
  )


def test_the_last_that_was_best_is_the_best(opened, mesh, steps_kept):
  """As the run says, whatever accuracy and loss say."""
  checkpoints = opened()
  kept = []
  for step, (accuracy, is_best) in enumerate(
    [(0.5, True), (0.4, True), (0.9, False), (0.3, True), (0.4, False)], start=1
  ):
    best_at = step if is_best else -1
    ranking = {**metrics(accuracy, 1.0), "best_at": float(best_at)}
    checkpoints.save(state_on(mesh, step), step, {}, ranking)
    checkpoints.wait()
    kept.append((steps_kept(), checkpoints.best_step()))
  assert kept == [([1], 1), ([2], 2), ([2, 3], 2), ([4], 4), ([4, 5], 4)]
  assert opened(read_only=True).best_step() == 4


def test_a_checkpoint_that_was_not_evaluated_is_never_the_best(opened, mesh, steps_kept):
  checkpoints = opened()
  checkpoints.save(state_on(mesh, 1), 1, {}, None)
  checkpoints.wait()
  assert checkpoints.best_step() == 1  # the newest, for want of an evaluation
  checkpoints.save(state_on(mesh, 2), 2, {}, metrics(0.0, 9.0))
  for step in (3, 4):
    checkpoints.save(state_on(mesh, step), step, {}, None)
  checkpoints.wait()
  assert (checkpoints.best_step(), steps_kept()) == (2, [2, 4])


def test_without_selection_only_the_newest_is_kept(opened, mesh, steps_kept):
  checkpoints = opened(keep_best=False)
  for step, accuracy in ((1, 0.9), (2, 0.1)):
    checkpoints.save(state_on(mesh, step), step, {}, metrics(accuracy, 1.0))
  checkpoints.wait()
  assert steps_kept() == [2]


def test_everything_comes_back_to_the_last_bit(opened, mesh):
  progress = {"best": -float("inf"), "accuracy": 1 / 3, "stopped": False, "metrics": {"a": 0.1}}
  state = state_on(mesh, 7)
  checkpoints = opened()
  checkpoints.save(state, 7, progress, metrics(0.5, 1.0))
  checkpoints.wait()
  again = opened()
  assert (again.latest_step(), again.best_step()) == (7, 7)
  restored, restored_progress = again.restore(7, shape_of(state))
  assert_equal_bits(restored, state)
  assert restored_progress == progress
  assert_equal_bits(again.restore_params(7, shape_of(state).params), state.params)


@pytest.mark.parametrize("shape", [(1, 1), (2, 4), (4, 2)], ids=str)
def test_it_restores_onto_another_mesh(opened, mesh, mesh_of, shape):
  state = state_on(mesh, 3)
  checkpoints = opened()
  checkpoints.save(state, 3, {}, None)
  checkpoints.wait()
  other = shape_of(state_on(mesh_of(*shape), 0, seed=1))
  restored, _ = opened().restore(3, other)
  assert_equal_bits(restored, state)
  got = jax.tree.map(lambda leaf: leaf.sharding, restored)
  assert got == jax.tree.map(lambda leaf: leaf.sharding, other)
  params = opened(read_only=True).restore_params(3, other.params)
  assert jax.tree.map(lambda leaf: leaf.sharding, params) == got.params


def test_what_happens_to_the_state_after_save_does_not_matter(opened, mesh):
  """The step donates it while the checkpoint is still being written."""
  state = state_on(mesh, 1)
  want = jax.device_get(state)
  shape = shape_of(state)
  checkpoints = opened()
  checkpoints.save(state, 1, {}, None)
  jax.tree.map(lambda leaf: leaf.delete(), state)
  checkpoints.wait()
  assert_equal_bits(checkpoints.restore(1, shape)[0], want)


def test_where_somebody_listens_it_is_whole_when_save_returns(opened, mesh, tmp_path):
  """So an encrypted job has sealed each checkpoint before it takes the next step."""
  heard = []
  folder = tmp_path / "checkpoints"
  checkpoints = opened()
  with whenever_durable(lambda: heard.append(sorted(path.name for path in folder.iterdir()))):
    for step, accuracy in ((1, 0.5), (2, 0.9), (3, 0.1)):
      checkpoints.save(state_on(mesh, step), step, {}, metrics(accuracy, 1.0))
      assert str(step) in heard[-1]
  assert heard[-1] == ["2", "3"]


@pytest.fixture
def saved(opened, mesh, tmp_path):
  """(the folder of a saved step 5, its state's shape)."""
  state = state_on(mesh, 5)
  checkpoints = opened()
  checkpoints.save(state, 5, {"a": 1}, metrics(0.5, 1.0))
  checkpoints.wait()
  return tmp_path / "checkpoints" / "5", shape_of(state)


def assert_one_sentence(error, *words):
  sentence = str(error.value)
  assert "\n" not in sentence
  assert len(sentence) < 600
  for word in words:
    assert word in sentence


@pytest.mark.parametrize("part", ["params", "optimizer", "progress"])
@pytest.mark.parametrize("damage", ["emptied", "removed"])
def test_a_damaged_checkpoint_is_named(opened, saved, part, damage):
  folder, shape = saved
  files = [path for path in (folder / part).rglob("*") if path.is_file()]
  assert files
  for path in files:
    if damage == "emptied":
      path.write_bytes(b"")
    else:
      path.unlink()
  with pytest.raises(UserError) as error:
    opened().restore(5, shape)
  assert_one_sentence(error, str(folder), "cannot be restored", "remove")


def test_another_shape_is_refused(opened, saved, mesh):
  folder, shape = saved
  other = dataclasses.replace(
    shape, params={**shape.params, "scale": jax.ShapeDtypeStruct((5,), jnp.bfloat16)}
  )
  with pytest.raises(UserError) as error:
    opened().restore(5, other)
  assert_one_sentence(error, str(folder))
  with pytest.raises(UserError) as error:
    opened().restore_params(5, other.params)
  assert_one_sentence(error, str(folder))


def test_a_checkpoint_that_a_kill_cut_short_does_not_count(opened, saved, tmp_path):
  _, shape = saved
  half = tmp_path / "checkpoints" / "6.orbax-checkpoint-tmp-123"
  half.mkdir()
  (half / "params").mkdir()
  checkpoints = opened()
  assert checkpoints.latest_step() == 5
  assert checkpoints.restore(5, shape)[1] == {"a": 1}


def test_has_checkpoint(opened, mesh, tmp_path):
  folder = tmp_path / "checkpoints"
  assert not has_checkpoint(folder)
  checkpoints = opened()
  assert not has_checkpoint(folder)
  (folder / "6.orbax-checkpoint-tmp-123").mkdir()
  assert not has_checkpoint(folder)
  checkpoints.save(state_on(mesh, 1), 1, {}, None)
  checkpoints.wait()
  assert has_checkpoint(folder)


def test_a_file_where_the_folder_should_be(opened, tmp_path):
  (tmp_path / "checkpoints").write_text("")
  with pytest.raises(UserError, match="is a file where the checkpoints should be"):
    opened()


@pytest.mark.parametrize("name", ["runs [final]", "a*b?", "[!x]", "50% {a}#x", "\u00fcber \u597d"])
def test_a_folder_of_any_name_is_restored_here_and_elsewhere(tmp_path, mesh, name):
  directory = tmp_path / name / "checkpoints"
  state = state_on(mesh, 3)
  with contextlib.closing(Checkpoints(directory, keep_best=False)) as checkpoints:
    checkpoints.save(state, 3, {"a": 1}, None)
    checkpoints.wait()
  assert has_checkpoint(directory)
  (tmp_path / name).rename(tmp_path / "moved")
  for parent in ("moved", name):
    if parent == name:
      (tmp_path / "moved").rename(tmp_path / name)
    place = tmp_path / parent / "checkpoints"
    with contextlib.closing(Checkpoints(place, keep_best=False, read_only=True)) as checkpoints:
      assert checkpoints.latest_step() == 3
      restored, progress = checkpoints.restore(3, shape_of(state))
      assert_equal_bits(restored, state)
      assert progress == {"a": 1}
      assert_equal_bits(checkpoints.restore_params(3, shape_of(state).params), state.params)


def test_files_of_others_are_no_checkpoints(tmp_path, opened, mesh):
  directory = tmp_path / "checkpoints"
  directory.mkdir()
  for name in ("@eaDir", ".ipynb_checkpoints", "3 (1)", "lost+found", "#recycle"):
    (directory / name).mkdir()
  for name in (".DS_Store", "desktop.ini", "Thumbs.db", "4", "._3", "\uff15"):
    (directory / name).write_bytes(b"")
  assert not has_checkpoint(directory)
  state = state_on(mesh, 3)
  checkpoints = opened()
  assert checkpoints.latest_step() is None
  for step in (3, 6):
    checkpoints.save(state, step, {}, metrics(0.5, 1.0))
  checkpoints.wait()
  assert has_checkpoint(directory)
  again = opened(read_only=True)
  assert (again.latest_step(), again.best_step()) == (6, 6)
  assert_equal_bits(again.restore(6, shape_of(state))[0], state)


@pytest.mark.parametrize("method", ["save", "wait_until_finished"])
def test_a_disk_that_is_full_is_one_sentence(opened, mesh, tmp_path, monkeypatch, method):
  def full(*arguments, **options):
    raise ValueError(
      "RESOURCE_EXHAUSTED: Error writing: No space left on device [os_error_code=28]"
    )

  checkpoints = opened()
  state = state_on(mesh, 3)
  checkpoints.save(state, 3, {}, None)
  checkpoints.wait()
  monkeypatch.setattr(checkpoints._manager, method, full)

  def save():
    checkpoints.save(state, 6, {}, None)
    checkpoints.wait()

  with pytest.raises(UserError) as caught:
    save()
  assert str(caught.value) == (
    f"{tmp_path / 'checkpoints'}: a checkpoint cannot be written (No space left on device); make"
    " room there, and run the same command again to go on from the newest whole one"
  )
  monkeypatch.setattr(checkpoints._manager, "close", full)
  checkpoints.close()


def test_a_name_that_is_no_text_is_refused(tmp_path):
  with pytest.raises(UserError, match="not text in this terminal's encoding"):
    Checkpoints(tmp_path / "m\udcff", keep_best=False)


def test_what_is_beside_the_weights_is_an_item_of_its_own(opened, mesh, tmp_path):
  state = state_on(mesh, 2)
  beside = {"feature": {"kernel": state.params["layer"]["kernel"] + 1}}
  checkpoints = opened()
  for step, each in ((1, state), (2, dataclasses.replace(state, projections=beside))):
    checkpoints.save(each, step, {}, metrics(0.5, float(step)))
    checkpoints.wait()
    assert_equal_bits(checkpoints.restore(step, shape_of(each))[0], each)
    assert (tmp_path / "checkpoints" / str(step) / "projections").exists() == (step == 2)
