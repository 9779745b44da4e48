"""A student whose layers are scanned: every command takes it for the unrolled one that it is."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dss_jax.checkpoints.t5x_read import read_t5x
from dss_jax.config.gin_loader import Binding, load_config
from dss_jax.config.schema import LABEL, RATIONALE, MeshConfig, RunConfig
from dss_jax.data.pipeline import prepare
from dss_jax.data.sources import source_from_file
from dss_jax.data.vocabularies import load_vocabulary
from dss_jax.errors import UserError
from dss_jax.evaluation.evaluate import evaluate_student
from dss_jax.model.layer_stacks import stacked_params, unrolled
from dss_jax.model.t5 import init_params
from dss_jax.parallel.mesh import make_mesh
from dss_jax.student import model_dir as students
from dss_jax.student.export import best_weights, export_student
from dss_jax.student.initialise import InitialCheckpoint
from dss_jax.student.open_checkpoint import open_checkpoint
from dss_jax.student.predictor import Predictor
from dss_jax.student.student import Student
from dss_jax.train.checkpointing import Checkpoints
from dss_jax.train.step import TrainState

ROWS = [
  {"input_text": f"Add {n}.", "output_text": f"{n + 1}", "rationale": "One more."} for n in range(4)
]
BYTES = load_vocabulary("bytes")


def config_of(folder, **model):
  settings = [
    Binding("MODEL_DIR", str(folder / "model"), "test"),
    Binding("DATASET", str(folder / "train.jsonl"), "test"),
    Binding("VOCABULARY", "bytes", "test"),
    *(Binding(f"T5Config.{name}", value, "test") for name, value in model.items()),
  ]
  return load_config(RunConfig, ["runs/distill.gin", "models/tiny.gin"], settings)


def begun(folder, *, scan_layers):
  """The folder of a student with drawn weights, the same in either layout."""
  (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
  config = config_of(folder, scan_layers=scan_layers)
  data = prepare(config.data, (LABEL, RATIONALE))
  config = students.with_vocab_size(config, data.vocabulary)
  generator = np.random.default_rng(0)
  shapes = jax.eval_shape(
    lambda key: init_params(dataclasses.replace(config.model, scan_layers=False), key),
    jax.random.key(0),
  )
  params = jax.tree.map(
    lambda leaf: jnp.asarray(generator.normal(size=leaf.shape), jnp.float32), nn.meta.unbox(shapes)
  )
  with students.locked(config) as directory:
    card = students.begin(config, data)
    checkpoints = Checkpoints(directory / students.CHECKPOINTS, keep_best=True)
    state = TrainState(
      step=jnp.asarray(1),
      params=stacked_params(params) if scan_layers else params,
      opt_state={},
    )
    checkpoints.save(state, 1, {}, {"accuracy": 0.9, "loss": 1.0})
    checkpoints.wait()
    checkpoints.close()
    students.write_card(directory, {**card, "finished": True, "steps": 1, "best_step": 1})
  return directory


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
  return Student.open(begun(tmp_path_factory.mktemp("plain"), scan_layers=False))


@pytest.fixture(scope="module")
def scanned(tmp_path_factory):
  return Student.open(begun(tmp_path_factory.mktemp("scanned"), scan_layers=True))


@pytest.fixture
def mesh():
  return make_mesh(MeshConfig(data=2, model=2), 2)


def assert_same(one, other):
  jax.tree.map(lambda ours, theirs: np.testing.assert_array_equal(ours, theirs), one, other)


def test_the_two_layouts_are_on_disk(plain, scanned, mesh):
  """Else the tests here would compare a student with itself."""
  assert "layers_0" in plain.params(mesh)["encoder"]
  own = scanned.params(mesh)
  assert "layers" in own["encoder"]
  assert_same(unrolled(own, scanned.config.model)[0], plain.params(mesh))


@pytest.mark.parametrize("form", ["t5x", "t5x-orbax", "hf"])
def test_it_is_exported_unrolled(plain, scanned, tmp_path, form):
  written = [
    export_student(student.directory, tmp_path / name, form)
    for name, student in (("plain", plain), ("scanned", scanned))
  ]
  ours, theirs = (open_checkpoint(each["output"]).arrays for each in written)
  assert set(ours) == set(theirs)
  for name in ours:
    np.testing.assert_array_equal(ours[name].whole(), theirs[name].whole())


def test_its_answers_and_figures_are_the_same(plain, scanned, monkeypatch):
  answers, figures = [], []
  answer = Predictor.answers

  def recorded(*arguments, **options):
    answers.append(answer(*arguments, **options))
    return answers[-1]

  monkeypatch.setattr(Predictor, "answers", recorded)
  source = source_from_file(str(plain.directory.parent / "train.jsonl"))
  for student in (plain, scanned):
    judgement = evaluate_student(student, source, MeshConfig(data=1))
    figures.append({**judgement.report, "model": None})
  assert any(answers[0])
  assert answers[0] == answers[1]
  assert figures[0] == figures[1]


def initial_params(path, mesh, tmp_path, **model):
  config = config_of(tmp_path, **model)
  config = dataclasses.replace(config, initial_checkpoint=str(path))
  initial = InitialCheckpoint(config, BYTES)
  return initial.params(mesh), initial.config.model


@pytest.mark.parametrize("scan_layers", [True, False])
def test_a_run_starts_from_a_student_of_either_layout(plain, scanned, mesh, tmp_path, scan_layers):
  for student in (plain, scanned):
    params, model = initial_params(student.directory, mesh, tmp_path, scan_layers=scan_layers)
    assert model.scan_layers == scan_layers
    assert ("layers" in params["encoder"]) == scan_layers
    assert_same(unrolled(params, model)[0], plain.params(mesh))


@pytest.mark.parametrize("form", ["t5x", "t5x-orbax", "hf"])
def test_a_scanned_run_starts_from_other_programs_weights(plain, mesh, tmp_path, form):
  written = export_student(plain.directory, tmp_path / "out", form)
  params, model = initial_params(written["output"], mesh, tmp_path, scan_layers=True)
  assert_same(params, stacked_params(unrolled(plain.params(mesh), plain.config.model)[0]))
  assert model.scan_layers


def test_a_scanned_run_starts_from_t5x_s_scanned_weights(shared, mesh, tmp_path):
  """Of a T5X model with a bias in each layer, in bfloat16: bit by bit what is read unrolled."""
  path = shared / "checkpoints/t5x_native_scan_bf16"
  theirs = open_checkpoint(str(path)).model
  fields = ("emb_dim", "num_heads", "head_dim", "mlp_dim", "num_encoder_layers")
  sizes = {name: getattr(theirs, name) for name in (*fields, "num_decoder_layers")}
  params, model = initial_params(path, mesh, tmp_path, scan_layers=True, **sizes)
  assert not model.shared_relpos_bias
  flat = {
    ".".join(key.key for key in place): leaf
    for place, leaf in jax.tree_util.tree_leaves_with_path(unrolled(params, model)[0])
  }
  stored = read_t5x(path)
  assert set(flat) == set(stored)
  for name, leaf in flat.items():
    np.testing.assert_array_equal(leaf, stored[name].whole().astype(np.float32))


def test_the_other_layout_is_another_run(scanned, tmp_path):
  other = dataclasses.replace(
    scanned.config, model=dataclasses.replace(scanned.config.model, scan_layers=False)
  )
  with pytest.raises(UserError, match=r"T5Config\.scan_layers was True, is False"):
    students.check_directory(other)
  again = dataclasses.replace(
    scanned.config, model=dataclasses.replace(scanned.config.model, remat="full")
  )
  students.check_directory(again)


def test_weights_are_read_from_disk_by_their_unrolled_names(scanned):
  _, arrays = best_weights(scanned)
  kernel = arrays["decoder.layers_1.mlp.wo.kernel"]
  whole = scanned.params(make_mesh(MeshConfig(data=1), 1))
  np.testing.assert_array_equal(
    kernel.whole(), whole["decoder"]["layers"]["mlp"]["wo"]["kernel"][1]
  )
