"""Numbers that T5X and Hugging Face computed from their own checkpoints, computed here again."""

import functools
import json
import re

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import linen as nn
from flax import serialization

from dss_jax.config.schema import T5Config
from dss_jax.decoding.greedy import greedy
from dss_jax.model.t5 import Transformer, init_params

T5X_TINY = T5Config(
  emb_dim=8,
  num_heads=4,
  head_dim=3,
  mlp_dim=16,
  num_encoder_layers=2,
  num_decoder_layers=2,
  vocab_size=384,
)


def forward(config, params, golden, prefix=""):
  """Logits of a golden file's tokens; padded ones where the prefix is not 'packed_'."""

  def field(name):
    return golden[f"{prefix}{name}"]

  inputs, targets = field("encoder_input_tokens"), field("decoder_target_tokens")
  if prefix:
    segments = field("encoder_segment_ids"), field("decoder_segment_ids")
  else:
    segments = (inputs > 0).astype(np.int32), (targets > 0).astype(np.int32)
  if "decoder_input_tokens" in golden:
    shifted = field("decoder_input_tokens")
  else:
    shifted = np.pad(targets, [(0, 0), (1, 0)])[:, :-1]
  logits = jax.jit(Transformer(config).apply)(
    {"params": params}, inputs, segments[0], shifted, segments[1]
  )
  return np.asarray(logits), segments[1] > 0


def assert_parity(config, params, golden, prefix=""):
  got, real = forward(config, params, golden, prefix)
  want = golden[f"{prefix}logits"]
  assert got.shape == want.shape
  assert real.sum() >= 9
  np.testing.assert_allclose(got[real], want[real], atol=1e-4, rtol=0)


def assert_same_tree(config, params):
  boxed = jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))
  own = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype.name), nn.meta.unbox(boxed))
  assert own == jax.tree.map(lambda leaf: (tuple(leaf.shape), str(leaf.dtype)), params)


def test_t5x_orbax(shared):
  folder = shared / "checkpoints"
  params = ocp.PyTreeCheckpointer().restore(folder / "t5x_orbax_tiny/state")["target"]
  golden = np.load(folder / "t5x_orbax_tiny.golden.npz")
  assert_same_tree(T5X_TINY, params)
  assert_parity(T5X_TINY, params, golden)
  assert_parity(T5X_TINY, params, golden, "packed_")


def test_t5x_msgpack_with_the_whole_vocabulary(shared):
  folder = shared / "checkpoints"
  raw = (folder / "t5x_tiny_t5_1_1.checkpoint_0").read_bytes()
  params = serialization.msgpack_restore(raw)["optimizer"]["target"]
  config = T5Config(**{**T5X_TINY.__dict__, "vocab_size": 32128})
  assert_same_tree(config, params)
  assert_parity(config, params, np.load(folder / "t5x_tiny_t5_1_1.golden.npz"))


def read_safetensors(path):
  """Eight bytes of header length, a JSON header, raw little-endian arrays."""
  raw = path.read_bytes()
  start = 8 + int.from_bytes(raw[:8], "little")
  header = json.loads(raw[8:start])
  header.pop("__metadata__", None)
  arrays = {}
  for name, entry in header.items():
    assert entry["dtype"] == "F32"
    first, last = (start + offset for offset in entry["data_offsets"])
    arrays[name] = np.frombuffer(raw[first:last], "<f4").reshape(entry["shape"])
  return arrays


# Hugging Face's names, layer by layer, to T5X's.
NAMES = {
  r"shared": "token_embedder.embedding",
  r"lm_head": "decoder.logits_dense.kernel",
  r"(encoder|decoder)\.final_layer_norm": r"\1.\1_norm.scale",
  r"(encoder|decoder)\.block\.0\.layer\.0\.SelfAttention\.relative_attention_bias": (
    r"\1.relpos_bias.rel_embedding"
  ),
  r"encoder\.block\.(\d+)\.layer\.0\.SelfAttention\.(.)": r"encoder.layers_\1.attention.\2.kernel",
  r"encoder\.block\.(\d+)\.layer\.0\.layer_norm": (
    r"encoder.layers_\1.pre_attention_layer_norm.scale"
  ),
  r"decoder\.block\.(\d+)\.layer\.0\.SelfAttention\.(.)": (
    r"decoder.layers_\1.self_attention.\2.kernel"
  ),
  r"decoder\.block\.(\d+)\.layer\.0\.layer_norm": (
    r"decoder.layers_\1.pre_self_attention_layer_norm.scale"
  ),
  r"decoder\.block\.(\d+)\.layer\.1\.EncDecAttention\.(.)": (
    r"decoder.layers_\1.encoder_decoder_attention.\2.kernel"
  ),
  r"decoder\.block\.(\d+)\.layer\.1\.layer_norm": (
    r"decoder.layers_\1.pre_cross_attention_layer_norm.scale"
  ),
  r"(encoder|decoder)\.block\.(\d+)\.layer\.[12]\.DenseReluDense\.(\w+)": (
    r"\1.layers_\2.mlp.\3.kernel"
  ),
  r"(encoder|decoder)\.block\.(\d+)\.layer\.[12]\.layer_norm": (
    r"\1.layers_\2.pre_mlp_layer_norm.scale"
  ),
}
LETTERS = {"q": "query", "k": "key", "v": "value", "o": "out"}


def params_of_hugging_face(path):
  tree = {}
  for name, array in read_safetensors(path).items():
    name = name.removesuffix(".weight")
    ours = next(
      re.sub(f"^{old}$", new, name) for old, new in NAMES.items() if re.fullmatch(old, name)
    )
    *parents, leaf = (LETTERS.get(part, part) for part in ours.split("."))
    # Its matrices are stored output first; a table of embeddings is not.
    node = functools.reduce(lambda branch, part: branch.setdefault(part, {}), parents, tree)
    node[leaf] = array.T if leaf in ("kernel", "rel_embedding") else array
  return tree


@pytest.mark.parametrize("family", ["hf_t5_1_1_tiny", "hf_t5_1_0_tiny"])
def test_hugging_face(shared, family):
  """The gated GELU with logits of its own, and the ReLU with tied, scaled logits."""
  config = T5Config(
    emb_dim=32,
    num_heads=4,
    head_dim=8,
    mlp_dim=64,
    num_encoder_layers=3,
    num_decoder_layers=2,
    vocab_size=384,
    mlp_activations=("gelu", "linear") if "1_1" in family else ("relu",),
    logits_via_embedding="1_0" in family,
  )
  params = params_of_hugging_face(shared / "checkpoints" / family / "model.safetensors")
  golden = np.load(shared / "checkpoints" / f"{family}.golden.npz")
  assert_same_tree(config, params)
  assert_parity(config, params, golden)
  # Theirs begins with the pad token that starts decoding.
  tokens = golden["greedy"].shape[1] - 1
  decode = jax.jit(
    functools.partial(greedy, config=config, eos_id=1, pad_id=0, max_decode_tokens=tokens)
  )
  got = decode(params, encoder_input_tokens_BL=golden["encoder_input_tokens"])
  np.testing.assert_array_equal(np.pad(got, [(0, 0), (1, 0)]), golden["greedy"])
