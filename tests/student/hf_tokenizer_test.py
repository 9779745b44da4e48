"""SentencePiece models of other conventions than T5's, as Hugging Face tokenizers."""

import json

import pytest

from dss_jax.data.vocabularies import load_vocabulary
from dss_jax.errors import UserError
from dss_jax.student.hf_folder import write_tokenizer
from dss_jax.student.hf_tokenizer import is_t5s

TEXTS = [
  "the red box 7",
  "  two  spaces \n and\ta tab ",
  "{red} 日本 \U0001f600 and 12 or １２ and ﬁne",
  "thebox<sep>red a<tag> blue<tag>",
  "<extra_id_0> in front",
  "",
  "   ",
  "the green box" * 50,
]
# What differs from T5's own model.
OPTIONS = {
  "end mark 3": {"unk_id": 1, "bos_id": 2, "eos_id": 3},
  "end mark 20": {"unk_id": 1, "eos_id": 20},
  "names": {"pad_piece": "[PAD]", "eos_piece": "[EOS]", "unk_piece": "[UNK]"},
  "no padding piece": {"pad_id": -1, "bos_id": 0},
  "own pieces": {"user_defined_symbols": ["<sep>", "▁<tag>", "{"]},
  "other sentinels": {"user_defined_symbols": ["<extra_id_0>"]},
  "control pieces": {"control_symbols": ["[CLS]"]},
  "bytes": {"byte_fallback": True, "vocab_size": 340},
  "spaces kept": {"normalization_rule_name": "identity", "remove_extra_whitespaces": False},
  "nothing in front": {"add_dummy_prefix": False},
  "spaces behind": {"treat_whitespace_as_suffix": True},
  "merges": {"model_type": "bpe"},
  "characters": {"model_type": "char"},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_the_files_name_the_vocabularys_own_pieces(train_pieces, tmp_path, name):
  vocabulary = load_vocabulary(train_pieces(**OPTIONS[name]))
  write_tokenizer(vocabulary, tmp_path)
  config, marks, tokenizer = (
    json.loads((tmp_path / f"{file}.json").read_text(encoding="utf-8"))
    for file in ("tokenizer_config", "special_tokens_map", "tokenizer")
  )
  assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
  names = ("pad_token", "eos_token", "unk_token")
  assert tuple(config[key] for key in names) == vocabulary.special_pieces
  assert tuple(marks[key] for key in names) == vocabulary.special_pieces
  vocab = tokenizer["model"]["vocab"]
  assert len(vocab) == vocabulary.size
  added = {one["content"]: one["id"] for one in tokenizer["added_tokens"]}
  ids = (vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id)
  assert tuple(added[piece] for piece in vocabulary.special_pieces) == ids
  (end,) = tokenizer["post_processor"]["special_tokens"].values()
  assert end["ids"] == [vocabulary.eos_id]
  # No id but the vocabulary's.
  assert "additional_special_tokens" not in config


@pytest.mark.parametrize("name", OPTIONS)
def test_transformers_gives_our_ids(train_pieces, tmp_path, name):
  transformers = pytest.importorskip("transformers", reason="transformers: make torch")
  vocabulary = load_vocabulary(train_pieces(**OPTIONS[name]))
  write_tokenizer(vocabulary, tmp_path)
  (tmp_path / "config.json").write_text('{"model_type": "t5"}')
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
  assert len(tokenizer) == vocabulary.size
  assert tokenizer.pad_token_id == vocabulary.pad_id
  assert tokenizer.eos_token_id == vocabulary.eos_id
  assert tokenizer.unk_token_id == vocabulary.unk_id
  for text in TEXTS:
    ids = [*vocabulary.encode(text), vocabulary.eos_id]
    assert tokenizer(text)["input_ids"] == ids
    if vocabulary.unk_id not in ids:
      assert tokenizer.decode(ids, skip_special_tokens=True) == vocabulary.decode(ids)


@pytest.mark.parametrize(
  "options", [{}, {"user_defined_symbols": ["▁<extra_id_0>"]}, {"unk_surface": "??"}]
)
def test_a_model_as_t5s_is_read_by_t5tokenizer(train_pieces, tmp_path, options):
  vocabulary = load_vocabulary(train_pieces(**options))
  assert is_t5s(vocabulary)
  write_tokenizer(vocabulary, tmp_path)
  config = json.loads((tmp_path / "tokenizer_config.json").read_text())
  assert config["tokenizer_class"] == "T5Tokenizer"
  assert config["extra_ids"] == len(config["additional_special_tokens"]) == vocabulary.extra_ids
  assert not (tmp_path / "tokenizer.json").exists()


def test_a_model_of_words_is_refused(train_pieces, tmp_path):
  vocabulary = load_vocabulary(train_pieces(model_type="word"))
  with pytest.raises(UserError, match="a SentencePiece model of words"):
    write_tokenizer(vocabulary, tmp_path)
