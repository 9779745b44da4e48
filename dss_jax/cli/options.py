"""The options that several commands share, each declared once, and options bound to the schema.

Imports nothing heavy.
"""

import dataclasses
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal

import click

from dss_jax.config import schema


class _ShownIntRange(click.IntRange):
  """Bounds for the help; the gin loader checks them.

  A run of several processes must report a wrong value after they have connected: a process that
  ends while it parses would leave the others waiting for it.
  """

  def convert(self, value: Any, param: Any, ctx: Any) -> Any:
    return click.INT.convert(value, param, ctx)


class _ShownFloatRange(click.FloatRange):
  """As _ShownIntRange."""

  def convert(self, value: Any, param: Any, ctx: Any) -> Any:
    return click.FLOAT.convert(value, param, ctx)


class Option(click.Option):
  """An option that may be bound to a field of the schema.

  A bound option takes its type, its bounds and the default in its help from the field. Its value is
  None unless the flag is given, so that gin files can set the field.

  Attributes:
    field: `Class.field` of the schema; None for an option that is not bound.
    key: the entry that the option sets, if the field is a mapping.
    binding: what the flag sets in gin: the field, or its macro in runs/distill.gin.
    default_text: the default in the help, if click's own does not show it.
  """

  def __init__(
    self,
    declarations: list[str],
    *,
    field: str | None = None,
    key: str | None = None,
    macro: str | None = None,
    default_text: str | None = None,
    use_default: bool = False,
    uses_gin: bool = True,
    **attributes: Any,
  ):
    """Makes the option.

    Args:
      macro: the macro of the field in runs/distill.gin.
      use_default: whether its value is the field's default, not None, if it is not given.
      uses_gin: whether the gin loader checks the bounds; otherwise the option does, as always
        with use_default.
    """
    self.field, self.key, self.binding = field, key, macro or field
    self.default_text = default_text
    if field is not None:
      hint, default = _field_of(field, key)
      attributes = {**_click_type(hint, uses_gin and not use_default), **attributes}
      if use_default:
        attributes.update(default=default, show_default=True)
      elif default_text is None and default not in (None, ()):
        self.default_text = _shown(default, declarations)
    super().__init__(declarations, **attributes)

  def get_help_extra(self, ctx: click.Context) -> Any:
    extra = super().get_help_extra(ctx)
    if self.default_text is not None:
      extra["default"] = self.default_text
    return extra

  @property
  def flag(self) -> str:
    return self.opts[0]


def _field_of(name: str, key: str | None) -> tuple[Any, Any]:
  """Returns the type and the default of a field, or of an entry of a mapping."""
  class_name, field_name = name.split(".")
  fields = {field.name: field for field in dataclasses.fields(getattr(schema, class_name))}
  field = fields[field_name]
  default: Any = None
  if field.default_factory is not dataclasses.MISSING:
    default = field.default_factory()
  elif field.default is not dataclasses.MISSING:
    default = field.default
  if key is None:
    return field.type, default
  return typing.get_args(field.type)[1], default[key]


def _click_type(hint: Any, uses_gin: bool) -> dict[str, Any]:
  """Returns click's type for a field's type, and the name of its value in the help."""
  if typing.get_origin(hint) in (typing.Union, types.UnionType):
    hint = next(part for part in typing.get_args(hint) if part is not type(None))
  if typing.get_origin(hint) is tuple:
    return _click_type(typing.get_args(hint)[0], uses_gin)
  if typing.get_origin(hint) is Annotated:
    number, bounds = typing.get_args(hint)
    if number is int:
      int_range = _ShownIntRange if uses_gin else click.IntRange
      return {"type": int_range(bounds.low, bounds.high), "metavar": "N"}
    float_range = _ShownFloatRange if uses_gin else click.FloatRange
    return {"type": float_range(bounds.low, bounds.high), "metavar": "X"}
  if typing.get_origin(hint) is Literal:
    return {"type": click.Choice(typing.get_args(hint))}
  # Without a default of its own an on/off flag would be False, not None, unless given.
  return {"default": None} if hint is bool else {"type": hint}


def _shown(default: Any, declarations: list[str]) -> str:
  """Returns a default as the help shows it: that of an on/off flag is the flag's name."""
  if isinstance(default, bool):
    on, _, off = next(text for text in declarations if "/" in text).partition("/")
    return (on if default else off).removeprefix("--")
  return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)


Decorator = Callable[[Any], Any]


def option(*names: str, **attributes: Any) -> Decorator:
  return click.option(*names, cls=Option, **attributes)


def options(*decorators: Decorator) -> Decorator:
  """Returns several options as one decorator, in their order in the help."""

  def decorate(function):
    for decorator in reversed(decorators):
      function = decorator(function)
    return function

  return decorate


def given_options(flags: Mapping[str, Any]) -> Iterator[tuple[Option, Any]]:
  """Yields the options that set a field of RunConfig and that the user gave, and their values."""
  for parameter in click.get_current_context().command.params:
    if isinstance(parameter, Option) and parameter.field is not None:
      value = flags[str(parameter.name)]
      is_of_run = not parameter.field.startswith("DistributedConfig.")
      if is_of_run and value not in (None, ()):
        yield parameter, value


def gin_bindings(flags: Mapping[str, Any]) -> list[Any]:
  """Returns the options that the user gave as gin bindings, except entries of mappings."""
  from dss_jax.config.gin_loader import Binding

  return [
    Binding(str(found.binding), value, found.flag)
    for found, value in given_options(flags)
    if found.key is None
  ]


# Rows.


def dataset(help_text: str, **attributes: Any) -> Decorator:
  return option("--dataset", field="DataConfig.dataset", macro="DATASET", metavar="FILE",
                help=help_text, **attributes)  # fmt: skip


TASK_NAME = option(
  "--task",
  field="DataConfig.task",
  macro="MIXTURE_OR_TASK_NAME",
  metavar="NAME|FILE.py",
  help="A shipped task, or your own task file.",
)
TASK = options(
  TASK_NAME,
  option("--data-dir", field="DataConfig.data_dir", macro="DATA_DIR", metavar="DIR",
         help="The folder of the task's files."),
)  # fmt: skip


def eval_dataset(default_text: str | None = None) -> Decorator:
  return option("--eval-dataset", field="DataConfig.eval_dataset", macro="EVAL_DATASET",
                metavar="FILE", help="JSONL rows for evaluation.",
                default_text=default_text)  # fmt: skip


LABELS_AS_TEXT = option(
  "--labels-as-text/--no-labels-as-text",
  field="DataConfig.labels_as_text",
  help="Take labels that are numbers or booleans as text; else they are refused.",
)
SHARED_ENCODER = option(
  "--shared-encoder/--no-shared-encoder",
  field="DataConfig.shared_encoder",
  help="Encode a row once for its label and its rationale, not once for each.",
)


def vocabulary(default_text: str) -> Decorator:
  return option("--vocabulary", field="DataConfig.vocabulary", macro="VOCABULARY",
                metavar="bytes|FILE", help="bytes, or a SentencePiece model.",
                default_text=default_text)  # fmt: skip


def lengths(*, use_default: bool = False) -> Decorator:
  return options(
    option("--max-input-tokens", field="DataConfig.feature_lengths", key="inputs",
           use_default=use_default, help="Longer inputs are truncated."),
    option("--max-output-tokens", field="DataConfig.feature_lengths", key="targets",
           use_default=use_default, help="Longer labels and rationales are truncated."),
  )  # fmt: skip


# Models.

WEIGHTS = option("--weights", field="DecodingConfig.weights", use_default=True,
                 help="How they are stored; int8 takes a quarter of the space.")  # fmt: skip
REGISTRY = option("--registry", field="RunConfig.registry", metavar="DIR", uses_gin=False,
                  help="The registry of students.",
                  default_text="DSS_REGISTRY_DIR, else in the user's data folder")  # fmt: skip
MODEL = options(
  option("--model", required=True, metavar="DIR|NAME[@VERSION]",
         help="A trained student: its folder, or its name in the registry."),
  REGISTRY,
)  # fmt: skip


def model_dir(**attributes: Any) -> Decorator:
  return option("--model-dir", field="RunConfig.model_dir", macro="MODEL_DIR", metavar="DIR",
                **{"help": "The run's folder, for the student and all else it writes.",
                   **attributes})  # fmt: skip


def student(default_text: str = schema.DEFAULT_STUDENT) -> Decorator:
  return option("--student", metavar="SIZE", default_text=default_text,
                help="tiny, mini, small, base, large, xl, xxl, or another file of "
                "gin_configs/models.")  # fmt: skip


# Runs.

MESH_NAMES = "data=N,model=M|NAME"


def mesh(**attributes: Any) -> Decorator:
  return option("--mesh", metavar=MESH_NAMES,
                help="Devices along each axis, or a file of gin_configs/meshes, or a TPU slice "
                "such as v5e-16.", **attributes)  # fmt: skip


MESH = mesh(default_text="data alone, as many as the batch size divides by")
TRAIN_STEPS = option("--train-steps", field="RunConfig.train_steps", macro="TRAIN_STEPS",
                     help="Steps in all, those before a resume included.")  # fmt: skip


def batch_size(**attributes: Any) -> Decorator:
  return option("--batch-size", field="RunConfig.batch_size", macro="BATCH_SIZE",
                help="Examples per step.", **attributes)  # fmt: skip


def seed(help_text: str, **attributes: Any) -> Decorator:
  return option("--seed", field="RunConfig.seed", macro="SEED", help=help_text, **attributes)


GIN = option("--gin", "gin", multiple=True, metavar="NAME=VALUE",
             help="A gin binding, of a field or a macro; wins over all else; may be "
             "repeated.")  # fmt: skip
GIN_FILE = option("--gin-file", "--gin_file", "gin_files", multiple=True, metavar="FILE",
                  help="A gin file, read after the shipped ones; may be repeated.")  # fmt: skip


# Teachers.


def teacher(help_text: str, **attributes: Any) -> Decorator:
  """Returns the options that `dss distill` and `dss annotate` share."""
  return options(
    option("--teacher", field="TeacherConfig.name", metavar="openai:MODEL|recorded:FILE|t5:MODEL",
           help=help_text, **attributes),
    option("--teacher-url", field="TeacherConfig.url", metavar="URL", default_text="OpenAI's",
           help="The server of openai:MODEL, such as http://HOST:PORT/v1."),
    option("--teacher-key-env", field="TeacherConfig.key_env", metavar="NAME",
           help="The environment variable with the server's API key."),
    option("--teacher-labels", field="TeacherConfig.labels",
           help="Which rows get the teacher's label: none (keep), those without a label "
           "(missing), or all (teacher)."),
    option("--prompt", field="TeacherConfig.prompt", metavar="NAME|FILE.yaml",
           help="A shipped prompt, or your own.",
           default_text="the task's, else one made from the rows"),
    option("--samples", field="TeacherConfig.samples",
           help="Answers per row; the label of the majority wins."),
    option("--temperature", field="TeacherConfig.temperature",
           help="Of the teacher's sampling; 0 takes the most likely answer."),
    option("--rationales-per-row", field="TeacherConfig.rationales_per_row",
           help="The most rationales that a row keeps; all are trained on."),
    option("--api", field="TeacherConfig.api",
           help="Which API of openai:MODEL: chat messages, or a plain text to continue."),
    option("--budget-tokens", field="TeacherConfig.budget_tokens", default_text="no limit",
           help="Send no more requests once so many tokens are spent, by earlier runs, too."),
    option("--request-form", "request_form", multiple=True, field="TeacherConfig.request_form",
           help="What the server takes: max_completion_tokens in place of max_tokens, no stop "
           "sequences, no temperature, no system message; may be repeated.",
           default_text="found out from its refusals"),
    option("--keep-going/--stop-early", field="TeacherConfig.keep_going",
           help="Go on where 8 rows in a row are refused, or none of the first 20 answers "
           "parses."),
  )  # fmt: skip


# Output.


def json_output(what: str) -> Decorator:
  return option("--json", "as_json", is_flag=True, help=f"Print the {what} as JSON.")


def output(help_text: str, *, metavar: str = "FILE", required: bool = True) -> Decorator:
  return option("--output", metavar=metavar, required=required, help=help_text)
