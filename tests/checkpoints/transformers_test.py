"""What we write, loaded and run by Hugging Face's transformers itself, and the other way round."""

import functools
import json
import subprocess
import sys

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
    arrays,
    config,
    tmp_path,
    dtype=np.dtype(np.float32),
    eos_id=1,
    max_new_tokens=TOKENS,
    shard_bytes=50_000,
  )
  vocabulary = load_vocabulary("bytes")
  write_tokenizer(vocabulary, tmp_path)
  ids = encoded(vocabulary)
  decode = jax.jit(
    functools.partial(greedy, config=config, eos_id=1, pad_id=0, max_decode_tokens=TOKENS)
  )
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


# A size that nobody ships.
WIDE = {
  "vocab_size": 384,
  "d_model": 48,
  "d_kv": 8,
  "d_ff": 80,
  "num_heads": 6,
  "num_layers": 4,
  "num_decoder_layers": 3,
  "decoder_start_token_id": 0,
}


def separate_logits(model):
  """Gives the model an lm_head of its own, as T5 1.1 has."""
  # transformers 5 sets this to true, and would scale umT5's logits then.
  model.config.tie_word_embeddings = False
  model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))


def model_of(name):
  """A model with drawn weights as transformers makes it; its name says what is unusual."""
  torch.manual_seed(0)
  projection = {"relu, tied": "relu", "UL2": "gated-silu"}.get(name, "gated-gelu")
  if name == "umT5":
    config = transformers.UMT5Config(**WIDE, feed_forward_proj=projection)
    model = transformers.UMT5ForConditionalGeneration(config)
  else:
    # False means "not scaled": transformers 5 ties all the same.
    is_scaled = name == "relu, tied"
    config = transformers.T5Config(
      **WIDE, feed_forward_proj=projection, tie_word_embeddings=is_scaled
    )
    model = transformers.T5ForConditionalGeneration(config)
  if name in ("gated", "UL2", "umT5"):
    separate_logits(model)
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.05 * torch.randn_like(parameter))
  return model.eval()


NAMES = ["gated", "gated, tied", "relu, tied", "UL2", "umT5"]


@pytest.mark.parametrize("name", NAMES)
def test_a_model_of_transformers_gives_its_logits_and_loss_here(tmp_path, as_tree, name):
  theirs = model_of(name)
  theirs.save_pretrained(tmp_path)
  config, arrays = read_hf(tmp_path)
  assert (config.logits_via_embedding, config.scale_tied_logits) == {
    "gated, tied": (True, False),
    "relu, tied": (True, True),
  }.get(name, (False, True))
  assert config.shared_relpos_bias == (name != "umT5")
  ids = encoded(load_vocabulary("bytes"))
  targets = ids[:, :7]
  shifted = np.pad(targets[:, :-1], [(0, 0), (1, 0)])
  with torch.no_grad():
    want = theirs(
      input_ids=torch.tensor(ids).long(),
      attention_mask=torch.tensor(ids > 0).long(),
      labels=torch.tensor(targets).long(),
    )
  segments = (ids > 0).astype(np.int32)
  got = jax.jit(Transformer(config).apply)(
    {"params": as_tree(arrays)}, ids, segments, shifted, np.ones_like(targets)
  )
  np.testing.assert_allclose(got, want.logits.numpy(), atol=1e-4, rtol=1e-5)
  loss = -np.take_along_axis(jax.nn.log_softmax(got), targets[..., None], axis=-1).mean()
  np.testing.assert_allclose(loss, want.loss.item(), rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_in_and_out_without_learning_is_bit_identical(tmp_path, name):
  """Through the command: a step with learning rate 0, and out again, loaded by transformers."""
  theirs = model_of(name)
  theirs.save_pretrained(tmp_path / "in")
  rows = [{"input_text": f"{i}", "output_text": "x", "rationale": "y"} for i in range(4)]
  (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

  def dss(*arguments):
    command = [sys.executable, "-m", "dss_jax.cli.main", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True, text=True)

  dss(
    *("distill", "--dataset", tmp_path / "train.jsonl", "--vocabulary", "bytes"),
    *("--initial-checkpoint", tmp_path / "in", "--model-dir", tmp_path / "run", "--batch-size", 4),
    *("--train-steps", 1, "--learning-rate-multiplier", 0, "--mesh", "data=1"),
  )
  dss("export", "--model", tmp_path / "run", "--format", "hf", "--output", tmp_path / "out")
  back = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
  assert type(back) is type(theirs)
  mine, others = theirs.state_dict(), back.state_dict()
  assert mine.keys() == others.keys()
  for key, weight in mine.items():
    assert torch.equal(weight, others[key]), key
