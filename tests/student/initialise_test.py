"""`--initial-checkpoint`: formats are found out, what fits is taken, what does not is named."""

import dataclasses
import io
import json
import pickle
import shutil
import sys
import types

import jax
import numpy as np
import pytest

from dss_jax.checkpoints.arrays import in_memory, model_shapes
from dss_jax.checkpoints.hf_write import write_hf
from dss_jax.checkpoints.t5x_read import read_t5x, read_t5x_moments
from dss_jax.checkpoints.t5x_write import write_t5x, write_t5x_orbax
from dss_jax.cli import main as cli
from dss_jax.config.gin_loader import Binding, load_config
from dss_jax.config.schema import MeshConfig, RunConfig, T5Config, student_names
from dss_jax.data.vocabularies import load_vocabulary
from dss_jax.errors import UserError
from dss_jax.model.layer_stacks import unrolled
from dss_jax.parallel.mesh import make_mesh
from dss_jax.student import model_dir as students
from dss_jax.student.initialise import (
  FROM_CHECKPOINT,
  InitialCheckpoint,
  matching_student,
  resumed,
  student_of,
)
from dss_jax.student.open_checkpoint import open_checkpoint
from dss_jax.train.optimizer import make_optimizer
from dss_jax.train.step import Trainer

FLOAT32 = np.dtype(np.float32)
BYTES = load_vocabulary("bytes")


def config_of(path, student="tiny", **model):
  settings = [
    Binding("MODEL_DIR", "unused", "test"),
    Binding("INITIAL_CHECKPOINT_PATH", str(path), "test"),
    *(Binding(f"T5Config.{name}", value, "test") for name, value in model.items()),
  ]
  return load_config(RunConfig, ["runs/distill.gin", f"models/{student}.gin"], settings)


def drawn(config):
  generator = np.random.default_rng(0)
  return {
    name: in_memory(generator.normal(size=shape).astype(np.float32))
    for name, shape in model_shapes(config).items()
  }


TINY = dataclasses.replace(config_of("").model, vocab_size=384)


def write(form, folder, arrays, config=TINY):
  """The path of a checkpoint of the format."""
  if form == "t5x":
    return write_t5x(arrays, folder, step=5, dtype=FLOAT32)
  if form == "orbax":
    return write_t5x_orbax(arrays, folder, step=5, dtype=FLOAT32)
  folder.mkdir(parents=True, exist_ok=True)
  write_hf(arrays, config, folder, dtype=FLOAT32, eos_id=1, max_new_tokens=8)
  return folder


def refusal(path, student="tiny", vocabulary=BYTES, **model):
  with pytest.raises(UserError) as caught:
    InitialCheckpoint(config_of(path, student, **model), vocabulary)
  assert "\n" not in str(caught.value)
  return str(caught.value)


@pytest.mark.parametrize("form", ["t5x", "orbax", "hf"])
def test_every_format_is_recognised_and_laid_out(tmp_path, form):
  arrays = drawn(TINY)
  path = write(form, tmp_path / "out", arrays)
  initial = InitialCheckpoint(config_of(path), BYTES)
  assert initial.config.model == TINY
  mesh = make_mesh(MeshConfig(data=2, model=4), 4)
  params = initial.params(mesh)
  for key, leaf in jax.tree_util.tree_leaves_with_path(params):
    name = ".".join(part.key for part in key)
    np.testing.assert_array_equal(leaf, arrays[name].whole(), strict=True)
  table = params["token_embedder"]["embedding"]
  assert {shard.data.shape for shard in table.addressable_shards} == {(384, 2)}
  assert str(path) in initial.notes[0]


@pytest.mark.parametrize(
  ("name", "form"),
  [
    ("t5x_native_tiny", "T5X native"),
    ("t5x_native_tiny/checkpoint", "T5X native"),
    ("t5x_orbax_tiny", "T5X Orbax"),
    ("t5x_orbax_tiny/state", "T5X Orbax"),
    ("t5x_native_scan_bf16", "T5X native"),
    ("t5x_tiny_t5_1_1.checkpoint_0", "T5X single file"),
    ("hf_t5_1_1_tiny", "Hugging Face"),
    ("hf_t5_1_0_tiny", "Hugging Face"),
  ],
)
def test_what_other_programs_wrote_is_recognised(shared, name, form):
  assert open_checkpoint(str(shared / "checkpoints" / name)).format == form


def test_of_a_t5x_model_dir_the_newest_checkpoint_is_taken(tmp_path):
  arrays = drawn(TINY)
  for step in (5, 10, 9):
    write_t5x(arrays, tmp_path, step=step, dtype=FLOAT32)
  # T5X leaves a file beside them that a student's folder has, too, in another program's words.
  (tmp_path / "config.gin").write_text("import __main__ as train_script\n")
  assert open_checkpoint(str(tmp_path)).path == str(tmp_path / "checkpoint_10")


def test_padding_rows_are_kept_and_said(shared):
  """32,000 pieces and 100 sentinels in a table of 32,128 rows."""
  path = shared / "checkpoints/t5x_tiny_t5_1_1.checkpoint_0"
  vocabulary = load_vocabulary(shared / "data/vocab/t5_spiece.model")
  initial = InitialCheckpoint(config_of(path), vocabulary)
  assert initial.config.model.vocab_size == 32_128
  assert "32,128 rows for the vocabulary's 32,100 ids; the last 28" in initial.notes[1]


def test_more_padding_than_ours_is_taken_over(tmp_path):
  wide = dataclasses.replace(TINY, vocab_size=1024)
  path = write("t5x", tmp_path, drawn(wide))
  assert InitialCheckpoint(config_of(path), BYTES).config.model.vocab_size == 1024
  message = refusal(path, vocab_size=384)
  assert "token_embedder.embedding is (1024, 8)" in message or "logits_dense" in message


def test_another_vocabulary_is_refused(shared, tmp_path):
  path = shared / "checkpoints/t5x_tiny_t5_1_1.checkpoint_0"
  message = refusal(path)
  assert "token_embedder.embedding is (32128, 8)" in message
  assert "has 384 ids and needs (384, 8)" in message
  narrow = write("t5x", tmp_path, drawn(dataclasses.replace(TINY, vocab_size=256)))
  assert "token_embedder.embedding is (256, 8)" in refusal(narrow)


@pytest.mark.parametrize("form", ["t5x", "orbax", "hf"])
def test_another_size_names_the_first_weight_and_the_student(tmp_path, form):
  mini = dataclasses.replace(config_of("", "mini").model, vocab_size=384)
  path = write(form, tmp_path, drawn(mini), mini)
  message = refusal(path)
  name = "decoder.decoder_norm.scale"
  assert f"its weight {name} is ({mini.emb_dim},), but --student tiny needs (8,)" in message
  assert "--student mini" in message
  assert str(path) in message


def test_another_end_mark_than_the_vocabularys_is_refused(tmp_path, train_pieces):
  write_hf(drawn(TINY), TINY, tmp_path, dtype=FLOAT32, eos_id=3, max_new_tokens=8)
  message = refusal(tmp_path)
  assert "ends texts with id 3 (eos_token_id), but the vocabulary bytes with id 1" in message
  own = load_vocabulary(train_pieces(unk_id=1, bos_id=2, eos_id=3))
  assert InitialCheckpoint(config_of(tmp_path), own).config.model == TINY


def test_missing_and_extra_weights_are_named(tmp_path):
  arrays = drawn(TINY)
  name = "encoder.layers_1.pre_mlp_layer_norm.scale"
  less = {key: array for key, array in arrays.items() if key != name}
  message = refusal(write("t5x", tmp_path / "less", less))
  assert f"its weight {name} is absent, but --student tiny needs (8,)" in message
  more = {**arrays, "encoder.layers_1.mlp.bias": in_memory(np.zeros(3, np.float32))}
  message = refusal(write("orbax", tmp_path / "more", more))
  assert "encoder.layers_1.mlp.bias is (3,), but --student tiny needs no such weight" in message


def test_another_activation_is_refused(tmp_path):
  """relu and gelu have weights of the same shapes."""
  gated_relu = dataclasses.replace(TINY, mlp_activations=("relu", "linear"))
  message = refusal(write("hf", tmp_path, drawn(TINY), gated_relu))
  assert "('relu', 'linear')" in message


def test_a_bias_in_each_layer_is_taken_over(tmp_path):
  own = dataclasses.replace(TINY, shared_relpos_bias=False)
  path = write("t5x", tmp_path, drawn(own))
  assert not InitialCheckpoint(config_of(path), BYTES).config.model.shared_relpos_bias


def test_what_is_no_checkpoint(tmp_path):
  empty = tmp_path / "empty"
  empty.mkdir()
  assert "is no checkpoint; give a student's --model-dir" in refusal(empty)
  assert "no such file or folder" in refusal(tmp_path / "missing")
  (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps([1]))
  assert "is a pickle" in refusal(tmp_path / "pytorch_model.bin")
  (tmp_path / "model.safetensors").write_bytes(b"")
  assert "give the folder" in refusal(tmp_path / "model.safetensors")
  (tmp_path / "model.safetensors").unlink()
  (tmp_path / "config.json").write_text('{"model_type": "t5"}')
  assert "config.json" in refusal(tmp_path)
  assert "not read from ftp://" in refusal("ftp://host/checkpoint_1")


def test_a_damaged_chunk_is_found_when_the_weights_are_read(tmp_path):
  path = write("t5x", tmp_path, drawn(TINY))
  chunk = path / "target.decoder.decoder_norm.scale/0"
  chunk.write_bytes(chunk.read_bytes()[:-12])
  initial = InitialCheckpoint(config_of(path), BYTES)
  with pytest.raises(UserError, match=r"the weight decoder\.decoder_norm\.scale cannot be read"):
    initial.params(make_mesh(MeshConfig(data=1), 1))


def test_every_shipped_student_is_recognised_by_its_sizes():
  rows = {"mt5": 250_112, "byt5": 384}
  for name in student_names():
    size = next((value for key, value in rows.items() if name.startswith(key)), 32_128)
    model = dataclasses.replace(config_of("", name).model, vocab_size=size)
    # Flan-T5 is T5 1.1 trained further, with the same architecture.
    assert matching_student(model) == name.removeprefix("flan_t5_")
  assert matching_student(T5Config(**{**TINY.__dict__, "mlp_dim": 17})) is None


def dss(*arguments):
  with pytest.MonkeyPatch.context() as patch:
    err = io.StringIO()
    patch.setattr(sys, "argv", ["dss", *map(str, arguments)])
    patch.setattr(sys, "stdout", io.StringIO())
    patch.setattr(sys, "stderr", err)
    try:
      cli.main()
      code = 0
    except SystemExit as error:
      code = error.code
  return code, err.getvalue()


def test_a_resumed_run_keeps_what_the_checkpoint_settled(tmp_path):
  config = config_of(tmp_path)
  own = dataclasses.replace(config.model, vocab_size=512, shared_relpos_bias=False)
  stored = dataclasses.replace(config, model=own)
  assert students.differences(stored, config) == []
  assert resumed(config, stored) == stored
  given = dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=384))
  assert students.differences(stored, resumed(given, stored)) == [
    "T5Config.vocab_size was 512, is 384"
  ]


def test_an_architecture_that_is_not_shipped_becomes_bindings(tmp_path):
  """Deep and narrow, as t5-efficient's are, in every format that tells it."""
  own = dataclasses.replace(TINY, emb_dim=24, num_heads=3, num_encoder_layers=7)
  for form in ("t5x", "orbax", "hf"):
    path = write(form, tmp_path / form, drawn(own), own)
    name, bindings = student_of(str(path))
    assert name == FROM_CHECKPOINT
    files = ["runs/distill.gin"]
    values = [Binding("MODEL_DIR", "unused", "test"), *bindings]
    values.append(Binding("INITIAL_CHECKPOINT_PATH", str(path), "test"))
    config = load_config(RunConfig, files, values)
    initial = InitialCheckpoint(config, BYTES)
    assert initial.config.student == FROM_CHECKPOINT
    assert dataclasses.replace(initial.config.model, dropout_rate=own.dropout_rate) == own
    assert any("activations" in note for note in initial.notes) == (form != "hf")
  assert "leave out --student" in refusal(path)


@pytest.mark.slow
def test_the_command_finds_the_size_and_resumes_without_the_checkpoint(tmp_path):
  """From scanned weights with many padding rows: neither is a student's own default."""
  own = dataclasses.replace(TINY, vocab_size=512, shared_relpos_bias=False)
  path = write("t5x", tmp_path / "t5x", drawn(own))
  assert student_of(str(path)) == ("tiny", [])
  rows = [{"input_text": f"{i}", "output_text": "x", "rationale": "y"} for i in range(8)]
  dataset = tmp_path / "train.jsonl"
  dataset.write_text("".join(json.dumps(row) + "\n" for row in rows))
  model_dir = tmp_path / "model"

  def distill(steps):
    return dss(
      *("distill", "--vocabulary", "bytes", "--mesh", "data=1", "--dataset", dataset),
      *("--model-dir", model_dir, "--train-steps", steps, "--batch-size", "4"),
      *("--max-input-tokens", "16", "--max-output-tokens", "8", "--initial-checkpoint", path),
    )

  code, err = distill(1)
  assert code == 0, err
  assert "the embedding has 512 rows for the vocabulary's 384 ids" in err
  # The student goes on from its own weights: the first ones may be gone.
  shutil.rmtree(path)
  code, err = distill(2)
  assert code == 0, err
  assert student_of(str(model_dir)) == ("tiny", [])
  initial = InitialCheckpoint(config_of(model_dir), BYTES)
  assert initial.config.model == dataclasses.replace(own, dropout_rate=0.1)
  other = load_vocabulary("bytes")
  other.digest = "other"
  assert "was trained with the vocabulary bytes" in refusal(model_dir, vocabulary=other)


def with_moments_of(path, optimizer="adafactor", student="tiny", **model):
  config = config_of(path, student, **model)
  return dataclasses.replace(
    config,
    initial_optimizer_state=True,
    optimizer=dataclasses.replace(config.optimizer, name=optimizer),
  )


@pytest.mark.parametrize("scan_layers", [False, True])
def test_a_run_starts_from_t5xs_moments_where_asked_to(shared, scan_layers):
  path = shared / "checkpoints/t5x_native_tiny"
  initial = InitialCheckpoint(with_moments_of(path, scan_layers=scan_layers), BYTES)
  assert "goes on from the checkpoint's moments of 200 updates" in initial.notes[-1]
  config = initial.config
  optimizer = make_optimizer(config.optimizer, config.train_steps)
  state = initial.state(Trainer(config, optimizer, make_mesh(MeshConfig(data=1), 1)))
  assert state.step == 0
  weights, _ = unrolled(state.params, config.model)
  stored = read_t5x(path)["decoder.layers_1.mlp.wo.kernel"].whole()
  np.testing.assert_array_equal(weights["decoder"]["layers_1"]["mlp"]["wo"]["kernel"], stored)
  leaves = jax.tree_util.tree_leaves_with_path(state.opt_state)
  counts = {int(leaf.max()) for path, leaf in leaves if "count" in jax.tree_util.keystr(path)}
  # Adafactor's own count, and the schedule's of the learning rate.
  assert counts == {200, 0}
  moments = read_t5x_moments(path).v["decoder.layers_1.mlp.wo.kernel"].whole()
  name = "['layers']" if scan_layers else "['layers_1']"
  (got,) = [
    leaf
    for path, leaf in leaves
    if jax.tree_util.keystr(path).endswith(f".v['decoder']{name}['mlp']['wo']['kernel']")
  ]
  np.testing.assert_array_equal(got[1] if scan_layers else got, moments)


def test_moments_that_there_are_not(tmp_path, shared):
  def refused(config):
    with pytest.raises(UserError) as caught:
      InitialCheckpoint(config, BYTES)
    assert "\n" not in str(caught.value)
    return str(caught.value)

  path = write("t5x", tmp_path / "t5x", drawn(TINY))
  assert f"--initial-checkpoint {path}/checkpoint: holds the weights alone" in refused(
    with_moments_of(path)
  )
  path = write("hf", tmp_path / "hf", drawn(TINY))
  assert "is a Hugging Face checkpoint, which holds the weights alone" in refused(
    with_moments_of(path)
  )
  path = shared / "checkpoints/t5x_native_tiny"
  assert "this run's optimizer is adamw" in refused(with_moments_of(path, "adamw"))


def test_moments_without_a_checkpoint(capsys, monkeypatch, tmp_path):
  arguments = ["dss", "distill", "--dataset", "none.jsonl", "--model-dir", str(tmp_path / "run")]
  monkeypatch.setattr(sys, "argv", [*arguments, "--initial-optimizer-state"])
  with pytest.raises(SystemExit) as stopped:
    cli.main()
  assert stopped.value.code == 2
  assert "--initial-optimizer-state: there is no checkpoint" in capsys.readouterr().err
  assert not (tmp_path / "run").exists()


def test_moments_beside_projections_are_refused(shared):
  path = shared / "checkpoints/t5x_native_tiny"
  initial = InitialCheckpoint(with_moments_of(path), BYTES)
  shape = types.SimpleNamespace(projections={"feature_encoder": {}})
  with pytest.raises(UserError, match="has no moments of the projections that --kind feature"):
    initial.state(types.SimpleNamespace(state_shape=shape))
