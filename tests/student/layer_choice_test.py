"""`--initial-layers`: a student with fewer layers starts from some of a larger checkpoint's."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest

from dss_jax.checkpoints.arrays import in_memory, model_shapes
from dss_jax.checkpoints.hf_write import write_hf
from dss_jax.checkpoints.t5x_read import read_t5x
from dss_jax.checkpoints.t5x_write import write_t5x, write_t5x_orbax
from dss_jax.cli import main as cli
from dss_jax.config.gin_loader import Binding, load_config
from dss_jax.config.schema import MeshConfig, RunConfig
from dss_jax.data.vocabularies import load_vocabulary
from dss_jax.errors import UserError
from dss_jax.model.layer_stacks import unrolled
from dss_jax.parallel.mesh import make_mesh
from dss_jax.student.export import best_weights
from dss_jax.student.initialise import InitialCheckpoint, check_initial_settings
from dss_jax.student.layer_choice import choose_layers, parse_layers
from dss_jax.student.open_checkpoint import open_checkpoint
from dss_jax.student.registration import register_student
from dss_jax.student.student import Student

FLOAT32 = np.dtype(np.float32)
BYTES = load_vocabulary("bytes")


def config_of(path, layers=None, **model):
  settings = [
    Binding("MODEL_DIR", "unused", "test"),
    Binding("INITIAL_CHECKPOINT_PATH", str(path), "test"),
    Binding("RunConfig.initial_layers", layers, "test"),
    *(Binding(f"T5Config.{name}", value, "test") for name, value in model.items()),
  ]
  return load_config(RunConfig, ["runs/distill.gin", "models/tiny.gin"], settings)


def deep(encoder, decoder, **changes):
  model = dataclasses.replace(config_of("").model, vocab_size=384, **changes)
  return dataclasses.replace(model, num_encoder_layers=encoder, num_decoder_layers=decoder)


@pytest.mark.parametrize(
  ("have", "need", "layers"),
  [
    # Shleifer & Rush's tables for 12 and 16 layers.
    (12, 1, (0,)),
    (12, 2, (0, 11)),
    (12, 3, (0, 6, 11)),
    (12, 6, (0, 2, 4, 7, 9, 11)),
    (16, 4, (0, 5, 10, 15)),
    (16, 6, (0, 3, 6, 9, 12, 15)),
    (3, 3, (0, 1, 2)),
  ],
)
def test_uniform_is_evenly_spaced(have, need, layers):
  choice = choose_layers("uniform", deep(have, 13), deep(need, 1))
  assert choice == {"encoder": layers, "decoder": (0,)}


def test_each_rule_and_each_stack_of_its_own():
  theirs, ours = deep(6, 5), deep(2, 3)
  assert choose_layers("first", theirs, ours) == {"encoder": (0, 1), "decoder": (0, 1, 2)}
  assert choose_layers("last", theirs, ours) == {"encoder": (4, 5), "decoder": (2, 3, 4)}
  both = choose_layers("0,2,5", deep(6, 6), deep(3, 3))
  assert both == {"encoder": (0, 2, 5), "decoder": (0, 2, 5)}
  parted = choose_layers("encoder = 1, 5; decoder=uniform", theirs, ours)
  assert parted == {"encoder": (1, 5), "decoder": (0, 2, 4)}
  assert choose_layers("decoder=last", theirs, deep(6, 1)) == {
    "encoder": tuple(range(6)),
    "decoder": (4,),
  }


@pytest.mark.parametrize(
  "text",
  ["", "every", "0;1", "0,,1", "-1,2", "head=0", "encoder=", "encoder=0;encoder=1", "0;encoder=1"],
)
def test_any_other_text_is_refused(text):
  with pytest.raises(UserError, match=r"is no choice of layers; give uniform, first, last"):
    parse_layers(text)


@pytest.mark.parametrize(
  ("text", "encoder", "decoder", "sentence"),
  [
    ("0,1", 2, 1, "takes 2 layers of the decoder, but the student has 1"),
    ("encoder=0", 1, 2, "takes 4 layers of the decoder, but the student has 2"),
    ("1,0", 2, 2, "the encoder's layers in the checkpoint are 0 to 3; give some of them"),
    ("1,1", 2, 2, "each once and in their order"),
    ("2,4", 2, 2, "the encoder's layers in the checkpoint are 0 to 3"),
    ("uniform", 5, 2, "the student's encoder has 5 layers and the checkpoint's only 4; set"),
    ("uniform", 4, 4, "the student has all 4 and 4 layers of the checkpoint; give it fewer"),
  ],
)
def test_numbers_that_do_not_fit_are_refused(text, encoder, decoder, sentence):
  with pytest.raises(UserError, match=re.escape(f"--initial-layers {text}: ")) as caught:
    choose_layers(text, deep(4, 4), deep(encoder, decoder))
  assert sentence in str(caught.value)
  assert "\n" not in str(caught.value)


def drawn(model):
  generator = np.random.default_rng(0)
  return {
    name: in_memory(generator.normal(size=shape).astype(np.float32))
    for name, shape in model_shapes(model).items()
  }


def write(form, folder, arrays, model):
  if form == "t5x":
    return write_t5x(arrays, folder, step=5, dtype=FLOAT32)
  if form == "orbax":
    return write_t5x_orbax(arrays, folder, step=5, dtype=FLOAT32)
  folder.mkdir()
  write_hf(arrays, model, folder, dtype=FLOAT32, eos_id=1, max_new_tokens=8)
  return folder


def flat(params, model):
  return {
    ".".join(key.key for key in path): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(unrolled(params, model)[0])
  }


def origin(name, layers):
  """The checkpoint's name of a student's weight."""
  stack, _, rest = name.partition(".layers_")
  if not rest:
    return name
  number, _, weight = rest.partition(".")
  return f"{stack}.layers_{layers[stack][int(number)]}.{weight}"


def assert_taken(initial, arrays, layers):
  mesh = make_mesh(MeshConfig(data=2, model=2), 4)
  weights = flat(initial.params(mesh), initial.config.model)
  assert set(weights) == set(model_shapes(initial.config.model))
  for name, weight in weights.items():
    stored = arrays[origin(name, layers)].whole().astype(np.float32)
    np.testing.assert_array_equal(weight, stored)


@pytest.mark.parametrize("form", ["t5x", "orbax", "hf"])
@pytest.mark.parametrize("shared_bias", [True, False])
@pytest.mark.parametrize("scan_layers", [True, False])
def test_the_chosen_layers_weights_are_taken(tmp_path, form, shared_bias, scan_layers):
  """With the relative position bias of each layer, or the one of its stack."""
  theirs = deep(5, 3, shared_relpos_bias=shared_bias)
  arrays = drawn(theirs)
  path = write(form, tmp_path / "out", arrays, theirs)
  config = config_of(path, "encoder=1,4;decoder=last", scan_layers=scan_layers)
  initial = InitialCheckpoint(config, BYTES)
  assert initial.config.model.shared_relpos_bias == shared_bias
  layers = {"encoder": (1, 4), "decoder": (1, 2)}
  assert initial.layers == layers
  said = "taking its layers 1, 4 of the encoder's 5 and 1, 2 of the decoder's 3"
  assert said in initial.notes[-1]
  assert_taken(initial, arrays, layers)


def test_layers_of_a_scanned_t5x_checkpoint(shared):
  path = shared / "checkpoints/t5x_native_scan_bf16"
  arrays = read_t5x(path)
  theirs = open_checkpoint(str(path)).model
  fields = ("emb_dim", "num_heads", "head_dim", "mlp_dim")
  sizes = {name: getattr(theirs, name) for name in fields}
  sizes.update(num_encoder_layers=1, num_decoder_layers=1)
  last = {"encoder": (theirs.num_encoder_layers - 1,), "decoder": (theirs.num_decoder_layers - 1,)}
  initial = InitialCheckpoint(config_of(path, "last", **sizes), BYTES)
  assert_taken(initial, arrays, last)


def test_without_the_flag_another_depth_stays_an_error_that_names_it(tmp_path):
  path = write("t5x", tmp_path, drawn(deep(4, 4)), deep(4, 4))
  with pytest.raises(UserError) as caught:
    InitialCheckpoint(config_of(path), BYTES)
  assert "but --student tiny needs no such weight; to start from some of its 4" in str(caught.value)
  assert "give --initial-layers uniform, first, last" in str(caught.value)
  # Where the depth is not all that differs, choosing layers would not help.
  wide = deep(4, 4, mlp_dim=24)
  path = write("t5x", tmp_path / "wide", drawn(wide), wide)
  with pytest.raises(UserError) as caught:
    InitialCheckpoint(config_of(path), BYTES)
  assert "--initial-layers" not in str(caught.value)
  with pytest.raises(UserError, match=r"mlp\.wi_0\.kernel is \(8, 24\), but --student tiny needs"):
    InitialCheckpoint(config_of(path, "first"), BYTES)


def test_settings_that_contradict_each_other():
  moments = dataclasses.replace(config_of("path", "first"), initial_optimizer_state=True)
  with pytest.raises(UserError, match=r"--initial-layers first takes some of its layers"):
    check_initial_settings(moments)
  alone = dataclasses.replace(config_of("", "first"), initial_checkpoint=None)
  with pytest.raises(UserError, match=r"--initial-layers: there is no checkpoint"):
    check_initial_settings(alone)
  with pytest.raises(UserError, match=r"--initial-layers odd: is no choice of layers"):
    check_initial_settings(config_of("", "odd"))


@pytest.mark.slow
def test_the_command_shrinks_a_student_and_resumes(tmp_path, capsys, monkeypatch):
  rows = [{"input_text": f"{i}", "output_text": "x", "rationale": "y"} for i in range(8)]
  (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

  def distill(model_dir, *flags):
    arguments = (
      *("distill", "--vocabulary", "bytes", "--mesh", "data=1", "--batch-size", "4"),
      *("--dataset", tmp_path / "train.jsonl", "--model-dir", tmp_path / model_dir),
      *("--max-input-tokens", "16", "--max-output-tokens", "8", *flags),
    )
    monkeypatch.setattr("sys.argv", ["dss", *map(str, arguments)])
    try:
      cli.main()
      code = 0
    except SystemExit as stopped:
      code = stopped.code
    return code, capsys.readouterr().err

  layers = ("--gin", "T5Config.num_encoder_layers=3")
  code, err = distill("deep", "--student", "tiny", "--train-steps", "1", *layers)
  assert code == 0, err
  start = ("--initial-checkpoint", tmp_path / "deep")
  shallow = (*start, "--gin", "T5Config.num_encoder_layers=2")
  code, err = distill("one", *start, "--initial-layers", "uniform", "--train-steps", "1", *layers)
  assert code == 2
  assert "the student has all 3 and 2 layers of the checkpoint" in err
  code, err = distill("one", *shallow, "--train-steps", "1")
  assert code == 2
  assert "give --initial-layers uniform" in err
  assert not (tmp_path / "one").exists()
  # No update: the student is what it started from.
  still = ("--initial-layers", "uniform", "--learning-rate-multiplier", "0")
  code, err = distill("one", *shallow, *still, "--train-steps", "1")
  assert code == 0, err
  assert "taking its layers 0, 2 of the encoder's 3 and 0, 1 of the decoder's 2" in err
  chosen = {"encoder": [0, 2], "decoder": [0, 1]}
  student, theirs = Student.open(tmp_path / "one"), Student.open(tmp_path / "deep")
  assert student.card["initial_layers"] == chosen
  _, ours = best_weights(student)
  _, stored = best_weights(theirs)
  for name, weight in ours.items():
    np.testing.assert_array_equal(weight.whole(), stored[origin(name, chosen)].whole())
  version = register_student(tmp_path / "one", "shrunk", tmp_path / "registry")
  assert version.record["lineage"]["initial_layers"] == chosen
  code, err = distill("one", *shallow, *still, "--train-steps", "2")
  assert code == 0, err
  assert Student.open(tmp_path / "one").card["steps"] == 2
  code, err = distill("one", *shallow, "--initial-layers", "last", "--train-steps", "2")
  assert code == 2
  assert "RunConfig.initial_layers was 'uniform', is 'last'" in err
