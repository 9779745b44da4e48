"""Options: one meaning for each flag, and type, bounds and defaults from the schema."""

import collections

import click
import pytest

from dss_jax.cli.annotate import annotate_report
from dss_jax.cli.main import dss
from dss_jax.cli.options import Option
from dss_jax.config.gin_loader import Binding, load_config
from dss_jax.config.schema import DataConfig, RunConfig, TeacherConfig, flatten

COMMANDS = {**dss.commands, "annotate report": annotate_report}


def help_of(option):
  return option.get_help_record(click.Context(click.Command("test")))[1]


def flags_of(command):
  return {option.opts[0]: option for option in command.params if isinstance(option, click.Option)}


def test_type_bounds_and_default_are_the_field_s():
  steps = Option(["--steps"], field="RunConfig.train_steps", help="Steps.")
  assert (steps.type.min, steps.type.max) == (1, None)
  assert help_of(steps) == f"Steps.  [default: {RunConfig.train_steps}; x>=1]"
  labels = Option(["--labels"], field="TeacherConfig.labels", help="Labels.")
  assert tuple(labels.type.choices) == ("keep", "missing", "teacher")
  assert help_of(labels) == f"Labels.  [default: {TeacherConfig.labels}]"
  stopping = Option(["--stop/--no-stop"], field="EvaluationConfig.early_stopping", help="Stop.")
  assert help_of(stopping) == "Stop.  [default: stop]"
  moments = Option(["--on/--off"], field="RunConfig.initial_optimizer_state", help="Moments.")
  assert help_of(moments) == "Moments.  [default: off]"
  # Not given, each is left to the gin files.
  options = [steps, labels, stopping, moments]
  command = click.Command("test", params=options, callback=lambda **flags: flags)
  assert set(command.main([], standalone_mode=False).values()) == {None}


def test_an_entry_of_a_mapping():
  tokens = Option(
    ["--tokens"], field="DataConfig.feature_lengths", key="targets", use_default=True, help="T."
  )
  default = DataConfig().max_output_tokens
  assert tokens.default == default
  assert help_of(tokens) == f"T.  [default: {default}; x>=2]"


def test_a_default_text_replaces_the_field_s():
  option = Option(["--batch"], field="RunConfig.batch_size", default_text="all", help="Batch.")
  assert help_of(option) == "Batch.  [default: all; x>=1]"


@pytest.mark.parametrize("field", ["RunConfig.train_steps", "LossConfig.alpha"])
def test_bounds_are_the_gin_loader_s_unless_a_command_has_no_gin(field):
  """A process that ends while it parses would leave the other processes waiting for it."""

  def parse(**attributes):
    options = [Option(["--value"], field=field, **attributes)]
    command = click.Command("test", params=options, callback=lambda **flags: flags)
    return command.main(["--value", "-1"], standalone_mode=False)

  assert parse() == {"value": -1}
  for attributes in ({"uses_gin": False}, {"use_default": True}):
    with pytest.raises(click.BadParameter, match="not in the range"):
      parse(**attributes)


def test_an_unknown_field_is_a_fault():
  with pytest.raises(KeyError):
    Option(["--steps"], field="RunConfig.steps")


def test_a_flag_means_the_same_in_every_command():
  meanings = collections.defaultdict(set)
  for name, command in COMMANDS.items():
    for flag, option in flags_of(command).items():
      # An answer may be a single token; and the temperature is the student's, not a teacher's.
      if (name, flag) in {("predict", "--max-output-tokens"), ("predict", "--temperature")}:
        continue
      bound = (getattr(option, "field", None), getattr(option, "key", None))
      # Some commands take one student, some take several.
      is_multiple = option.multiple and flag != "--model"
      meanings[flag].add((bound, option.type.name, option.nargs, is_multiple))
  shared = {flag for flag in meanings if sum(flag in flags_of(c) for c in COMMANDS.values()) > 1}
  assert {"--model", "--samples", "--temperature", "--prompt", "--budget-tokens"} <= shared
  assert {flag: found for flag, found in meanings.items() if len(found) > 1} == {}


def test_no_two_flags_set_one_field():
  for name, command in COMMANDS.items():
    bound = [
      (option.field, option.key)
      for option in flags_of(command).values()
      if isinstance(option, Option) and option.field is not None
    ]
    assert len(bound) == len(set(bound)), name


def load(*bindings):
  return load_config(
    RunConfig, ["runs/distill.gin"], [Binding("MODEL_DIR", "x", "test"), *bindings]
  )


def other_value(option):
  """Returns a value of the option's field that is not its default."""
  if option.is_flag:
    return not flatten(load())[option.field]
  if isinstance(option.type, click.Choice):
    value = option.type.choices[-1]
    return (value,) if option.multiple else value
  return {"integer range": 3, "float range": 0.25, "text": "other"}[option.type.name]


@pytest.mark.parametrize("name", ["distill", "tune", "sweep", "plan"])
def test_a_flag_sets_its_field_through_gin(name):
  bound = [
    option
    for option in flags_of(COMMANDS[name]).values()
    if isinstance(option, Option) and option.field and option.key is None
  ]
  checked = 0
  for option in bound:
    if not option.field.startswith("DistributedConfig."):
      value = other_value(option)
      assert flatten(load(Binding(option.binding, value, "test")))[option.field] == value
      checked += 1
  assert checked >= 3
