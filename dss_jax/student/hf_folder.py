"""The other files of a Hugging Face folder: tokenizer files and a model card."""

import pathlib
from typing import Any

from dss_jax.checkpoints.hf_write import write_json
from dss_jax.config.schema import TARGET_KINDS
from dss_jax.data.shared_encoder import start_tokens
from dss_jax.data.vocabularies import ByteVocabulary, SentencePieceVocabulary, Vocabulary
from dss_jax.storage.atomic import write_text
from dss_jax.student.hf_tokenizer import is_t5s, tokenizer_json
from dss_jax.student.student import Student

_SPIECE = "spiece.model"


def write_tokenizer(vocabulary: Vocabulary, folder: pathlib.Path) -> None:
  """Writes files with which transformers' AutoTokenizer returns the student's ids.

  T5Tokenizer adds the sentinels after the SentencePiece model's pieces as T5X does, the
  first one last; ByT5Tokenizer needs no model. A model that is not as T5's is written as
  tokenizer.json, with its sentinels as pieces.

  Raises UserError if Hugging Face's tokenizers cannot express the vocabulary.
  """
  vocabulary.save_copy(folder, _SPIECE)
  pad, eos, unk = vocabulary.special_pieces
  names: dict[str, Any] = {"pad_token": pad, "eos_token": eos, "unk_token": unk}
  if isinstance(vocabulary, SentencePieceVocabulary) and not is_t5s(vocabulary):
    write_json(folder / "tokenizer.json", tokenizer_json(vocabulary))
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
  else:
    names["additional_special_tokens"] = [f"<extra_id_{i}>" for i in range(vocabulary.extra_ids)]
    kind = "ByT5Tokenizer" if isinstance(vocabulary, ByteVocabulary) else "T5Tokenizer"
    settings = {"tokenizer_class": kind, "extra_ids": vocabulary.extra_ids, "legacy": False}
  write_json(folder / "tokenizer_config.json", {**settings, **names})
  write_json(folder / "special_tokens_map.json", names)


def write_model_card(student: Student, folder: pathlib.Path, *, step: int, dtype: str) -> None:
  """Writes README.md: what the student is, how it was trained, how to use it."""
  prefixes = student.card["prefixes"]
  config, report = student.config, student.card["metrics"] or {}
  figures = [
    f"| {name} | {value:.4g} |"
    for name, value in sorted(report.items())
    if isinstance(value, float | int)
  ]
  table = ["| evaluation | value |", "| --- | --- |", *figures, ""] if figures else []
  lines = [
    "---",
    "library_name: transformers",
    "pipeline_tag: text2text-generation",
    "tags: [t5, distillation, distilling-step-by-step]",
    "---",
    "",
    f"# A {config.student} student",
    "",
    f"A T5 of size `{config.student}`, distilled step by step (Hsieh et al. 2023) with dss_jax: it",
    "learnt labels and the reasoning behind them.",
    "",
    *table,
    "| what | value |",
    "| --- | --- |",
    *(f"| {name} | {value} |" for name, value in _facts(student, step, dtype)),
    "",
    "```python",
    "from transformers import AutoModelForSeq2SeqLM, AutoTokenizer",
    "",
    'tokenizer = AutoTokenizer.from_pretrained(".")',
    'model = AutoModelForSeq2SeqLM.from_pretrained(".")',
    f'inputs = tokenizer("{prefixes["label"]}" + text, return_tensors="pt")',
    "print(tokenizer.decode(model.generate(**inputs)[0], skip_special_tokens=True))",
    "```",
    "",
    *_how_to_ask(student),
    "It answers the task it was trained on, in the form of its training data, and nothing else;",
    "what its teacher got wrong it may have learnt.",
  ]
  write_text(folder / "README.md", "\n".join(lines) + "\n")


def _how_to_ask(student: Student) -> list[str]:
  """Returns the lines that say how its label and its reasoning are asked for."""
  label, rationale = (student.card["prefixes"][kind] for kind in TARGET_KINDS)
  if not student.config.data.shared_encoder:
    return [f"`{label}` asks for the label, `{rationale}` for the reasoning."]
  _, start = start_tokens(student.config.data, student.vocabulary)
  return [
    f"The input begins with `{label}`. The decoder writes the label, and the reasoning where it",
    f"starts from the end token: `model.generate(**inputs, decoder_start_token_id={start})`.",
  ]


def _facts(student: Student, step: int, dtype: str) -> list[tuple[str, Any]]:
  config = student.config
  return [
    ("step of these weights", step),
    ("examples a step", config.batch_size),
    ("weight of the label's loss", config.loss.alpha),
    ("optimizer", config.optimizer.name),
    (
      "learning rate",
      f"{config.optimizer.base_learning_rate * config.optimizer.learning_rate_multiplier:g}",
    ),
    ("longest input", f"{config.data.max_input_tokens} tokens"),
    ("numbers", dtype),
    ("dss_jax", student.card["versions"]["dss_jax"]),
  ]
