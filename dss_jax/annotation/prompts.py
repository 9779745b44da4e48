"""Few-shot chain-of-thought prompts: read from YAML and filled with a row, as chat or plain text.

A prompt file (such as `tasks/prompts/svamp.yaml`) has the instruction, exemplars, templates of
question and answer, stop sequences, and the rules for parsing answers.
"""

import dataclasses
import difflib
import functools
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import yaml

from dss_jax.annotation.answer_text import plain_answer
from dss_jax.annotation.parsing import MAX_LABEL_CHARACTERS, Parsed, ParseRules
from dss_jax.config.schema import shipped_folder
from dss_jax.data.records import Row
from dss_jax.data.task_files import load_task
from dss_jax.errors import UserError
from dss_jax.storage.files import open_text

# What is requested for a row: label and rationale, a rationale for a label that the teacher sees
# (rationalisation), or a label for a rationale that the teacher sees.
Mode = Literal["both", "rationale", "label"]

_FIELD = re.compile(r"\{(input|label|rationale)\}")
_DUMMY_RATIONALE = "The reasoning is given."


@dataclasses.dataclass(frozen=True)
class Exemplar:
  """An example in the prompt; without a rationale it appears as input and label only."""

  input: str
  label: str
  rationale: str | None = None


@dataclasses.dataclass(frozen=True)
class Prompt:
  """A prompt. The fields are those of a prompt file.

  Attributes:
    question: template of a row, with {input}.
    question_with_label: template if the {label} is known and the rationale is requested.
    question_with_rationale: template if the {rationale} is known and the label is requested.
    answer: template of an exemplar's answer, with {rationale} and then {label}.
    separator: separates the parts of a plain-text prompt.
    stop: stop sequences.
    max_answer_tokens: maximum length of an answer.
    parse: rules for parsing answers.
  """

  instruction: str
  exemplars: tuple[Exemplar, ...] = ()
  question: str = "Text: {input}\nReasoning:"
  question_with_label: str = (
    "Text: {input}\nThe answer is known to be: {label}\nExplain why, and end with the answer.\n"
    "Reasoning:"
  )
  question_with_rationale: str = (
    "Text: {input}\nThe reasoning is known: {rationale}\nGive nothing but the answer."
  )
  answer: str = "{rationale}\nAnswer: {label}"
  separator: str = "\n\n"
  stop: tuple[str, ...] = ("\nText:",)
  max_answer_tokens: int = 512
  parse: ParseRules = dataclasses.field(default_factory=ParseRules)

  @functools.cached_property
  def digest(self) -> str:
    """Returns 16 hexadecimal digits of the SHA-256 of all fields but the parse rules."""
    values = dataclasses.asdict(dataclasses.replace(self, parse=ParseRules()))
    del values["parse"]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

  def messages(self, row: Row, mode: Mode) -> list[dict[str, str]]:
    """Returns the prompt for a row as chat messages: system, exemplars, then the row."""
    messages = [{"role": "system", "content": self._instruction(row)}]
    for exemplar in self._exemplars_for(row):
      messages += [
        {"role": "user", "content": self._question(exemplar, mode)},
        {"role": "assistant", "content": self._answer(exemplar, mode)},
      ]
    return [*messages, {"role": "user", "content": self._question(_from_row(row), mode)}]

  def text(self, row: Row, mode: Mode) -> str:
    """Returns the prompt for a row as plain text to continue."""
    parts = [self._instruction(row)]
    for exemplar in self._exemplars_for(row):
      parts.append(f"{self._question(exemplar, mode)} {self._answer(exemplar, mode)}")
    return self.separator.join([*parts, self._question(_from_row(row), mode)])

  def read(self, text: str, row: Row, mode: Mode, *, cut_off: bool = False) -> Parsed:
    """Parses an answer to the row; never raises.

    With mode "rationale" the answer must lead to the row's own label; with mode "label" the
    rationale is the row's own.
    """
    answer = plain_answer(text)
    if answer is None:
      return Parsed(None, None, "the answer ends within the model's thoughts")
    answer = self._echo.sub("", answer)
    if mode == "label":
      answer = f"{_DUMMY_RATIONALE}{self._answer_whitespace}{answer}"
    parsed = self.parse.parse(answer, input_text=row["input_text"], stop=self.stop, cut_off=cut_off)
    if mode == "label" and parsed.rationale is not None:
      return parsed._replace(rationale=row["rationale"])
    if mode == "rationale" and parsed.rationale is not None:
      if parsed.label is None:
        return Parsed(None, None, parsed.reason)
      if not self.parse.same_label(parsed.label, row["output_text"]):
        reason = f"the rationale leads to another label than the one shown: {parsed.label[:60]!r}"
        return Parsed(None, None, reason)
    return parsed

  @functools.cached_property
  def _echo(self) -> re.Pattern[str]:
    """Returns what an answer may repeat at its start: the question's last words."""
    word = self.question.rpartition("\n")[2].replace("{input}", "").strip().rstrip(":：")
    return re.compile(rf"^[\s*_#]*(?:{re.escape(word)}[*_ ]*[:：][*_]*\s*)?" if word else r"^\s*")

  @property
  def _answer_whitespace(self) -> str:
    after = self.answer.partition("{rationale}")[2]
    return after[: len(after) - len(after.lstrip())] or " "

  def _exemplars_for(self, row: Row) -> list[Exemplar]:
    # If the row is an exemplar, its answer must not be in the prompt.
    return [one for one in self.exemplars if one.rationale and one.input != row["input_text"]]

  def _instruction(self, row: Row) -> str:
    without_rationale = [
      f"{_fill('{input}', one)}\n-> {one.label}"
      for one in self.exemplars
      if not one.rationale and one.input != row["input_text"]
    ]
    if not without_rationale:
      return self.instruction
    return "\n\n".join([self.instruction, "Some texts and their answers:", *without_rationale])

  def _question(self, exemplar: Exemplar, mode: Mode) -> str:
    template = {
      "both": self.question,
      "rationale": self.question_with_label,
      "label": self.question_with_rationale,
    }[mode]
    return _fill(template, exemplar)

  def _answer(self, exemplar: Exemplar, mode: Mode) -> str:
    if mode == "label":
      return _fill(self.answer.partition("{rationale}")[2].lstrip(), exemplar)
    return _fill(self.answer, exemplar)


def load_prompt(name_or_path: str | os.PathLike[str]) -> Prompt:
  """Loads the prompt of a shipped task's name ("svamp"), or of a YAML file.

  Raises:
    UserError: the file does not exist, is not YAML, or is not a prompt.
  """
  name = os.fspath(name_or_path)
  shipped = shipped_prompts()
  path = shipped.get(name, pathlib.Path(os.path.expanduser(name)))
  if name not in shipped and not name.endswith((".yaml", ".yml")):
    raise UserError(
      f"--prompt {name}: no shipped prompt with this name; give one of {', '.join(shipped)},"
      " or a file ending in .yaml"
    )
  with open_text(path) as file:
    text = file.read()
  try:
    values = yaml.safe_load(text)
  except (yaml.YAMLError, RecursionError, ValueError) as error:
    mark = getattr(error, "problem_mark", None)
    line = f":{mark.line + 1}" if mark else ""
    what = getattr(error, "problem", None) or type(error).__name__
    raise UserError(f"{path}{line}: not YAML ({what}); correct the line") from None
  return prompt_from(values, str(path))


def prompt_from(values: Any, place: str) -> Prompt:
  """Makes a prompt from the values of a prompt file; errors name `place` (the file) and key."""
  values = _mapping(values, place, "", [field.name for field in dataclasses.fields(Prompt)])
  if not isinstance(values.get("instruction"), str) or not values["instruction"].strip():
    raise UserError(f'{place}: "instruction" is missing; describe what the teacher must do')
  for key in ("question", "question_with_label", "question_with_rationale", "answer", "separator"):
    if key in values and not isinstance(values[key], str):
      raise UserError(f'{place}: "{key}" must be text, not {values[key]!r}')
  fields = dict(values)
  fields["instruction"] = values["instruction"].strip()
  fields["exemplars"] = tuple(_exemplars(values.get("exemplars") or [], place))
  if "stop" in values:
    fields["stop"] = _texts(values["stop"], place, "stop")
  tokens = values.get("max_answer_tokens", 1)
  if type(tokens) is not int or tokens < 1:
    raise UserError(f'{place}: "max_answer_tokens" must be a whole number from 1, not {tokens!r}')
  fields["parse"] = _rules(values.get("parse") or {}, place)
  prompt = Prompt(**fields)
  _check_templates(prompt, place)
  return prompt


def prompt_to_yaml(prompt: Prompt) -> str:
  """Writes the prompt as YAML that load_prompt reads; a task is written by its name."""
  values = dataclasses.asdict(dataclasses.replace(prompt, parse=ParseRules()))
  values["exemplars"] = [
    {key: value for key, value in one.items() if value is not None} for one in values["exemplars"]
  ]
  values["stop"] = list(prompt.stop)
  rules = prompt.parse
  values["parse"] = {
    "marker": rules.marker,
    "any_spelling": rules.any_spelling,
    "max_label_characters": rules.max_label_characters,
    **({"task": rules.task.name} if rules.task else {}),
    **({"labels": list(rules.labels)} if rules.labels is not None else {}),
    **({"choices": rules.choices.pattern} if rules.choices else {}),
  }
  return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)


def shipped_prompts() -> dict[str, pathlib.Path]:
  """Returns the paths of the package's prompts by task name."""
  folder = shipped_folder("tasks") / "prompts"
  return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def _from_row(row: Row) -> Exemplar:
  return Exemplar(row["input_text"], row.get("output_text", ""), row.get("rationale", ""))


def _fill(template: str, exemplar: Exemplar) -> str:
  """Fills the template in one pass, so that braces in the texts stay as they are."""
  texts = {
    "input": exemplar.input,
    "label": exemplar.label,
    "rationale": exemplar.rationale or "",
  }
  return _FIELD.sub(lambda match: texts[match[1]], template)


def _mapping(values: Any, place: str, key: str, allowed: Sequence[str]) -> dict[str, Any]:
  where = f'{place}: "{key}"' if key else place
  if not isinstance(values, Mapping):
    raise UserError(f"{where}: must be keys with values ({', '.join(allowed)}), not {values!r:.60}")
  for name in values:
    if name not in allowed:
      near = difflib.get_close_matches(str(name), allowed, 1)
      mend = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(allowed)}"
      raise UserError(f"{where}: unknown key {name!r}; {mend}")
  return dict(values)


def _exemplars(values: Any, place: str) -> list[Exemplar]:
  if not isinstance(values, list):
    raise UserError(f'{place}: "exemplars" must be a list, each with input, rationale and label')
  exemplars = []
  for number, value in enumerate(values, start=1):
    key = f"exemplars[{number}]"
    texts = _mapping(value, place, key, ("input", "rationale", "label"))
    for name in ("input", "label", "rationale"):
      text = texts.get(name)
      if (text is None and name != "rationale") or not isinstance(text, str | None):
        raise UserError(f'{place}: "{key}" needs "{name}" as text (in quotes), not {text!r}')
    exemplars.append(Exemplar(**{name: text.strip() for name, text in texts.items() if text}))
  return exemplars


def _texts(value: Any, place: str, key: str) -> tuple[str, ...]:
  if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
    raise UserError(f'{place}: "{key}" must be a list of texts (in quotes), not {value!r:.60}')
  return tuple(value)


def _rules(values: Any, place: str) -> ParseRules:
  allowed = [field.name for field in dataclasses.fields(ParseRules)]
  values = _mapping(values, place, "parse", allowed)
  fields: dict[str, Any] = {}
  marker = values.get("marker", "Answer:")
  if not isinstance(marker, str) or not marker.strip():
    raise UserError(f'{place}: "parse.marker" must be text that the label follows, not {marker!r}')
  fields["marker"] = marker
  any_spelling = values.get("any_spelling", True)
  if not isinstance(any_spelling, bool):
    raise UserError(f'{place}: "parse.any_spelling" must be true or false, not {any_spelling!r}')
  fields["any_spelling"] = any_spelling
  if values.get("task") is not None:
    fields["task"] = load_task(str(values["task"]))
  if values.get("labels") is not None:
    fields["labels"] = _texts(values["labels"], place, "parse.labels")
  if values.get("choices") is not None:
    fields["choices"] = _pattern(values["choices"], place)
  most = values.get("max_label_characters", MAX_LABEL_CHARACTERS)
  if type(most) is not int or most < 1:
    raise UserError(f'{place}: "parse.max_label_characters" must be a whole number, not {most!r}')
  fields["max_label_characters"] = most
  return ParseRules(**fields)


def _pattern(value: Any, place: str) -> re.Pattern[str]:
  try:
    pattern = re.compile(value, re.M)
  except (re.error, TypeError) as error:
    raise UserError(
      f'{place}: "parse.choices" is not a valid regular expression ({error}); correct it'
    ) from None
  if pattern.groups != 1:
    raise UserError(f'{place}: "parse.choices" needs one group, the label, not {pattern.groups}')
  return pattern


def _check_templates(prompt: Prompt, place: str) -> None:
  for key, needed in (
    ("question", ["input"]),
    ("question_with_label", ["input", "label"]),
    ("question_with_rationale", ["input", "rationale"]),
    ("answer", ["rationale", "label"]),
  ):
    found = _FIELD.findall(getattr(prompt, key))
    if sorted(found) != sorted(needed) or (key == "answer" and found != needed):
      fields = " and ".join(f"{{{name}}}" for name in needed)
      raise UserError(f'{place}: "{key}" needs {fields} once each, in this order for an answer')
