"""A SentencePiece model as the tokenizer.json of Hugging Face's tokenizers library."""

import base64
import re
from typing import Any

from dss_jax.data.vocabularies import SentencePieceVocabulary
from dss_jax.errors import UserError

# SentencePiece's names of piece types and models, as numbers of its protocol buffer.
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_UNIGRAM, _BPE, _CHARACTERS = 1, 2, 4
_SPACE = "▁"


def is_t5s(vocabulary: SentencePieceVocabulary) -> bool:
  """Returns whether transformers' T5Tokenizer, which assumes T5's own model, gives our ids.

  It has the unknown piece at id 2, splits at any white space, and knows neither byte pieces nor
  pieces of a user's own but the sentinels.
  """
  model = _parsed(vocabulary)
  trainer, normalizer = model.trainer_spec, model.normalizer_spec
  own = [
    piece.piece
    for number, piece in enumerate(model.pieces)
    if piece.type == _USER_DEFINED or (piece.type == _CONTROL and number not in (0, 1))
  ]
  ids = (vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id)
  return (
    ids == (0, 1, 2)
    and vocabulary.special_pieces == ("<pad>", "</s>", "<unk>")
    and trainer.model_type == _UNIGRAM
    and not trainer.byte_fallback
    and not trainer.treat_whitespace_as_suffix
    and normalizer.name.startswith("nmt_nfkc")
    and normalizer.add_dummy_prefix
    and normalizer.remove_extra_whitespaces
    and normalizer.escape_whitespaces
    and all(re.fullmatch(f"{_SPACE}<extra_id_[0-9]+>", piece) for piece in own)
  )


def tokenizer_json(vocabulary: SentencePieceVocabulary) -> dict[str, Any]:
  """Returns the tokenizer's content; it adds the end mark to a text, as for training.

  The steps are SentencePiece's: normalise, trim and merge spaces, put a space in front, write
  spaces as a visible character, take out pieces of the user's own, and divide the rest.

  Raises:
    UserError: the model divides texts into words, which the library does in another way.
  """
  model = _parsed(vocabulary)
  special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
  marks = {vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id}
  end = vocabulary.special_pieces[1]
  text_and_end = [
    {"Sequence": {"id": "A", "type_id": 0}},
    {"SpecialToken": {"id": end, "type_id": 0}},
  ]
  other_and_end = [
    {"Sequence": {"id": "B", "type_id": 0}},
    {"SpecialToken": {"id": end, "type_id": 0}},
  ]
  return {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [
      {"id": number, "content": piece.piece, **special, "special": True}
      for number, piece in enumerate(model.pieces)
      if number in marks or piece.type == _CONTROL
    ],
    "normalizer": {"type": "Sequence", "normalizers": _normalizers(model)},
    "pre_tokenizer": _pre_tokenizer(model),
    "post_processor": {
      "type": "TemplateProcessing",
      "single": text_and_end,
      "pair": text_and_end + other_and_end,
      "special_tokens": {end: {"id": end, "ids": [vocabulary.eos_id], "tokens": [end]}},
    },
    "decoder": {"type": "Sequence", "decoders": _decoders(model)},
    "model": _model(model, vocabulary),
  }


def _parsed(vocabulary: SentencePieceVocabulary) -> Any:
  """Returns the model's protocol buffer, sentinels included."""
  from sentencepiece import sentencepiece_model_pb2

  # The generated module defines its classes when it is imported.
  formats: Any = sentencepiece_model_pb2
  return formats.ModelProto.FromString(vocabulary.serialized)


def _replace(pattern: str, content: str) -> dict[str, Any]:
  return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def _normalizers(model: Any) -> list[dict[str, Any]]:
  spec = model.normalizer_spec
  steps: list[dict[str, Any]] = []
  if spec.precompiled_charsmap:
    table = base64.b64encode(spec.precompiled_charsmap).decode("ascii")
    steps.append({"type": "Precompiled", "precompiled_charsmap": table})
  if spec.remove_extra_whitespaces:
    steps += [_replace(r"\A +| +\z", ""), _replace(" {2,}", " ")]
  if spec.add_dummy_prefix and not model.trainer_spec.treat_whitespace_as_suffix:
    steps.append({"type": "Prepend", "prepend": " "})
  elif spec.add_dummy_prefix:
    steps.append(_replace(r"(?<=[\s\S])\z", " "))
  if spec.escape_whitespaces:
    steps.append(_replace(" ", _SPACE))
  return steps


def _pre_tokenizer(model: Any) -> dict[str, Any] | None:
  """Returns the step that takes out the user's own pieces, which are never divided."""
  own = [piece.piece for piece in model.pieces if piece.type == _USER_DEFINED]
  if not own:
    return None
  pattern = "|".join(re.escape(piece) for piece in sorted(own, key=len, reverse=True))
  return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _decoders(model: Any) -> list[dict[str, Any]]:
  steps: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}]
  if model.trainer_spec.byte_fallback:
    steps.append({"type": "ByteFallback"})
  steps.append({"type": "Fuse"})
  # SentencePiece itself leaves a space that was put behind.
  if model.normalizer_spec.add_dummy_prefix and not model.trainer_spec.treat_whitespace_as_suffix:
    steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
  return steps


def _model(model: Any, vocabulary: SentencePieceVocabulary) -> dict[str, Any]:
  kind, byte_fallback = model.trainer_spec.model_type, model.trainer_spec.byte_fallback
  if kind == _UNIGRAM:
    return {
      "type": "Unigram",
      "unk_id": vocabulary.unk_id,
      "vocab": [[piece.piece, piece.score] for piece in model.pieces],
      "byte_fallback": byte_fallback,
    }
  if kind not in (_BPE, _CHARACTERS):
    raise UserError(
      f"--format hf: Hugging Face's tokenizers cannot divide texts as the vocabulary "
      f"{vocabulary.spec} does, a SentencePiece model of words; export it as t5x"
    )
  return {
    "type": "BPE",
    "unk_token": vocabulary.special_pieces[2],
    "fuse_unk": True,
    "byte_fallback": byte_fallback,
    # A piece of the user's own is not made of others.
    "ignore_merges": True,
    "vocab": {piece.piece: number for number, piece in enumerate(model.pieces)},
    "merges": _merges(model) if kind == _BPE else [],
  }


def _merges(model: Any) -> list[list[str]]:
  """Returns the pairs of pieces that are a piece together, those of the best score first."""
  scores = {
    piece.piece: (-piece.score, number)
    for number, piece in enumerate(model.pieces)
    if piece.type == _NORMAL
  }
  ranked = sorted(
    (*rank, piece[:place], piece[place:])
    for piece, rank in scores.items()
    for place in range(1, len(piece))
    if piece[:place] in scores and piece[place:] in scores
  )
  return [[left, right] for _, _, left, right in ranked]
