"""Which layers of a larger checkpoint a student starts from: `--initial-layers`."""

import re
from collections.abc import Mapping

from dss_jax.config.schema import T5Config
from dss_jax.errors import UserError
from dss_jax.model.layer_stacks import STACKS

# The numbers of the checkpoint's layers that become the student's, for each stack.
LayerChoice = Mapping[str, tuple[int, ...]]

_FLAG = "--initial-layers"
_RULES = ("uniform", "first", "last")
_NUMBERS = re.compile(r"\d{1,4}(,\d{1,4})*")
_KINDS = (
  "uniform, first, last, the layers' numbers such as 0,2,5, or one of these for each stack, such "
  "as encoder=uniform;decoder=0,1"
)


def depths(model: T5Config) -> dict[str, int]:
  """Returns the number of layers of each stack."""
  return {"encoder": model.num_encoder_layers, "decoder": model.num_decoder_layers}


def parse_layers(text: str) -> dict[str, str]:
  """Returns the rule or the list of numbers for each stack; a stack not named has none.

  Raises UserError for any other text.
  """
  named: dict[str, str] = {}
  for part in text.split(";"):
    stack, separator, rule = (word.strip() for word in part.rpartition("="))
    stacks = (stack,) if separator else STACKS
    rule = rule.replace(" ", "")
    known = rule in _RULES or _NUMBERS.fullmatch(rule)
    if not known or not set(stacks) <= set(STACKS) or set(stacks) & named.keys():
      raise UserError(f"{_FLAG} {text}: is no choice of layers; give {_KINDS}")
    named.update(dict.fromkeys(stacks, rule))
  return named


def choose_layers(text: str, theirs: T5Config, ours: T5Config) -> LayerChoice:
  """Returns the layers of the checkpoint, whose architecture is `theirs`, that `ours` starts from.

  "uniform" spaces them evenly, the first and the last included, halves rounded up, as Shleifer &
  Rush (2020, "Pre-trained Summarization Distillation", Shrink and Fine-Tune) and DistilBERT's
  program do: 0, 2, 4, 7, 9, 11 of 12. A stack that the text does not name keeps all layers.

  Raises UserError for a text that is no choice, for numbers that the checkpoint does not have or
  that are not as many as the student's layers, and if all layers would be taken.
  """
  rules = parse_layers(text)
  have, need = depths(theirs), depths(ours)
  choice = {}
  for stack in STACKS:
    rule = rules.get(stack, "all")
    if need[stack] > have[stack]:
      raise UserError(
        f"{_FLAG} {text}: the student's {stack} has {need[stack]} layers and the checkpoint's only "
        f"{have[stack]}; set T5Config.num_{stack}_layers to {have[stack]} or less"
      )
    choice[stack] = _taken(rule, have[stack], need[stack])
    if len(choice[stack]) != need[stack]:
      raise UserError(
        f"{_FLAG} {text}: takes {len(choice[stack])} layers of the {stack}, but the student has "
        f"{need[stack]}; give as many numbers, or set T5Config.num_{stack}_layers to "
        f"{len(choice[stack])}"
      )
    if list(choice[stack]) != sorted(set(choice[stack])) or choice[stack][-1] >= have[stack]:
      raise UserError(
        f"{_FLAG} {text}: the {stack}'s layers in the checkpoint are 0 to {have[stack] - 1}; give "
        "some of them, each once and in their order"
      )
  if have == need:
    raise UserError(
      f"{_FLAG} {text}: the student has all {have['encoder']} and {have['decoder']} layers of the "
      "checkpoint; give it fewer, by --gin T5Config.num_encoder_layers=N and "
      "T5Config.num_decoder_layers=N, or leave the flag out"
    )
  return choice


def _taken(rule: str, have: int, need: int) -> tuple[int, ...]:
  if rule == "all":
    return tuple(range(have))
  if rule == "first":
    return tuple(range(need))
  if rule == "last":
    return tuple(range(have - need, have))
  if rule == "uniform":
    # Whole numbers alone, so that no rounding of floats decides.
    gaps = max(need - 1, 1)
    return tuple((2 * i * (have - 1) + gaps) // (2 * gaps) for i in range(need))
  return tuple(int(number) for number in rule.split(","))
