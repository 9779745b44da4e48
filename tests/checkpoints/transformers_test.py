"""What we write, loaded and run by Hugging Face's transformers itself, and the other way round."""

import functools

import jax
import numpy as np
import pytest

from dss_jax.checkpoints.arrays import in_memory
from dss_jax.checkpoints.hf_read import read_hf
from dss_jax.checkpoints.hf_write import write_hf
from dss_jax.config.schema import T5Config
from dss_jax.data.vocabularies import load_vocabulary
from dss_jax.decoding.greedy import greedy
from dss_jax.model.t5 import Transformer
from dss_jax.student.hf_folder import write_tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.hf

SIZES = {
  "emb_dim": 32,
  "num_heads": 4,
  "head_dim": 8,
  "mlp_dim": 64,
  "num_encoder_layers": 2,
  "num_decoder_layers": 2,
  "vocab_size": 384,
}
CONFIGS = {
  "gated": T5Config(**SIZES),
  "tied": T5Config(**SIZES, mlp_activations=("relu",), logits_via_embedding=True),
}
TEXTS = ["predict: Add 3 and 4.", "predict: zwölf Boxkämpfer, ½", "explain: two  spaces \n 日本語"]
TOKENS = 24


def encoded(vocabulary):
  """The texts' ids, padded, end marks included."""
  rows = [[*vocabulary.encode(text), vocabulary.eos_id] for text in TEXTS]
  ids = np.zeros((len(rows), max(map(len, rows))), np.int32)
  for row, given in zip(ids, rows, strict=True):
    row[: len(given)] = given
  return ids


@pytest.mark.parametrize("name", CONFIGS)
def test_generate_gives_our_greedy_ids(tmp_path, random_params, name):
  config = CONFIGS[name]
  params = random_params(config, seed=3, gain=1.5)
  arrays = {
    ".".join(key.key for key in path): in_memory(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }
  write_hf(
    arrays, config, tmp_path, dtype=np.dtype(np.float32), max_new_tokens=TOKENS, shard_bytes=50_000
  )
  vocabulary = load_vocabulary("bytes")
  write_tokenizer(vocabulary, tmp_path)
  ids = encoded(vocabulary)
  decode = jax.jit(functools.partial(greedy, config=config, max_decode_tokens=TOKENS))
  ours = np.asarray(decode(params, encoder_input_tokens_BL=ids))
  model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
  mask = torch.tensor(ids > 0).long()
  theirs = model.generate(
    input_ids=torch.tensor(ids).long(), attention_mask=mask, do_sample=False, num_beams=1
  )
  theirs = theirs[:, 1:].numpy()
  theirs = np.pad(theirs, [(0, 0), (0, TOKENS - theirs.shape[1])])
  np.testing.assert_array_equal(ours, theirs)
  assert len({tuple(row) for row in ours}) == len(TEXTS)


def test_the_tokenizer_gives_our_ids(shared, tmp_path):
  for spec in ("bytes", shared / "data/vocab/t5_spiece.model"):
    vocabulary = load_vocabulary(spec)
    folder = tmp_path / vocabulary.digest
    folder.mkdir()
    write_tokenizer(vocabulary, folder)
    transformers.T5Config().save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
      assert tokenizer(text)["input_ids"] == [*vocabulary.encode(text), vocabulary.eos_id]


@pytest.mark.parametrize("family", ["gated-gelu", "relu"])
def test_a_model_of_transformers_gives_its_logits_here(tmp_path, as_tree, family):
  torch.manual_seed(0)
  theirs = transformers.T5ForConditionalGeneration(
    transformers.T5Config(
      vocab_size=384,
      d_model=32,
      d_kv=8,
      d_ff=64,
      num_heads=4,
      num_layers=2,
      num_decoder_layers=3,
      feed_forward_proj=family,
      decoder_start_token_id=0,
      tie_word_embeddings=family == "relu",
    )
  ).eval()
  if family != "relu":
    head = torch.randn_like(theirs.lm_head.weight)
    theirs.lm_head.weight = torch.nn.Parameter(head)
  theirs.save_pretrained(tmp_path)
  config, arrays = read_hf(tmp_path)
  ids = encoded(load_vocabulary("bytes"))
  targets = ids[:, :7]
  with torch.no_grad():
    want = theirs(
      input_ids=torch.tensor(ids).long(),
      attention_mask=torch.tensor(ids > 0).long(),
      decoder_input_ids=torch.tensor(targets).long(),
    ).logits.numpy()
  segments = (ids > 0).astype(np.int32)
  got = jax.jit(Transformer(config).apply)(
    {"params": as_tree(arrays)}, ids, segments, targets, np.ones_like(targets)
  )
  np.testing.assert_allclose(got, want, atol=1e-4, rtol=0)
