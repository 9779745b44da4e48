"""The published sizes, up to 11 billion weights, without making one."""

import functools

import jax
import pytest

from dss_jax.config.gin_loader import Binding, load_config
from dss_jax.config.schema import RunConfig, shipped_folder, student_names
from dss_jax.model.flops import forward_flops
from dss_jax.model.t5 import Transformer, init_params

# T5 1.1 as published, at 32,128 rows of the embedding.
T5_1_1 = {
  "small": 76_961_152,
  "base": 247_577_856,
  "large": 783_150_080,
  "xl": 2_849_757_184,
  "xxl": 11_135_332_352,
}
# As published: Xue et al. 2021 (table 1) for mT5, Xue et al. 2022 (table 1) for ByT5.
MULTILINGUAL = {
  "mt5_small": (250_112, 300e6),
  "mt5_base": (250_112, 580e6),
  "mt5_large": (250_112, 1.23e9),
  "mt5_xl": (250_112, 3.74e9),
  "mt5_xxl": (250_112, 12.9e9),
  "byt5_small": (384, 300e6),
  "byt5_base": (384, 582e6),
  "byt5_large": (384, 1.23e9),
  "byt5_xl": (384, 3.74e9),
  "byt5_xxl": (384, 12.9e9),
}


def model_of(student, vocab_size):
  settings = [
    Binding("MODEL_DIR", "x", "test"),
    Binding("T5Config.vocab_size", vocab_size, "test"),
  ]
  return load_config(RunConfig, ["runs/distill.gin", f"models/{student}.gin"], settings).model


def counted_by_hand(model):
  """Weights of a T5 1.1, from the paper's description."""
  joined = model.num_heads * model.head_dim
  attention = 4 * model.emb_dim * joined
  mlp = 3 * model.emb_dim * model.mlp_dim
  encoder = model.num_encoder_layers * (attention + mlp + 2 * model.emb_dim)
  decoder = model.num_decoder_layers * (2 * attention + mlp + 3 * model.emb_dim)
  around = 2 * model.vocab_size * model.emb_dim + 2 * model.emb_dim + 2 * 32 * model.num_heads
  return encoder + decoder + around


@pytest.mark.parametrize("prefix", ["", "flan_t5_"])
@pytest.mark.parametrize("student", T5_1_1)
def test_t5_1_1_has_as_many_weights_as_published(student, prefix):
  model = model_of(prefix + student, 32_128)
  boxed = jax.eval_shape(functools.partial(init_params, model), jax.random.key(0))
  assert sum(leaf.size for leaf in jax.tree.leaves(boxed)) == T5_1_1[student]
  assert counted_by_hand(model) == T5_1_1[student]


@pytest.mark.parametrize("student", MULTILINGUAL)
def test_mt5_and_byt5_are_as_large_as_published(student):
  vocab_size, published = MULTILINGUAL[student]
  assert counted_by_hand(model_of(student, vocab_size)) == pytest.approx(published, rel=0.01)


def test_every_published_size_is_shipped():
  flan = {f"flan_t5_{size}" for size in T5_1_1}
  assert {*T5_1_1, *flan, *MULTILINGUAL} <= set(student_names())


def test_every_published_size_says_where_its_weights_are():
  folder = shipped_folder("gin_configs") / "models"
  for size in T5_1_1:
    for family in ("t5_1_1", "flan_t5", "mt5", "byt5"):
      name = size if family == "t5_1_1" else f"{family}_{size}"
      address = f"gs://t5-data/pretrained_models/t5x/{family}_{size}/checkpoint_1"
      assert (folder / f"{name}.gin").read_text().count(address) == 1, name


@pytest.mark.parametrize("student", ["tiny", "mini"])
def test_flops_by_hand_are_what_the_compiler_counts(student):
  """Matrix products alone by hand, so a little less; the more so the narrower the model."""
  model = model_of(student, 32_128)
  rows, inputs, targets = 2, 64, 32
  boxed = jax.eval_shape(functools.partial(init_params, model), jax.random.key(0))
  tokens = [jax.ShapeDtypeStruct((rows, length), "int32") for length in (inputs, targets)]
  lowered = jax.jit(Transformer(model).apply).lower(
    {"params": boxed}, tokens[0], tokens[0], tokens[1], tokens[1]
  )
  counted = lowered.cost_analysis()["flops"]
  by_hand = forward_flops(model).of_rows(rows, inputs, targets)
  assert by_hand < counted < by_hand * (1.5 if student == "tiny" else 1.05)
