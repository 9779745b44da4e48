"""Both vocabularies equal SeqIO's, do not import it, and report errors."""

import hashlib
import json
import pathlib
import subprocess
import sys
import threading

import fsspec
import pytest
import sentencepiece
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dss_jax.data import vocabularies
from dss_jax.data.vocabularies import T5_VOCABULARY, load_vocabulary
from dss_jax.errors import UserError

ODD_TEXTS = [
  "",
  " ",
  "  two  spaces \n and\ta tab ",
  "zwölf Boxkämpfer, ﬁne ligature, ½ and №",
  "日本語のテキスト \u3000 한국어 العربية",
  "e\u0301 and \u00e9, zero\u200bwidth, \u2028 line, \ufeff mark, nul \x00 in it",
  "family \U0001f468\u200d\U0001f469\u200d\U0001f467 flag \U0001f1e9\U0001f1ea",
  "<extra_id_0> and <extra_id_99> but <extra_id_100>",
  "Put <pad> </s> <unk> in",
]


@pytest.fixture(scope="module")
def small_model(train_pieces):
  """A SentencePiece file of 40 pieces with T5's reserved ids."""
  return train_pieces()


def test_a_model_with_its_own_sentinels_gets_no_more(train_pieces):
  """mT5's model has 250,100 pieces with sentinels; its checkpoints have 250,112 rows."""
  path = train_pieces(user_defined_symbols=["▁<extra_id_0>"])
  vocabulary = load_vocabulary(path)
  assert vocabulary.extra_ids == 0
  assert vocabulary.size == sentencepiece.SentencePieceProcessor(str(path)).GetPieceSize()
  text = "the red box"
  assert vocabulary.encode(text) == vocabulary.to_seqio().encode(text)


def _real_texts(shared):
  texts = list(ODD_TEXTS)
  for name, keys in (("svamp/test.jsonl", ["input", "label"]), ("esnli/valid.jsonl", ["premise"])):
    with open(shared / "data" / name, encoding="utf-8") as lines:
      for line, _ in zip(lines, range(150), strict=False):
        texts += [json.loads(line)[key] for key in keys]
  return texts


def _check_equal_to_seqio(ours, texts):
  theirs = ours.to_seqio()
  assert ours.size == theirs.vocab_size
  assert (ours.pad_id, ours.eos_id, ours.unk_id) == (
    theirs.pad_id,
    theirs.eos_id,
    theirs.unk_id,
  )
  assert ours.extra_ids == theirs.extra_ids
  for text in texts:
    ids = ours.encode(text)
    assert ids == list(theirs.encode(text))
    assert ids == theirs.encode_tf(text).numpy().tolist()
    assert ours.round_trips([text]) == [(len(ids), ours.decode(ids), ours.unk_id in ids)]
    assert ours.writable([text]) == [theirs.decode(ids)]
    for tail in ([], [1], [1, 5, 6], [0, 0], [2, 7], [ours.size - 1, 5], [ours.size + 3]):
      assert ours.decode(ids + tail) == theirs.decode(ids + tail)
  assert ours.count_tokens(texts) == [len(theirs.encode(text)) for text in texts]
  assert ours.round_trips([]) == []


def test_t5_equals_seqio(shared):
  vocabulary = load_vocabulary(str(shared / "data/vocab/t5_spiece.model"))
  assert vocabulary.size == 32_100
  assert vocabulary.encode("<extra_id_0>") == [32_099]
  _check_equal_to_seqio(vocabulary, _real_texts(shared))


def test_a_small_model_equals_seqio(small_model):
  _check_equal_to_seqio(load_vocabulary(small_model), ["the red box 7", *ODD_TEXTS])


def test_bytes_equal_seqio():
  vocabulary = load_vocabulary("bytes")
  assert vocabulary.size == 384
  assert vocabulary.encode("a") == [100]
  assert vocabulary.save_copy("/nowhere") is None
  _check_equal_to_seqio(vocabulary, ODD_TEXTS)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=st.lists(st.integers(-(2**40), 2**40) | st.integers(0, 400)))
def test_no_ids_crash_decode(small_model, ids):
  for vocabulary in (load_vocabulary("bytes"), load_vocabulary(small_model)):
    text = vocabulary.decode(ids)
    cut = ids[: ids.index(1)] if 1 in ids else ids
    assert text == vocabulary.decode([i for i in cut if i != 0])


@settings(deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_bytes_restore_every_text(text):
  vocabulary = load_vocabulary("bytes")
  assert vocabulary.decode([*vocabulary.encode(text), 1, 50]) == text


def test_the_digest_depends_on_the_content_not_the_path(small_model, train_pieces, tmp_path):
  vocabulary = load_vocabulary(small_model)
  copy = vocabulary.save_copy(tmp_path)
  assert copy == tmp_path / "sentencepiece.model"
  assert copy.read_bytes() == small_model.read_bytes()
  again = load_vocabulary(copy)
  assert again.digest == vocabulary.digest
  assert vocabulary.digest == hashlib.sha256(small_model.read_bytes() + b"+100").hexdigest()
  other = train_pieces(unk_id=3, bos_id=2)
  assert load_vocabulary(other).digest != vocabulary.digest
  assert load_vocabulary("bytes").digest == "bytes-384"


@pytest.mark.parametrize("data", [b"", b"not a model", b"<html>log in</html>", bytes(100)])
def test_the_message_for_a_file_that_is_not_a_model(tmp_path, data):
  path = tmp_path / "x.model"
  path.write_bytes(data)
  with pytest.raises(UserError, match="is not a SentencePiece model") as caught:
    load_vocabulary(path)
  assert "--vocabulary bytes" in str(caught.value)


def test_a_truncated_model_is_refused(small_model, tmp_path):
  path = tmp_path / "x.model"
  path.write_bytes(small_model.read_bytes()[:-100])
  with pytest.raises(UserError, match="SentencePiece model"):
    load_vocabulary(path)


@pytest.mark.parametrize(
  ("ids", "words"),
  [
    (
      {"pad_id": -1, "unk_id": 0, "eos_id": 2},
      "at id -1 (pad_id), but SeqIO and T5X pad with id 0",
    ),
    ({"pad_id": 3, "unk_id": 0, "eos_id": 2, "bos_id": 1}, "at id 3 (pad_id)"),
    ({"pad_id": 1, "unk_id": 3, "eos_id": 2, "bos_id": 0}, 'which is "<s>" there'),
    ({"pad_id": -1, "unk_id": 1, "eos_id": 0}, 'which is "</s>" there'),
    ({"unk_id": 1, "eos_id": -1}, "has no end mark (its eos_id is -1)"),
    ({"unk_id": 1, "eos_id": -1, "user_defined_symbols": ["</s>"]}, "has no end mark"),
  ],
)
def test_a_model_that_seqio_cannot_pad_or_end_with_is_refused(train_pieces, ids, words):
  path = train_pieces(**ids)
  with pytest.raises(UserError) as caught:
    load_vocabulary(path)
  message = str(caught.value)
  assert words in message
  assert message.startswith(f"the vocabulary {path} has ")
  assert message.endswith(
    "train it with --pad_id=0 --eos_id=1 --unk_id=2, or pass `--vocabulary bytes`"
  )


@pytest.mark.parametrize(
  "options",
  [
    {"unk_id": 1, "bos_id": 2, "eos_id": 3},
    {"unk_id": 1, "eos_id": 20},
    {"pad_piece": "[PAD]", "eos_piece": "[EOS]", "unk_piece": "[UNK]"},
    # Padding has no piece of its own, and takes the begin mark's, to which no text is encoded.
    {"pad_id": -1, "bos_id": 0},
    {"control_symbols": ["[CLS]"], "user_defined_symbols": ["<sep>", "▁<tag>"]},
    {"byte_fallback": True, "vocab_size": 340},
    {"model_type": "bpe"},
    {"normalization_rule_name": "identity", "remove_extra_whitespaces": False},
  ],
)
def test_models_with_other_marks_equal_seqio(train_pieces, options):
  vocabulary = load_vocabulary(train_pieces(**options))
  theirs = vocabulary.to_seqio()
  assert (vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id) == (
    theirs.pad_id, theirs.eos_id, theirs.unk_id,
  )  # fmt: skip
  processor = theirs.tokenizer
  ids = (vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id)
  assert vocabulary.special_pieces == tuple(processor.IdToPiece(i) for i in ids)
  for text in ["the red box 7", "a <sep> [CLS]<tag> it", *ODD_TEXTS]:
    ids = vocabulary.encode(text)
    assert ids == theirs.encode_tf(text).numpy().tolist()
    assert vocabulary.decode([*ids, vocabulary.eos_id, 7]) == theirs.decode(ids)


def test_the_message_for_missing_files(tmp_path):
  for spec, words in ((tmp_path / "no", "no such file"), (tmp_path, "a directory"), ("", "empty")):
    with pytest.raises(UserError, match=words) as caught:
      load_vocabulary(spec)
    assert "--vocabulary bytes" in str(caught.value)


def test_a_url_is_fetched_once(small_model, monkeypatch):
  url = "memory://vocabularies/small.model"
  with fsspec.open(url, "wb") as file:
    file.write(small_model.read_bytes())
  first = load_vocabulary(url)
  fsspec.filesystem("memory").rm("/vocabularies/small.model")
  again = load_vocabulary(url)
  assert (again.spec, again.digest) == (url, first.digest)
  assert again.encode("the red box") == first.encode("the red box")
  assert pathlib.Path(again.path).read_bytes() == small_model.read_bytes()


def test_a_web_page_instead_of_the_model_is_not_cached(small_model):
  url = "memory://vocabularies/late.model"
  for data, is_model in ((b"<html>log in</html>", False), (small_model.read_bytes(), True)):
    with fsspec.open(url, "wb") as file:
      file.write(data)
    if is_model:
      assert load_vocabulary(url).size > 100
    else:
      with pytest.raises(UserError, match="not a SentencePiece model"):
        load_vocabulary(url)


def test_the_message_for_the_default_without_a_network(monkeypatch):
  def unreachable(address, timeout):
    assert address == "https://storage.googleapis.com/" + T5_VOCABULARY.removeprefix("gs://")
    raise OSError("Name or service not known")

  monkeypatch.setattr(vocabularies.urllib.request, "urlopen", unreachable)
  with pytest.raises(UserError) as caught:
    load_vocabulary(T5_VOCABULARY)
  assert str(caught.value) == (
    f"the vocabulary {T5_VOCABULARY} cannot be fetched (Name or service not known);"
    " pass a file of your own (`--vocabulary FILE`) or `--vocabulary bytes`"
  )


def test_a_store_that_never_answers_times_out(monkeypatch):
  released = threading.Event()

  class Silent(MemoryFileSystem):
    protocol = "silent"

    def _open(self, *args, **kwargs):
      released.wait(60)
      raise FileNotFoundError

  fsspec.register_implementation("silent", Silent, clobber=True)
  monkeypatch.setattr(vocabularies, "_FETCH_SECONDS", 0.1)
  with pytest.raises(UserError, match=r"no answer within 0\.1 seconds"):
    load_vocabulary("silent://x.model")
  released.set()


def test_import_is_light():
  code = (
    "import sys, dss_jax.data.vocabularies as v, dss_jax.data.report.build;"
    "v.load_vocabulary('bytes').encode('a');"
    "print([m for m in ('tensorflow', 'jax', 'seqio', 'flax', 'gin') if m in sys.modules])"
  )
  shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert shown.stdout.strip() == "[]"
