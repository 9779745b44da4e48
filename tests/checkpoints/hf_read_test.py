"""Hugging Face's folders in and out: its own numbers, bit-identical round trips, refusals."""

import dataclasses
import functools
import json
import pickle
import shutil
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dss_jax.checkpoints.arrays import (
  BFLOAT16,
  architecture,
  in_memory,
  model_shapes,
  shapes_of,
)
from dss_jax.checkpoints.hf_read import read_eos_ids, read_hf
from dss_jax.checkpoints.hf_write import write_hf
from dss_jax.config.schema import T5Config
from dss_jax.decoding.greedy import greedy
from dss_jax.errors import UserError
from dss_jax.losses.cross_entropy import cross_entropy
from dss_jax.model.t5 import Transformer, output_kernel

FLOAT32 = np.dtype(np.float32)
FAMILIES = ["hf_t5_1_1_tiny", "hf_t5_1_0_tiny"]
SIZES = {
  "emb_dim": 16,
  "num_heads": 8,
  "head_dim": 3,
  "mlp_dim": 40,
  "num_encoder_layers": 2,
  "num_decoder_layers": 1,
  "vocab_size": 56,
}
GATED = T5Config(**SIZES)
CONFIGS = {
  "gated": GATED,
  "tied": T5Config(**SIZES, mlp_activations=("relu",), logits_via_embedding=True),
}


def drawn(config):
  generator = np.random.default_rng(0)
  return {
    name: in_memory(generator.normal(size=shape).astype(np.float32))
    for name, shape in model_shapes(config).items()
  }


def written(config, folder, dtype=FLOAT32, **options):
  folder.mkdir(exist_ok=True)
  arrays = drawn(config)
  write_hf(arrays, config, folder, dtype=dtype, eos_id=1, max_new_tokens=8, **options)
  return arrays


@pytest.fixture
def folder(tmp_path):
  """A folder to break."""
  written(GATED, tmp_path / "hf")
  return tmp_path / "hf"


def refusal(folder):
  with pytest.raises(UserError) as caught:
    read_hf(folder)
  assert "\n" not in str(caught.value)
  return str(caught.value)


def change(folder, **fields):
  path = folder / "config.json"
  path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize("family", FAMILIES)
def test_numbers_are_transformers(shared, as_tree, family):
  config, arrays = read_hf(shared / "checkpoints" / family)
  assert shapes_of(arrays) == model_shapes(config)
  assert architecture(shapes_of(arrays), "") == config
  params = as_tree(arrays)
  golden = np.load(shared / "checkpoints" / f"{family}.golden.npz")
  inputs, targets = golden["encoder_input_tokens"], golden["decoder_target_tokens"]
  shifted = np.pad(targets, [(0, 0), (1, 0)])[:, :-1]
  segments = [(tokens > 0).astype(np.int32) for tokens in (inputs, targets)]
  model = Transformer(config)

  @jax.jit
  def forward(params):
    rest = (inputs, segments[0], shifted, segments[1])
    hidden = model.apply({"params": params}, *rest, method=Transformer.hidden)
    total, _ = cross_entropy(
      hidden, output_kernel(params, config), targets, segments[1].astype(np.float32)
    )
    encoded = model.apply({"params": params}, inputs, segments[0], method=Transformer.encode)
    return model.apply({"params": params}, *rest), encoded, total

  logits, encoded, total = forward(params)
  real = segments[1] > 0
  np.testing.assert_allclose(np.asarray(logits)[real], golden["logits"][real], atol=1e-4, rtol=0)
  real = segments[0] > 0
  want = golden["encoder_last_hidden"][real]
  np.testing.assert_allclose(np.asarray(encoded)[real], want, atol=1e-4, rtol=0)
  assert float(total) / segments[1].sum() == pytest.approx(
    float(golden["token_mean_loss"]), abs=1e-5
  )


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_decoding_is_transformers(shared, as_tree, family):
  config, arrays = read_hf(shared / "checkpoints" / family)
  golden = np.load(shared / "checkpoints" / f"{family}.golden.npz")
  # Theirs begins with the pad token that starts decoding.
  tokens = golden["greedy"].shape[1] - 1
  decode = jax.jit(
    functools.partial(greedy, config=config, eos_id=1, pad_id=0, max_decode_tokens=tokens)
  )
  got = decode(as_tree(arrays), encoder_input_tokens_BL=golden["encoder_input_tokens"])
  np.testing.assert_array_equal(np.pad(got, [(0, 0), (1, 0)]), golden["greedy"])


@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_wrote_is_written_again(shared, tmp_path, family):
  """Arrays bit for bit, and every setting of config.json that has a meaning here."""
  theirs = shared / "checkpoints" / family
  config, arrays = read_hf(theirs)
  write_hf(arrays, config, tmp_path, dtype=FLOAT32, eos_id=1, max_new_tokens=8)
  ours, want = load_file(tmp_path / "model.safetensors"), load_file(theirs / "model.safetensors")
  assert set(ours) == set(want)
  for name in ours:
    np.testing.assert_array_equal(ours[name], want[name], strict=True)
  fields, expected = (json.loads((path / "config.json").read_text()) for path in (tmp_path, theirs))
  ignored = {"transformers_version", "classifier_dropout", "dropout_rate"}
  for name in set(expected) - ignored:
    assert fields[name] == expected[name], name


@pytest.mark.parametrize("kind", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_written_is_read_back(tmp_path, name, kind, assert_same):
  arrays = written(CONFIGS[name], tmp_path, kind)
  config, read = read_hf(tmp_path)
  assert config == CONFIGS[name]
  assert_same(read, {name: in_memory(one.whole().astype(kind)) for name, one in arrays.items()})


def test_large_weights_go_into_several_files(tmp_path, assert_same):
  arrays = written(GATED, tmp_path, shard_bytes=8000)
  files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
  assert len(files) > 2
  assert files[0] == f"model-00001-of-0000{len(files)}.safetensors"
  assert all((tmp_path / file).stat().st_size < 8000 + 2500 for file in files)
  index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
  assert set(index["weight_map"].values()) == set(files)
  assert index["metadata"]["total_size"] == sum(4 * one.size for one in arrays.values())
  assert_same(read_hf(tmp_path)[1], arrays)


def test_a_part_is_the_part_of_the_whole(tmp_path):
  written(GATED, tmp_path)
  one = read_hf(tmp_path)[1]["encoder.layers_0.mlp.wi_0.kernel"]
  index = (slice(2, 9), slice(30, 40))
  np.testing.assert_array_equal(one.read(index), one.whole()[index])


def test_a_second_name_of_the_table_must_be_the_table(folder, assert_same):
  path = folder / "model.safetensors"
  arrays = load_file(path)
  copies = {
    f"{side}.embed_tokens.weight": arrays["shared.weight"] for side in ("encoder", "decoder")
  }
  before = read_hf(folder)[1]
  unused = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
  save_file({**arrays, **copies, unused: np.zeros((32, 8), np.float32)}, path)
  assert_same(read_hf(folder)[1], before)
  rest = {name: array for name, array in arrays.items() if name != "shared.weight"}
  save_file({**rest, "encoder.embed_tokens.weight": arrays["shared.weight"]}, path)
  assert_same(read_hf(folder)[1], before)
  save_file({**arrays, "encoder.embed_tokens.weight": arrays["shared.weight"] + 1}, path)
  assert "encoder.embed_tokens.weight differs from shared.weight" in refusal(folder)


def test_tied_logits_are_known_by_either_setting(tmp_path):
  """transformers 5 always writes tie_word_embeddings true, and says the truth elsewhere."""
  written(GATED, tmp_path)
  change(tmp_path, tie_word_embeddings=True, scale_decoder_outputs=False)
  assert not read_hf(tmp_path)[0].logits_via_embedding
  # A fresh gated model: neither a head of its own nor a scale.
  without_head = tmp_path / "tied"
  written(dataclasses.replace(GATED, logits_via_embedding=True), without_head)
  change(without_head, tie_word_embeddings=True, scale_decoder_outputs=False)
  config = read_hf(without_head)[0]
  assert config.logits_via_embedding
  assert not config.scale_tied_logits
  change(tmp_path, tie_word_embeddings=True, scale_decoder_outputs=True)
  assert "lm_head.weight differs from shared.weight" in refusal(tmp_path)


def test_umt5_has_a_bias_in_each_layer(tmp_path):
  written(GATED, tmp_path)
  path = tmp_path / "model.safetensors"
  arrays = load_file(path)
  bias = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
  save_file({**arrays, bias.format(1): arrays[bias.format(0)] + 1}, path)
  change(tmp_path, model_type="umt5")
  config, read = read_hf(tmp_path)
  assert not config.shared_relpos_bias
  assert shapes_of(read) == model_shapes(config)
  first, second = (read[f"encoder.layers_{i}.relpos_bias.rel_embedding"].whole() for i in (0, 1))
  np.testing.assert_array_equal(first + 1, second)


def test_the_published_umt5_has_no_model_type(tmp_path, assert_same):
  config = T5Config(**SIZES, shared_relpos_bias=False)
  arrays = written(config, tmp_path)
  change(tmp_path, model_type=None)
  read_config, read = read_hf(tmp_path)
  assert read_config == config
  assert_same(read, arrays)


def test_arrays_of_another_network_are_refused():
  shapes = shapes_of(drawn(GATED))
  wide = {**shapes, "encoder.relpos_bias.rel_embedding": (8, 64)}
  with pytest.raises(UserError, match="has 64 buckets, but a student has 32"):
    architecture(wide, "here")
  encoder = {name: shape for name, shape in shapes.items() if not name.startswith("decoder")}
  with pytest.raises(UserError, match="not the weights of an encoder-decoder T5"):
    architecture(encoder, "here")


@pytest.mark.parametrize(
  "changes",
  [
    {"shared_relpos_bias": False},
    {"mlp_activations": ("silu", "linear")},
    {"logits_via_embedding": True, "scale_tied_logits": False},
    {"logits_via_embedding": True, "mlp_activations": ("relu",)},
  ],
  ids=["umT5", "UL2", "tied, not scaled", "T5 1.0"],
)
def test_every_public_family_is_written_and_read_back(tmp_path, changes, assert_same):
  config = T5Config(**SIZES, **changes)
  arrays = drawn(config)
  write_hf(arrays, config, tmp_path, dtype=FLOAT32, eos_id=1, max_new_tokens=8)
  read_config, read = read_hf(tmp_path)
  assert read_config == config
  assert_same(read, arrays)
  family = json.loads((tmp_path / "config.json").read_text())["model_type"]
  assert family == ("t5" if config.shared_relpos_bias else "umt5")


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"model_type": "bart"}, "model_type is 'bart'"),
    ({"layer_norm_epsilon": 1e-5}, "layer_norm_epsilon is 1e-05"),
    ({"relative_attention_num_buckets": 64}, "relative_attention_num_buckets is 64"),
    ({"pad_token_id": 1}, "pad_token_id is 1"),
    ({"decoder_start_token_id": 2}, "decoder_start_token_id is 2"),
    ({"model_type": None, "architectures": ["BartModel"]}, "model_type is None"),
    ({"dense_act_fn": "silu"}, "dense_act_fn is 'silu', but feed_forward_proj is 'gated-gelu'"),
    ({"dense_act_fn": ["relu"]}, "dense_act_fn is ['relu']"),
    ({"feed_forward_proj": "gated-tanh"}, "feed_forward_proj is 'gated-tanh'"),
    ({"d_model": "16"}, "d_model is '16'"),
    ({"num_layers": 10**12}, "num_layers is 1000000000000"),
    ({"num_decoder_layers": 10**12}, "num_decoder_layers is 1000000000000"),
    ({"num_layers": 3}, "encoder.block.2"),
    ({"num_layers": 1}, "encoder.block.1"),
  ],
)
def test_another_network_is_refused(folder, fields, words):
  change(folder, **fields)
  assert words in refusal(folder)


def test_the_end_mark_is_the_checkpoints_own(folder):
  assert read_eos_ids(folder) == (1,)
  for given, ids in ((3, (3,)), ([1, 107], (1, 107)), (None, ())):
    change(folder, eos_token_id=given)
    assert read_eos_ids(folder) == ids
    read_hf(folder)
  change(folder, eos_token_id="</s>")
  with pytest.raises(UserError, match="eos_token_id is '</s>'"):
    read_eos_ids(folder)


def test_missing_and_extra_arrays_are_named(folder):
  path = folder / "model.safetensors"
  arrays = load_file(path)
  save_file({**arrays, "other.weight": np.zeros((2, 3), np.float32)}, path)
  assert "the array other.weight of shape (2, 3)" in refusal(folder)
  del arrays["shared.weight"]
  save_file(arrays, path)
  assert "shared.weight (ours: token_embedder.embedding) is missing" in refusal(folder)
  save_file({"shared.weight": np.zeros((2, 3), np.int32)}, path)
  assert "holds I32" in refusal(folder)


def test_pickles_are_not_opened(folder):
  (folder / "model.safetensors").unlink()
  assert "holds no model.safetensors" in refusal(folder)
  (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"shared.weight": [1]}))
  assert "is a pickle" in refusal(folder)
  shutil.move(folder / "pytorch_model.bin", folder / "model.safetensors")
  assert "is no safetensors file" in refusal(folder)


def header(fields, size=None):
  raw = json.dumps(fields).encode()
  return struct.pack("<Q", len(raw) if size is None else size) + raw


@pytest.mark.parametrize(
  "raw",
  [
    b"",
    b"\x01\x02",
    header({}, size=2**62),
    header({"shared.weight": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 4]}})
    + b"1234",
    header({"shared.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**40]}}) + b"1234",
    header({"shared.weight": {"dtype": "F32", "shape": [1], "data_offsets": [-8, -4]}}) + b"1234",
  ],
)
def test_made_up_files_are_refused(folder, raw):
  (folder / "model.safetensors").write_bytes(raw)
  assert "is no safetensors file" in refusal(folder)


def test_a_cut_off_file_is_refused(folder):
  path = folder / "model.safetensors"
  path.write_bytes(path.read_bytes()[:-1])
  assert "cut off" in refusal(folder)


@pytest.mark.parametrize(
  "name", ["../model.safetensors", "/etc/x.safetensors", "a/b.safetensors", "x.bin", "..", ""]
)
def test_an_index_names_files_of_its_folder_alone(folder, name):
  index = {"weight_map": {"shared.weight": name}}
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))
  assert "do not trust" in refusal(folder)


@pytest.mark.parametrize("text", ["", "[1]", '{"weight_map": 3}', "[" * 10**5])
def test_a_damaged_index_is_refused(folder, text):
  (folder / "model.safetensors.index.json").write_text(text)
  refusal(folder)


def test_missing_files_are_named(folder, tmp_path):
  index = {"weight_map": {"shared.weight": "model-1.safetensors"}}
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))
  assert "model-1.safetensors" in refusal(folder)
  (folder / "config.json").unlink()
  assert "config.json: no such file" in refusal(folder)
  assert "from this machine only" in refusal("gs://bucket/t5")


def test_bfloat16_on_disk_is_rounded_to_nearest(tmp_path):
  arrays = written(GATED, tmp_path, BFLOAT16)
  name = "decoder.logits_dense.kernel"
  read = read_hf(tmp_path)[1][name].whole()
  want = np.asarray(jnp.asarray(arrays[name].whole()).astype(jnp.bfloat16))
  np.testing.assert_array_equal(read, want)
